"""The records of a source of any format."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import polars as pl
import pyarrow as pa

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.files import Damage, open_stream, start_of
from mmrlhf_engine.sources.json_object import as_records, read_opening
from mmrlhf_engine.sources.samples import csv, folder, index, parquet, webdataset
from mmrlhf_engine.sources.samples.batch import (
    RECORDS_PER_BATCH,
    Part,
    RawBatch,
    Source,
    text_column,
)
from mmrlhf_engine.sources.text import read_text_records

__all__ = ["read"]

_BLOCK_BYTES = 8 << 20
# An object of columns, or of one record, is parsed as a whole.
_LARGEST_OBJECT = 1 << 30


def read(source: Source) -> Iterator[RawBatch]:
    """The records of a source, in its order, a few thousand at a time.

    Of several files, one that cannot be read is an unreadable place, and the others are read.

    Raises:
        InputError: the only file is not what its format promises.
    """
    for part in source.parts:
        for batch in _batches(part, alone=len(source.parts) == 1):
            keys = (
                pl.select(pl.lit(part.prefix) + batch.keys).to_series()
                if part.prefix
                else batch.keys
            )
            yield replace(batch, keys=keys, places=part.places)


def _batches(part: Part, *, alone: bool) -> Iterator[RawBatch]:
    if part.problem is not None:
        yield RawBatch.without_record(part.label, *part.problem)
        return
    try:
        yield from _read(part)
    except InputError as error:
        if alone:
            raise
        yield RawBatch.without_record(part.label, "broken_record", str(error.args[0]))


def _read(part: Part) -> Iterator[RawBatch]:
    is_index = index.is_index(part.path)
    match part.format:
        case "folder":
            found = folder.read(part)
        case "jsonl" | "json":
            found = _read_text(part, part.format)
        case "json_object":
            found = _read_object(part)
        case "csv":
            found = csv.read(part)
        case "parquet":
            found = parquet.read(part, also=index.NAME_FIELDS if is_index else ())
        case "webdataset":
            found = webdataset.read(part)
        case other:
            raise ValueError(f"no reader of samples for the format {other}")
    return index.count_unnamed(part, found) if is_index else found


def _read_text(
    part: Part, format: Literal["jsonl", "json", "json_object"], member: str | None = None
) -> Iterator[RawBatch]:
    blocks = read_text_records(part.path, format, block_bytes=_BLOCK_BYTES, member=member)
    for found in blocks:
        if isinstance(found, Damage):
            yield RawBatch.of_damage(part, found)
            continue
        for start in range(0, len(found), RECORDS_PER_BATCH):
            block = found[start : start + RECORDS_PER_BATCH]
            keys = pl.Series(pl.from_arrow(block.field("number"))).cast(pl.String)
            positions = pl.select(pl.lit(f"{part.label}:") + keys).to_series()
            yield RawBatch(positions, keys, block.field("record"))


def _read_object(part: Part) -> Iterator[RawBatch]:
    """The records of a file that is one object: a list in it, columns, or one record."""
    opening = read_opening(start_of(part.path))
    if opening.record_list is not None:
        yield from _read_text(part, "json_object", opening.record_list)
        return
    try:
        with open_stream(part.path) as stream:
            text = io.BytesIO(stream.read(_LARGEST_OBJECT + 1)).getvalue()
        if len(text) > _LARGEST_OBJECT:
            raise InputError(
                f"{part.path}: an object of more than {_LARGEST_OBJECT:,} bytes without a list of "
                "records",
                hint="write it as JSON Lines or Parquet",
            )
        value = json.loads(text.removeprefix(b"\xef\xbb\xbf"))
        records = as_records(value) if isinstance(value, dict) else [value]
    except OSError as error:
        raise InputError(f"{part.path}: cannot be decompressed: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{part.path}: not a JSON object of records: {error}") from None
    for start in range(0, len(records), RECORDS_PER_BATCH):
        texts = [json.dumps(record).encode() for record in records[start:][:RECORDS_PER_BATCH]]
        keys = text_column(str(start + number) for number in range(len(texts)))
        positions = text_column(f"{part.label}:{key}" for key in keys)
        yield RawBatch(positions, keys, pa.array(texts, pa.large_binary()))
