"""Parquet as Hugging Face writes it: pictures as bytes in cells, beside text columns.

Cells of bytes become references (``{"cell": 3}``) in the record, and their content is handed on
beside it; every other column goes into the record as it is. Only columns are read that a record can
make use of.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine._core import record_fields
from mmrlhf_engine.curate.sources import CELLS, RECORDS_PER_BATCH, TROUBLES, RawBatch, Source
from mmrlhf_engine.errors import InputError

__all__ = ["read"]

# Rows are read so many at a time that their pictures stay within this.
_BATCH_BYTES = 64 << 20


def read(source: Source) -> Iterator[RawBatch]:
    """Rows of a Parquet file; a row group that is damaged is one trouble.

    Raises:
        InputError: the file has no readable footer.
    """
    try:
        file = pq.ParquetFile(source.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source.path}: cannot be read as Parquet: {error}") from None
    with file:
        known = {*record_fields(), *source.fields}
        columns = [name for name in file.schema_arrow.names if name in known]
        first = 0
        for group in range(file.num_row_groups):
            yield from _read_group(source, file, group, first, columns or None)
            first += file.metadata.row_group(group).num_rows


def _read_group(
    source: Source, file: pq.ParquetFile, group: int, first: int, columns: list[str] | None
) -> Iterator[RawBatch]:
    metadata = file.metadata.row_group(group)
    bytes_per_row = metadata.total_byte_size // max(metadata.num_rows, 1) + 1
    rows = min(max(_BATCH_BYTES // bytes_per_row, 16), RECORDS_PER_BATCH)
    batches = file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)
    end = first + metadata.num_rows
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            yield _damaged(source, first, end, error)
            return
        if batch is None:
            return
        yield _to_records(source, batch, first)
        first += batch.num_rows


def _damaged(source: Source, first: int, end: int, error: Exception) -> RawBatch:
    detail = f"rows {first} to {end - 1} cannot be read: {error}"
    trouble = [(f"{source.path.name}:{first}", "broken_record", detail)]
    return RawBatch(
        positions=[],
        keys=[],
        records=pa.array([], pa.large_binary()),
        troubles=pl.DataFrame(trouble, schema=TROUBLES, orient="row"),
    )


def _to_records(source: Source, batch: pa.RecordBatch, first: int) -> RawBatch:
    columns = []
    cells: list[dict[str, object]] = []
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if _holds_bytes(values.type):
            columns.append(_references(source, name, values, first, cells))
        elif _is_plain(values.type):
            columns.append(pl.Series(name, pl.from_arrow(values)))
        else:
            columns.append(_foreign(name, values))
    text = pl.DataFrame(columns).select(pl.struct(pl.all()).struct.json_encode()).to_series()
    keys = [str(first + index) for index in range(batch.num_rows)]
    return RawBatch(
        positions=[f"{source.path.name}:{key}" for key in keys],
        keys=keys,
        records=text.to_arrow().cast(pa.large_binary()),
        cells=pl.DataFrame(cells, schema=CELLS),
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes, ``{bytes, path}``, or lists of these."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind.fields)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(binary or types.is_fixed_size_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values can be written as JSON."""
    types = pa.types
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind.fields)
    if types.is_map(kind):
        return _is_plain(kind.key_type) and _is_plain(kind.item_type)
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if nested or types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal128(kind)
    time = types.is_temporal(kind) and not types.is_interval(kind)
    return bool(text or number or time or types.is_boolean(kind) or types.is_null(kind))


def _foreign(name: str, values: pa.Array) -> pl.Series:
    """What cannot be written as JSON, as ``{type}``: the core refuses it where it is needed."""
    kinds = [{"type": str(values.type)} if value.is_valid else None for value in values]
    return pl.Series(name, kinds, dtype=pl.Struct({"type": pl.String()}))


def _references(
    source: Source, name: str, values: pa.Array, first: int, cells: list[dict[str, object]]
) -> pl.Series:
    """A column of lists of ``{cell, path}``, and the content they stand for added to ``cells``."""
    references = []
    for record, value in enumerate(values.to_pylist()):
        places: list[dict[str, Any]] = []
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            fields = item if isinstance(item, dict) else {"bytes": item}
            content, path = fields.get("bytes"), fields.get("path")
            if item is None or (content is None and path is None):
                continue
            if not isinstance(content, bytes):
                # Without a path, this is a reference to nothing, which the core will name.
                places.append({"cell": None, "path": path if isinstance(path, str) else None})
                continue
            places.append({"cell": len(cells), "path": None})
            cells.append(
                {
                    "record": record,
                    "cell": len(cells),
                    "path": str(source.path),
                    "column": name,
                    "row": first + record,
                    "item": index if isinstance(value, list) else None,
                    "inline": content,
                }
            )
        references.append(places or None)
    kind = pl.List(pl.Struct({"cell": pl.UInt32(), "path": pl.String()}))
    return pl.Series(name, references, dtype=kind)
