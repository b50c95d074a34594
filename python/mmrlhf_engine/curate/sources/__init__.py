"""Raw corpora, one file a format, all read as the same thing: batches of records in JSON text.

A source file only knows where records and their media lie. What a record means is decided in one
place for every format, in the core (``ingest/record.rs``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

__all__ = ["CELLS", "RECORDS_PER_BATCH", "RawBatch", "Source", "cells_frame", "detect", "read"]

RECORDS_PER_BATCH = 4096

CELLS: dict[str, pl.DataType] = {
    "path": pl.String(),  # the tar or Parquet file
    "offset": pl.UInt64(),  # byte range in a tar
    "length": pl.UInt64(),
    "column": pl.String(),  # cell of a Parquet file: column, row, item of the list
    "row": pl.UInt64(),
    "item": pl.UInt32(),
    "inline": pl.Binary(),  # the content of a Parquet cell, while it is at hand
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


@dataclass(frozen=True)
class RawBatch:
    """Records of one source, in its order."""

    positions: list[str]
    """Where to look, for people: ``A.jsonl:17``."""
    keys: list[str]
    """The id of a record that names none: line, row or stem."""
    records: pa.Array
    """large_binary [n], JSON text."""
    cells: pl.DataFrame
    """CELLS: the media that records point to as ``{"cell": number}``."""


def cells_frame(rows: list[dict[str, object]]) -> pl.DataFrame:
    """Rows as a frame of the schema CELLS."""
    return pl.DataFrame(rows, schema=CELLS)


def detect(path: Path) -> str | None:
    """The format of a file or folder by its content; None where it is none of ours."""
    from mmrlhf_engine.curate.sources.text import opening

    if path.is_dir():
        return "folder"
    start = opening(path)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[257:262] == b"ustar":
        return "webdataset"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"[":
        return "json"
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if text[:1] == b"{" or ".jsonl" in suffixes:
        return "jsonl"
    return "csv" if suffixes & {".csv", ".tsv"} else None


def read(source: Source) -> Iterator[RawBatch]:
    """The records of a source, in its order, a few thousand at a time.

    Raises:
        InputError: the file as a whole is not what its format promises.
    """
    from mmrlhf_engine.curate.sources import folder, parquet, text, webdataset

    match source.format:
        case "jsonl" | "json":
            return text.read_json(source)
        case "csv":
            return text.read_csv(source)
        case "parquet":
            return parquet.read(source)
        case "webdataset":
            return webdataset.read(source)
        case _:
            return folder.read_folder(source)
