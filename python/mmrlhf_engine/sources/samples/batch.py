"""What every reader of raw samples gives: batches of records in JSON text, with their media.

A reader only knows where records and their media lie. What a record means is decided in one place
for every format, in the core (``ingest/record.rs``).
"""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine.sources.files import Damage, SourceFormat

__all__ = ["ATTACHED", "CELLS", "RECORDS_PER_BATCH", "UNREADABLE", "RawBatch", "Source"]

RECORDS_PER_BATCH = 16_384

CELLS: dict[str, pl.DataType] = {
    "record": pl.UInt32(),  # the record of the batch it belongs to: no other may point to it
    "cell": pl.UInt32(),  # its number in the batch
    "path": pl.String(),  # the tar or Parquet file
    "offset": pl.UInt64(),  # byte range in a tar
    "length": pl.UInt64(),
    "column": pl.String(),  # cell of a Parquet file: column, row, item of the list
    "row": pl.UInt64(),
    "item": pl.UInt32(),
}

ATTACHED: dict[str, pl.DataType] = {
    "record": pl.UInt32(),
    "name": pl.String(),  # a file below the root, or null
    "cell": pl.UInt32(),  # one of CELLS, or null
}

UNREADABLE: dict[str, pl.DataType] = {
    "position": pl.String(),
    "reason": pl.String(),
    "detail": pl.String(),
}


@dataclass(frozen=True)
class Source:
    """A source as resolved: its files are known, its name is unique in the run."""

    name: str
    path: Path
    format: SourceFormat
    root: Path
    """Names of media in the records may point below this folder only."""
    columns: dict[str, str]
    """Which field of a record holds what, where the user said so: ``{"prompt": "q"}``."""
    tags: list[str]


@dataclass(frozen=True)
class RawBatch:
    """Records of one source, in its order."""

    positions: list[str]
    """Where to look, for people: ``A.jsonl:17``."""
    keys: list[str]
    """The id of a record that names none: line, row or stem."""
    records: pa.Array
    """large_binary [n], JSON text."""
    cells: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CELLS))
    """CELLS: media within the source; a record may point to its own as ``{"cell": number}``."""
    contents: pa.Array | None = None
    """large_binary, one a row of ``cells``: what was read already; None where the core reads it."""
    attached: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=ATTACHED))
    """ATTACHED: media that belong to a record by their file name; what the record itself names is
    not looked at."""
    unreadable: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=UNREADABLE))
    """UNREADABLE: places of the source where no record could be read."""

    @classmethod
    def of_damage(cls, source: Source, damage: Damage) -> "RawBatch":
        """A batch without a record, for a part of a file that cannot be read."""
        place = (f"{source.path.name}:{damage.place}", "broken_record", damage.detail)
        return cls(
            positions=[],
            keys=[],
            records=pa.array([], pa.large_binary()),
            unreadable=pl.DataFrame([place], schema=UNREADABLE, orient="row"),
        )
