"""MM-RLHF's two files: ``dpo_pairs.jsonl``, a pair a row, and ``data.jsonl``, a query a row.

A row of ``data.jsonl`` has the outputs of several models with their ranks; it stands for every pair
of differing ranks, and its ties stay ties. The published file is known by its outputs and scores
(``models_output``, ``helpfulness``, ``faithfulness``, ``ethical``); the names of its rank and
reason fields are not, so several spellings are understood, among them one text like ``1>2=3>4``.
"""

import re
from typing import Any

from mmrlhf_engine.sources.preferences.fields import (
    MediaTags,
    finite,
    media_list,
    only_pair,
    place_in_front,
    required,
    text_field,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Message,
    Preference,
    Response,
    pairs_of_ranks,
)

__all__ = [
    "FIELDS",
    "QUERY_FIELDS",
    "matches_pairs",
    "matches_queries",
    "parse_pair",
    "parse_query",
    "ranks_of_text",
]

FIELDS = frozenset(
    {"id", "image", "video", "prompt", "chosen", "rejected", "chosen_reason", "rejected_reason"}
    | {"is_tie", "margin", "weight"}
)
_RANKS = ("rank", "ranks", "ranking", "overall_rank")
_REASONS = ("reason", "reasons", "critique", "critiques", "feedback")
_SCORES = ("helpfulness", "faithfulness", "ethical")
QUERY_FIELDS = frozenset(
    {"id", "image", "video", "question", "prompt", "models_output", "weight"}
    | {*_RANKS, *_REASONS, *_SCORES}
)
_OPENING_TAGS = re.compile(r"(?:<(?:image|video)>\s*)+")
_CLOSING_TAG = re.compile(r"(.*\S)\s*\n\s*(<(?:image|video)>)", re.DOTALL)


def matches_pairs(record: dict[str, Any]) -> bool:
    """Whether a record is one of ``dpo_pairs.jsonl``.

    TRL's vision sets have the same three keys as plain text, but bytes or lists for pictures.
    """
    texts = all(isinstance(record.get(key), str) for key in ("prompt", "chosen", "rejected"))
    named = any(isinstance(record.get(key), str) for key in ("image", "video"))
    own = not record.keys().isdisjoint({"chosen_reason", "rejected_reason", "is_tie"})
    return texts and (named or own)


def matches_queries(record: dict[str, Any]) -> bool:
    """Whether a record is one of ``data.jsonl``."""
    return isinstance(record.get("models_output"), list)


def parse_pair(record: dict[str, Any]) -> Preference:
    """A row of ``dpo_pairs.jsonl``.

    Raises:
        BadRecordError: it cannot be used.
    """
    prompt = _prompt(record, text_field(record, "prompt", "empty_prompt"))
    responses = tuple(
        Response(_answer(text_field(record, key, f"empty_{key}")), critique=_reason(record, key))
        for key in ("chosen", "rejected")
    )
    tie = record.get("is_tie") or False
    if not isinstance(tie, bool | int):
        raise wrong_type("is_tie", tie, "true or false")
    pair = only_pair(record, tie=bool(tie))
    return Preference(prompt, responses, (pair,))


