"""Ranks, scores and reasons of the answers of one query, as fields of a record give them.

The mean of the scores of an answer is that of the dimensions it was scored in (three of MM-RLHF, 1
to 5 each), where all that are there have a number.
"""

from collections.abc import Mapping
from typing import Any

from mmrlhf_engine.sources.preferences.fields import finite, wrong_type
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = [
    "DIMENSIONS",
    "RANKS",
    "REASONS",
    "aligned",
    "answer_texts",
    "mean_scores",
    "ranks_of",
    "ranks_of_text",
    "reasons_of",
]

RANKS = ("rank", "ranks", "ranking", "overall_rank")
"""Fields that hold ranks; MM-RLHF's own name is not known."""

REASONS = ("reason", "reasons", "critique", "critiques", "feedback")
"""Likewise of reasons."""

DIMENSIONS = ("helpfulness", "faithfulness", "ethical")
"""Fields of MM-RLHF's scores, a list each."""


def answer_texts(name: str, texts: Any) -> list[str]:
    """The answers of a query.

    Raises:
        BadRecordError: not a list of texts, or one is empty.
    """
    if not isinstance(texts, list):
        raise wrong_type(name, texts, "a list of texts")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong_type(f"{name}[{number}]", text, "text")
    empty = next((number for number, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise BadRecordError("empty_response", f"{name}[{empty}] is empty")
    return texts


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


def ranks_of(name: str, value: Any, count: int) -> list[int | None]:
    """The rank of each of ``count`` answers, 1 the best, from a list or a text like ``1>2=3``.

    Raises:
        BadRecordError: not one whole number or null for each.
    """
    ranks: list[Any] = ranks_of_text(value) if isinstance(value, str) else value
    if not isinstance(ranks, list) or len(ranks) != count:
        raise BadRecordError("bad_rank", f"{name!r} does not give one rank for each of {count}")
    for rank in ranks:
        number = 0.0 if rank is None else finite(name, rank)
        if not number.is_integer() or not -(2**15) <= number < 2**15:
            raise BadRecordError("bad_rank", f"{name!r} holds {rank!r}, expected whole numbers")
    return [None if rank is None else int(rank) for rank in ranks]


def mean_scores(dimensions: Mapping[str, Any], count: int) -> list[float | None]:
    """The mean over the dimensions that are not null, of each of ``count`` answers.

    Raises:
        BadRecordError: a dimension is no list of a finite number or null for each answer.
    """
    columns = [
        [None if score is None else finite(name, score) for score in aligned(name, values, count)]
        for name, values in dimensions.items()
        if values is not None
    ]
    scores: list[float | None] = []
    for number in range(count):
        known = [score for column in columns if (score := column[number]) is not None]
        scores.append(sum(known) / len(known) if known and len(known) == len(columns) else None)
    return scores


def reasons_of(name: str, values: Any, count: int) -> list[str | None]:
    """The reason for each of ``count`` answers; what is empty or no text is none.

    Raises:
        BadRecordError: not a list of one item for each.
    """
    items = aligned(name, values, count)
    return [item if isinstance(item, str) and item.strip() else None for item in items]


def aligned(name: str, values: Any, count: int) -> list[Any]:
    """A list of one item for each of ``count`` answers; nulls where there is no list.

    Raises:
        BadRecordError: it is something else.
    """
    items = [None] * count if values is None else values
    if not isinstance(items, list) or len(items) != count:
        raise BadRecordError("wrong_length", f"{name!r} does not give one item for each of {count}")
    return items
