"""What becomes of the fields of a record that its format does not read.

A field that may be part of the prompt (a question, options, a system text, tools, a picture) and is
not read makes the row unusable: the prompt would be another than the one that was answered. A field
whose text stands in the prompt anyway is read. Everything else is bookkeeping, and is counted.
"""

import re
from collections.abc import Iterator
from typing import Any

from mmrlhf_engine.sources.preferences.dialog import dialog_turns, is_dialog
from mmrlhf_engine.sources.preferences.field_names import (
    may_hold_media,
    may_hold_prompt,
    unread_field,
)
from mmrlhf_engine.sources.preferences.fields import IMAGES, VIDEOS
from mmrlhf_engine.sources.preferences.record import STRING_ROLE, Preference

__all__ = ["bookkeeping", "without_fields"]

_NOTHING: tuple[Any, ...] = (None, "", [], {})
_TAG = re.compile(r"<(?:image|video)>")


def bookkeeping(
    record: dict[str, Any], fields: frozenset[str], preference: Preference
) -> list[str]:
    """The fields that were not read and say nothing about the prompt.

    Args:
        record: The record.
        fields: The fields that its format has read.
        preference: What was read from them.

    Raises:
        BadRecordError: a field may be part of the prompt, and is not read.
    """
    others = [key for key in record if key not in fields and record[key] not in _NOTHING]
    if not others:
        return []
    said = [_flat(message.text) for message in preference.prompt]
    values = [record[key] for key in fields if isinstance(record.get(key), list)]
    # Of bare texts without a prompt, any other text may be what was asked.
    implicit = preference.prompt[0].role == STRING_ROLE and record.get("prompt") is None
    has_media = any(message.media for message in preference.prompt)
    unread = []
    for key in others:
        name, value = str(key), record[key]
        again = _named_again(name, record)
        if may_hold_media(name, value, has_media=has_media) and not again:
            raise unread_field(name)
        if may_hold_prompt(name, value, implicit=implicit):
            if value not in values and not all(_is_in(said, text) for text in _texts(value)):
                raise unread_field(name)
            continue
        unread.append(name)
    return unread


def without_fields(value: Any, names: frozenset[str]) -> Any:
    """A record without these fields, in its messages either."""
    if isinstance(value, dict):
        return {k: without_fields(item, names) for k, item in value.items() if k not in names}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [without_fields(item, names) for item in value]
    return value


def _is_in(said: list[str], text: str) -> bool:
    """Whether a text stands in the prompt; one word alone may stand there by chance."""
    text = _flat(text)
    return text in said or (" " in text and any(text in one for one in said))


def _named_again(name: str, record: dict[str, Any]) -> bool:
    """Whether a field is another name of images or videos that were read under a first one."""
    return any(
        name in names and any(record.get(other) for other in names if other != name)
        for names in (IMAGES, VIDEOS)
    )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value; of a dialog, what each side says."""
    if isinstance(value, str):
        if is_dialog(value):
            yield from (turn["content"] for turn in dialog_turns("text", value))
        else:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _flat(text: str) -> str:
    """A text without tags of media, and with single blanks."""
    return " ".join(_TAG.sub(" ", text).split())
