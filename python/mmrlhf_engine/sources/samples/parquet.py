"""Parquet as Hugging Face writes it: pictures as bytes in cells, next to text columns.

Cells of bytes become references (``{"cell": 3}``) in the record, and their content goes into
``RawBatch.contents``; so do cells of text that hold a picture as base64. Every other column goes
into the record as it is. Columns are read that a record can make use of, and all that may hold a
text or a picture: what is not used is told by name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmrlhf_engine._core import record_fields
from mmrlhf_engine.sources.base64_text import begins_as_picture, from_base64, picture_text
from mmrlhf_engine.sources.columnar import read_parquet
from mmrlhf_engine.sources.files import Damage
from mmrlhf_engine.sources.samples.batch import (
    CELLS,
    RECORDS_PER_BATCH,
    Part,
    RawBatch,
    text_column,
)

__all__ = ["read"]

# Rows are read so many at a time that their pictures stay within this.
_BATCH_BYTES = 64 << 20
# Of a column of text so many values say whether it holds pictures.
_LOOKED_AT = 8


def read(part: Part, *, also: Iterable[str] = ()) -> Iterator[RawBatch]:
    """Rows of a Parquet file; a row group that is damaged is one unreadable place.

    ``also`` names columns that are read besides those that a record can make use of.

    Raises:
        InputError: the file has no readable footer.
    """
    found = read_parquet(
        part.path,
        max_rows=RECORDS_PER_BATCH,
        max_bytes=_BATCH_BYTES,
        columns=_columns_read(part, also),
    )
    for batch in found:
        if isinstance(batch, Damage):
            yield RawBatch.of_damage(part, batch)
        else:
            yield _to_records(part, batch.rows, batch.first)


def _columns_read(part: Part, also: Iterable[str]) -> set[str] | None:
    """Names of columns that are known or may hold a text or a picture; all of a damaged file."""
    try:
        schema = pq.read_schema(part.path)
    except (pa.ArrowException, OSError):
        return None
    known = {name.lower() for name in (*record_fields(), *part.columns.values(), *also)}
    return {
        field.name
        for field in schema
        if field.name.lower() in known or _may_hold_sample(field.type)
    }


def _may_hold_sample(kind: pa.DataType) -> bool:
    """Whether values are texts, bytes, or lists and structs of these."""
    types = pa.types
    if _is_list(kind) or types.is_dictionary(kind):
        return _may_hold_sample(kind.value_type)
    if types.is_struct(kind):
        return any(_may_hold_sample(field.type) for field in kind.fields)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or _is_binary(kind))


def _to_records(part: Part, batch: pa.RecordBatch, first: int) -> RawBatch:
    columns = []
    cells = pl.DataFrame(schema=CELLS)
    contents = [pa.array([], pa.large_binary())]
    known = {name.lower() for name in (*record_fields(), *part.columns.values())}
    for name, stored in zip(batch.schema.names, batch.columns, strict=True):
        values = _decoded(stored)
        if _holds_bytes(values.type) and (name.lower() in known or _shows_pictures(values)):
            pictures = _Pictures.of(values)
            columns.append(pl.Series(name, pl.from_arrow(pictures.references(cells.height))))
            places = pictures.places().with_columns(
                cell=pl.int_range(pl.len(), dtype=pl.UInt32) + cells.height,
                path=pl.lit(str(part.path)),
                column=pl.lit(name),
                row=pl.col("record").cast(pl.UInt64) + first,
            )
            cells = pl.concat([cells, places], how="diagonal")
            contents.append(pictures.contents.drop_null())
        elif _is_plain(values.type):
            columns.append(pl.Series(name, pl.from_arrow(values)))
        else:
            columns.append(_foreign(name, values))
    text = pl.DataFrame(columns).select(pl.struct(pl.all()).struct.json_encode()).to_series()
    keys = [str(first + index) for index in range(batch.num_rows)]
    return RawBatch(
        positions=text_column(f"{part.label}:{key}" for key in keys),
        keys=text_column(keys),
        records=text.to_arrow().cast(pa.large_binary()),
        cells=cells,
        contents=pa.concat_arrays(contents),
    )


def _decoded(values: pa.Array) -> pa.Array:
    """Values as they are meant: of a dictionary its entries, of base64 the bytes."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    inner = values.type.value_type if _is_list(values.type) else values.type
    if not _is_text(inner):
        return values
    texts = values.flatten() if _is_list(values.type) else values
    if not any(picture_text(text) for text in texts[:_LOOKED_AT].drop_null().to_pylist()):
        return values
    # A text that is no picture is a name.
    cells = [
        {"bytes": from_base64(t), "path": t} if t is not None else None for t in texts.to_pylist()
    ]
    named = pa.array(cells, pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]))
    if not _is_list(values.type):
        return named
    counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(counts)])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), named)


