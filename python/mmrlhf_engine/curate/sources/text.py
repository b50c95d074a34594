"""JSONL, one JSON array, and CSV; plain, gzip or zstd.

Lines and elements are cut out of blocks by the core, so that a file of any size, and a line of any
length, passes in little memory.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import RecordSplitter
from mmrlhf_engine.curate.sources import RECORDS_PER_BATCH, RawBatch, Source, cells_frame
from mmrlhf_engine.errors import InputError

__all__ = ["json_batch", "opening", "read_csv", "read_json"]

_BLOCK = 4 << 20
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def opening(path: Path) -> bytes:
    """The first 64 KiB of a file, decompressed.

    Raises:
        InputError: the file begins as a compressed one and is none.
    """
    try:
        with _open(path) as stream:
            return bytes(stream.read(1 << 16))
    except OSError as error:
        raise InputError(f"{path}: cannot be decompressed: {error}") from None


def read_json(source: Source) -> Iterator[RawBatch]:
    """Lines of a JSONL file, or elements of a JSON array.

    Raises:
        InputError: a compressed file ends too early or is damaged.
    """
    splitter = RecordSplitter("array" if source.format == "json" else "lines")
    with _open(source.path) as stream:
        last = False
        while not last:
            try:
                block = stream.read(_BLOCK)
            except OSError as error:
                raise InputError(f"{source.path}: cannot be decompressed: {error}") from None
            last = len(block) == 0
            found = pa.array(splitter.feed(bytes(block), last))
            for start in range(0, len(found), RECORDS_PER_BATCH):
                part = found[start : start + RECORDS_PER_BATCH]
                keys = [str(number) for number in part.field("number").to_pylist()]
                yield RawBatch(
                    positions=[f"{source.path.name}:{key}" for key in keys],
                    keys=keys,
                    records=part.field("record"),
                    cells=cells_frame([]),
                )


def read_csv(source: Source) -> Iterator[RawBatch]:
    """Rows of a CSV or TSV file with a header; every value is a text.

    Raises:
        InputError: the file is not valid CSV.
    """
    separator = "\t" if ".tsv" in source.path.suffixes else ","
    try:
        with _open(source.path) as stream:
            rows = pl.read_csv(bytes(stream.read()), separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{source.path}: not valid CSV: {error}") from None
    for start in range(0, rows.height, RECORDS_PER_BATCH):
        part = rows.slice(start, RECORDS_PER_BATCH)
        # The header is line 1; a quoted line break within a value makes later numbers too small.
        yield json_batch(source, part, first=start + 2, cells=cells_frame([]))


def json_batch(source: Source, rows: pl.DataFrame, first: int, cells: pl.DataFrame) -> RawBatch:
    """Rows of a table as records; ``first`` is the number of the first one."""
    text = rows.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    keys = [str(first + index) for index in range(rows.height)]
    return RawBatch(
        positions=[f"{source.path.name}:{key}" for key in keys],
        keys=keys,
        records=text.to_arrow().cast(pa.large_binary()),
        cells=cells,
    )


def _open(path: Path) -> pa.NativeFile:
    with path.open("rb") as file:
        start = file.read(4)
    for magic, compression in _COMPRESSIONS.items():
        if start.startswith(magic):
            return pa.input_stream(str(path), compression=compression)
    return pa.input_stream(str(path), compression=None)
