"""What name and type of a field say about it: a picture, a part of the prompt, or neither."""

import re
from typing import Any

from mmrlhf_engine.sources.files import MEDIA_SUFFIXES
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["check_nested", "may_hold_media", "may_hold_prompt", "unread_field"]

_PROMPT_WORDS = frozenset(
    {"prompt", "question", "query", "instruction", "instructions", "input", "inputs"}
    | {"option", "options", "choice", "choices", "context", "history", "system"}
    | {"passage", "document", "documents", "tool", "tools", "function", "functions"}
    | {"messages", "conversation", "conversations", "hint"}
)
_MEDIA_WORDS = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"}
    | {"pixel", "pixels", "video", "videos", "audio", "audios", "frame", "frames"}
)
_LABEL_WORDS = frozenset(
    {"id", "ids", "idx", "index", "key", "type", "types", "category", "source"}
    | {"sources", "origin", "hash", "length", "len", "tokens", "count", "lang"}
    | {"language", "model", "models", "score", "scores", "name", "names", "width"}
    | {"height", "size", "split", "date", "time", "domain", "difficulty", "level", "num"}
    | {"number", "version", "dataset", "task", "tag", "tags", "license", "response"}
    | {"answer"}
)


def unread_field(name: str) -> BadRecordError:
    """The error for a field that is not read and may be part of the prompt."""
    return BadRecordError(
        "unread_field",
        f"{name!r} is not read, and may be part of the prompt; --ignore-field {name} leaves it out",
    )


def check_nested(name: str, value: Any) -> None:
    """That a field within a message or an answer, which is not read, is no part of the prompt.

    Raises:
        BadRecordError: it may be.
    """
    if may_hold_media(name, value, has_media=True) or may_hold_prompt(name, value, implicit=False):
        raise unread_field(name)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def may_hold_media(name: str, value: Any, *, has_media: bool) -> bool:
    """Whether a field may hold a picture or video, by its type, its name or what it names.

    ``has_media`` says that the record has others, beside which a name of a file means little.
    """
    words = _words(name)
    if _holds_bytes(value):
        return True
    if isinstance(value, bool | int | float):
        return False
    if words & _MEDIA_WORDS and not words & _LABEL_WORDS:
        return True
    return not has_media and _names_media(value)


def may_hold_prompt(name: str, value: Any, *, implicit: bool) -> bool:
    """Whether a field may hold a part of the prompt, by its type and its name.

    ``implicit`` says that no field was the prompt, so that any sentence may be.
    """
    words = _words(name)
    if isinstance(value, bool | int | float) or words & _LABEL_WORDS:
        return False
    sentence = isinstance(value, str) and len(value.split()) > 1
    return bool(words & _PROMPT_WORDS) or (implicit and sentence)


def _names_media(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _names_media(value[0])
    return isinstance(value, str) and value.rpartition(".")[2].lower() in MEDIA_SUFFIXES


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _holds_bytes(value[0])
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes)
    return isinstance(value, bytes)
