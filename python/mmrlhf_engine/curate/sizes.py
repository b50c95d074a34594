"""How large a corpus is before it has been read: rows and media, estimated from its files.

Parquet says how many rows it has; of text files the first MiB is read, of tars the first members;
of a folder the pictures are counted.
"""

import functools
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine.errors import MmrlhfError
from mmrlhf_engine.sources.files import detect_format, open_stream
from mmrlhf_engine.sources.samples.batch import Part, Source
from mmrlhf_engine.sources.samples.folder import list_part
from mmrlhf_engine.sources.samples.resolve import files_of

__all__ = ["SourceSize", "size_of_source", "space_needed"]

_SAMPLE_BYTES = 1 << 20
_SAMPLE_MEMBERS = 400
_COMPRESSED_TEXT = 4
"""Bytes of text that a byte of a compressed file stands for, roughly."""
_DISK_PER_ROW = 1_300
"""Bytes of the tables of all five stages, and of what dedup keeps for later runs."""


@dataclass(frozen=True)
class SourceSize:
    """A source, or several together.

    Attributes:
        files: Files, without those that records only name.
        bytes: Of these files.
        rows: Records, estimated where the files do not say.
    """

    files: int
    bytes: int
    rows: int

    def __add__(self, other: "SourceSize") -> "SourceSize":
        return SourceSize(
            self.files + other.files, self.bytes + other.bytes, self.rows + other.rows
        )


def space_needed(rows: int, media: int, width: int) -> int:
    """Bytes in the run folder after all five stages, roughly.

    Args:
        rows: Samples.
        media: Those that get an embedding.
        width: Float16 values of an embedding.
    """
    return rows * _DISK_PER_ROW + media * 2 * width


def size_of_source(source: Source) -> SourceSize:
    """Files, bytes and records of a source."""
    files = list(files_of(source))
    size = sum(file.stat().st_size for file in files)
    rows = sum(_rows_of_part(part) for part in source.parts)
    return SourceSize(len(files), size, rows)


def _rows_of_part(part: Part) -> int:
    if part.path.is_dir():
        return len(list_part(part).media)
    state = part.path.stat()
    return _rows_of_file(part.path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 17)
def _rows_of_file(file: Path, size: int, _changed: int) -> int:
    """Records of a file, roughly; 0 where it cannot be read, which ingest will say.

    A command asks several times, for disk and for memory: while size and time of change stay, the
    file is opened once.
    """
    try:
        format = detect_format(file, ("jsonl", "json", "csv", "parquet", "arrow", "webdataset"))
        if format == "parquet":
            return int(pq.read_metadata(file).num_rows)
        if format == "webdataset":
            return _rows_of_tar(file, size)
        return _rows_of_text(file, size)
    except (MmrlhfError, OSError, ValueError, pa.ArrowException, tarfile.TarError):
        return 0


def _rows_of_text(file: Path, size: int) -> int:
    with open_stream(file) as stream:
        start = bytes(stream.read(_SAMPLE_BYTES))
    lines = start.count(b"\n")
    if lines < 2:  # an array in one line
        lines = max(start.count(b'{"'), 1)
    if len(start) < _SAMPLE_BYTES:
        return lines
    with file.open("rb") as raw:
        compressed = raw.read(len(start)) != start
    return int(size * (_COMPRESSED_TEXT if compressed else 1) / len(start) * lines)


def _rows_of_tar(file: Path, size: int) -> int:
    stems: set[str] = set()
    with tarfile.open(file, "r:") as tar:
        for number, member in enumerate(tar):
            stems.add(member.name.partition(".")[0])
            if number >= _SAMPLE_MEMBERS:
                end = member.offset_data + member.size
                return int(len(stems) * size / max(end, 1))
    return len(stems)
