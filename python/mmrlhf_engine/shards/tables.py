"""The four tables of a dataset of preference shards, by name, as Polars reads them."""

from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from mmrlhf_engine.errors import InputError

__all__ = ["TABLES", "Table", "letter", "scan_table", "table_name"]

Table = Literal["queries", "responses", "pairs", "blobs"]

TABLES: tuple[Table, ...] = get_args(Table)

# In the manifest and in the names of files a table is one letter; this is the only place that
# knows, and the only one that translates for the core.
_LETTERS: dict[str, str] = {"queries": "q", "responses": "r", "pairs": "p", "blobs": "b"}
_NAMES = {letter: name for name, letter in _LETTERS.items()}

# Columns that hold rows of another table of the same shard, and which table that is.
_REFERENCES: dict[str, dict[str, str]] = {
    "queries": {"r0": "responses", "r1": "responses", "p0": "pairs", "p1": "pairs"},
    "responses": {"q": "queries"},
    "pairs": {"q": "queries", "chosen": "responses", "rejected": "responses"},
}
_NO_BLOBS = {
    "b3": pl.Binary,
    "bytes": pl.Binary,
    "fmt": pl.UInt8,
    "w": pl.UInt32,
    "h": pl.UInt32,
    "orient": pl.UInt8,
    "frames": pl.UInt32,
    "id": pl.UInt64,
}


def letter(table: str) -> str:
    """The letter that the files and the core use for a table.

    Raises:
        InputError: there is no such table.
    """
    if table not in _LETTERS:
        raise InputError(
            f"table {table!r}: not a table of preference shards, expected one of "
            f"{', '.join(TABLES)}"
        )
    return _LETTERS[table]


def table_name(letter: str) -> str:
    """The table that a letter stands for; a name is returned as it is."""
    return _NAMES.get(letter, letter)


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
        return pl.concat(blobs) if blobs else pl.LazyFrame(schema=_NO_BLOBS)
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
