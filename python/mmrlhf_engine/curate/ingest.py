"""Raw sources to one table of samples and one of media; every bad row named.

1. Sources are read in the order of their names, so the order on the command line plays no part.
2. Each record becomes one sample a turn; the core decides what a record means (`read_records`).
3. Media are found, hashed and their headers read, without decoding a pixel; a picture that ten
   records share is one row of `media`, known by its content.
4. A record that cannot be used is a row of `rejected` with its place, reason and what was found. A
   defect of the record or its media costs the record, a defect of one turn only that turn.

Bytes are never copied into the tables: `media` says where they lie.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator

from mmrlhf_engine._core import (
    FirstSeen,
    inspect_located_media,
    inspect_named_media,
    read_records,
)
from mmrlhf_engine.config import Section
from mmrlhf_engine.curate.sources import RawBatch, Source, detect, folder, read
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.store import Stage, TableWriter
from mmrlhf_engine.tables import MEDIA, REJECTED, SAMPLES

__all__ = ["IngestConfig", "SourceConfig", "describe", "outside", "run"]

_TEXT_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".tar")
_ENOUGH_TO_JUDGE = 1000


Column = Literal["id", "image", "video", "prompt", "answer"]


class SourceConfig(Section):
    """One raw corpus."""

    path: str
    """A file (JSON, JSONL, CSV, Parquet, WebDataset tar) or a folder of pictures."""
    name: str | None = None
    """Name in the tables; the file name without suffixes when null."""
    tags: list[str] = Field(default_factory=list)
    """Carried along with every sample, for example ``[safety]``."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "webdataset", "folder"] = "auto"
    """``auto`` looks at the content."""
    root: str | None = None
    """Media named in records must lie below this folder; the source's own when null."""
    columns: dict[Column, str] = Field(default_factory=dict)
    """Which field holds what, where the usual names do not: ``{prompt: q, image: picture}``."""


class IngestConfig(Section):
    """Where the raw rows come from, and how much may be wrong with them."""

    sources: list[SourceConfig] = Field(default_factory=list)
    """The corpora; those of the command line are added."""
    max_bad: str | None = None
    """Share of rejected rows, for example ``1%``, at which the run stops; null never stops it."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Pictures of more pixels are rejected before they are decoded (the default is Pillow's)."""

    @field_validator("max_bad")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None:
            _share(value)
        return value


def run(config: IngestConfig, stage: Stage) -> None:
    """Read every source into `samples`, `media` and `rejected`.

    Raises:
        InputError: a source is missing, empty or of no known format; more rows are bad than
            ``max_bad`` allows; or no row is good.
    """
    sources = resolve(config)
    with (
        stage.table("samples", SAMPLES) as samples,
        stage.table("media", MEDIA) as media,
        stage.table("rejected", REJECTED) as rejected,
    ):
        intake = _Intake(config, stage, samples, media, rejected)
        for source, settings in sources:
            for batch in read(source):
                intake.take(source, settings, batch)
                intake.check_share(config.max_bad)
                stage.progress(f"reading {source.name}", intake.rows)
        intake.check_share(config.max_bad, final=True)
    stage.finish(
        rows_in=intake.rows,
        rows_out=samples.rows,
        dropped=dict(intake.reasons),
        media=media.rows,
        sources={name: dict(counts) for name, counts in sorted(intake.by_source.items())},
    )


def resolve(config: IngestConfig) -> list[tuple[Source, SourceConfig]]:
    """The sources in the order of their names, each with its format and root.

    Raises:
        InputError: there is none, or one is missing, empty or of no known format.
        ConfigError: two have the same name.
    """
    if not config.sources:
        raise InputError("no source given", hint="mmrlhf-engine curate FILE_OR_FOLDER... --out RUN")
    names = _names(config.sources)
    resolved = []
    for settings, name in zip(config.sources, names, strict=True):
        path = Path(settings.path).resolve()
        if not path.exists():
            raise InputError(f"{settings.path}: no such file or folder")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{settings.path}: the file is empty")
        format = settings.format if settings.format != "auto" else detect(path)
        if format is None:
            raise InputError(
                f"{settings.path}: its content is of no known format",
                hint="JSON, JSONL, CSV, Parquet, WebDataset tar or a folder; or set `format`",
            )
        own = path if path.is_dir() else path.parent
        root = Path(settings.root).resolve() if settings.root else own
        resolved.append((Source(name, path, format, root), settings))
    return sorted(resolved, key=lambda pair: pair[0].name)


