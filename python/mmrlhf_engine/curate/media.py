"""Pictures of media rows, in the form the image functions of the core take them.

A row of the ``media`` table says where its content lies: in a file, in a byte range of a tar, in a
cell of a Parquet file. This is the one place that turns such rows into pictures: files and ranges
are left to the core to read, cells are read here and handed over, videos are asked for frames.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["CellReader", "PictureBatch", "picture_batches"]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of some media rows; the four Arrow columns are what the core's functions take."""

    rows: np.ndarray
    """int64 [n], ascending: the row of the media frame each picture belongs to."""
    paths: pa.Array
    """large_string [n]; the file, or null where the content is handed over."""
    offsets: pa.Array
    """uint64 [n]; null means the whole file."""
    lengths: pa.Array
    """uint64 [n]; null means the whole file."""
    inline: pa.Array
    """large_binary [n]; the content itself, or null."""


def picture_batches(
    media: pl.DataFrame, batch: int, positions: tuple[float, ...] = (0.0,)
) -> Iterator[PictureBatch]:
    """The pictures of the media rows, in their order, about ``batch`` at a time.

    An image gives one picture. A folder of frames gives the frame at each of ``positions`` (0 to 1
    over its sorted names), without repeats. A video file gives the frames at these positions if
    PyAV is installed, otherwise, or if it cannot be decoded, none.
    """
    cells = CellReader()
    waiting = _Pictures()
    for index, row in enumerate(media.iter_rows(named=True)):
        _add_pictures(waiting, index, row, positions, cells)
        if len(waiting.rows) >= batch:
            yield waiting.as_batch()
            waiting = _Pictures()
    if waiting.rows:
        yield waiting.as_batch()


@dataclass
class _Pictures:
    """A batch while it is being filled."""

    rows: list[int] = field(default_factory=list)
    paths: list[str | None] = field(default_factory=list)
    offsets: list[int | None] = field(default_factory=list)
    lengths: list[int | None] = field(default_factory=list)
    inline: list[bytes | None] = field(default_factory=list)

    def add(
        self,
        row: int,
        path: str | None = None,
        span: tuple[int | None, int | None] = (None, None),
        content: bytes | None = None,
    ) -> None:
        self.rows.append(row)
        self.paths.append(path)
        self.offsets.append(span[0])
        self.lengths.append(span[1])
        self.inline.append(content)

    def as_batch(self) -> PictureBatch:
        return PictureBatch(
            rows=np.array(self.rows, dtype=np.int64),
            paths=pa.array(self.paths, pa.large_string()),
            offsets=pa.array(self.offsets, pa.uint64()),
            lengths=pa.array(self.lengths, pa.uint64()),
            inline=pa.array(self.inline, pa.large_binary()),
        )


def _add_pictures(
    pictures: _Pictures,
    index: int,
    row: dict[str, Any],
    positions: tuple[float, ...],
    cells: "CellReader",
) -> None:
    if row["kind"] == "frames":
        files = sorted(path for path in Path(row["path"]).iterdir() if path.is_file())
        for number in _frame_numbers(len(files), positions):
            pictures.add(index, str(files[number]))
        return
    content = None
    if row["column"] is not None:
        content = cells.read(row["path"], row["column"], row["row"], row["item"])
    if row["kind"] == "video":
        for frame in _video_frames(row, content, positions):
            pictures.add(index, content=frame)
    elif content is not None:
        pictures.add(index, content=content)
    else:
        pictures.add(index, row["path"], (row["offset"], row["length"]))


def _frame_numbers(count: int, positions: tuple[float, ...]) -> list[int]:
    """The frames at ``positions`` of ``count``, ascending, without repeats."""
    return sorted({min(int(position * count), count - 1) for position in positions if count})


class CellReader:
    """Reads binary cells of Parquet files; the last row group of one file is kept at hand."""

    def __init__(self) -> None:
        self._at: tuple[str, str, int] | None = None
        self._values: pa.Array | None = None
        self._first = 0
        self._file: tuple[str, pq.ParquetFile] | None = None

    def read(self, path: str, column: str, row: int, item: int | None) -> bytes | None:
        """The bytes in ``column`` of ``row`` (``item`` of a list), or None where there are none."""
        if self._file is None or self._file[0] != path:
            self._file = (path, pq.ParquetFile(path))
            self._at = None
        file = self._file[1]
        first, group = 0, 0
        while row >= first + file.metadata.row_group(group).num_rows:
            first += file.metadata.row_group(group).num_rows
            group += 1
        if self._at != (path, column, group):
            table = file.read_row_group(group, columns=[column])
            self._values = table.column(column).combine_chunks()
            self._at, self._first = (path, column, group), first
        assert self._values is not None
        value = self._values[row - self._first].as_py()
        if item is not None:
            value = value[item]
        content = value["bytes"] if isinstance(value, dict) else value
        return content if isinstance(content, bytes) else None


def _video_frames(
    row: dict[str, Any], content: bytes | None, positions: tuple[float, ...]
) -> Iterator[bytes]:
    """Frames of a video file as bitmaps; none without PyAV or where the file cannot be decoded."""
    if find_spec("av") is None:
        return
    import av

    if content is None and row["offset"] is not None:
        with Path(row["path"]).open("rb") as file:
            file.seek(row["offset"])
            content = file.read(row["length"])
    source = io.BytesIO(content) if content is not None else row["path"]
    try:
        with av.open(source) as container:
            stream = container.streams.video[0]
            count = stream.frames or sum(1 for _ in container.decode(stream))
            wanted = set(_frame_numbers(count, positions))
            container.seek(0)
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    yield _bitmap(frame.to_ndarray(format="bgr24"))
                if number >= max(wanted, default=-1):
                    return
    except (av.FFmpegError, IndexError, OSError):
        return


def _bitmap(pixels: np.ndarray) -> bytes:
    """An uncompressed bitmap of blue, green and red uint8 [height, width, 3], top row first."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, -(-3 * width // 4) * 4), dtype=np.uint8)
    rows[:, : 3 * width] = pixels.reshape(height, 3 * width)
    header = struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, rows.size, 0, 0, 0, 0)
    return header + info + rows.tobytes()
