"""Pictures written as base64: in the cells of a TSV file, in text columns, in data addresses."""

import base64
import binascii
import re

__all__ = ["begins_as_picture", "from_base64", "picture_text"]

_DATA = re.compile(r"data:[a-z]+/[a-zA-Z0-9.+-]+;base64,")
_SHORTEST = 64
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def begins_as_picture(start: bytes) -> bool:
    """Whether bytes begin as those of a picture do."""
    return start.startswith(_STARTS) or start[4:8] == b"ftyp"


def picture_text(value: str) -> str | None:
    """The base64 in a value that is a picture and no name: all of it, or what ``data:`` holds."""
    marked = _DATA.match(value)
    if marked:
        return value[marked.end() :]
    if len(value) < _SHORTEST:
        return None
    try:
        start = base64.b64decode(value[:32], validate=True)
    except (binascii.Error, ValueError):
        return None
    return value if begins_as_picture(start) else None


def from_base64(value: str) -> bytes | None:
    """The bytes that a text of base64 means; None where it is none."""
    text = picture_text(value)
    if text is None:
        return None
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
