"""JSON files that are one object: a list of records in it, columns, or one record.

``{"info": .., "questions": [{..}, ..]}`` as VQA sets are published, ``{"data": [..]}``,
``{"prompt": [..], "answer": [..]}`` and ``{"prompt": {"0": ..}}`` as pandas writes tables, records
by their ids (``{"17": {"question": ..}, ..}``), and one record that is written over several lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Opening", "as_records", "read_opening"]

RECORD_LISTS = frozenset(
    {"data", "questions", "annotations", "rows", "records", "examples", "samples", "items"}
    | {"instances", "entries", "results", "dataset", "train", "validation", "test"}
)
"""Keys under which a list of objects is the records of the file."""

_TEXTS = frozenset({"prompt", "question", "query", "instruction", "problem", "caption", "text"})
_CONVERSATIONS = frozenset({"conversations", "messages"})


@dataclass(frozen=True)
class Opening:
    """What the first bytes of an object say of it."""

    record_list: str | None
    """Key of the list that holds the records."""
    has_columns: bool
    """Whether a field of text holds a list or an object: a value for each row."""


def read_opening(text: bytes) -> Opening:
    """Look at the first members of an object, which may be cut off anywhere."""
    record_list, has_columns = None, False
    for key, value in _members(text.decode("utf-8", "replace")):
        begin = "".join(value[:64].split())[:2]
        if key in RECORD_LISTS and begin == "[{" and record_list is None:
            record_list = key
        has_columns |= key in _TEXTS and begin in ('["', '{"')
        has_columns |= key in _CONVERSATIONS and begin in ("[[", '{"')
    return Opening(record_list, has_columns and record_list is None)


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Each key of the object with the text from its value on."""
    decoder = json.JSONDecoder()
    at = text.find("{") + 1
    while at > 0:
        try:
            at = _after_space(text, at)
            key, at = decoder.raw_decode(text, at)
            at = _after_space(text, text.index(":", at) + 1)
            yield str(key), text[at : at + 4096]
            _, at = decoder.raw_decode(text, at)
            at = text.index(",", at) + 1
        except (ValueError, RecursionError):
            return


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def as_records(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an object of columns, or of records by their ids; any other object is one row.

    Raises:
        ValueError: the columns differ in length.
    """
    if value and all(_is_record(row) for row in value.values()):
        return [{"id": key, **row} for key, row in value.items()]
    columns = {key: _as_list(column) for key, column in value.items()}
    if not columns or any(column is None for column in columns.values()):
        return [value]
    lengths = {key: len(column or []) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} {length:,}" for key, length in list(lengths.items())[:4])
        raise ValueError(f"columns of different lengths: {shown}")
    names, rows = list(columns), zip(*(column or [] for column in columns.values()), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _is_record(row: Any) -> bool:
    """Whether a value is an object with a question or a conversation."""
    return isinstance(row, dict) and not (_TEXTS | _CONVERSATIONS).isdisjoint(row)


def _as_list(column: Any) -> list[Any] | None:
    """The values of a column; pandas writes them by the number of the row."""
    if isinstance(column, list):
        return column
    if isinstance(column, dict) and column and all(key.isdigit() for key in column):
        return list(column.values())
    return None
