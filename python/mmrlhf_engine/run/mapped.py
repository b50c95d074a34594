"""Columns that do not fit in memory: written to files piece by piece, then mapped.

A mapped column is one Arrow array of any length whose buffers lie in files: the core reads it
without copies, and the operating system takes its pages back when memory is short. The files hold
the buffers of the Arrow columnar format as they are (little-endian): values, and offsets of 64 bits
where values have lengths; validity is kept as one byte a row and packed when the column is mapped.
"""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa

__all__ = ["MappedColumn"]


class MappedColumn:
    """A column of ``type`` in the files ``path.*``; a context manager that closes them.

    ``type`` is a primitive type of whole bytes, ``large_string``, or ``large_list`` of the former
    without nulls in its lists. Files of an earlier column of this path are replaced.
    """

    def __init__(self, path: Path, type: pa.DataType) -> None:
        self.type = type
        self.rows = 0
        self._path = path
        self._has_lengths = pa.types.is_large_string(type) or pa.types.is_large_list(type)
        names = ["values", "valid", *(["offsets"] if self._has_lengths else [])]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, BinaryIO] = {
            name: self._file(name).open("wb", buffering=1 << 20) for name in names
        }
        self._end = 0
        self._nulls = 0
        if self._has_lengths:
            self._files["offsets"].write(np.zeros(1, np.int64).tobytes())

    def append(self, values: pa.Array) -> None:
        """Write some more rows.

        Raises:
            TypeError: they are of another type.
        """
        if values.type != self.type:
            raise TypeError(f"{self._path.name}: found rows of {values.type}, expected {self.type}")
        self.rows += len(values)
        self._nulls += values.null_count
        self._files["valid"].write(np.asarray(values.is_valid()).astype(np.uint8).tobytes())
        if not self._has_lengths:
            self._write_values(values)
            return
        offsets = np.frombuffer(values.buffers()[1], np.int64)
        offsets = offsets[values.offset : values.offset + len(values) + 1]
        if not len(values):
            return
        first, last = int(offsets[0]), int(offsets[-1])
        self._files["offsets"].write((offsets[1:] - first + self._end).tobytes())
        self._end += last - first
        if pa.types.is_large_list(self.type):
            self._write_values(values.values.slice(first, last - first))
        elif last > first:
            self._files["values"].write(memoryview(values.buffers()[2])[first:last])

    def map(self) -> pa.Array:
        """The whole column, mapped; nothing can be appended any more."""
        self.close()
        valid = self._packed_validity()
        values = self._mapped("values")
        if not self._has_lengths:
            return pa.Array.from_buffers(self.type, self.rows, [valid, values], self._nulls)
        offsets = self._mapped("offsets")
        if pa.types.is_large_string(self.type):
            buffers = [valid, offsets, values]
            return pa.Array.from_buffers(self.type, self.rows, buffers, self._nulls)
        children = [pa.Array.from_buffers(self.type.value_type, self._end, [None, values])]
        return pa.Array.from_buffers(
            self.type, self.rows, [valid, offsets], self._nulls, children=children
        )

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self, name: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{name}")

    def _write_values(self, values: pa.Array) -> None:
        width = values.type.bit_width // 8
        buffer = values.buffers()[1]
        if buffer is not None:
            start = values.offset * width
            self._files["values"].write(memoryview(buffer)[start : start + len(values) * width])

    def _mapped(self, name: str) -> pa.Buffer:
        file = self._file(name)
        if not file.stat().st_size:
            return pa.py_buffer(b"")
        with pa.memory_map(str(file)) as mapped:
            return mapped.read_buffer()

    def _packed_validity(self) -> pa.Buffer | None:
        if not self._nulls:
            return None
        valid = np.fromfile(self._file("valid"), np.uint8)
        return pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
