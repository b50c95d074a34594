"""Raw sources to one table of samples and one of media; every bad row named.

1. Sources are read in the order of their names, so the order on the command line plays no part.
2. Each record becomes one sample a turn; the core decides what a record means (`read_records`).
3. Media are found, hashed and their headers read, without decoding a pixel; a picture that ten
   records share is one row of `media`, known by its content.
4. A record that cannot be used is a row of `rejected` with its place, reason and what was found. A
   defect of the record or its media costs the record, a defect of one turn only that turn.

5. Fields that look like a part of the sample and are not read are counted by name in the report.
6. Records whose ids repeat are all kept, under ids of their own.

Bytes are never copied into the tables: `media` says where they are stored. When too much is bad,
the run stops, and `rejected` holds what was found until then.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pyarrow as pa
from pydantic import BeforeValidator, Field, field_serializer, field_validator

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
from mmrlhf_engine.curate.rejections import REJECTIONS
from mmrlhf_engine.curate.tables import MEDIA, SAMPLES
from mmrlhf_engine.curate.unread import UnreadFields
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.config import Section, parse_share
from mmrlhf_engine.run.ordered_map import ordered_map
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext
from mmrlhf_engine.run.tables import REJECTED, TableWriter
from mmrlhf_engine.sources.bad_share import check_bad_share, shown_rejected
from mmrlhf_engine.sources.foreign import refuse_undecodable
from mmrlhf_engine.sources.places import NOWHERE, MediaPlaces, inspect_names
from mmrlhf_engine.sources.samples.batch import RawBatch, Source
from mmrlhf_engine.sources.samples.read import read
from mmrlhf_engine.sources.samples.resolve import SourceConfig, files_of, resolve

__all__ = ["STAGE", "IngestConfig", "SourceConfig", "describe"]

_Records = tuple[pl.DataFrame, ...]
"""The turns of a batch of records, what they refer to, and fields that are not read."""

# Records that share a picture stand near each other; about 200 MB.
_NAMES_REMEMBERED = 200_000


def _number_as_text(value: object) -> object:
    """A share that YAML reads as a number, as it was written."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


class IngestConfig(Section):
    """Where the raw rows come from, and how much may be wrong with them."""

    sources: list[SourceConfig] = Field(default_factory=list)
    """The corpora; those of the command line are added."""
    max_bad: Annotated[str | None, BeforeValidator(_number_as_text)] = None
    """Share of rejected rows, ``1%`` or ``0.01``, at which the run stops; null never stops it."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Pictures of more pixels are rejected before they are decoded (the default is Pillow's)."""

    @field_serializer("sources")
    def _in_order(self, sources: list[SourceConfig]) -> list[SourceConfig]:
        """The order in which sources are given plays no part, so it is no part of the settings."""
        return sorted(sources, key=lambda source: (source.path, source.name or ""))

    @field_validator("max_bad")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None:
            parse_share(value, "ingest.max_bad")
        return value


def run(config: IngestConfig, stage: StageContext) -> None:
    """Read every source into `samples`, `media` and `rejected`.

    Raises:
        InputError: a source is missing, empty or of no known format; more rows are bad than
            ``max_bad`` allows; or no row is good.
    """
    sources = resolve(config.sources)
    with (
        stage.table("samples", SAMPLES) as samples,
        stage.table("media", MEDIA) as media,
        stage.table("rejected", REJECTED) as rejected,
        EmbeddedFile(stage.folder / "embedded.bin") as embedded,
    ):
        reader = _Reader(config, stage, samples, media, rejected, embedded)
        for source in sources:
            reader.passed_over.update(source.passed_over)
            for batch, records in reader.ahead(source):
                reader.take(source, batch, records)
                reader.passed_over.update(batch.passed_over)
                reader.check_share()
                stage.progress(f"reading {source.name}", reader.rows)
            if source.pictures_beside and not reader.pictured[source.name]:
                reader.unnamed_pictures[source.name] = source.pictures_beside
            if source.name not in reader.by_source:
                raise InputError(f"{source.path}: no record in it", hint="leave it out")
        reader.check_share(final=True)
    if told := reader.unread.told():
        stage.resources.progress.say(f"ingest: {told}", stage="ingest")
    stage.finish(
        rows_in=reader.rows,
        rows_out=samples.rows,
        dropped=dict(reader.reasons),
        reasons={name: REJECTIONS[name] for name in sorted(reader.reasons) if name in REJECTIONS},
        media=media.rows,
        unread_fields=reader.unread.facts(),
        passed_over=dict(sorted(reader.passed_over.items())),
        unnamed_pictures=reader.unnamed_pictures,
        splits={
            source.name: {"taken": source.split.taken, "not_read": list(source.split.left)}
            for source in sources
            if source.split is not None
        },
        sources={name: dict(counts) for name, counts in sorted(reader.by_source.items())},
    )