def parse_query(record: dict[str, Any]) -> Preference:
    """A row of ``data.jsonl``, with every pair its ranks stand for.

    Raises:
        BadRecordError: it cannot be used.
    """
    asked = "question" if record.get("question") is not None else "prompt"
    prompt = _prompt(record, text_field(record, asked, "empty_prompt"))
    texts = required(record, "models_output")
    if not isinstance(texts, list):
        raise wrong_type("models_output", texts, "a list of texts")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong_type(f"models_output[{number}]", text, "text")
    empty = next((number for number, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise BadRecordError("empty_response", f"models_output[{empty}] is empty")
    ranks = _ranks(record, len(texts))
    scores, reasons = _scores(record, len(texts)), _aligned(record, _REASONS, len(texts))
    responses = tuple(
        Response(
            _answer(text),
            rank=rank,
            score=score,
            critique=reason if isinstance(reason, str) and reason.strip() else None,
        )
        for text, rank, score, reason in zip(texts, ranks, scores, reasons, strict=True)
    )
    return Preference(prompt, responses, tuple(pairs_of_ranks(ranks)))


def _prompt(record: dict[str, Any], text: str) -> tuple[Message, ...]:
    """One user message, its media where the tags stand; in front where there is no tag.

    A tag alone on the last line means the front as well: so the released code trains. The line
    breaks after tags in front belong to the tags.

    Raises:
        BadRecordError: there are more or fewer tags than media.
    """
    images, videos = media_list(record, "image"), media_list(record, "video")
    text = text.strip()
    if videos and not images and "<video>" not in text:
        # The released code calls the place of any medium <image>.
        text = text.replace("<image>", "<video>")
    closing = _CLOSING_TAG.fullmatch(text)
    if closing and not re.search("<(?:image|video)>", closing[1]):
        text = f"{closing[2]}{closing[1]}"
    opening = _OPENING_TAGS.match(text)
    if opening:
        text = "".join(opening[0].split()) + text[opening.end() :]
    tags = MediaTags(images, videos, tagged=True)
    return tuple(place_in_front([Message("user", tags.parts_of(text))], tags.rest()))


def _answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", (text,)),)


def _reason(record: dict[str, Any], side: str) -> str | None:
    reason = record.get(f"{side}_reason")
    if reason is not None and not isinstance(reason, str):
        raise wrong_type(f"{side}_reason", reason, "text")
    return reason if reason and reason.strip() else None


def ranks_of_text(text: str) -> list[int]:
    """``1>2=3>4`` (response numbers, best first) as the rank of response 1, 2, ...: 1, 2, 2, 3.

    Raises:
        BadRecordError: not of that form, or a response is missing or named twice.
    """
    groups = [
        [number.strip() for number in group.split("=")] for group in text.strip("[] ").split(">")
    ]
    rank_of = {
        int(number): rank
        for rank, group in enumerate(groups, start=1)
        for number in group
        if number.isdecimal() and len(number) < 6
    }
    named = sum(len(group) for group in groups)
    if sorted(rank_of) != list(range(1, named + 1)):
        raise BadRecordError("bad_rank", f"rank {text!r}, expected a form like 1>2=3")
    return [rank_of[number] for number in range(1, named + 1)]


def _ranks(record: dict[str, Any], count: int) -> list[int | None]:
    key = next((key for key in _RANKS if record.get(key) is not None), None)
    if key is None:
        raise BadRecordError("missing_key", f"no rank; one of {', '.join(_RANKS)} is expected")
    value = record[key]
    ranks: list[Any] = ranks_of_text(value) if isinstance(value, str) else value
    if not isinstance(ranks, list) or len(ranks) != count:
        raise BadRecordError("bad_rank", f"{key!r} does not give one rank for each of {count}")
    for rank in ranks:
        number = 0.0 if rank is None else finite(key, rank)
        if not number.is_integer() or not -(2**15) <= number < 2**15:
            raise BadRecordError("bad_rank", f"{key!r} holds {rank!r}, expected whole numbers")
    return [None if rank is None else int(rank) for rank in ranks]


def _scores(record: dict[str, Any], count: int) -> list[float | None]:
    """The mean of the three dimensions (each 1 to 5), where all that are there have a number."""
    columns = [
        [None if score is None else finite(key, score) for score in _aligned(record, (key,), count)]
        for key in _SCORES
        if record.get(key) is not None
    ]
    scores: list[float | None] = []
    for number in range(count):
        known = [score for column in columns if (score := column[number]) is not None]
        scores.append(sum(known) / len(known) if known and len(known) == len(columns) else None)
    return scores


def _aligned(record: dict[str, Any], keys: tuple[str, ...], count: int) -> list[Any]:
    """The list under the first of ``keys`` that is there, one item a response."""
    key = next((key for key in keys if record.get(key) is not None), None)
    values = record[key] if key is not None else [None] * count
    if not isinstance(values, list) or len(values) != count:
        raise BadRecordError("wrong_length", f"{key!r} does not give one item for each of {count}")
    return values
