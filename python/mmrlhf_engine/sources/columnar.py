"""Parquet files and Arrow streams: record batches with the row each begins at, and single cells."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.base64_text import from_base64
from mmrlhf_engine.sources.files import Damage

__all__ = ["Batch", "CellReader", "read_arrow", "read_parquet"]

_FEWEST_ROWS = 16


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows of a file."""

    first: int
    """The number of the first of them in the file, from 0."""
    rows: pa.RecordBatch


def read_parquet(
    path: Path, *, max_rows: int, max_bytes: int, columns: Collection[str] | None = None
) -> Iterator[Batch | Damage]:
    """The rows of a Parquet file, batch by batch; damage costs the rest of its row group.

    Args:
        path: The file.
        max_rows: A batch has no more rows than this.
        max_bytes: A batch of more than a few rows holds about so many bytes, by the footer.
        columns: Only columns of these names are read; all, where the file has none of them.

    Raises:
        InputError: the file has no readable footer.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from None
    with file:
        wanted = None
        if columns is not None:
            wanted = [name for name in file.schema_arrow.names if name in columns] or None
        first = 0
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            bytes_per_row = metadata.total_byte_size // max(metadata.num_rows, 1) + 1
            rows = min(max(max_bytes // bytes_per_row, _FEWEST_ROWS), max_rows)
            batches = file.iter_batches(batch_size=rows, row_groups=[group], columns=wanted)
            yield from _numbered(batches, first, str(first + metadata.num_rows - 1))
            first += metadata.num_rows


def read_arrow(path: Path) -> Iterator[Batch | Damage]:
    """The rows of an Arrow stream, in the batches in which it was written.

    Raises:
        InputError: it does not begin as an Arrow stream.
    """
    with pa.memory_map(str(path)) as mapped:
        try:
            stream = pa.ipc.open_stream(mapped)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as an Arrow stream: {error}") from None
        yield from _numbered(stream, 0, "the end")


def _numbered(batches: Iterator[pa.RecordBatch], first: int, last: str) -> Iterator[Batch | Damage]:
    """The batches that begin at row ``first``; what cannot be read up to ``last`` is one damage."""
    batches = iter(batches)
    while True:
        try:
            rows = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            yield Damage(str(first), f"rows {first} to {last} cannot be read: {error}")
            return
        if rows is None:
            return
        yield Batch(first, rows)
        first += rows.num_rows


class CellReader:
    """Reads binary cells of Parquet files; the last column of one row group is kept."""

    def __init__(self) -> None:
        self._file: tuple[str, pq.ParquetFile | None] | None = None
        self._ends = np.empty(0, dtype=np.int64)
        self._at: tuple[str, int] | None = None
        self._values: pa.ChunkedArray | None = None

    def read(self, path: str, column: str, row: int, item: int | None) -> bytes | None:
        """The bytes in ``column`` of ``row`` (``item`` of a list), or None where there are none.

        A file that has gone or changed since it was ingested has no bytes either.
        """
        if self._file is None or self._file[0] != path:
            self._open(path)
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group == len(self._ends):
            return None
        if self._at != (column, group):
            self._values = self._read_column(column, group)
            self._at = (column, group)
        if self._values is None:
            return None
        value = self._values[row - (int(self._ends[group - 1]) if group else 0)].as_py()
        if item is not None:
            value = value[item] if isinstance(value, list) and item < len(value) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, str):
            return from_base64(content)
        return content if isinstance(content, bytes) else None

    def _open(self, path: str) -> None:
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException):
            file = None
        groups = range(file.num_row_groups) if file is not None else range(0)
        rows = [file.metadata.row_group(group).num_rows for group in groups]
        self._file, self._ends, self._at = (path, file), np.cumsum(rows, dtype=np.int64), None

    def _read_column(self, column: str, group: int) -> pa.ChunkedArray | None:
        file = self._file[1] if self._file is not None else None
        if file is None or column not in file.schema_arrow.names:
            return None
        try:
            return file.read_row_group(group, columns=[column]).column(column)
        except (OSError, pa.ArrowException):
            return None
