"""Two answers side by side, and which of them is better.

PKU-SafeRLHF (``better_response_id``), HelpSteer3 (``overall_preference``), SHP (``labels``) and
Chatbot Arena (``winner``). The table below says how each verdict is to be read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.sources.preferences.columns import prompt_turns
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

__all__ = ["FIELDS", "matches", "parse"]

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


@dataclass(frozen=True)
class _Layout:
    answers: tuple[str, str]
    verdict: str
    better: _Better
    whole: bool = False
    """The answers are whole conversations."""


_LAYOUTS = (
    _Layout(("response_0", "response_1"), "better_response_id", _number_of),
    _Layout(("response1", "response2"), "overall_preference", _by_sign),
    _Layout(("human_ref_A", "human_ref_B"), "labels", _first_if_one),
    _Layout(("response_a", "response_b"), "winner", _named),
    _Layout(("conversation_a", "conversation_b"), "winner", _named, whole=True),
)
FIELDS = frozenset(
    {"id", *IMAGES, *VIDEOS, "margin", "weight"}
    | {name for layout in _LAYOUTS for name in (*layout.answers, layout.verdict)}
)


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    return _layout_of(record) is not None


def _layout_of(record: dict[str, Any]) -> _Layout | None:
    return next(
        (one for one in _LAYOUTS if {*one.answers, one.verdict} <= record.keys()),
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
    better = layout.better(required(record, layout.verdict))
    if better is None:
        found = str(record[layout.verdict])[:40]
        raise BadRecordError("bad_rank", f"{layout.verdict!r} is {found!r}, which names no answer")
    tags = MediaTags(media_list(record, *IMAGES), media_list(record, *VIDEOS), tagged=True)
    sides = [required(record, key) for key in layout.answers]
    if layout.whole:
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