def external(config: IngestConfig) -> list[object]:
    """Every file of a source, with size and time.

    Pictures that records only name are not listed: there may be millions, and a changed one is
    found by its content when the stage runs again.
    """
    if not config.sources:
        return []
    files = (file for source in resolve(config.sources) for file in files_of(source))
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]


def describe(config: IngestConfig) -> dict[str, int]:
    """Number of source files and their bytes, for ``--dry-run``."""
    files = [file for source in resolve(config.sources) for file in files_of(source)]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


@dataclass
class _Reader:
    """The tables while they are filled, and what was read so far."""

    config: IngestConfig
    stage: StageContext
    samples: TableWriter
    media: TableWriter
    rejected: TableWriter
    embedded: EmbeddedFile
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files and members that belong to no record, by suffix."""
    by_source: dict[str, Counter[str]] = field(default_factory=dict)
    pictured: Counter[str] = field(default_factory=Counter)
    """Records with media, by source."""
    unnamed_pictures: dict[str, int] = field(default_factory=dict)
    """Pictures in the folder of a source of which no record names any."""
    unread: UnreadFields = field(default_factory=UnreadFields)
    ids: UniqueIds = field(default_factory=UniqueIds)
    contents: FirstSeen = field(default_factory=FirstSeen)
    names: dict[tuple[MediaPlaces, str], dict[str, Any]] = field(default_factory=dict)

    def ahead(self, source: Source) -> Iterator[tuple[RawBatch, _Records]]:
        """Batches of a source with what the core makes of them, a few ahead of their use."""

        def with_records(batch: RawBatch) -> tuple[RawBatch, _Records]:
            attached = attached_counts(batch)
            tables = read_records(
                batch.records, source.columns, self.stage.threads, attached=attached
            )
            return batch, tuple(to_frame(table) for table in tables)

        return ordered_map(with_records, read(source), threads=1)

    def take(self, source: Source, batch: RawBatch, records: _Records) -> None:
        """Turn one batch of records into rows of the three tables."""
        turns, references, unread = records
        self.unread.add(unread)
        rows = name_rows(source, batch, turns)
        media = self._inspect(batch, references)
        self.pictured[source.name] += media.height
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
        self._write(source, good, bad)
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
        found = inspect_names(
            places, new, max_pixels=self.config.max_pixels, threads=self.stage.threads
        )
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
            max_pixels=self.config.max_pixels,
            threads=self.stage.threads,
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
            max_pixels=self.config.max_pixels,
            threads=self.stage.threads,
        )
        return pl.concat([references, to_frame(inspected)], how="horizontal")

    def _write(self, source: Source, good: pl.DataFrame, bad: pl.DataFrame) -> None:
        tags = pl.lit(source.tags, pl.List(pl.String()))
        self.samples.write(good.with_columns(source=pl.lit(source.name), tags=tags))
        self.rejected.write(bad.with_columns(source=pl.lit(source.name)))
        if good.height + bad.height:
            counts = self.by_source.setdefault(source.name, Counter())
            counts.update(samples=good.height, rejected=bad.height)
        self.reasons.update(bad["reason"])
        self.rows += good.height + bad.height

    def _write_media(self, media: pl.DataFrame) -> None:
        media = media.unique("hash", keep="first", maintain_order=True)
        new = pa.array(self.contents.insert(media["hash"].to_arrow().cast(pa.large_string())))
        rows = media.filter(pl.Series(pl.from_arrow(new), dtype=pl.Boolean))
        missing = [name for name in (*MEDIA, "content") if name not in rows.columns]
        self.media.write(self.embedded.place(rows.with_columns(**dict.fromkeys(missing))))

    def check_share(self, *, final: bool = False) -> None:
        """Stop when too much is bad: early, once there is enough to judge by, and at the end."""
        table = self.rejected.folder
        if final and self.reasons.total() == self.rows:
            most = ", ".join(f"{count:,} {name}" for name, count in self.reasons.most_common(3))
            names = ", ".join(Path(source.path).name for source in self.config.sources)
            raise InputError(
                f"{names}: none of {self.rows:,} rows can be used: {most}",
                hint=shown_rejected(table),
            )
        text = self.config.max_bad
        max_bad = None if text is None else parse_share(text, "ingest.max_bad")
        check_bad_share(self.rows, self.reasons, max_bad, final=final, table=table)


def memory(_config: IngestConfig, _inputs: Inputs, threads: int) -> int:
    """Batches of records and their tables; independent of the number of rows."""
    return (320 << 20) + threads * (32 << 20)


STAGE = Stage(
    name="ingest",
    config=IngestConfig,
    run=run,
    writes=("samples", "media", "rejected"),
    external=external,
    memory=memory,
)
