"""Two answers side by side, and which of them is better.

PKU-SafeRLHF (``better_response_id``), HelpSteer3 (``overall_preference``), HelpSteer2
(``preference_strength``), SHP (``labels``) and Chatbot Arena (``winner``, or a column for each
outcome). The table below says how each verdict is to be read.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.sources.preferences.columns import prompt_columns, prompt_turns
from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    MediaTags,
    media_list,
    only_pair,
    place_in_front,
    required,
)
from mmrlhf_engine.sources.preferences.messages import answer_messages, messages_of
from mmrlhf_engine.sources.preferences.record import BadRecordError, Message, Preference, Response

__all__ = ["FIELDS", "columns_read", "matches", "parse"]

_Better = Callable[[Any], int | None]
"""A verdict as 0 (the first is better), 1 (the second), 2 (a tie); None for anything else."""


def _number_of(verdict: Any) -> int | None:
    return verdict if verdict in (0, 1) and not isinstance(verdict, bool) else None


def _first_if_one(verdict: Any) -> int | None:
    return {1: 0, 0: 1}.get(verdict) if isinstance(verdict, int) else None


def _by_sign(verdict: Any) -> int | None:
    if isinstance(verdict, bool) or not isinstance(verdict, int | float) or verdict != verdict:
        return None
    return 2 if verdict == 0 else int(verdict > 0)


def _named(verdict: Any) -> int | None:
    names = {"model_a": 0, "model_b": 1, "tie": 2, "tie (bothbad)": 2, "a": 0, "b": 1}
    return names.get(verdict.lower()) if isinstance(verdict, str) else None


def _only_one(verdicts: list[Any]) -> int | None:
    ones = [number for number, verdict in enumerate(verdicts) if verdict == 1]
    others = [verdict for verdict in verdicts if verdict == 0]
    return ones[0] if len(ones) == 1 and len(others) == len(verdicts) - 1 else None


@dataclass(frozen=True)
class _Layout:
    answers: tuple[str, str]
    verdict: str | tuple[str, ...]
    """One column, or one for each outcome, which are read as a list."""
    better: _Better
    whole: bool = False
    """The answers are whole conversations."""
    by_speaker: bool = False
    """The prompt and the answers may be lists of what one speaker says."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The columns of the verdict."""
        return (self.verdict,) if isinstance(self.verdict, str) else self.verdict


_LAYOUTS = (
    _Layout(("response_0", "response_1"), "better_response_id", _number_of),
    _Layout(("response1", "response2"), "overall_preference", _by_sign),
    _Layout(("response_1", "response_2"), "preference_strength", _by_sign),
    _Layout(("human_ref_A", "human_ref_B"), "labels", _first_if_one),
    _Layout(("response_a", "response_b"), "winner", _named, by_speaker=True),
    _Layout(
        ("response_a", "response_b"),
        ("winner_model_a", "winner_model_b", "winner_tie"),
        _only_one,
        by_speaker=True,
    ),
    _Layout(("conversation_a", "conversation_b"), "winner", _named, whole=True),
)
FIELDS = frozenset({"id", *IMAGES, *VIDEOS, "margin", "weight"})


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    return _layout_of(record) is not None


def columns_read(record: dict[str, Any]) -> frozenset[str]:
    """The columns that :func:`parse` reads of a record, besides :data:`FIELDS`."""
    layout = _layout_of(record)
    if layout is None:
        return frozenset()
    own = frozenset({*layout.answers, *layout.verdicts})
    if layout.whole:
        return own
    if layout.by_speaker and _list_of_texts(record.get("prompt")) is not None:
        return own | {"prompt"}
    return own | prompt_columns(record)


def _layout_of(record: dict[str, Any]) -> _Layout | None:
    return next(
        (one for one in _LAYOUTS if {*one.answers, *one.verdicts} <= record.keys()),
        None,
    )


def parse(record: dict[str, Any]) -> Preference:
    """One row; a tie is a pair of equal rank.

    Raises:
        BadRecordError: it cannot be used.
    """
    layout = _layout_of(record)
    if layout is None:
        raise BadRecordError("missing_key", f"no verdict; keys: {', '.join(sorted(record))}")
    given = [required(record, key) for key in layout.verdicts]
    better = layout.better(given[0] if isinstance(layout.verdict, str) else given)
    if better is None:
        name, found = " and ".join(map(repr, layout.verdicts)), ", ".join(map(str, given))[:40]
        raise BadRecordError("bad_rank", f"{name} is {found!r}, which names no answer")
    tags = MediaTags(media_list(record, *IMAGES), media_list(record, *VIDEOS), tagged=True)
    sides = [required(record, key) for key in layout.answers]
    asked = _list_of_texts(record.get("prompt")) if layout.by_speaker else None
    if asked is not None:
        turns = [
            _conversation(key, asked, side) for key, side in zip(layout.answers, sides, strict=True)
        ]
        prompt, answers = _of_conversations(layout, turns, tags)
    elif layout.whole:
        prompt, answers = _of_conversations(layout, sides, tags)
    else:
        prompt = messages_of("prompt", prompt_turns(record), tags)
        answers = [
            answer_messages(key, side, MediaTags(), empty="empty_response")
            for key, side in zip(layout.answers, sides, strict=True)
        ]
    if better == 1:
        answers.reverse()
    placed = place_in_front(prompt, tags.rest())
    pair = only_pair(record, tie=better == 2)
    return Preference(tuple(placed), tuple(map(Response, answers)), (pair,))


def _list_of_texts(value: Any) -> list[str] | None:
    """The turns of one speaker as the arena's sets have them, a list as JSON; None for others."""
    if isinstance(value, str) and value.lstrip()[:2] == '["':
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    texts = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    return value if texts else None


def _conversation(key: str, asked: list[str], side: Any) -> list[dict[str, str]]:
    said = _list_of_texts(side)
    if said is None or len(said) != len(asked):
        raise BadRecordError("wrong_type", f"{key!r} has no text for each of {len(asked)} prompts")
    return [
        {"role": role, "content": text}
        for turn in zip(asked, said, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _of_conversations(
    layout: _Layout, sides: list[Any], tags: MediaTags
) -> tuple[list[Message], list[tuple[Message, ...]]]:
    first, second = (
        messages_of(key, side, tags if number == 0 else MediaTags())
        for number, (key, side) in enumerate(zip(layout.answers, sides, strict=True))
    )
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    if not same or not first[same:] or not second[same:]:
        raise BadRecordError("prompts_differ", "the conversations begin differently, or are equal")
    if any(turns[same].role != "assistant" for turns in (first, second)):
        raise BadRecordError("prompts_differ", f"turn {same + 1} asks different things")
    return first[:same], [tuple(first[same:]), tuple(second[same:])]
