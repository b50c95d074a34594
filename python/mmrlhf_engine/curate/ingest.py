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

What was made of a source is kept, and taken as it is by the next run if it is unchanged
(`kept_sources`).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pyarrow as pa
from pydantic import BeforeValidator, Field, field_serializer, field_validator

from mmrlhf_engine._core import FirstSeen, UniqueIds
from mmrlhf_engine.curate.ingest_embedded import EmbeddedFile
from mmrlhf_engine.curate.ingest_reader import InspectedNames, SourceReader
from mmrlhf_engine.curate.kept_sources import (
    BY_SOURCE,
    EMBEDDED,
    KeptSources,
    SourceTables,
    file_states,
)
from mmrlhf_engine.curate.rejections import REJECTIONS
from mmrlhf_engine.curate.sizes import size_of_source
from mmrlhf_engine.curate.tables import MEDIA, SAMPLES
from mmrlhf_engine.curate.unread import UnreadFields
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.config import Section, parse_share
from mmrlhf_engine.run.files import link_or_copy
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext
from mmrlhf_engine.run.tables import REJECTED, TableWriter
from mmrlhf_engine.sources.bad_share import check_bad_share, shown_rejected
from mmrlhf_engine.sources.samples.batch import Source
from mmrlhf_engine.sources.samples.resolve import SourceConfig, files_of, resolve

__all__ = ["STAGE", "IngestConfig", "SourceConfig", "describe", "unchanged_sources"]


_ROW_BYTES = 72
"""Of the sets of ids and media seen before; measured at ten million rows."""


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
    ):
        kept = KeptSources(stage.folder, kept_settings(config), stage.resources.progress)
        tables = _Tables(config, sources, stage, kept, samples, media, rejected)
        for source in sources:
            tables.add(source)
        tables.check_share(final=True)
    kept.finish(config.sources)
    if told := tables.unread.told():
        stage.resources.progress.say(f"ingest: {told}", stage="ingest")
    stage.finish(
        rows_in=tables.rows,
        rows_out=samples.rows,
        dropped=dict(tables.reasons),
        reasons={name: REJECTIONS[name] for name in sorted(tables.reasons) if name in REJECTIONS},
        rows_read=tables.rows - tables.rows_reused,
        rows_reused=tables.rows_reused,
        media=media.rows,
        unread_fields=tables.unread.facts(),
        passed_over=dict(sorted(tables.passed_over.items())),
        unnamed_pictures=tables.unnamed_pictures,
        splits={
            source.name: {"taken": source.split.taken, "not_read": list(source.split.left)}
            for source in sources
            if source.split is not None
        },
        sources=tables.by_source,
    )


def kept_settings(config: IngestConfig) -> dict[str, Any]:
    """The settings that the tables of a source depend on, beside those of the source."""
    return {"max_pixels": config.max_pixels}


def unchanged_sources(config: IngestConfig, folder: Path) -> int:
    """How many sources the stage in ``folder`` would not read again, for ``--dry-run``."""
    kept = KeptSources(folder, kept_settings(config), Progress("silent"))
    return sum(kept.is_there(source) for source in resolve(config.sources))


def external(config: IngestConfig) -> list[object]:
    """Every file of a source, with size and time; not the pictures that records only name."""
    if not config.sources:
        return []
    return [state for source in resolve(config.sources) for state in file_states(source)]


def describe(config: IngestConfig) -> dict[str, int]:
    """Number of source files and their bytes, for ``--dry-run``."""
    files = [file for source in resolve(config.sources) for file in files_of(source)]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


