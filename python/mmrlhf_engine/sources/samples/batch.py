"""What every reader of raw samples gives: batches of records in JSON text, with their media.

A reader only knows where records and their media lie. What a record means is decided in one place
for every format, in the core (``ingest/record.rs``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine.sources.files import Damage, SourceFormat
from mmrlhf_engine.sources.places import MediaPlaces
from mmrlhf_engine.sources.splits import Split

__all__ = [
    "ATTACHED",
    "CELLS",
    "RECORDS_PER_BATCH",
    "UNREADABLE",
    "Part",
    "RawBatch",
    "Source",
    "text_column",
]

RECORDS_PER_BATCH = 8_192

CELLS: dict[str, pl.DataType] = {
    "record": pl.UInt32(),  # the record of the batch it belongs to: no other may point to it
    "cell": pl.UInt32(),  # its number in the batch
    "path": pl.String(),  # the tar, Parquet or text file
    "offset": pl.UInt64(),  # byte range in a tar, or of base64 in a text
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
class Part:
    """A file of a source, or a folder of pictures with their texts."""

    path: Path
    format: SourceFormat | None
    """None where the file cannot be read at all; ``problem`` says why."""
    label: str
    """How positions call it: ``A.jsonl``, ``data/train-0.parquet``."""
    prefix: str
    """What its keys begin with, so that they are unique in the source."""
    places: MediaPlaces
    """Where its records look for their media."""
    columns: Mapping[str, str]
    """Which field of a record holds what, where the user said so: ``{"prompt": "q"}``."""
    prompt_for_pictures: str | None = None
    """The question about a picture that has no text of its own."""
    captioned: bool = False
    """Of a folder of pictures, only those with a text beside them: the others belong to tables."""
    problem: tuple[str, str] | None = None
    """Reason and detail, where no record of it can be read."""


@dataclass(frozen=True)
class Source:
    """A source as resolved: its files are known, its name is unique in the run."""

    name: str
    path: Path
    """As given, on this machine."""
    parts: tuple[Part, ...]
    columns: dict[str, str]
    """As in each part."""
    tags: list[str]
    split: Split | None = None
    """What was taken, where a folder has several splits."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Files of a folder that nothing reads: how many of each suffix (``.md``)."""
    pictures_beside: int = 0
    """Pictures and videos of a folder of tables, whose records should name them."""


@dataclass(frozen=True)
class RawBatch:
    """Records of one source, in its order."""

    positions: pl.Series
    """String: where to look, for people: ``A.jsonl:17``."""
    keys: pl.Series
    """String: the id of a record that names none: line, row or stem."""
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
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Files and members that belong to no record: how many of each suffix."""
    places: MediaPlaces | None = None
    """Where its names of media lead; set by ``read``."""

    @classmethod
    def of_damage(cls, part: Part, damage: Damage) -> "RawBatch":
        """A batch without a record, for a stretch of a file that cannot be read."""
        return cls.without_record(f"{part.label}:{damage.place}", "broken_record", damage.detail)

    @classmethod
    def without_record(cls, position: str, reason: str, detail: str) -> "RawBatch":
        """A batch of one place that cannot be read."""
        return cls(
            positions=text_column([]),
            keys=text_column([]),
            records=pa.array([], pa.large_binary()),
            unreadable=pl.DataFrame([(position, reason, detail)], schema=UNREADABLE, orient="row"),
        )


def text_column(values: Iterable[str]) -> pl.Series:
    """Positions or keys as a column."""
    return pl.Series(list(values), dtype=pl.String)
