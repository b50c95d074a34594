"""Records of one source to rows of the three tables of ingest."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
        rows = rows.join(media_by_record(media), on="record", how="left", maintain_order="left")
        rows = rows.with_columns(
            pl.col("modality").fill_null("text"),
            pl.col("media").fill_null([]),
            pl.coalesce("media_reason", "reason").alias("reason"),
            pl.coalesce("media_detail", "detail").alias("detail"),
            whole=pl.col("media_reason").is_not_null(),
        )
        bad = bad_rows(rows, batch.unreadable)
        good = with_unique_ids(rows.filter(pl.col("reason").is_null()), self.ids)
        self._write(good, bad)
        self._write_media(media.filter(pl.col("record").is_in(good["record"].implode())))

    def _inspect(self, batch: RawBatch, references: pl.DataFrame) -> pl.DataFrame:
        """What each reference points to: the columns of MEDIA, or reason and detail."""
        own = references.filter(~pl.col("record").is_in(batch.attached["record"].implode()))
        references = pl.concat([own, batch.attached], how="diagonal")
        references = references.sort("record", maintain_order=True).with_row_index("order")
        stored = references.filter(pl.col("phash").is_not_null())
        references = references.drop(STORED)
        named = references.filter(pl.col("name").is_not_null())
        celled = references.filter(pl.col("cell").is_not_null())
        names = self._inspect_names(batch.places or NOWHERE, named["name"])
        cells = self._inspect_cells(batch)
        found = pl.concat(
            [
                named.join(names, on="name", how="left"),
                celled.join(cells, on=["record", "cell"], how="left"),
                self._inspect_contents(references.filter(pl.col("content").is_not_null())),
                stored.with_columns(kind=pl.lit("image")),
            ],
            how="diagonal_relaxed",
        )
        nowhere = pl.col("hash").is_null() & pl.col("reason").is_null()
        return found.sort("order").with_columns(
            reason=pl.when(nowhere).then(pl.lit("wrong_type")).otherwise("reason"),
            detail=pl.when(nowhere)
            .then(pl.lit("the record points to a cell that is not its own"))
            .otherwise("detail"),
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
        return pl.concat([references, to_frame(inspected)], how="horizontal")

    def _write(self, good: pl.DataFrame, bad: pl.DataFrame) -> None:
        source = self.source
        tags = pl.lit(source.tags, pl.List(pl.String()))
        self.samples.write(good.with_columns(source=pl.lit(source.name), tags=tags))
        self.rejected.write(bad.with_columns(source=pl.lit(source.name)))
        self.reasons.update(bad["reason"])
        self.rows += good.height + bad.height

    def _write_media(self, media: pl.DataFrame) -> None:
        media = media.unique("hash", keep="first", maintain_order=True)
        new = pa.array(self.contents.insert(media["hash"].to_arrow().cast(pa.large_string())))
        rows = media.filter(pl.Series(pl.from_arrow(new), dtype=pl.Boolean))
        missing = [name for name in (*MEDIA, "content") if name not in rows.columns]
        self.media.write(self.embedded.place(rows.with_columns(**dict.fromkeys(missing))))
