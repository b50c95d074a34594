"""CSV and TSV with a header; every value is a text, an empty one is absent.

Rows are read one by one, so that a row of too few or too many values, or one that is not UTF-8,
costs only itself. Pictures may be values in base64, as in the TSV files of multimodal benchmarks:
they stay in the file and are known by their byte range. There, a row may name another row, by its
``index``, whose picture it shares, and columns ``A``, ``B``, ... are the options of a question.
"""

import ast
import csv
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.base64_text import picture_text
from mmrlhf_engine.sources.files import is_compressed, open_stream
from mmrlhf_engine.sources.samples.batch import (
    CELLS,
    RECORDS_PER_BATCH,
    UNREADABLE,
    Part,
    RawBatch,
)

__all__ = ["read"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OPTIONS = "ABCDEFGHIJ"
# A longer value than a line allows is a quote that never closes.
_SLACK = 1 << 17
_BLOCK_BYTES = 1 << 20


def read(part: Part) -> Iterator[RawBatch]:
    """Rows of a CSV or TSV file, each known by the line on which it ends.

    Raises:
        InputError: the file cannot be decompressed.
    """
    suffixes = {suffix.lower() for suffix in part.path.suffixes}
    with open_stream(part.path) as stream:
        lines = _Lines(io.BufferedReader(stream, _BLOCK_BYTES))
        rows = csv.reader(lines, delimiter="\t" if ".tsv" in suffixes else ",")
        try:
            table = _Table(part, next(rows, []))
            numbered = _numbered(rows, lines)
            while batch := list(itertools.islice(numbered, RECORDS_PER_BATCH)):
                yield table.to_records(batch)
        except OSError as error:
            raise InputError(f"{part.path}: cannot be decompressed: {error}") from None


@dataclass
class _Lines:
    """The lines of a file as texts, with where the bytes of the current row lie."""

    stream: Any
    offset: int = 0
    """Where the current row begins."""
    content: bytes = b""
    """Its bytes so far."""
    waiting: list[bytes] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        first = not self.offset and not self.content
        if not self.waiting:
            line = self.stream.readline()
            if not line:
                raise StopIteration
            # Files of old systems end their lines with a carriage return alone.
            self.waiting = [line] if b"\r" not in line[:-2] else _split_lines(line)
        line = self.waiting.pop(0)
        self.content += line
        if len(line) > csv.field_size_limit():
            csv.field_size_limit(len(line) + _SLACK)
        # Bytes that are no UTF-8 become lone surrogates, which the core refuses in a record.
        text = line.removeprefix(_BYTE_ORDER_MARK) if first else line
        return text.decode("utf-8", "surrogateescape")

    def end_row(self) -> tuple[int, bytes]:
        """Offset and bytes of the row that was read."""
        offset, content = self.offset, self.content
        self.offset, self.content = offset + len(content), b""
        return offset, content


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


def _numbered(rows: Any, lines: _Lines) -> Iterator[_Row]:
    """Each row that is not blank."""
    lines.end_row()  # the header
    while True:
        try:
            values: list[str] | str = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            values = str(error)
        place = lines.end_row()
        if values:
            yield _Row(rows.line_num, values, *place)


@dataclass
class _Table:
    """What is known of a table while its rows become records."""

    part: Part
    header: list[str]
    seen: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Byte ranges of the pictures of each row that has an ``index``."""

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
            record: dict[str, Any] = {name: value for name, value in values.items() if value}
            for name, spans in self._pictures(row, record).items():
                record[name] = [{"cell": len(cells) + number} for number in range(len(spans))]
                owner = {"record": len(records), "path": str(self.part.path)}
                cells += [
                    {**owner, "cell": len(cells) + number, "offset": span[0], "length": span[1]}
                    for number, span in enumerate(spans)
                ]
            records.append(json.dumps(self._with_options(record)).encode())
            keys.append(str(row.line))
        return RawBatch(
            positions=[f"{self.part.label}:{key}" for key in keys],
            keys=keys,
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
        if is_compressed(self.part.path) and any(picture_text(value) for value in row.values):
            return "unreadable_media", "a picture in base64 in a compressed file: decompress it"
        return None

    def _pictures(self, row: _Row, record: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
        """Byte ranges in the file of the pictures in each field that holds some."""
        found = {}
        for name, value in record.items():
            texts = [picture_text(item) for item in _items(value)]
            if texts and all(texts):
                at = [row.content.find(text.encode()) for text in texts if text]
                sizes = [len(text) for text in texts if text]
                if min(at) >= 0:
                    starts = (row.offset + place for place in at)
                    found[name] = list(zip(starts, sizes, strict=True))
        index = record.get("index")
        if "image" in found and index is not None:
            self.seen[index] = found["image"]
        elif (shared := self.seen.get(record.get("image", ""))) is not None:
            found["image"] = shared
        return found

    def _with_options(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with the values of columns ``A``, ``B``, ... as its options."""
        named = {"options", "choices"} & set(self.header)
        if named or "question" not in self.header or not {"A", "B"} <= set(self.header):
            return record
        # An empty cell stays an empty option, so that those after it keep their letters.
        options = [record.pop(letter, "") for letter in _OPTIONS]
        while options and not options[-1]:
            options.pop()
        return {**record, "options": options} if options else record


def _items(value: str) -> list[str]:
    """A value, or the values of a list that is written out in it."""
    if value[:1] == "[" and value[-1:] == "]" and len(value) > _SLACK // 1024:
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
        return found if isinstance(found, list) and all(isinstance(x, str) for x in found) else []
    return [value]