def _shows_pictures(values: pa.Array) -> bool:
    """Whether the first bytes of a column that nobody asked for are those of a picture."""
    contents = _Pictures.of(values).contents.drop_null()
    return len(contents) > 0 and begins_as_picture(contents[0].as_py())


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes, ``{bytes, path}``, or lists of these."""
    if _is_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind.fields)
    return _is_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    variable = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(variable or types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values can be written as JSON."""
    types = pa.types
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind.fields)
    if types.is_map(kind):
        return _is_plain(kind.key_type) and _is_plain(kind.item_type)
    if _is_list(kind) or types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal128(kind)
    time = types.is_temporal(kind) and not types.is_interval(kind)
    return bool(_is_text(kind) or number or time or types.is_boolean(kind) or types.is_null(kind))


def _foreign(name: str, values: pa.Array) -> pl.Series:
    """What cannot be written as JSON, as ``{type}``: the core refuses it where it is needed."""
    kinds = [{"type": str(values.type)} if value.is_valid else None for value in values]
    return pl.Series(name, kinds, dtype=pl.Struct({"type": pl.String()}))


def _entries(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _decoded_text(values: pa.Array) -> pa.Array:
    """Texts of base64 as bytes; anything else as it is."""
    if not _is_text(_entries(values).type):
        return values
    texts = _entries(values).to_pylist()
    contents = [None if text is None else from_base64(text) for text in texts]
    whole = all(content is not None for content, text in zip(contents, texts, strict=True) if text)
    return pa.array(contents, pa.large_binary()) if whole else values


@dataclass(frozen=True)
class _Pictures:
    """The items of a column that holds bytes: m of them in n rows."""

    rows: int
    parents: np.ndarray
    """int64 [m]: the row of each item."""
    items: np.ndarray | None
    """int64 [m]: its place in the list of the row; None where the column has no lists."""
    contents: pa.Array
    """large_binary [m], null where an item has none."""
    paths: pa.Array
    """large_string [m], null where an item has none or its content is here."""
    invalid: np.ndarray
    """bool [m]: items that are neither content nor path."""

    @classmethod
    def of(cls, values: pa.Array) -> "_Pictures":
        rows, parents, items = len(values), np.arange(len(values)), None
        if _is_list(values.type):
            parents = pc.list_parent_indices(values).to_numpy()
            starts = np.searchsorted(parents, parents, side="left")
            items = np.arange(len(parents)) - starts
            values = values.flatten()
        contents, paths = values, pa.nulls(len(values), pa.large_string())
        invalid = np.zeros(len(values), bool)
        if pa.types.is_struct(values.type):
            fields = values.flatten()
            contents = _decoded_text(fields[values.type.get_field_index("bytes")])
            place = values.type.get_field_index("path")
            if place >= 0 and _is_text(_entries(fields[place]).type):
                paths = _entries(fields[place]).cast(pa.large_string())
            elif place >= 0:
                invalid |= fields[place].is_valid().to_numpy(zero_copy_only=False)
        contents = _entries(contents)
        if not _is_binary(contents.type):
            invalid |= contents.is_valid().to_numpy(zero_copy_only=False)
            contents = pa.nulls(len(values), pa.large_binary())
        contents = contents.cast(pa.large_binary())
        paths = pc.if_else(contents.is_valid(), pa.scalar(None, pa.large_string()), paths)
        return cls(rows, parents, items, contents, paths, invalid)

    def references(self, first_cell: int) -> pa.Array:
        """A list of ``{cell, path}`` a row, null where empty; cells count from ``first_cell``."""
        here = self.contents.is_valid().to_numpy(zero_copy_only=False)
        numbers = pa.array(np.cumsum(here) - 1 + first_cell, pa.uint32(), mask=~here)
        # A reference without a cell and a path is one that the core refuses.
        kept = here | self.paths.is_valid().to_numpy(zero_copy_only=False) | self.invalid
        places = pa.StructArray.from_arrays([numbers, self.paths], ["cell", "path"]).filter(kept)
        counts = np.bincount(self.parents[kept], minlength=self.rows)
        ends = np.concatenate([[0], np.cumsum(counts)])
        empty = pa.array(counts == 0)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), places, mask=empty)

    def places(self) -> pl.DataFrame:
        """Record and item of every content, in order."""
        here = self.contents.is_valid().to_numpy(zero_copy_only=False)
        items = [None] * int(here.sum()) if self.items is None else self.items[here]
        schema = {"record": pl.UInt32(), "item": pl.UInt32()}
        return pl.DataFrame({"record": self.parents[here], "item": items}, schema=schema)
