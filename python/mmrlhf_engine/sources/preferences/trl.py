"""TRL's preference type: ``prompt``, ``chosen``, ``rejected`` as text or as lists of messages.

Without a ``prompt`` the messages that ``chosen`` and ``rejected`` begin with alike are the prompt.
Content is a text or a list of parts; pictures stand in the parts, or under ``images`` or ``image``.
"""

from itertools import pairwise
from typing import Any

from mmrlhf_engine.sources.preferences.fields import (
    MediaTags,
    media_list,
    normal_role,
    number_field,
    only_pair,
    place_in_front,
    required,
    text_field,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.record import (
    STRING_ROLE,
    BadRecordError,
    Media,
    Message,
    Preference,
    Response,
)

__all__ = ["FIELDS", "matches", "messages_of", "parse"]

FIELDS = frozenset(
    {"id", "prompt", "chosen", "rejected", "images", "image", "videos", "video"}
    | {"margin", "weight", "score_chosen", "score_rejected"}
)


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    sides = [record.get(key) for key in ("chosen", "rejected")]
    return all(isinstance(side, str) for side in sides) or all(_is_messages(side) for side in sides)


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and "role" in item for item in value
    )


def parse(record: dict[str, Any]) -> Preference:
    """One row; texts become messages of role ``string``, which the tokeniser knows to treat.

    Raises:
        BadRecordError: it cannot be used.
    """
    tags = MediaTags(media_list(record, "images", "image"), media_list(record, "videos", "video"))
    if isinstance(required(record, "chosen"), str):
        prompt, sides = _strings(record, tags)
    else:
        prompt, sides = _conversations(record, tags)
    responses = tuple(
        Response(side, score=number_field(record, f"score_{key}"))
        for key, side in zip(("chosen", "rejected"), sides, strict=True)
    )
    return Preference(tuple(prompt), responses, (only_pair(record),))


_Sides = list[tuple[Message, ...]]


def _strings(record: dict[str, Any], tags: MediaTags) -> tuple[list[Message], _Sides]:
    sides = [text_field(record, key, f"empty_{key}") for key in ("chosen", "rejected")]
    if record.get("prompt") is None:
        common = _common_start(*sides)
        prompt, sides = sides[0][:common], [side[common:] for side in sides]
        if not prompt.strip():
            raise BadRecordError("empty_prompt", "no 'prompt', and the answers begin differently")
    else:
        prompt = text_field(record, "prompt", "empty_prompt")
    messages = [Message(STRING_ROLE, tags.parts_of(prompt))]
    answers: _Sides = [(Message(STRING_ROLE, (side,)),) for side in sides]
    return place_in_front(messages, tags.rest()), answers


def _common_start(first: str, second: str) -> int:
    """How far two texts are alike, back to the last white space before the first difference."""
    shorter = min(len(first), len(second))
    same = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    while same and not first[same - 1].isspace():
        same -= 1
    return same


def _conversations(record: dict[str, Any], tags: MediaTags) -> tuple[list[Message], _Sides]:
    given = record.get("prompt")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    chosen, rejected = (required(record, key) for key in ("chosen", "rejected"))
    if given is None:
        given, chosen, rejected = _split_prompt(chosen, rejected)
    prompt = messages_of("prompt", given, tags)
    if not any(message.parts for message in prompt):
        raise BadRecordError("empty_prompt", "the prompt has no message with content")
    prompt = place_in_front(prompt, tags.rest())
    sides = []
    for key, side in (("chosen", chosen), ("rejected", rejected)):
        messages = messages_of(key, side, MediaTags())
        if not any(message.text.strip() for message in messages):
            raise BadRecordError(f"empty_{key}", f"{key!r} has no text")
        sides.append(tuple(messages))
    return prompt, sides


def _split_prompt(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The turns two conversations begin with alike, and what is left of each."""
    for key, side in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(side, list):
            raise wrong_type(key, side, "a list of messages")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == min(len(chosen), len(rejected)):
        raise BadRecordError("chosen_is_rejected", "one conversation begins with all of the other")
    return chosen[:same], chosen[same:], rejected[same:]


def messages_of(key: str, value: Any, tags: MediaTags) -> list[Message]:
    """Messages of ``{"role", "content"}``; content parts without a picture take the next one.

    Raises:
        BadRecordError: not of that form.
    """
    if not isinstance(value, list):
        raise wrong_type(key, value, "a list of messages")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise wrong_type(key, message, "messages of the form {role, content}")
        role = normal_role(message.get("role"))
        content = message.get("content")
        if isinstance(content, str):
            messages.append(Message(role, tags.parts_of(content)))
        elif isinstance(content, list):
            parts = [_part(key, part, tags) for part in content]
            messages.append(Message(role, _joined(parts)))
        else:
            raise wrong_type(f"{key}.content", content, "text or a list of parts")
    return messages


def _part(key: str, part: Any, tags: MediaTags) -> str | Media:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        part, kind = {"image": part.get("image_url")}, "image"
    if kind in ("image", "video"):
        own = media_list(part, kind, "path", "url") if kind == "image" else media_list(part, kind)
        return own[0] if own else tags.take(kind)
    raise BadRecordError("wrong_type", f"{key!r} has a part {kind!r}, expected text, image, video")


def _joined(parts: list[str | Media]) -> tuple[str | Media, ...]:
    """Neighbouring texts as one; the templates join them without a mark as well."""
    if all(not isinstance(a, str) or not isinstance(b, str) for a, b in pairwise(parts)):
        return tuple(part for part in parts if part != "")
    joined: list[str | Media] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(part for part in joined if part != "")
