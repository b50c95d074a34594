"""Files of JSON Lines that are measured: each row with its line number, and fields of one type."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import InputError

__all__ = ["Line", "file_state", "read_lines"]


_HALF_A_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""JSON can spell half of a surrogate pair, which is no text and cannot be written."""


@dataclass(frozen=True)
class Line:
    """A row of a file."""

    file: Path
    number: int
    """From 1."""
    fields: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"

    def text(self, *names: str) -> str:
        """The text of the first of these fields that is there and not null.

        Raises:
            InputError: none is there, or it is no text.
        """
        there = [name for name in names if name in self.fields]
        for name in [*(name for name in there if self.fields[name] is not None), *there]:
            if not isinstance(self.fields[name], str):
                raise self.wrong(name, "a text")
            return str(self.fields[name])
        raise self.lacks(names)

    def name(self, field: str) -> str:
        """A text or a whole number, as a text.

        Raises:
            InputError: it is not there, or something else.
        """
        if field not in self.fields:
            raise self.lacks([field])
        value = self.fields[field]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong(field, "a text or a whole number")
        return str(value)

    def texts(self, field: str, *, numbers: bool = False) -> list[str]:
        """A text or a list of texts, at least one.

        Args:
            field: Its name.
            numbers: Whether finite numbers are taken as their texts, whole ones without a point.

        Raises:
            InputError: it is not there, or something else.
        """
        if field not in self.fields:
            raise self.lacks([field])
        value = self.fields[field]
        several = value if isinstance(value, list) else [value]
        if numbers:
            several = [_text_of(one) if _is_finite(one) else one for one in several]
        if not several or not all(isinstance(one, str) for one in several):
            raise self.wrong(field, "a text or a list of texts")
        return list(several)

    def numbers(self, field: str, count: int) -> list[float]:
        """So many finite numbers.

        Raises:
            InputError: the field is not there, or something else.
        """
        if field not in self.fields:
            raise self.lacks([field])
        value = self.fields[field]
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_finite(one) for one in value)
        ):
            raise self.wrong(field, f"{count} finite numbers")
        return [float(one) for one in value]

    def lacks(self, names: Sequence[str]) -> InputError:
        """The error for a field that is not there."""
        found = ", ".join(sorted(self.fields)) or "no field"
        return InputError(f"{self}: found {found}, expected {' or '.join(names)}")

    def wrong(self, field: str, expected: str) -> InputError:
        """The error for a field of another type."""
        text = json.dumps(self.fields[field], ensure_ascii=False)
        short = text if len(text) <= 60 else text[:57] + "..."
        return InputError(f"{self}: {field}: found {short}, expected {expected}")


def read_lines(file: Path) -> list[Line]:
    """The rows of a file of JSON Lines; empty lines are none.

    Raises:
        InputError: there is no such file, no row in it, or a line that is no JSON object.
    """
    lines = []
    for number, content in enumerate(_content(file).split(b"\n"), 1):
        if not content.strip():
            continue
        try:
            fields = json.loads(content)
            if _HALF_A_CHARACTER.search(content):
                json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{file}:{number}: found half of a character, "
                f"\\u{ord(error.object[error.start]):04x} alone, expected a surrogate pair"
            ) from None
        except ValueError as error:
            raise InputError(f"{file}:{number}: not valid JSON: {error}") from None
        except RecursionError:
            raise InputError(f"{file}:{number}: not valid JSON: too deeply nested") from None
        if not isinstance(fields, dict):
            found = type(fields).__name__
            raise InputError(f"{file}:{number}: found {found}, expected a JSON object")
        lines.append(Line(file, number, fields))
    if not lines:
        raise InputError(f"{file}: found no row, expected a JSON object a line")
    return lines


def file_state(file: Path) -> list[object]:
    """What a section depends on: the file's SHA-256, not its place or time.

    Raises:
        InputError: there is no such file.
    """
    content = _content(file)
    return [len(content), hashlib.sha256(content).hexdigest()]


def _content(file: Path) -> bytes:
    if not file.exists():
        raise InputError(f"{file}: no such file")
    if not file.is_file():
        raise InputError(f"{file}: found a folder, expected a file of JSON Lines")
    return file.read_bytes()


def _text_of(number: float) -> str:
    """``3`` for 3.0 too: a column of whole numbers with gaps is one of floats in pandas."""
    return str(int(number)) if float(number).is_integer() else str(number)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
