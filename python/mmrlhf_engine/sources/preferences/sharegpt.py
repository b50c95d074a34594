"""LLaMA-Factory's ShareGPT form: ``conversations``, and one message or text as each answer.

Messages are ``{"from", "value"}`` or, under ``messages``, ``{"role", "content"}``; ``system`` and
``tools`` may be fields of their own; ``function_call`` and ``observation`` are roles. ``<image>``
and ``<video>`` in the text stand for ``images`` and ``videos``, also in the answers.
"""

from typing import Any

from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    MediaTags,
    both_answers,
    media_list,
    only_pair,
    place_in_front,
    required,
)
from mmrlhf_engine.sources.preferences.messages import answer_messages, messages_of, tools_of
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Message,
    Preference,
    Response,
)

__all__ = ["FIELDS", "matches", "parse"]

FIELDS = frozenset(
    {"id", "conversations", "messages", "chosen", "rejected", *IMAGES, *VIDEOS, "system", "tools"}
    | {"margin", "weight"}
)


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    turns = record.get("conversations", record.get("messages"))
    return isinstance(turns, list) and all(
        isinstance(record.get(key), dict | str) for key in ("chosen", "rejected")
    )


def parse(record: dict[str, Any]) -> Preference:
    """One row.

    Raises:
        BadRecordError: it cannot be used.
    """
    tags = MediaTags(media_list(record, *IMAGES), media_list(record, *VIDEOS), tagged=True)
    key = "conversations" if record.get("conversations") is not None else "messages"
    messages = messages_of(key, required(record, key), tags)
    if isinstance(record.get("system"), str) and record["system"]:
        messages.insert(0, Message("system", (record["system"],)))
    if all(message.empty for message in messages):
        raise BadRecordError("empty_prompt", f"{key!r} holds no message with content")
    answers = both_answers(
        tags, lambda side, tags: answer_messages(side, required(record, side), tags)
    )
    prompt = place_in_front(messages, tags.rest())
    responses = tuple(Response(answer) for answer in answers)
    return Preference(tuple(prompt), responses, (only_pair(record),), tools_of(record))
