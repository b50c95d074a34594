"""CSV and TSV with a header; every value is a text, an empty one is absent.

Rows are read one by one, so that a row of too few or too many values, one that is not UTF-8, or one
with a quote that never closes costs only itself. Pictures may be values in base64, as in the TSV
files of multimodal benchmarks: they stay in the file and are known by their byte range. There, a
row may name another row, by its ``index``, whose picture it shares.
"""

import ast
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.base64_text import picture_text
from mmrlhf_engine.sources.files import MEDIA_SUFFIXES, is_compressed, open_stream
from mmrlhf_engine.sources.listing import suffix_of
from mmrlhf_engine.sources.samples.batch import (
    CELLS,
    RECORDS_PER_BATCH,
    UNREADABLE,
    Part,
    RawBatch,
    text_column,
)

__all__ = ["read"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Columns of one option each. An empty one stays, so that those after it keep their letters.
_OPTION = re.compile(r"[A-Z]|(option|choice)_?([A-Za-z]|\d{1,2})|op([A-Za-z]|\d{1,2})")
# A longer value over several lines is a quote that never closes.
_LONGEST_VALUE = 1 << 26
_SLACK = 1 << 17
_SHORTEST_LIST = 128
_BLOCK_BYTES = 1 << 20
_UNCLOSED = (
    "a quote opens in this line and does not close at the end of a value: write quotes within a "
    "value twice, in a value between quotes"
)


def read(part: Part) -> Iterator[RawBatch]:
    """Rows of a CSV or TSV file, each known by the line on which it ends.

    Raises:
        InputError: the file cannot be decompressed, or its header is none.
    """
    with open_stream(part.path) as stream:
        rows = _rows(part, stream)
        try:
            header = next(rows, None)
            if header is None:
                return
            if isinstance(header.values, str):
                raise InputError(
                    f"{part.path}: line {header.line}, the header: {header.values}",
                    hint="the first line names the columns",
                )
            table = _Table(part, header.values)
            while batch := list(itertools.islice(rows, RECORDS_PER_BATCH)):
                yield table.to_records(batch)
        except OSError as error:
            raise InputError(f"{part.path}: cannot be decompressed: {error}") from None


@dataclass
class _Lines:
    """The lines of a file as texts, with the bytes of the current row."""

    stream: Any
    offset: int = 0
    """Where the current row begins."""
    number: int = 0
    """Lines given so far."""
    row: list[bytes] = field(default_factory=list)
    """The lines of the current row."""
    cut: bool = False
    """Whether the file ended within the current row."""
    waiting: deque[bytes] = field(default_factory=deque)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self.waiting:
            line = self.stream.readline()
            if not line:
                self.cut = bool(self.row)
                raise StopIteration
            # Files of old systems end their lines with a carriage return alone.
            self.waiting.extend([line] if b"\r" not in line[:-2] else _split_lines(line))
        line = self.waiting.popleft()
        self.row.append(line)
        self.number += 1
        if len(line) > csv.field_size_limit():
            csv.field_size_limit(len(line) + _SLACK)
        first = self.offset == 0 and len(self.row) == 1
        return _text(line.removeprefix(_BYTE_ORDER_MARK) if first else line)

    def keep_first(self) -> None:
        """Make the current row its first line alone; the others are given again."""
        self.waiting.extendleft(reversed(self.row[1:]))
        self.number -= len(self.row) - 1
        self.row = self.row[:1]

    def end_row(self) -> tuple[int, bytes]:
        """Offset and bytes of the row that was read."""
        offset, content = self.offset, b"".join(self.row)
        self.offset, self.row, self.cut = offset + len(content), [], False
        return offset, content


def _text(line: bytes) -> str:
    # Bytes that are no UTF-8 become lone surrogates, which the core refuses in a record.
    return line.decode("utf-8", "surrogateescape")


def _split_lines(line: bytes) -> list[bytes]:
    pieces = line.replace(b"\r\n", b"\n").split(b"\r")
    if b"\r\n" in line:
        pieces[-1] = pieces[-1].replace(b"\n", b"\r\n")
    return [*(piece + b"\r" for piece in pieces[:-1]), *([pieces[-1]] if pieces[-1] else [])]


@dataclass(frozen=True)
class _Row:
    line: int
    values: list[str] | str
    """A text says what is wrong with the row."""
    offset: int
    content: bytes


def _rows(part: Part, stream: Any) -> Iterator[_Row]:
    """The header and each row that is not blank."""
    suffixes = {suffix.lower() for suffix in part.path.suffixes}
    delimiter = "\t" if ".tsv" in suffixes else ","
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_VALUE))
    lines = _Lines(io.BufferedReader(stream, _BLOCK_BYTES))
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            values: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            values = str(error)
        several = len(lines.row) > 1
        if lines.cut or (
            several and (isinstance(values, str) or not _is_strict(lines.row, delimiter))
        ):
            lines.keep_first()
            values = _UNCLOSED
        line = lines.number
        place = lines.end_row()
        if values:
            yield _Row(line, values, *place)


