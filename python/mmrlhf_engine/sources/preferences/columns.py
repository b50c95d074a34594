"""Rows of plain columns: a question and two answers, by whatever names these go.

RLAIF-V, RLHF-V and MMPR (``question``), Alpaca's preference form (``instruction`` and ``input``),
``query`` with ``response_chosen``, and others; the tables below list the names. RLHF-V has the
three texts as JSON in one column, ``text``; LLaMA-Factory's older form has both answers in
``output``.
"""

import json
from typing import Any

from mmrlhf_engine.sources.preferences.field_names import check_nested
from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    MediaTags,
    both_answers,
    first_present,
    media_list,
    number_field,
    only_pair,
    place_in_front,
    text_field,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.messages import (
    answer_messages,
    asks_first,
    messages_of,
    tools_of,
)
from mmrlhf_engine.sources.preferences.ms_swift import history_turns
from mmrlhf_engine.sources.preferences.record import BadRecordError, Preference, Response

__all__ = [
    "FIELDS",
    "columns_read",
    "matches",
    "parse",
    "prompt_columns",
    "prompt_turns",
    "question_of",
    "unread_within",
]

QUESTIONS = ("question", "query", "instruction", "prompt", "context", "input", "history")
"""Columns that hold the question; the first that is there is read."""

ANSWERS = (
    ("chosen", "rejected"),
    ("response_chosen", "response_rejected"),
    ("chosen_response", "rejected_response"),
    ("answer_chosen", "answer_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("preferred", "dispreferred"),
    ("preferred_response", "dispreferred_response"),
    ("accepted", "rejected"),
    ("response", "rejected_response"),
    ("response_j", "response_k"),
)
"""Columns that hold the better and the worse answer."""

_SYSTEM = ("system", "system_prompt")
FIELDS = frozenset(
    {"id", "tools", *IMAGES, *VIDEOS} | {"margin", "weight", "score_chosen", "score_rejected"}
)


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form.

    One whose answers are ``chosen`` and ``rejected`` is TRL's if its prompt is ``prompt``, or if
    the answers are conversations that hold it.
    """
    try:
        record = _unfolded(record)
    except BadRecordError:
        return False
    columns = _answer_columns(record)
    if columns is None or question_of(record) is None:
        return False
    if isinstance(record[columns[0]], dict):
        return True
    own_prompt = record.get("prompt") is not None or asks_first(record[columns[0]])
    return not (own_prompt and columns == ANSWERS[0])


def parse(record: dict[str, Any]) -> Preference:
    """One row.

    Raises:
        BadRecordError: it cannot be used.
    """
    record = _unfolded(record)
    columns = _answer_columns(record)
    if columns is None:
        raise BadRecordError("missing_key", f"no two answers; keys: {', '.join(sorted(record))}")
    tags = MediaTags(media_list(record, *IMAGES), media_list(record, *VIDEOS), tagged=True)
    prompt = messages_of("prompt", prompt_turns(record), tags)
    sides = dict(zip(("chosen", "rejected"), columns, strict=True))
    answers = both_answers(
        tags, lambda side, tags: answer_messages(side, record.get(sides[side]), tags)
    )
    responses = tuple(
        Response(answer, score=number_field(record, f"score_{side}"))
        for side, answer in zip(sides, answers, strict=True)
    )
    placed = place_in_front(prompt, tags.rest())
    return Preference(tuple(placed), responses, (only_pair(record),), tools_of(record))


def question_of(record: dict[str, Any]) -> str | None:
    """The column of the question; None where there is none."""
    return first_present(record, QUESTIONS)


def columns_read(record: dict[str, Any]) -> frozenset[str]:
    """The columns that :func:`parse` reads of a record, besides :data:`FIELDS`."""
    keys = (_folded_column(record), *(_answer_columns(_unfolded(record)) or ()))
    return prompt_columns(record) | frozenset(key for key in keys if key is not None)


def unread_within(record: dict[str, Any]) -> list[str]:
    """The fields of texts as JSON that :func:`parse` does not read, as ``text.note``.

    Raises:
        BadRecordError: one may be a part of the prompt.
    """
    if _folded_column(record) != "text":
        return []
    inner, names = json.loads(record["text"]), []
    read = FIELDS | columns_read(record)
    for name, value in inner.items() if isinstance(inner, dict) else ():
        if name not in read and value not in (None, "", [], {}):
            try:
                check_nested(name, value)
            except BadRecordError as error:
                # What --ignore-field names is not looked for within a text.
                found = f"'text' holds {name!r}, which is not read and may be part of the prompt"
                raise BadRecordError(error.reason, found) from None
            names.append(f"text.{name}")
    return names


def prompt_columns(record: dict[str, Any]) -> frozenset[str]:
    """The columns that :func:`prompt_turns` reads of a record."""
    record = _unfolded(record)
    keys = (question_of(record), first_present(record, _SYSTEM), "input", "history")
    return frozenset(key for key in keys if key is not None)


def prompt_turns(record: dict[str, Any]) -> list[dict[str, Any]]:
    """``system``, ``history`` and the question, with Alpaca's ``input`` below its instruction.

    Raises:
        BadRecordError: there is no question, or it is not text or messages.
    """
    key = question_of(record)
    if key is None:
        raise BadRecordError("empty_prompt", f"none of {', '.join(QUESTIONS)} holds a question")
    system = first_present(record, _SYSTEM)
    known = {"system": record[system] if system else None}
    known["history"] = record.get("history") if key != "history" else None
    turns = history_turns(known)
    if isinstance(record[key], list):
        return [*turns, *record[key]]
    question = text_field(record, key, "empty_prompt")
    more = record.get("input") if key != "input" else None
    if isinstance(more, str) and more.strip():
        question = f"{question}\n{more}"
    elif more not in (None, "", []):
        raise wrong_type("input", more, "text")
    return [*turns, {"role": "user", "content": question}]


def _folded_column(record: dict[str, Any]) -> str | None:
    """The column that holds the texts as JSON, or both answers as a list; None without one."""
    text, output = record.get("text"), record.get("output")
    if isinstance(text, str) and text.lstrip()[:1] == "{":
        return "text"
    if isinstance(output, list) and len(output) == 2 and _answer_columns(record) is None:
        return "output"
    return None


def _unfolded(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose texts are JSON in ``text``, or whose answers are a list, as plain columns."""
    match _folded_column(record):
        case "text":
            try:
                inner = json.loads(record["text"])
            except (ValueError, RecursionError) as error:
                raise BadRecordError("broken_record", f"'text' is no JSON: {error}") from None
            return {**record, **inner} if isinstance(inner, dict) else record
        case "output":
            chosen, rejected = record["output"]
            return {**record, "chosen": chosen, "rejected": rejected}
    return record


def _answer_columns(record: dict[str, Any]) -> tuple[str, str] | None:
    return next(
        (names for names in ANSWERS if all(record.get(name) is not None for name in names)), None
    )
