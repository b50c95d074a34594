"""Pictures of media rows, in the form the image functions of the core take them.

A row of the ``media`` table says where its content is stored: in a file, in a byte range of a tar,
in a cell of a Parquet file. This is the one place that turns such rows into pictures: files and
ranges are left to the core to read; cells, frames of videos, and pictures that Pillow decodes
(AVIF, HEIC) are read here and passed to it.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mmrlhf_engine.errors import MissingExtraError
from mmrlhf_engine.sources.base64_text import from_base64
from mmrlhf_engine.sources.columnar import CellReader
from mmrlhf_engine.sources.foreign import FOREIGN, ForeignError, reencode
from mmrlhf_engine.sources.video import (
    VideoError,
    as_bitmap,
    at_positions,
    decode_frames,
    frame_files,
)

__all__ = ["PictureBatch", "picture_batches"]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of some media rows; the four Arrow columns are what the core's functions take."""

    rows: np.ndarray
    """int64 [n], ascending: the row of the media frame each picture belongs to."""
    paths: pa.Array
    """large_string [n]; the file, or null where the content is given."""
    offsets: pa.Array
    """uint64 [n]; null means the whole file."""
    lengths: pa.Array
    """uint64 [n]; null means the whole file."""
    inline: pa.Array
    """large_binary [n]; the content itself, or null."""


_DECODERS = 8
"""Pictures that Pillow decodes at a time; it lets go of the interpreter while it does."""


def picture_batches(
    media: pl.DataFrame, batch: int, positions: tuple[float, ...] = (0.0,)
) -> Iterator[PictureBatch]:
    """The pictures of the media rows, in their order, about ``batch`` at a time.

    An image gives one picture. A folder of frames gives the frame at each of ``positions`` (0 to 1
    over its sorted names), without repeats. A video file gives the frames at these positions if
    PyAV is installed, otherwise, or if it cannot be decoded, none. Media of which the hash alone
    is known give none.
    """
    cells = CellReader()
    waiting = _Pictures()
    readable = media.with_row_index("index").filter(pl.col("phash").is_null())
    for row in readable.iter_rows(named=True):
        _add_pictures(waiting, row["index"], row, positions, cells)
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
    foreign: dict[int, str] = field(default_factory=dict)
    """Formats of those that are still to be decoded, by their place in the batch."""

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
        self._decode_foreign()
        return PictureBatch(
            rows=np.array(self.rows, dtype=np.int64),
            paths=pa.array(self.paths, pa.large_string()),
            offsets=pa.array(self.offsets, pa.uint64()),
            lengths=pa.array(self.lengths, pa.uint64()),
            inline=pa.array(self.inline, pa.large_binary()),
        )

    def _decode_foreign(self) -> None:
        """What cannot be decoded stays as it is: the core refuses it by the name of its format."""

        def decode(item: tuple[int, str]) -> bytes | None:
            place, format = item
            content = self.inline[place]
            try:
                return None if content is None else reencode(content, format, small=False)
            except (ForeignError, MissingExtraError):
                return content

        if self.foreign:
            with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
                for place, content in zip(
                    self.foreign, pool.map(decode, self.foreign.items()), strict=True
                ):
                    self.inline[place] = content


def _add_pictures(
    pictures: _Pictures,
    index: int,
    row: dict[str, Any],
    positions: tuple[float, ...],
    cells: CellReader,
) -> None:
    if row["kind"] == "frames":
        files = _frame_files(Path(row["path"]))
        for number in at_positions(len(files), positions):
            pictures.add(index, str(files[number]))
        return
    content = None
    if row["column"] is not None:
        content = cells.read(row["path"], row["column"], row["row"], row["item"])
    if row["kind"] == "video":
        for frame in _video_frames(row, content, positions):
            pictures.add(index, content=frame)
    elif row["format"] in FOREIGN:
        content = content if content is not None else _read_range(row)
        if content is not None:
            pictures.foreign[len(pictures.rows)] = row["format"]
            pictures.add(index, content=content)
        else:
            pictures.add(index, row["path"], (row["offset"], row["length"]))
    elif content is not None:
        pictures.add(index, content=content)
    else:
        pictures.add(index, row["path"], (row["offset"], row["length"]))


def _frame_files(folder: Path) -> list[Path]:
    """The frames of a folder, as ingest counts them; none where it has gone."""
    try:
        return frame_files(folder)
    except OSError:
        return []


def _video_frames(
    row: dict[str, Any], content: bytes | None, positions: tuple[float, ...]
) -> Iterator[bytes]:
    """Frames of a video file as bitmaps; none without PyAV or where the file cannot be decoded."""
    try:
        if content is None and row["offset"] is not None:
            content = _read_range(row)
        source = io.BytesIO(content) if content is not None else row["path"]
        for frame in decode_frames(source, row["path"], partial(at_positions, positions=positions)):
            yield as_bitmap(frame)
    except (VideoError, MissingExtraError, OSError):
        return


def _read_range(row: dict[str, Any]) -> bytes | None:
    """The content of a media row that lies in a file, or in a range of one; None where it has gone.

    A range of a text, such as a TSV file, is base64.
    """
    try:
        with Path(row["path"]).open("rb") as file:
            file.seek(row["offset"] or 0)
            content = file.read(-1 if row["length"] is None else row["length"])
    except OSError:
        return None
    if row["offset"] is None or not content.isascii():
        return content
    return from_base64(content.decode("ascii")) or content
