"""ms-swift: ``messages`` that end with the chosen answer, and ``rejected_response``.

The rejected side may also be ``rejected_messages``, a conversation of its own. ``<image>`` and
``<video>`` in the text stand for ``images`` and ``videos``; ``rejected_images`` are those of the
rejected conversation. They may be others than the chosen ones, in the prompt or in the answer.
"""

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
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Media,
    Message,
    Preference,
    Response,
)
from mmrlhf_engine.sources.preferences.trl import messages_of

__all__ = ["FIELDS", "matches", "parse"]

FIELDS = frozenset(
    {"id", "messages", "system", "query", "response", "rejected_response", "rejected_messages"}
    | {"images", "videos", "rejected_images", "rejected_videos", "margin", "weight"}
)
_REJECTED = ("rejected_response", "rejected_messages")


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    conversation = "messages" in record or {"query", "response"} <= record.keys()
    return conversation and not record.keys().isdisjoint({*_REJECTED, "rejected_images"})


def parse(record: dict[str, Any]) -> Preference:
    """One row.

    Raises:
        BadRecordError: it cannot be used.
    """
    chosen = _messages(record)
    images, videos = media_list(record, "images", "image"), media_list(record, "videos", "video")
    other_images, other_videos = (
        media_list(record, f"rejected_{key}") or own
        for key, own in (("images", images), ("videos", videos))
    )
    prompt, answer = _split("chosen", chosen, MediaTags(images, videos, tagged=True))
    other_prompt, other = _split(
        "rejected", _rejected(record, chosen), MediaTags(other_images, other_videos, tagged=True)
    )
    instead = _other_media(prompt, other_prompt)
    if instead and other.media:
        raise BadRecordError(
            "prompts_differ",
            "the rejected side has other media in the prompt and more in its answer",
        )
    responses = (Response((answer,)), Response((other,), instead=instead))
    return Preference(tuple(prompt), responses, (only_pair(record),))


def _other_media(prompt: list[Message], other: list[Message]) -> tuple[Media, ...]:
    """The media of the second prompt where they differ; all else must be the same."""
    if prompt == other:
        return ()

    def shape(messages: list[Message]) -> list[tuple[str, list[str]]]:
        return [
            (message.role, [part if isinstance(part, str) else part.kind for part in message.parts])
            for message in messages
        ]

    if shape(prompt) != shape(other):
        raise BadRecordError(
            "prompts_differ", "the rejected conversation has other turns, or more or fewer media"
        )
    return tuple(media for message in other for media in message.media)


def _messages(record: dict[str, Any]) -> list[Any]:
    messages = record.get("messages")
    if messages is None:
        system = [{"role": "system", "content": record["system"]}] if record.get("system") else []
        turns = [("user", required(record, "query")), ("assistant", required(record, "response"))]
        messages = [*system, *({"role": role, "content": text} for role, text in turns)]
    if not isinstance(messages, list) or not messages:
        raise wrong_type("messages", messages, "a list of messages")
    return messages


def _rejected(record: dict[str, Any], chosen: list[Any]) -> list[Any]:
    """The rejected conversation, whole."""
    messages = record.get("rejected_messages")
    if messages is None:
        text = text_field(record, "rejected_response", "empty_rejected")
        return [*chosen[:-1], {"role": "assistant", "content": text}]
    if not isinstance(messages, list) or not messages:
        raise wrong_type("rejected_messages", messages, "a list of messages")
    return messages


def _split(key: str, conversation: list[Any], tags: MediaTags) -> tuple[list[Message], Message]:
    """The prompt with its media, and the last message, which is the answer."""
    messages = messages_of(key, conversation, tags)
    *prompt, answer = place_in_front(messages, tags.rest())
    if answer.role != "assistant":
        raise BadRecordError(f"empty_{key}", f"the last message is of the {answer.role}")
    if not answer.parts or not (answer.text.strip() or answer.media):
        raise BadRecordError(f"empty_{key}", "the last message is empty")
    if not any(message.parts for message in prompt):
        raise BadRecordError("empty_prompt", "there is no message before the answer")
    return prompt, answer