def _is_strict(row: list[bytes], delimiter: str) -> bool:
    """Whether every quote of these lines opens or closes a value, or is written twice."""
    try:
        list(csv.reader(map(_text, row), delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True


_Spans = list[tuple[int, int]]
"""Byte ranges in the file, as offset and length."""


@dataclass
class _Table:
    """What is known of a table while its rows become records."""

    part: Part
    header: list[str]
    seen: dict[str, _Spans] = field(default_factory=dict)
    """Of the pictures of each row before that has an ``index``."""

    def to_records(self, rows: list[_Row]) -> RawBatch:
        records: list[bytes] = []
        keys: list[str] = []
        unreadable: list[tuple[str, str, str]] = []
        cells: list[dict[str, Any]] = []
        for row in rows:
            problem = self._problem_of(row)
            if problem is not None:
                unreadable.append((f"{self.part.label}:{row.line}", *problem))
                continue
            values = dict(zip(self.header, row.values, strict=True))
            record: dict[str, Any] = {
                name: value for name, value in values.items() if value or _OPTION.fullmatch(name)
            }
            for name, spans in self._pictures(row, record).items():
                record[name] = [{"cell": len(cells) + number} for number in range(len(spans))]
                owner = {"record": len(records), "path": str(self.part.path)}
                cells += [
                    {**owner, "cell": len(cells) + number, "offset": span[0], "length": span[1]}
                    for number, span in enumerate(spans)
                ]
            records.append(json.dumps(record).encode())
            keys.append(str(row.line))
        return RawBatch(
            positions=text_column(f"{self.part.label}:{key}" for key in keys),
            keys=text_column(keys),
            records=pa.array(records, pa.large_binary()),
            cells=pl.DataFrame(cells, schema=CELLS),
            unreadable=pl.DataFrame(unreadable, schema=UNREADABLE, orient="row"),
        )

    def _problem_of(self, row: _Row) -> tuple[str, str] | None:
        if isinstance(row.values, str):
            return "broken_record", row.values
        if len(row.values) != len(self.header):
            found = f"{len(row.values)} values, the header has {len(self.header)}"
            return "wrong_type", found
        if self.is_compressed and any(picture_text(value) for value in row.values):
            return "unreadable_media", "a picture in base64 in a compressed file: decompress it"
        return None

    def _pictures(self, row: _Row, record: dict[str, Any]) -> dict[str, _Spans]:
        """Byte ranges in the file of the pictures in each field that holds some."""
        found = _own_pictures(row, record)
        index, image = record.get("index"), record.get("image")
        if "image" in found:
            if index is not None:
                self.seen[index] = found["image"]
        elif image and index is not None and suffix_of(image) not in MEDIA_SUFFIXES:
            shared = self.seen.get(image) or self._all_pictures.get(image)
            if shared is not None:
                found["image"] = shared
        return found

    @cached_property
    def is_compressed(self) -> bool:
        return is_compressed(self.part.path)

    @cached_property
    def _all_pictures(self) -> dict[str, _Spans]:
        """Those of every row by its ``index``, in one more pass: a row may name a later one."""
        if self.is_compressed:
            return {}
        pictures: dict[str, _Spans] = {}
        with open_stream(self.part.path) as stream:
            for row in itertools.islice(_rows(self.part, stream), 1, None):
                if isinstance(row.values, list) and len(row.values) == len(self.header):
                    record = dict(zip(self.header, row.values, strict=True))
                    found = _own_pictures(row, {"image": record["image"]}).get("image")
                    if found:
                        pictures.setdefault(record["index"], found)
        return pictures


def _own_pictures(row: _Row, record: dict[str, Any]) -> dict[str, _Spans]:
    found = {}
    for name, value in record.items():
        texts = [picture_text(item) for item in _items(value)]
        if texts and all(texts):
            at = [row.content.find(text.encode()) for text in texts if text]
            sizes = [len(text) for text in texts if text]
            if min(at) >= 0:
                starts = (row.offset + place for place in at)
                found[name] = list(zip(starts, sizes, strict=True))
    return found


def _items(value: str) -> list[str]:
    """A value, or the values of a list that is written out in it."""
    if value[:1] == "[" and value[-1:] == "]" and len(value) > _SHORTEST_LIST:
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
        return found if isinstance(found, list) and all(isinstance(x, str) for x in found) else []
    return [value]