def _names(sources: list[SourceConfig]) -> list[str]:
    """A name each: as given, else the stem; the whole file name where two stems are the same."""
    stems = Counter(source.name or _stem(source.path) for source in sources)
    names = [
        source.name
        or (_stem(source.path) if stems[_stem(source.path)] == 1 else Path(source.path).name)
        for source in sources
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two sources are named {twice[0]!r}",
            hint="give each a name: ingest: {sources: [{path: ..., name: ...}]}",
        )
    return names


def _stem(path: str) -> str:
    place = Path(path).resolve()
    name = place.name
    while not place.is_dir() and name.lower().endswith(_TEXT_SUFFIXES):
        name = name[: name.rindex(".")]
    return name or place.name


def outside(config: IngestConfig) -> list[object]:
    """What ingest reads from outside the run: every file of a source, with size and time.

    Pictures that records only name are not listed: there may be millions, and a changed one is
    found by its content when the stage runs again.
    """
    if not config.sources:
        return []
    files = (file for source, _ in resolve(config) for file in _files(source))
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]


def describe(config: IngestConfig) -> dict[str, int]:
    """Number of source files and their bytes, for ``--dry-run``."""
    files = [file for source, _ in resolve(config) for file in _files(source)]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _files(source: Source) -> Iterator[Path]:
    if source.format != "folder":
        yield source.path
        return
    index = folder.find_index(source.path)
    if index is not None:
        yield index
    for file in folder.media_files(source.path):
        yield from (
            beside
            for beside in (file, file.with_suffix(".json"), file.with_suffix(".txt"))
            if beside.is_file()
        )


