"""Rows of work that is done query by query: kept in the scratch folder, with where to go on.

A record is a Parquet part and then a position that counts it; a part without its position is
written again. So a run that was killed goes on after the last record.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.run.files import appearing, write_atomically
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.tables import TableSchema

__all__ = ["FinishedParts", "groups_of"]


class FinishedParts:
    """Finished rows, counts of what was left out, and the cursor of the data.

    Args:
        folder: The scratch folder.
        schema: Of the rows.
        counts: Names of the counts.
    """

    def __init__(self, folder: Path, schema: TableSchema, counts: Iterable[str] = ()) -> None:
        self._folder, self._state = folder, folder / "position.json"
        self._schema = schema
        position = read_json(self._state) or {}
        self.cursor: str | None = position.get("cursor")
        """Of the data, after the last record; None before the first."""
        self.taken: int = position.get("taken", 0)
        """Queries that are done."""
        self.counts: dict[str, int] = dict.fromkeys(counts, 0) | position.get("counts", {})
        self._parts: int = position.get("parts", 0)

    def keep(self, rows: list[dict[str, Any]], cursor: str) -> None:
        """Record what is done: the rows first, then the position that goes with them."""
        with appearing(self._file(self._parts)) as temporary:
            pl.DataFrame(rows, schema=self._schema).write_parquet(temporary)
        self._parts += 1
        self.cursor = cursor
        position = {
            "cursor": cursor,
            "taken": self.taken,
            "counts": self.counts,
            "parts": self._parts,
        }
        write_atomically(self._state, json.dumps(position))

    def rows(self) -> pl.DataFrame:
        """All rows, in the order in which they were kept."""
        parts = [pl.read_parquet(self._file(number)) for number in range(self._parts)]
        return pl.concat([pl.DataFrame(schema=self._schema), *parts])

    def _file(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"


def groups_of(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Batches in groups of ``size``; the last may be smaller."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group
