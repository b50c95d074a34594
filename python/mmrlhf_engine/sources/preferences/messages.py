"""Messages of a conversation, in the spellings of OpenAI and Hugging Face and of ShareGPT.

A message is ``{"role", "content"}`` or ``{"from", "value"}``. Content is text or a list of parts.
What a chat template may want besides (``tool_calls``, ``tool_call_id``, ``name``,
``reasoning_content`` and the like) is kept as it is; another field that may hold a picture or text
is an error. A message of the role ``function_call`` or ``tool_call``
holds a call as JSON, and becomes a message of the assistant with ``tool_calls``.
"""

import json
from itertools import pairwise
from typing import Any

from mmrlhf_engine.sources.preferences.field_names import check_nested
from mmrlhf_engine.sources.preferences.fields import (
    MediaTags,
    media_list,
    normal_role,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, Message

__all__ = ["EXTRAS", "answer_messages", "asks_first", "joined_parts", "messages_of", "tools_of"]

EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")
"""Fields of a message that only the chat template knows to use."""

_READ = frozenset({"role", "content", "from", "value", *EXTRAS})
_CALL_ROLES = ("function_call", "tool_call")


def messages_of(key: str, value: Any, tags: MediaTags) -> list[Message]:
    """The messages under ``key``; content parts without a picture take the next one of ``tags``.

    Raises:
        BadRecordError: not of that form.
    """
    if not isinstance(value, list):
        raise wrong_type(key, value, "a list of messages")
    return [_message(key, message, tags) for message in value]


def asks_first(conversation: Any) -> bool:
    """Whether a conversation begins with a question, not with an answer."""
    first = conversation[0] if isinstance(conversation, list) and conversation else None
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return role in ("system", "user", "human", "developer")


def answer_messages(
    key: str, value: Any, tags: MediaTags, *, empty: str | None = None
) -> tuple[Message, ...]:
    """An answer: a text, one message, or the turns that begin with one of the assistant.

    ``empty`` is the reason given for an answer without content; ``empty_KEY`` when None.

    Raises:
        BadRecordError: not of that form, empty, or it begins with another role.
    """
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    messages = messages_of(key, value if isinstance(value, list) else [value], tags)
    if all(message.empty for message in messages):
        raise BadRecordError(empty or f"empty_{key}", f"{key!r} is empty")
    if messages[0].role != "assistant":
        raise BadRecordError("unknown_role", f"{key!r} begins with the {messages[0].role}")
    return tuple(messages)


def tools_of(record: dict[str, Any]) -> str:
    """The tools of a record, as a JSON list; nothing where there are none.

    A tool that is described without the frame of ``{"type": "function", "function": ...}`` gets it,
    since that is what transformers hands to chat templates.

    Raises:
        BadRecordError: they are no list of objects, nor JSON of one.
    """
    value = record.get("tools")
    if isinstance(value, str) and value.strip():
        value = _parsed("tools", value)
    if value in (None, "", []):
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise wrong_type("tools", value, "a list of objects")
    tools = [_without_nulls(tool) for tool in value]
    framed = [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool
        else tool
        for tool in tools
    ]
    return json.dumps(framed, ensure_ascii=False, default=_not_json)


def _message(key: str, message: Any, tags: MediaTags) -> Message:
    if not isinstance(message, dict):
        raise wrong_type(key, message, "messages of the form {role, content} or {from, value}")
    _check_fields(message)
    named = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if named in _CALL_ROLES:
        return Message("assistant", (), _extras({"tool_calls": _calls(key, content)}))
    role = normal_role(named)
    extras = _extras(message)
    if isinstance(content, str):
        return Message(role, tags.parts_of(content), extras)
    if isinstance(content, list):
        return Message(role, joined_parts([_part(key, part, tags) for part in content]), extras)
    if content is None and extras:
        return Message(role, (), extras)
    raise wrong_type(f"{key}.content", content, "text or a list of parts")


def _check_fields(message: dict[str, Any]) -> None:
    """That a message has no field which says something and is not read."""
    for key, value in message.items():
        name = str(key)
        if name in _READ or value in (None, "", []):
            continue
        check_nested(name, value)


def _calls(key: str, content: Any) -> list[dict[str, Any]]:
    """``{"name", "arguments"}`` or several of them, as JSON or not, as ``tool_calls``."""
    if isinstance(content, str):
        content = _parsed(f"{key}.content", content)
    calls = content if isinstance(content, list) else [content]
    if not calls or not all(isinstance(call, dict) and call.get("name") for call in calls):
        raise wrong_type(f"{key}.content", content, "a call {name, arguments}")
    return [{"type": "function", "function": call} for call in calls]


def _parsed(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("wrong_type", f"{key!r} is no JSON: {error}") from None


def _extras(message: dict[str, Any]) -> str:
    given = {key: message[key] for key in EXTRAS if message.get(key) not in (None, "", [])}
    if not given:
        return ""
    return json.dumps(_without_nulls(given), ensure_ascii=False, default=_not_json)


def _not_json(value: object) -> Any:
    raise wrong_type("tool_calls or tools", value, "what JSON can hold")


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object the keys of all; those of others are null, and are left out."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


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


def joined_parts(parts: list[str | Media]) -> tuple[str | Media, ...]:
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
