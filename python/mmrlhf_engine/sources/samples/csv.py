"""CSV and TSV with a header; every value is a text, an empty one is absent.

Rows are read one by one, so that a row of too few or too many values, or one that is not UTF-8,
costs only itself.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.files import open_stream
from mmrlhf_engine.sources.samples.batch import RECORDS_PER_BATCH, UNREADABLE, RawBatch, Source

__all__ = ["read"]


def read(source: Source) -> Iterator[RawBatch]:
    """Rows of a CSV or TSV file, each known by the line on which it ends.

    Raises:
        InputError: the file cannot be decompressed.
    """
    suffixes = {suffix.lower() for suffix in source.path.suffixes}
    with open_stream(source.path) as stream:
        # Bytes that are no UTF-8 become lone surrogates, which the core refuses in a record.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, delimiter="\t" if ".tsv" in suffixes else ",")
        try:
            header = next(rows, [])
            numbered = _numbered(rows)
            while batch := list(itertools.islice(numbered, RECORDS_PER_BATCH)):
                yield _to_records(source, header, batch)
        except OSError as error:
            raise InputError(f"{source.path}: cannot be decompressed: {error}") from None


def _numbered(rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str] | str]]:
    """Line number and values of each row that is not blank; a text for what is wrong with it."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, str(error)  # type: ignore[attr-defined]
            continue
        if row:
            yield rows.line_num, row  # type: ignore[attr-defined]


def _to_records(
    source: Source, header: list[str], rows: list[tuple[int, list[str] | str]]
) -> RawBatch:
    records, keys, unreadable = [], [], []
    for line, row in rows:
        if isinstance(row, list) and len(row) == len(header):
            values = {name: value for name, value in zip(header, row, strict=True) if value}
            records.append(json.dumps(values).encode())
            keys.append(str(line))
            continue
        reason, detail = "broken_record", row
        if isinstance(row, list):
            reason, detail = "wrong_type", f"{len(row)} values, the header has {len(header)}"
        unreadable.append((f"{source.path.name}:{line}", reason, detail))
    return RawBatch(
        positions=[f"{source.path.name}:{key}" for key in keys],
        keys=keys,
        records=pa.array(records, pa.large_binary()),
        unreadable=pl.DataFrame(unreadable, schema=UNREADABLE, orient="row"),
    )
