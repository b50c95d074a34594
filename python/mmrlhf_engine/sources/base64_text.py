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
        head = "".join(value[:_SHORTEST].split())
        start = base64.b64decode(
            head[: len(head) // 4 * 4], altchars=_alphabet(head), validate=True
        )
    except (binascii.Error, ValueError):
        return None
    return value if begins_as_picture(start) else None


def _alphabet(text: str) -> bytes | None:
    """The two characters besides letters and digits, where they are those of addresses."""
    return b"-_" if "-" in text or "_" in text else None


def from_base64(value: str) -> bytes | None:
    """The bytes that a text of base64 means; None where it is none."""
    text = picture_text(value)
    if text is None:
        return None
    try:
        # Lines of 76 characters, as mail and many encoders write them.
        bare = "".join(text.split()).rstrip("=")
        padded = bare + "=" * (-len(bare) % 4)
        return base64.b64decode(padded, altchars=_alphabet(bare), validate=True)
    except (binascii.Error, ValueError):
        return None