@dataclass
class _Tables:
    """The tables of all sources while they are put together, and what was counted so far."""

    config: IngestConfig
    sources: list[Source]
    stage: StageContext
    kept: KeptSources
    samples: TableWriter
    media: TableWriter
    rejected: TableWriter
    rows: int = 0
    rows_reused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files and members that belong to no record, by suffix."""
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    unnamed_pictures: dict[str, int] = field(default_factory=dict)
    """Pictures in the folder of a source of which no record names any."""
    unread: UnreadFields = field(default_factory=UnreadFields)
    contents: FirstSeen = field(default_factory=FirstSeen)
    shared_ids: UniqueIds = field(default_factory=UniqueIds)
    names: InspectedNames = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sharing = sharing_ids([source.name for source in self.sources])

    def add(self, source: Source) -> None:
        """Add the rows of a source, read now or by an earlier run."""
        found = self.kept.find(source)
        # What such sources get as ids depends on each other.
        if found is None or source.name in self.sharing:
            found = self._read(source)
        counts = found.counts
        rows = counts["samples"] + counts["rejected"]
        self.rows += rows
        self.rows_reused += rows if found.reused else 0
        self.reasons.update(counts["reasons"])
        self.passed_over.update(counts["passed_over"])
        self.unread.merge(counts["unread"])
        self.by_source[source.name] = {name: counts[name] for name in ("samples", "rejected")}
        if source.pictures_beside and not counts["pictured"]:
            self.unnamed_pictures[source.name] = source.pictures_beside
        self.samples.add_table(found.parts("samples"))
        self.rejected.add_table(found.parts("rejected"))
        self._add_media(source, found)
        self.check_share()
        self.stage.progress(f"reading {source.name}", self.rows)

    def _read(self, source: Source) -> SourceTables:
        place = self.kept.place()
        ids = self.shared_ids if source.name in self.sharing else UniqueIds()
        try:
            with (
                TableWriter(place / "samples", SAMPLES) as samples,
                TableWriter(place / "media", MEDIA) as media,
                TableWriter(place / "rejected", REJECTED) as rejected,
                EmbeddedFile(place / f"{EMBEDDED}.bin", self.kept.embedded(source)) as embedded,
            ):
                reader = SourceReader(
                    *(source, samples, media, rejected, embedded),
                    max_pixels=self.config.max_pixels,
                    threads=self.stage.threads,
                    ids=ids,
                    names=self.names,
                )
                for batch, records in reader.batches():
                    reader.take(batch, records)
                    self.check_share(reader.rows, reader.reasons)
                    self.stage.progress(f"reading {source.name}", self.rows + reader.rows)
                if not reader.rows:
                    raise InputError(f"{source.path}: no record in it", hint="leave it out")
        except InputError:
            self.rejected.add_table(sorted((place / "rejected").glob("*.parquet")))
            raise
        return self.kept.keep(source, place, reader.counts())

    def _add_media(self, source: Source, found: SourceTables) -> None:
        """Add media that no source before this one has."""
        parts = found.parts("media")
        hashes = (pl.read_parquet(part, columns=["hash"])["hash"] for part in parts)
        new = [self._is_new(part) for part in hashes]
        if all(part.all() for part in new):
            self.media.add_table(parts)
        else:
            for part, is_new in zip(parts, new, strict=True):
                self.media.write(pl.read_parquet(part).filter(is_new))
        file = found.folder / f"{EMBEDDED}.bin"
        if file.exists():
            self.kept.embedded(source).parent.mkdir(exist_ok=True)
            link_or_copy(file, self.kept.embedded(source))

    def _is_new(self, hashes: pl.Series) -> pl.Series:
        new = pa.array(self.contents.insert(hashes.to_arrow().cast(pa.large_string())))
        return pl.Series(pl.from_arrow(new), dtype=pl.Boolean)

    def check_share(
        self, rows: int = 0, reasons: Counter[str] | None = None, *, final: bool = False
    ) -> None:
        """Stop when too much is bad: early, once there is enough to judge by, and at the end.

        Args:
            rows: Of the source that is being read.
            reasons: Of those of them that are bad.
            final: Every row has been read.
        """
        table = self.rejected.folder
        rows, bad = self.rows + rows, self.reasons + (reasons or Counter())
        if final and bad.total() == rows:
            most = ", ".join(f"{count:,} {name}" for name, count in bad.most_common(3))
            names = ", ".join(Path(source.path).name for source in self.config.sources)
            raise InputError(
                f"{names}: none of {rows:,} rows can be used: {most}",
                hint=shown_rejected(table),
            )
        text = self.config.max_bad
        max_bad = None if text is None else parse_share(text, "ingest.max_bad")
        check_bad_share(rows, bad, max_bad, final=final, table=table)


def sharing_ids(names: Iterable[str]) -> set[str]:
    """Sources of which one may give an id that another gives too: ``a`` and ``a:b``.

    An id is the name of its source, a colon and what the source calls the row.
    """
    known, sharing = set(names), set[str]()
    for name in known:
        ends = [place for place, character in enumerate(name) if character == ":"]
        starts = known & {name[:end] for end in ends}
        if starts:
            sharing |= {name, *starts}
    return sharing


def memory(config: IngestConfig, _inputs: Inputs, threads: int) -> int:
    """Batches of records and their tables, and of every row what its id and its media are known
    by."""  # noqa: D205, D209
    sources = resolve(config.sources) if config.sources else []
    rows = sum(size_of_source(source).rows for source in sources)
    return (320 << 20) + threads * (32 << 20) + rows * _ROW_BYTES


STAGE = Stage(
    name="ingest",
    config=IngestConfig,
    run=run,
    writes=("samples", "media", "rejected"),
    stores=(BY_SOURCE,),
    external=external,
    memory=memory,
)