@dataclass
class _Intake:
    """The tables while they are filled, and what has come by."""

    config: IngestConfig
    stage: Stage
    samples: TableWriter
    media: TableWriter
    rejected: TableWriter
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    by_source: dict[str, Counter[str]] = field(default_factory=dict)
    ids: FirstSeen = field(default_factory=FirstSeen)
    contents: FirstSeen = field(default_factory=FirstSeen)
    names: dict[tuple[Path, str], dict[str, Any]] = field(default_factory=dict)

    def take(self, source: Source, settings: SourceConfig, batch: RawBatch) -> None:
        """Turn one batch of records into rows of the three tables."""
        threads = self.stage.threads
        columns = {str(field): name for field, name in settings.columns.items()}
        turns, references = (
            _frame(table) for table in read_records(batch.records, columns, threads)
        )
        rows = _name_rows(source, batch, turns)
        media = self._inspect(source, batch, references)
        rows = rows.join(_media_by_record(media), on="record", how="left", maintain_order="left")
        rows = rows.with_columns(
            pl.col("modality").fill_null("text"),
            pl.col("media").fill_null([]),
            pl.coalesce("reason", "media_reason").alias("reason"),
            pl.coalesce("detail", "media_detail").alias("detail"),
            whole=pl.col("media_reason").is_not_null(),
        )
        rows = self._reject_known_ids(rows)
        self._write(source, settings, rows, media)

    def _inspect(self, source: Source, batch: RawBatch, references: pl.DataFrame) -> pl.DataFrame:
        """What each reference points to: the columns of MEDIA, or reason and detail."""
        references = references.with_row_index("order")
        named = references.filter(pl.col("name").is_not_null())
        celled = references.filter(pl.col("cell").is_not_null())
        found = pl.concat(
            [
                named.join(self._inspect_names(source, named["name"]), on="name", how="left"),
                celled.join(self._inspect_cells(batch.cells), on="cell", how="left"),
            ],
            how="diagonal_relaxed",
        )
        nowhere = pl.col("hash").is_null() & pl.col("reason").is_null()
        return found.sort("order").with_columns(
            reason=pl.when(nowhere).then(pl.lit("wrong_type")).otherwise("reason"),
            detail=pl.when(nowhere)
            .then(pl.lit("the record points to a cell that is not there"))
            .otherwise("detail"),
        )

    def _inspect_names(self, source: Source, names: pl.Series) -> pl.DataFrame:
        """One row a name; names seen before are remembered, since records share pictures."""
        if len(self.names) > 1_000_000:
            self.names.clear()
        wanted = names.unique(maintain_order=True)
        new = [name for name in wanted if (source.root, name) not in self.names]
        found = inspect_named_media(
            source.root,
            pa.array(new, pa.large_string()),
            max_pixels=self.config.max_pixels,
            threads=self.stage.threads,
        )
        for name, row in zip(new, _frame(found).iter_rows(named=True), strict=True):
            self.names[source.root, name] = row
        rows = [{"name": name, **self.names[source.root, name]} for name in wanted]
        return pl.DataFrame(rows, schema={"name": pl.String(), **_INSPECTED})

    def _inspect_cells(self, cells: pl.DataFrame) -> pl.DataFrame:
        """One row a cell, with its place."""
        inline = pl.col("inline").is_not_null()
        places = cells.with_row_index("cell").select(
            *("cell", "path", "offset", "length", "column", "row", "item"),
            readable=pl.when(inline).then(None).otherwise("path"),
            content="inline",
        )
        inspected = inspect_located_media(
            places["readable"].to_arrow().cast(pa.large_string()),
            places["offset"].to_arrow().cast(pa.uint64()),
            places["length"].to_arrow().cast(pa.uint64()),
            places["content"].to_arrow().cast(pa.large_binary()),
            max_pixels=self.config.max_pixels,
            threads=self.stage.threads,
        )
        found = _frame(inspected).drop("path")
        return pl.concat([places.drop("readable", "content"), found], how="horizontal")

    def _reject_known_ids(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows whose id has come by before, in this batch or an earlier one, are rejected.

        Only rows that are good so far use up their id. A record takes its own id and, if it has
        several turns, the id of each: ``a`` with a turn ``a#1``, and a record ``a#1``, never share.
        """
        good = rows.filter(pl.col("reason").is_null())
        records = good.unique("record", maintain_order=True)
        known = records.filter(~self._are_new(records["record_id"]))["record"]
        turns = good.filter(pl.col("turn").is_not_null() & ~pl.col("record").is_in(known.implode()))
        known_turns = turns.filter(~self._are_new(turns["id"]))["id"]
        whole = pl.col("reason").is_null() & pl.col("record").is_in(known.implode())
        part = pl.col("reason").is_null() & pl.col("id").is_in(known_turns.implode())
        return rows.with_columns(
            reason=pl.when(whole | part).then(pl.lit("duplicate_id")).otherwise("reason"),
            detail=pl.when(whole | part)
            .then(pl.format("{} has come before", "source_id"))
            .otherwise("detail"),
            whole=pl.col("whole") | whole,
        )

    def _are_new(self, ids: pl.Series) -> pl.Series:
        new = pa.array(self.ids.insert(ids.to_arrow().cast(pa.large_string())))
        return pl.Series(pl.from_arrow(new), dtype=pl.Boolean)

    def _write(
        self, source: Source, settings: SourceConfig, rows: pl.DataFrame, media: pl.DataFrame
    ) -> None:
        good = rows.filter(pl.col("reason").is_null()).with_columns(
            source=pl.lit(source.name), tags=pl.lit(settings.tags, pl.List(pl.String()))
        )
        bad = rows.filter(pl.col("reason").is_not_null())
        # A defect of the whole record is one row, however many turns it has.
        bad = pl.concat(
            [
                bad.filter("whole").unique("record", maintain_order=True),
                bad.filter(~pl.col("whole")).with_columns(
                    position=pl.col("position") + _turn_mark()
                ),
            ]
        ).sort("record", "turn", nulls_last=False)
        self.samples.write(good)
        self.rejected.write(bad.with_columns(source=pl.lit(source.name)))
        self._write_media(media.filter(pl.col("record").is_in(good["record"].implode())))
        counts = self.by_source.setdefault(source.name, Counter())
        counts.update(samples=good.height, rejected=bad.height)
        self.reasons.update(bad["reason"])
        self.rows += good.height + bad.height

    def _write_media(self, media: pl.DataFrame) -> None:
        media = media.unique("hash", maintain_order=True)
        new = pa.array(self.contents.insert(media["hash"].to_arrow().cast(pa.large_string())))
        rows = media.filter(pl.Series(pl.from_arrow(new), dtype=pl.Boolean))
        missing = [name for name in MEDIA if name not in rows.columns]
        self.media.write(rows.with_columns(**dict.fromkeys(missing)))

    def check_share(self, max_bad: str | None, *, final: bool = False) -> None:
        """Stop when too much is bad: early, once there is enough to judge by, and at the end."""
        bad = sum(self.reasons.values())
        most = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common(3))
        if final and bad == self.rows:
            raise InputError(f"none of {self.rows:,} rows can be used: {most or 'there is none'}")
        judged = final or self.rows >= _ENOUGH_TO_JUDGE
        if max_bad is not None and judged and bad > _share(max_bad) * self.rows:
            raise InputError(
                f"{bad:,} of {self.rows:,} rows are bad ({100 * bad / self.rows:.1f} %), "
                f"more than --max-bad {max_bad}: {most}",
                hint="without --max-bad the run goes on, and each row is in the table `rejected`",
            )


_INSPECTED: dict[str, pl.DataType] = {
    **{name: pl.String() for name in ("hash", "kind", "format", "path", "reason", "detail")},
    **{name: pl.UInt32() for name in ("width", "height", "frames")},
    "bytes": pl.UInt64(),
}


def _frame(table: object) -> pl.DataFrame:
    batch = pa.RecordBatch.from_struct_array(pa.array(table))
    return pl.DataFrame(pl.from_arrow(batch))


def _name_rows(source: Source, batch: RawBatch, turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with position, source id and id."""
    records = pl.DataFrame(
        {
            "record": pl.arange(len(batch.keys), dtype=pl.UInt32, eager=True),
            "key": pl.Series(batch.keys, dtype=pl.String),
            "position": pl.Series(batch.positions, dtype=pl.String),
        }
    )
    rows = turns.join(records, on="record", how="left", maintain_order="left")
    # The pairs of one query share its id by design; the row tells them apart.
    pair = pl.col("pair").is_not_null() & pl.col("source_id").is_not_null()
    source_id = (
        pl.when(pair)
        .then(pl.format("{}@{}", "source_id", "key"))
        .otherwise(pl.coalesce("source_id", "key"))
    )
    rows = rows.with_columns(source_id=source_id)
    rows = rows.with_columns(record_id=pl.format(f"{_literal(source.name)}:{{}}", "source_id"))
    return rows.with_columns(id=pl.col("record_id") + _turn_mark())


def _literal(text: str) -> str:
    """Text as a part of a polars format string."""
    return text.replace("{", "{{").replace("}", "}}")


def _turn_mark() -> pl.Expr:
    """``#2`` for the second turn of several, nothing for the only one."""
    return pl.when(pl.col("turn").is_null()).then(pl.lit("")).otherwise(pl.format("#{}", "turn"))


def _media_by_record(media: pl.DataFrame) -> pl.DataFrame:
    """Per record: the hashes in order, the modality, and what is wrong with the first bad one."""
    bad = pl.col("reason").is_not_null()
    video = pl.col("kind").is_in(["video", "frames"]).any()
    modality = (
        pl.when(video)
        .then(pl.lit("video"))
        .when(pl.len() > 1)
        .then(pl.lit("multi_image"))
        .otherwise(pl.lit("image"))
    )
    return media.group_by("record", maintain_order=True).agg(
        pl.col("hash").alias("media"),
        modality.alias("modality"),
        pl.col("reason").filter(bad).first().alias("media_reason"),
        pl.col("detail").filter(bad).first().alias("media_detail"),
    )


def _share(text: str) -> float:
    """``"5%"`` or ``"0.05"`` as 0.05."""
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"ingest.max_bad: found {text!r}, expected a share such as 1% or 0.01")
    return share
