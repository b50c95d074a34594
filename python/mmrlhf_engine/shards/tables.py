"""The four tables of a dataset of preference shards, by name, as Polars reads them."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError

__all__ = ["TABLES", "Table", "arrow_schema", "letter", "scan_table"]

Table = Literal["queries", "responses", "pairs", "blobs"]

TABLES: tuple[Table, ...] = get_args(Table)

_SCHEMAS: dict[str, dict[str, Any]] = {
    table["name"]: table for table in json.loads(_core.shard_schema())
}

# Columns that hold rows of another table of the same shard, and which table that is.
_REFERENCES: dict[str, dict[str, str]] = {
    "queries": {"r0": "responses", "r1": "responses", "p0": "pairs", "p1": "pairs"},
    "responses": {"q": "queries"},
    "pairs": {"q": "queries", "chosen": "responses", "rejected": "responses"},
}


def letter(table: str) -> str:
    """The letter that stands for a table in manifests and names of files.

    Raises:
        InputError: there is no such table.
    """
    return str(_schema(table)["letter"])


def arrow_schema(table: Table, *, computed: bool = True) -> pa.Schema:
    """The columns of a table; without ``computed`` those that the dataset writer is given.

    Raises:
        InputError: there is no such table.
    """
    return pa.schema(
        pa.field(column["name"], _arrow_type(column["type"]), nullable=column["nullable"])
        for column in _schema(table)["columns"]
        if computed or column["input"] != "computed"
    )


def _schema(table: str) -> dict[str, Any]:
    if table not in _SCHEMAS:
        raise InputError(f"table: found {table!r}, expected queries, responses, pairs or blobs")
    return _SCHEMAS[table]


def _arrow_type(name: str) -> pa.DataType:
    """The type that the core's schema names: ``uint32``, ``large_list<uint32>``, ..."""
    if name.startswith("large_list<"):
        item = _arrow_type(name.removeprefix("large_list<").removesuffix(">"))
        return pa.large_list(pa.field("item", item, nullable=False))
    if name.startswith("fixed_size_binary["):
        return pa.binary(int(name.removeprefix("fixed_size_binary[").removesuffix("]")))
    return pa.type_for_alias(name)


def scan_table(path: Path, manifest: dict[str, Any], table: Table) -> pl.LazyFrame:
    """A table over all shards; references are rows over all shards, blobs have their ``id``.

    Checksums are not compared.

    Raises:
        InputError: there is no such table.
    """
    stored = letter(table)
    if table == "blobs":
        blobs = [
            pl.scan_ipc(path / part["file"]).with_columns(
                id=pl.int_range(pl.len(), dtype=pl.UInt64) + pl.lit(part["id"] << 32, pl.UInt64)
            )
            for part in manifest["blobs"]
        ]
        return pl.concat(blobs) if blobs else _no_blobs()
    starts = dict.fromkeys(_REFERENCES, 0)
    parts = []
    for shard in manifest["shards"]:
        moved = [
            (pl.col(column).cast(pl.UInt64) + starts[to]).alias(column)
            for column, to in _REFERENCES[table].items()
        ]
        parts.append(pl.scan_ipc(path / shard[stored]["file"]).with_columns(moved))
        for name in starts:
            starts[name] += shard[letter(name)]["rows"]
    return pl.concat(parts) if parts else pl.LazyFrame()


def _no_blobs() -> pl.LazyFrame:
    schema = arrow_schema("blobs").append(pa.field("id", pa.uint64()))
    return pl.LazyFrame(pl.DataFrame(schema.empty_table()))
