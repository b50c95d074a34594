"""HH-RLHF: ``chosen`` and ``rejected`` are whole dialogs as text, of ``Human:`` and ``Assistant:``.

The dialogs are the same up to the last turn of the assistant, which is the answer. A few rows part
earlier: then all turns from there on are the answer.
"""

import re
from typing import Any

from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    MediaTags,
    both_answers,
    media_list,
    only_pair,
    place_in_front,
    text_field,
)
from mmrlhf_engine.sources.preferences.messages import answer_messages, messages_of
from mmrlhf_engine.sources.preferences.record import BadRecordError, Preference, Response

__all__ = ["FIELDS", "dialog_turns", "is_dialog", "matches", "parse"]

FIELDS = frozenset({"id", "chosen", "rejected", *IMAGES, "margin", "weight"})
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]*")


def is_dialog(text: str) -> bool:
    """Whether a text is a dialog that begins with the human."""
    first = _SPEAKER.match(text) or _SPEAKER.match(text.lstrip())
    return first is not None and first[1] == "Human"


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    sides = [record.get(key) for key in ("chosen", "rejected")]
    return all(isinstance(side, str) and is_dialog(side) for side in sides) and not record.get(
        "prompt"
    )


def parse(record: dict[str, Any]) -> Preference:
    """One row.

    Raises:
        BadRecordError: it cannot be used.
    """
    sides = {
        key: dialog_turns(key, text_field(record, key, f"empty_{key}"))
        for key in ("chosen", "rejected")
    }
    chosen, rejected = sides.values()
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == min(len(chosen), len(rejected)):
        raise BadRecordError("chosen_is_rejected", "one dialog begins with all of the other")
    # A human turn that differs was an answer to the assistant's turn before it.
    while same and chosen[same]["role"] != "assistant":
        same -= 1
    if not same or chosen[same]["role"] != rejected[same]["role"]:
        raise BadRecordError("prompts_differ", "the dialogs begin with different questions")
    tags = MediaTags(media_list(record, *IMAGES))
    prompt = messages_of("chosen", chosen[:same], tags)
    answers = both_answers(
        tags, lambda key, tags: answer_messages(key, sides[key][same:], tags), reads_text=False
    )
    responses = tuple(Response(answer) for answer in answers)
    return Preference(tuple(place_in_front(prompt, tags.rest())), responses, (only_pair(record),))


def dialog_turns(key: str, text: str) -> list[dict[str, str]]:
    """The turns of a dialog; the opening of an answer at the end of a prompt is left out.

    Raises:
        BadRecordError: it does not begin with the human.
    """
    text = text.strip()
    if not is_dialog(text):
        raise BadRecordError("wrong_type", f"{key!r} does not begin with 'Human:'")
    _, *pieces = _SPEAKER.split(text)
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    if not turns[-1]["content"]:
        turns.pop()
    if not turns:
        raise BadRecordError("empty_prompt", f"{key!r} holds no turn with text")
    return turns
