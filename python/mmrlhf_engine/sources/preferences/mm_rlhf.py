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
    media_list,
    only_pair,
    place_in_front,
    required,
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
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Media,
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
    "tagged_prompt",
]

FIELDS = frozenset(
    {"id", "image", "video", "prompt", "chosen", "rejected", "chosen_reason", "rejected_reason"}
    | {"is_tie", "margin", "weight"}
)
QUERY_FIELDS = frozenset(
    {"id", "image", "video", "question", "prompt", "models_output", "weight"}
    | {*RANKS, *REASONS, *DIMENSIONS}
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
    text = text_field(record, "prompt", "empty_prompt")
    prompt = tagged_prompt(text, media_list(record, "image"), media_list(record, "video"))
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
    text = text_field(record, asked, "empty_prompt")
    prompt = tagged_prompt(text, media_list(record, "image"), media_list(record, "video"))
    texts = answer_texts("models_output", required(record, "models_output"))
    key = next((key for key in RANKS if record.get(key) is not None), None)
    if key is None:
        raise BadRecordError("missing_key", f"no rank; one of {', '.join(RANKS)} is expected")
    ranks = ranks_of(key, record[key], len(texts))
    scores = mean_scores({name: record.get(name) for name in DIMENSIONS}, len(texts))
    why = next((name for name in REASONS if record.get(name) is not None), REASONS[0])
    reasons = reasons_of(why, record.get(why), len(texts))
    responses = tuple(
        Response(_answer(text), rank=rank, score=score, critique=reason)
        for text, rank, score, reason in zip(texts, ranks, scores, reasons, strict=True)
    )
    return Preference(prompt, responses, tuple(pairs_of_ranks(ranks)))


def tagged_prompt(text: str, images: list[Media], videos: list[Media]) -> tuple[Message, ...]:
    """One user message, its media where the tags stand; in front where there is no tag.

    A tag alone on the last line means the front as well: so the released code trains. The line
    breaks after tags in front belong to the tags.

    Raises:
        BadRecordError: there are more or fewer tags than media.
    """
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
