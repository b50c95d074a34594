"""What annotators said of the answers to a query, a query and an annotator a row.

MM-RLHF's ``data.jsonl`` is read, and a layout of our own, which has other names for the same::

    {"id": "q1", "prompt": "Which bird is this?", "image": "short/bird.png",
     "answers": ["A magpie.", "A crow.", "A bird."],
     "rank": [1, 3, 2],                            or "1>3>2": answers by number, best first
     "scores": {"helpfulness": [5, 2, 3], "faithfulness": [5, 1, 4]},     or one list
     "reasons": ["Right.", "Wrong bird.", "Says little."],
     "annotator": "ann"}

Only the prompt (or ``question``), the answers and either ranks or scores are needed. Answers may be
objects with their ``text``; what else such an object holds is not read, and is named. ``fields``
names other fields to read: those of MM-RLHF's ranks and reasons are not documented.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.sources.preferences.field_names import check_nested
from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    first_present,
    media_list,
    text_field,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.judgements import (
    DIMENSIONS,
    RANKS,
    REASONS,
    answer_texts,
    mean_scores,
    ranks_of,
    reasons_of,
)
from mmrlhf_engine.sources.preferences.mm_rlhf import tagged_prompt
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, Preference
from mmrlhf_engine.sources.preferences.unread import bookkeeping, without_fields

__all__ = ["PARTS", "Annotation", "read_annotation"]

PARTS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "prompt": ("question", "prompt"),
    "image": IMAGES,
    "video": VIDEOS,
    "answers": ("models_output", "answers", "responses"),
    "rank": RANKS,
    "scores": ("scores",),
    "reasons": REASONS,
    "annotator": ("annotator",),
}
"""Parts of an annotation, and the fields that may hold each; the first that is there is read."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row; lists have an item an answer."""

    id: str | None
    prompt: str
    """As the record has it, tags of media included."""
    media: tuple[Media, ...]
    """Images, then videos."""
    answers: tuple[str, ...]
    ranks: tuple[int | None, ...]
    """1 is the best; all None where none are given."""
    scores: tuple[float | None, ...]
    """Means over the dimensions."""
    reasons: tuple[str | None, ...]
    annotator: str | None


def read_annotation(
    record: dict[str, Any],
    fields: Mapping[str, str] | None = None,
    ignored: frozenset[str] = frozenset(),
) -> tuple[Annotation, list[str]]:
    """A row, and the names of its fields that were not read.

    Args:
        record: The row.
        fields: For parts of :data:`PARTS`, the one field that holds it.
        ignored: Fields to leave out, whatever they hold.

    Raises:
        BadRecordError: it cannot be used, or an unread field may be part of the prompt.
    """
    fields = fields or {}
    left_out = sorted(ignored & record.keys())
    if ignored:
        record = without_fields(record, ignored)
    names = {part: (fields[part],) if part in fields else PARTS[part] for part in PARTS}
    found = {part: first_present(record, names[part]) for part in PARTS}

    asked = next((name for name in names["prompt"] if record.get(name) is not None), None)
    prompt = text_field(record, _there(record, "prompt", names, asked), "empty_prompt")
    images, videos = (
        _media(record, found["image"], "image"),
        _media(record, found["video"], "video"),
    )
    messages = tagged_prompt(prompt, images, videos)
    where = _there(record, "answers", names, found["answers"])
    texts, unread_within = _texts_of(where, record[where])
    answers = answer_texts(where, texts)
    count = len(answers)

    rank = found["rank"]
    why = found["reasons"]
    annotation = Annotation(
        id=_name(record, found["id"]),
        prompt=prompt,
        media=(*images, *videos),
        answers=tuple(answers),
        ranks=tuple([None] * count if rank is None else ranks_of(rank, record[rank], count)),
        scores=tuple(mean_scores(_dimensions(record, found["scores"]), count)),
        reasons=tuple(reasons_of(why or "reasons", record[why] if why else None, count)),
        annotator=_name(record, found["annotator"]),
    )
    read = frozenset(name for several in names.values() for name in several) | {*DIMENSIONS}
    unread = bookkeeping(record, read, Preference(messages, (), ()))
    return annotation, [*left_out, *unread, *unread_within]


def _texts_of(name: str, answers: Any) -> tuple[Any, list[str]]:
    """Answers with the text in place of each object that has one, and fields not read of these.

    Raises:
        BadRecordError: an object has no text, or another field of it may be part of the prompt.
    """
    if not isinstance(answers, list):
        return answers, []
    texts: list[Any] = []
    names: dict[str, None] = {}
    for number, answer in enumerate(answers):
        if not isinstance(answer, dict):
            texts.append(answer)
            continue
        if answer.get("text") is None:
            keys = ", ".join(sorted(map(str, answer))) or "none"
            detail = f"{name}[{number}] is an object without 'text'; keys found: {keys}"
            raise BadRecordError("missing_key", detail)
        texts.append(answer["text"])
        for field, value in answer.items():
            if field != "text" and value not in (None, "", [], {}):
                check_nested(str(field), value)
                names[f"{name}[].{field}"] = None
    return texts, list(names)


def _there(
    record: dict[str, Any], part: str, names: Mapping[str, tuple[str, ...]], found: str | None
) -> str:
    """The field of a part that must be there.

    Raises:
        BadRecordError: it is not.
    """
    if found is None:
        keys = ", ".join(sorted(map(str, record))) or "none"
        expected = " or ".join(repr(name) for name in names[part])
        raise BadRecordError("missing_key", f"no {part}: expected {expected}; keys found: {keys}")
    return found


def _media(record: dict[str, Any], key: str | None, kind: str) -> list[Media]:
    return [] if key is None else media_list({kind: record[key]}, kind)


def _name(record: dict[str, Any], key: str | None) -> str | None:
    """A name, which may be a number; None where there is none."""
    value = None if key is None else record[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise wrong_type(str(key), value, "text or a whole number")
    return None if value is None else str(value)


def _dimensions(record: dict[str, Any], key: str | None) -> dict[str, Any]:
    """The lists of scores by dimension."""
    if key is None:
        return {name: record.get(name) for name in DIMENSIONS}
    scores = record[key]
    if isinstance(scores, dict):
        return {f"{key}.{name}": values for name, values in scores.items()}
    return {key: scores}
