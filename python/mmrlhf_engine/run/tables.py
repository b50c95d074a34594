"""Tables on disk: folders of Parquet parts with a declared schema."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from mmrlhf_engine.errors import StageError
from mmrlhf_engine.run.files import appearing, link_or_copy

__all__ = ["REJECTED", "ROWS_PER_PART", "TableSchema", "TableWriter"]

ROWS_PER_PART = 32_768
_ROWS_TO_LINK = 8_192
"""Tables of fewer rows are copied into parts with others, so that there are not too many files."""

TableSchema = dict[str, pl.DataType]

REJECTED: TableSchema = {
    "source": pl.String(),
    "position": pl.String(),  # where to look, for example "A.jsonl:17"
    "reason": pl.String(),
    "detail": pl.String(),
}
"""Rows of raw input that could not be used."""


class TableWriter:
    """Collects rows and writes them as Parquet parts of a fixed number of rows.

    The parts depend on the rows and their order alone, and on where the rows of whole tables were
    added; never on the batches they came in, so a table is byte-identical however its producer was
    scheduled. A part is written while the rows of the next one are collected; an error of it is
    raised by a later ``write``, or at the end.
    """

    def __init__(self, folder: Path, schema: TableSchema) -> None:
        self.folder = folder
        self.schema = schema
        self.rows = 0
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._parts = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=folder.name)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "TableWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # Rows are written on an error too: those of `rejected` say what went wrong.
        with self._thread:
            if self._waiting_rows or (kind is None and not self._parts):
                self._begin_part(self._take(self._waiting_rows))
            self._end_part()

    def write(self, rows: pl.DataFrame) -> None:
        """Append rows; columns are put in the order of the schema and cast to it."""
        missing = [name for name in self.schema if name not in rows.columns]
        if missing:
            raise StageError(f"table {self.folder.name}: columns missing: {', '.join(missing)}")
        self._waiting.append(rows.select(*self.schema).cast(self.schema))  # type: ignore[arg-type]
        self._waiting_rows += rows.height
        self.rows += rows.height
        while self._waiting_rows >= ROWS_PER_PART:
            self._begin_part(self._take(ROWS_PER_PART))

    def add_table(self, parts: Sequence[Path]) -> None:
        """Append all rows of another table of this schema.

        Its parts become parts of this one, as hard links where the file system has them.
        """
        rows = sum(pl.scan_parquet(part).select(pl.len()).collect().item() for part in parts)
        if rows < _ROWS_TO_LINK:
            for part in parts:
                self.write(pl.read_parquet(part))
            return
        if self._waiting_rows:
            self._begin_part(self._take(self._waiting_rows))
        for part in parts:
            link_or_copy(part, self._next_part())
            self._parts += 1
        self.rows += rows

    def _take(self, rows: int) -> pl.DataFrame:
        everything = pl.concat([pl.DataFrame(schema=self.schema), *self._waiting])
        rest = everything.slice(rows)
        self._waiting, self._waiting_rows = [rest], rest.height
        return everything.head(rows)

    def _begin_part(self, rows: pl.DataFrame) -> None:
        self._end_part()
        self._writing = self._thread.submit(_write_part, self._next_part(), rows)
        self._parts += 1

    def _end_part(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _next_part(self) -> Path:
        return self.folder / f"part-{self._parts:05d}.parquet"


def _write_part(part: Path, rows: pl.DataFrame) -> None:
    with appearing(part) as temporary:
        rows.rechunk().write_parquet(temporary, compression="zstd", compression_level=1)
