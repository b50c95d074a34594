"""Raw corpora, one file a format, all read as the same thing: batches of records in JSON text.

A source file only knows where records and their media lie. What a record means is decided in one
place for every format, in the core (``ingest/record.rs``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine.errors import InputError

__all__ = [
    "BESIDE",
    "CELLS",
    "RECORDS_PER_BATCH",
    "TROUBLES",
    "RawBatch",
    "Source",
    "detect",
    "read",
]

RECORDS_PER_BATCH = 16_384

CELLS: dict[str, pl.DataType] = {
    "record": pl.UInt32(),  # the record of the batch it belongs to: no other may point to it
    "cell": pl.UInt32(),  # its number in the batch
    "path": pl.String(),  # the tar or Parquet file
    "offset": pl.UInt64(),  # byte range in a tar
    "length": pl.UInt64(),
    "column": pl.String(),  # cell of a Parquet file: column, row, item of the list
    "row": pl.UInt64(),
    "item": pl.UInt32(),
}

BESIDE: dict[str, pl.DataType] = {
    "record": pl.UInt32(),
    "name": pl.String(),  # a file below the root, or null
    "cell": pl.UInt32(),  # one of CELLS, or null
}

TROUBLES: dict[str, pl.DataType] = {
    "position": pl.String(),
    "reason": pl.String(),
    "detail": pl.String(),
}


@dataclass(frozen=True)
class Source:
    """A source as resolved: its files are known, its name is unique in the run."""

    name: str
    path: Path
    format: str
    """jsonl, json, csv, parquet, webdataset or folder."""
    root: Path
    """Names of media in the records may point below this folder only."""
    columns: dict[str, str]
    """Which field of a record holds what, where the user said so: ``{"prompt": "q"}``."""
    tags: list[str]


@dataclass(frozen=True)
class RawBatch:
    """Records of one source, in its order."""

    positions: list[str]
    """Where to look, for people: ``A.jsonl:17``."""
    keys: list[str]
    """The id of a record that names none: line, row or stem."""
    records: pa.Array
    """large_binary [n], JSON text."""
    cells: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CELLS))
    """CELLS: media within the source; a record may point to its own as ``{"cell": number}``."""
    contents: pa.Array | None = None
    """large_binary, one a row of ``cells``: what is at hand; None where the core reads it."""
    beside: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BESIDE))
    """BESIDE: media that lie beside their record; they count, not what the record names."""
    troubles: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=TROUBLES))
    """TROUBLES: places of the source where no record could be had."""


def detect(path: Path) -> str | None:
    """The format of a file or folder by its content; None where it is none of ours.

    Raises:
        InputError: the file is damaged from its first byte, or a compressed tar.
    """
    from mmrlhf_engine.sources.text import compression, opening

    if path.is_dir():
        return "folder"
    start = opening(path)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[257:262] == b"ustar":
        if compression(path) is not None:
            raise InputError(
                f"{path}: a compressed tar", hint="decompress it: pictures are read in place"
            )
        return "webdataset"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # A list may also be the bad first line of a JSONL file; an array of records holds objects.
    if text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b"]", b""):
        return "json"
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".csv", ".tsv"}:
        return "csv"
    opens = any(line.lstrip()[:1] == b"{" for line in text.splitlines())
    return "jsonl" if opens or ".jsonl" in suffixes else None


def read(source: Source) -> Iterator[RawBatch]:
    """The records of a source, in its order, a few thousand at a time.

    Raises:
        InputError: the file as a whole is not what its format promises.
    """
    from mmrlhf_engine.sources import text
    from mmrlhf_engine.sources.samples import csv, folder, parquet, webdataset

    match source.format:
        case "jsonl" | "json":
            return text.read(source)
        case "csv":
            return csv.read(source)
        case "parquet":
            return parquet.read(source)
        case "webdataset":
            return webdataset.read(source)
        case _:
            return folder.read_folder(source)
