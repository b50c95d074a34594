"""Parquet as Hugging Face writes it: pictures as bytes in cells, beside text columns.

Cells of bytes become references (``{"cell": 3}``) in the record, and their content is handed on
beside it; every other column goes into the record as it is.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine.curate.sources import RawBatch, Source, cells_frame
from mmrlhf_engine.curate.sources.text import json_batch
from mmrlhf_engine.errors import InputError

__all__ = ["read"]

# Fewer rows at a time than of text: each may carry megabytes.
_ROWS = 512


def read(source: Source) -> Iterator[RawBatch]:
    """Rows of a Parquet file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        file = pq.ParquetFile(source.path)
        first = 0
        for batch in file.iter_batches(batch_size=_ROWS):
            yield _to_records(source, batch, first)
            first += batch.num_rows
    except pa.ArrowException as error:
        raise InputError(f"{source.path}: cannot be read as Parquet: {error}") from None


def _to_records(source: Source, batch: pa.RecordBatch, first: int) -> RawBatch:
    columns = {}
    cells: list[dict[str, object]] = []
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if _holds_bytes(values.type):
            columns[name] = _references(source, name, values, first, cells)
        else:
            columns[name] = pl.Series(name, pl.from_arrow(values))
    return json_batch(source, pl.DataFrame(columns), first, cells_frame(cells))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _references(
    source: Source, name: str, values: pa.Array, first: int, cells: list[dict[str, object]]
) -> pl.Series:
    """A column of lists of ``{cell, path}``, and the content they stand for added to ``cells``."""
    references = []
    for row, value in enumerate(values.to_pylist(), start=first):
        items = value if isinstance(value, list) else [value]
        places: list[dict[str, Any]] = []
        for index, item in enumerate(items):
            content = item["bytes"] if isinstance(item, dict) else item
            if content is not None:
                places.append({"cell": len(cells), "path": None})
                place = index if isinstance(value, list) else None
                cells.append(
                    {
                        "path": str(source.path),
                        "column": name,
                        "row": row,
                        "item": place,
                        "inline": content,
                    }
                )
            elif isinstance(item, dict) and item.get("path"):
                places.append({"cell": None, "path": item["path"]})
        references.append(places)
    kind = pl.List(pl.Struct({"cell": pl.UInt32(), "path": pl.String()}))
    return pl.Series(name, references, dtype=kind)
