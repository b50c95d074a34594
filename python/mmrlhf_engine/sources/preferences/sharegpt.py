"""LLaMA-Factory's ShareGPT form: ``conversations``, and one message each ``chosen``, ``rejected``.

Messages are ``{"from", "value"}`` or, under ``messages``, ``{"role", "content"}``; ``system`` may
be a field of its own; ``<image>`` and ``<video>`` in the text stand for ``images`` and ``videos``.
"""

from typing import Any

from mmrlhf_engine.sources.preferences.fields import (
    MediaTags,
    media_list,
    normal_role,
    only_pair,
    place_in_front,
    required,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Message,
    Preference,
    Response,
)

__all__ = ["FIELDS", "matches", "parse"]

FIELDS = frozenset(
    {"id", "conversations", "messages", "chosen", "rejected", "images", "videos", "system"}
    | {"margin", "weight"}
)


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    turns = record.get("conversations", record.get("messages"))
    return isinstance(turns, list) and all(
        isinstance(record.get(key), dict) for key in ("chosen", "rejected")
    )


def parse(record: dict[str, Any]) -> Preference:
    """One row.

    Raises:
        BadRecordError: it cannot be used.
    """
    images, videos = media_list(record, "images", "image"), media_list(record, "videos", "video")
    tags = MediaTags(images, videos, tagged=True)
    key = "conversations" if record.get("conversations") is not None else "messages"
    turns = required(record, key)
    if not isinstance(turns, list):
        raise wrong_type(key, turns, "a list of messages")
    messages = [_message(key, turn, tags) for turn in turns]
    if isinstance(record.get("system"), str) and record["system"]:
        messages.insert(0, Message("system", (record["system"],)))
    if not any(message.parts for message in messages):
        raise BadRecordError("empty_prompt", f"{key!r} holds no message with content")
    messages = place_in_front(messages, tags.rest())
    responses = tuple(_answer(side, required(record, side)) for side in ("chosen", "rejected"))
    return Preference(tuple(messages), responses, (only_pair(record),))


def _message(key: str, turn: Any, tags: MediaTags) -> Message:
    if not isinstance(turn, dict):
        raise wrong_type(key, turn, "messages of the form {from, value}")
    text = turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        raise wrong_type(f"{key}.value", text, "text")
    return Message(normal_role(turn.get("from", turn.get("role"))), tags.parts_of(text))


def _answer(side: str, turn: Any) -> Response:
    message = _message(side, turn, MediaTags())
    if message.role != "assistant":
        raise BadRecordError("unknown_role", f"{side!r} is of the {message.role}")
    if not message.text.strip():
        raise BadRecordError(f"empty_{side}", f"{side!r} is empty")
    return Response((message,))
