"""Records of one source to rows of the three tables of ingest."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import (
    FirstSeen,
    UniqueIds,
    inspect_located_media,
    read_records,
)
from mmrlhf_engine.curate.ingest_embedded import EmbeddedFile
from mmrlhf_engine.curate.ingest_frames import (
    INSPECTED,
    STORED,
    attached_counts,
    bad_rows,
    media_by_record,
    name_rows,
    to_frame,
    with_media,
    with_unique_ids,
)
from mmrlhf_engine.curate.tables import MEDIA
from mmrlhf_engine.curate.unread import UnreadFields
from mmrlhf_engine.run.ordered_map import ordered_map
from mmrlhf_engine.run.tables import TableWriter
from mmrlhf_engine.sources.foreign import refuse_undecodable
from mmrlhf_engine.sources.places import NOWHERE, MediaPlaces, inspect_names
from mmrlhf_engine.sources.samples.batch import RawBatch, Source
from mmrlhf_engine.sources.samples.read import read

__all__ = ["InspectedNames", "SourceReader"]

# Records that share a picture stand near each other; about 200 MB.
_NAMES_REMEMBERED = 200_000

Records = tuple[pl.DataFrame, ...]
"""The turns of a batch of records, what they refer to, and fields that are not read."""

InspectedNames = dict[tuple[MediaPlaces, str], dict[str, Any]]
"""What was found of media by their names; sources share pictures too."""


@dataclass
class SourceReader:
    """The tables of one source while they are filled, and what was read so far."""

    source: Source
    samples: TableWriter
    media: TableWriter
    rejected: TableWriter
    embedded: EmbeddedFile
    max_pixels: int
    threads: int
    ids: UniqueIds
    names: InspectedNames
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files and members that belong to no record, by suffix."""
    pictured: int = 0
    """Records with media."""
    unread: UnreadFields = field(default_factory=UnreadFields)
    contents: FirstSeen = field(default_factory=FirstSeen)

    def __post_init__(self) -> None:
        self.passed_over.update(self.source.passed_over)

    def counts(self) -> dict[str, Any]:
        """What was counted, as JSON values."""
        return {
            "samples": self.samples.rows,
            "rejected": self.rejected.rows,
            "reasons": dict(self.reasons),
            "passed_over": dict(self.passed_over),
            "pictured": self.pictured,
            "unread": self.unread.facts(),
        }

    def batches(self) -> Iterator[tuple[RawBatch, Records]]:
        """The batches of the source with what the core makes of them, a few ahead of their use."""

        def with_records(batch: RawBatch) -> tuple[RawBatch, Records]:
            attached = attached_counts(batch)
            columns = self.source.columns
            tables = read_records(batch.records, columns, self.threads, attached=attached)
            return batch, tuple(to_frame(table) for table in tables)

        return ordered_map(with_records, read(self.source), threads=1)

    def take(self, batch: RawBatch, records: Records) -> None:
        """Turn one batch of records into rows of the three tables."""
        self.passed_over.update(batch.passed_over)
        turns, references, unread = records
        self.unread.add(unread)
        rows = name_rows(self.source, batch, turns)
        media = self._inspect(batch, references)
        self.pictured += media.height
        rows = with_media(rows, media_by_record(media), len(batch.keys))
        bad = bad_rows(rows, batch.unreadable)
        good = rows
        if bad.height:
            good = rows.filter(pl.col("reason").is_null())
            media = media.filter(pl.col("record").is_in(good["record"].implode()))
        self._write(with_unique_ids(good, self.ids), bad)
        self._write_media(media)

    def _inspect(self, batch: RawBatch, references: pl.DataFrame) -> pl.DataFrame:
        """What each reference points to: the columns of MEDIA, or reason and detail."""
        if batch.attached.height:
            own = references.filter(~pl.col("record").is_in(batch.attached["record"].implode()))
            references = pl.concat([own, batch.attached], how="diagonal")
            references = references.sort("record", maintain_order=True)
        references = references.with_row_index("order")
        inspect: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
            "name": partial(self._inspect_named, batch.places or NOWHERE),
            "cell": partial(self._inspect_celled, batch),
            "content": self._inspect_contents,
            "phash": _inspect_stored,
        }
        found: list[pl.DataFrame] = []
        for column, of_kind in inspect.items():
            # Most batches hold references of one kind.
            if count := references.height - references[column].null_count():
                rows = references
                if count < rows.height:
                    rows = rows.filter(pl.col(column).is_not_null())
                found.append(of_kind(rows))
        schema = {**references.schema, **INSPECTED}
        found = found or [pl.DataFrame(schema=schema)]
        return pl.concat(found, how="diagonal_relaxed").sort("order")

    def _inspect_named(self, places: MediaPlaces, named: pl.DataFrame) -> pl.DataFrame:
        names = self._inspect_names(places, named["name"])
        return named.drop(STORED).join(names, on="name", how="left")

    def _inspect_celled(self, batch: RawBatch, celled: pl.DataFrame) -> pl.DataFrame:
        cells = self._inspect_cells(batch)
        found = celled.drop(STORED).join(cells, on=["record", "cell"], how="left")
        nowhere = pl.col("hash").is_null() & pl.col("reason").is_null()
        detail = pl.lit("the record points to a cell that is not its own")
        return found.with_columns(
            reason=pl.when(nowhere).then(pl.lit("wrong_type")).otherwise("reason"),
            detail=pl.when(nowhere).then(detail).otherwise("detail"),
        )

    def _inspect_names(self, places: MediaPlaces, names: pl.Series) -> pl.DataFrame:
        """One row a name; names seen before are remembered, since records share pictures."""
        if len(self.names) > _NAMES_REMEMBERED:
            self.names.clear()
        wanted = names.unique(maintain_order=True)
        new = [name for name in wanted if (places, name) not in self.names]
        found = inspect_names(places, new, max_pixels=self.max_pixels, threads=self.threads)
        inspected = refuse_undecodable(to_frame(found))
        for name, row in zip(new, inspected.iter_rows(named=True), strict=True):
            self.names[places, name] = row
        rows = [{"name": name, **self.names[places, name]} for name in wanted]
        return pl.DataFrame(rows, schema={"name": pl.String(), **INSPECTED})

    def _inspect_cells(self, batch: RawBatch) -> pl.DataFrame:
        """One row a cell, with its place."""
        cells = batch.cells
        inspected = inspect_located_media(
            cells["path"].to_arrow().cast(pa.large_string()),
            cells["offset"].to_arrow().cast(pa.uint64()),
            cells["length"].to_arrow().cast(pa.uint64()),
            pa.nulls(cells.height, pa.large_binary()) if batch.contents is None else batch.contents,
            max_pixels=self.max_pixels,
            threads=self.threads,
        )
        found = refuse_undecodable(to_frame(inspected)).drop("path")
        return pl.concat([cells, found], how="horizontal")

    def _inspect_contents(self, references: pl.DataFrame) -> pl.DataFrame:
        """References whose content stood in the record, with what it is."""
        nowhere = pa.nulls(references.height, pa.uint64())
        inspected = inspect_located_media(
            pa.nulls(references.height, pa.large_string()),
            nowhere,
            nowhere,
            references["content"].to_arrow().cast(pa.large_binary()),
            max_pixels=self.max_pixels,
            threads=self.threads,
        )
        return pl.concat([references.drop(STORED), to_frame(inspected)], how="horizontal")

    def _write(self, good: pl.DataFrame, bad: pl.DataFrame) -> None:
        source = self.source
        tags = pl.lit(source.tags, pl.List(pl.String()))
        self.samples.write(good.with_columns(source=pl.lit(source.name), tags=tags))
        self.rejected.write(bad.with_columns(source=pl.lit(source.name)))
        self.reasons.update(bad["reason"])
        self.rows += good.height + bad.height

    def _write_media(self, media: pl.DataFrame) -> None:
        hashes = media["hash"].to_arrow(compat_level=pl.CompatLevel.oldest())
        new = pl.Series(pl.from_arrow(pa.array(self.contents.insert(hashes))), dtype=pl.Boolean)
        rows = media.filter(new)
        missing = [name for name in (*MEDIA, "content") if name not in rows.columns]
        self.media.write(self.embedded.place(rows.with_columns(**dict.fromkeys(missing))))


def _inspect_stored(stored: pl.DataFrame) -> pl.DataFrame:
    """Pictures of which the record says itself what is known of them."""
    nothing = pl.lit(None, pl.String())
    return stored.with_columns(kind=pl.lit("image"), reason=nothing, detail=nothing)
