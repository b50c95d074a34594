"""Preference data of any known format to one memory-mapped dataset.

1. Rows are read one at a time, parsed into one shape, and gathered into queries, so that a prompt,
   its images and each of its answers are stored once (`gather.py`).
2. Queries are prepared and appended batch by batch (`prepare.py`); memory does not grow with the
   input.
3. The dataset appears whole, by one commit; several processes may pack into the same one. Each call
   has a folder ``OUT/reports/pack-HASH/`` with report.json and the tables ``rejected`` (rows that
   gave nothing, with the reason) and ``changed`` (rows that stayed, and what was done to them).
"""

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from mmrlhf_engine._core import DatasetWriter
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.families.files import read_processor_files
from mmrlhf_engine.pack.gather import Gatherer, PackedRow, Query, RowAccounting
from mmrlhf_engine.pack.media_text import VideoLayout
from mmrlhf_engine.pack.over_long import OverLongPolicy
from mmrlhf_engine.pack.prepare import Counts, Packer
from mmrlhf_engine.pack.report import accounts, describe
from mmrlhf_engine.pack.tokenize import load_tokenizer
from mmrlhf_engine.run.config import MemorySize, Section, parse_bytes, parse_share
from mmrlhf_engine.run.folder import locked, read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import (
    Inputs,
    Resources,
    Stage,
    StageContext,
    fingerprint,
    is_finished,
    run_stage,
)
from mmrlhf_engine.run.tables import REJECTED, TableSchema
from mmrlhf_engine.shards.image_rule import ImageRule, read_rule
from mmrlhf_engine.sources.pictures import FrameSettings
from mmrlhf_engine.sources.preferences import FORMATS, Format, detect
from mmrlhf_engine.sources.preferences.record import BadRecordError
from mmrlhf_engine.sources.preferences.rows import Row, SourceFile, find_files, read_rows

__all__ = ["CHANGED", "STAGE", "PackConfig", "describe", "pack_dataset"]

CHANGED: TableSchema = {
    "source": pl.String(),
    "position": pl.String(),
    "change": pl.String(),  # trimmed_text, shrunk_image, dropped_REASON (a pair of several)
    "detail": pl.String(),
}

_QUERIES_AT_ONCE = 256
_BYTES_AT_ONCE = 64 << 20
_ROWS_TO_DETECT = 32
_MOST_TO_DETECT = 1024
_DATASET_ENTRIES = frozenset({"_mmrlhf", "blobs", "cols", "data", "reports"})
_SETTINGS_TOLD = ("image_rule", "max_length", "over_long", "ties", "strings", "videos", "frames")


class PackConfig(Section):
    """What to pack, with which tokenizer, and what to do with what does not fit."""

    sources: list[str] = Field(default_factory=list)
    """Files (JSON Lines, JSON, Parquet) or folders (Parquet, datasets saved by save_to_disk)."""
    format: Literal["auto", "mm_rlhf_pairs", "mm_rlhf_queries", "ms_swift", "sharegpt", "trl"] = (
        "auto"
    )
    """``auto`` looks at the first rows of each file."""
    root: str | None = None
    """Media are named from this folder on and must lie below it; the source's own when null."""
    model: str = ""
    """A model by name or folder: its processor decides tokenizer, chat template, image rule, pixels
    and how videos are laid out. ``tokenizer`` and ``image_rule`` are for what has no processor."""
    tokenizer: str = ""
    """A fast tokenizer by name or folder, in place of ``model``."""
    chat_template: str | None = None
    """A Jinja file; the tokenizer's own template when null."""
    strings: Literal["chat", "plain"] = "chat"
    """Prompts and answers that are bare text: one turn each, or tokenised as they stand."""
    image_rule: str = "none"
    """qwen2_vl, llava_onevision, internvl, none, or the folder of a processor."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of a prompt with its images and one answer; null sets no limit."""
    over_long: OverLongPolicy = "error"
    """What happens to longer ones: error, drop, shrink_image, trim_text."""
    ties: Literal["keep", "drop"] = "keep"
    """Pairs of equal rank are kept, marked as ties, or dropped."""
    videos: VideoLayout = "native"
    """Videos as the model's processor lays them out, or ``frames``: each frame as an image."""
    frames: int = Field(default=10, ge=1)
    """Frames taken of a video, evenly from the first to the last (10 as in MM-RLHF)."""
    frames_per_second: float = Field(default=1.0, gt=0)
    """Of videos that are folders or lists of frames, for the times of their frames."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Pictures of more pixels are rejected (the default is Pillow's)."""
    max_bad: str | None = None
    """Share of bad rows, for example ``1%``, at which the run stops; null never stops it."""
    shard_pairs: int = Field(default=65_536, ge=1)
    """Pairs of a shard; a query is never split."""
    append: bool = False
    """Add to the dataset that lies there, or to one that another process is making."""
    threads: int = Field(default=0, ge=0)
    """Threads to use; 0 means one per core."""
    memory: MemorySize = None
    """Memory to use, for example ``4G``; half of the machine's, or of its control group's, when
    null. A call that would need more is refused before it starts."""

    @field_validator("max_bad")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None:
            parse_share(value, "pack.max_bad")
        return value


def pack_dataset(config: PackConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Pack the sources into the dataset at ``out``; the report, with the ``version`` made.

    The same call on unchanged sources is skipped, and gives the report of the first one.

    Raises:
        ConfigError: the tokenizer, template or image rule does not fit.
        InputError: a source cannot be read, too much of it is bad, a sequence is too long under the
            policy ``error``, or a dataset is there already and ``append`` is not set.
        MissingExtraError: a package that only some inputs need is not installed.
    """
    _check_model(config)
    made_from = fingerprint(STAGE, config, 0, None)
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    folder = out / "reports" / f"pack-{name}"
    if not config.append and not is_finished(folder, made_from):
        _refuse_existing(out)
    resources = Resources(
        threads=config.threads,
        memory=parse_bytes(config.memory) if config.memory is not None else None,
        progress=progress or Progress("silent"),
    )
    with locked(folder):
        try:
            report = run_stage(STAGE, config, folder, resources)
        except BaseException:
            if not any(folder.glob("rejected/*.parquet")):
                _remove_empty_record(folder)
            raise
    manifest = read_json(folder / "manifest.json") or {}
    return {**report, "version": manifest["version"]}


def run(config: PackConfig, stage: StageContext) -> None:
    """Pack into the dataset that ``stage.folder`` is a report of; write `rejected` and `changed`.

    The reports are on disk before the dataset appears by its commit.
    """
    files = read_processor_files(config.model) if config.model else None
    rule = ImageRule() if files else read_rule(config.image_rule)
    tokenizer = load_tokenizer(
        config.model or config.tokenizer,
        chat_template=config.chat_template,
        image_mark=rule.image_mark,
        strings=config.strings,
        files=files,
        videos=config.videos,
    )
    if tokenizer.processor is not None:
        rule = ImageRule(tokenizer.processor.image_rule)
    writer = DatasetWriter(
        stage.folder.parents[1],
        tokenizer=json.dumps(tokenizer.identity, sort_keys=True),
        shard_pairs=config.shard_pairs,
        threads=config.threads,
    )
    try:
        with (
            stage.table("rejected", REJECTED) as rejected,
            stage.table("changed", CHANGED) as changed,
        ):
            packer = Packer(
                writer=writer,
                tokenizer=tokenizer,
                frames=FrameSettings(
                    frames=config.frames,
                    frames_per_second=config.frames_per_second,
                    max_pixels=config.max_pixels,
                    threads=config.threads,
                    equal_sizes=config.videos == "native",
                ),
                count_tokens=rule.count,
                max_length=config.max_length,
                over_long=config.over_long,
                accounting=RowAccounting(rejected, changed),
                counts=Counts(),
            )
            rows = _RowReader(config, packer, stage)
            try:
                for file in find_files(config.sources, config.root):
                    rows.read(file)
                rows.finish()
            finally:
                packer.accounting.flush()  # What was rejected is evidence where the work fails.
        stage.finish(
            **accounts(packer),
            publish=lambda: {"version": writer.commit()},
            sources=rows.sources,
            fields_ignored=dict(sorted(rows.fields_ignored.items())),
            settings=config.model_dump(mode="json", include=set(_SETTINGS_TOLD)),
        )
    except BaseException:
        writer.abort()
        raise


def external(config: PackConfig) -> list[object]:
    """The source files, and what is read of tokenizer, template and processor, with size and time.

    Media that rows only name are not listed; they are known by content once they are packed.
    """
    files = [file.path for file in find_files(config.sources, config.root)]
    for place in (config.model, config.tokenizer, config.chat_template, config.image_rule):
        path = Path(place) if place else None
        if path is not None and path.exists():
            files += sorted(path.glob("*.*")) if path.is_dir() else [path]
    return [[str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]


def memory(config: PackConfig, _inputs: Inputs, threads: int) -> int:
    """Rows and media that wait, the queries gathered last, and the tokenizer."""
    return (1 << 30) + 4 * _BYTES_AT_ONCE + threads * 4 * config.max_pixels


def _check_model(config: PackConfig) -> None:
    """One of ``model`` and ``tokenizer`` is given, and nothing twice."""
    if not config.model and not config.tokenizer:
        raise ConfigError(
            "no model given", hint="--model NAME_OR_FOLDER, or --tokenizer for text alone"
        )
    if config.model and config.tokenizer:
        raise ConfigError("--model and --tokenizer: give one of them", hint="--model has both")
    if config.model and config.image_rule != "none":
        raise ConfigError(
            "--model and --image-rule: the model's processor has its own rule",
            hint="leave --image-rule out, or give --tokenizer in place of --model",
        )


def _refuse_existing(out: Path) -> None:
    """What an interrupted pack has left may be there, a dataset or anything else may not."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: a file, expected a folder or nothing")
    if any(out.glob("_mmrlhf/manifest-*.json")):
        raise InputError(f"{out}: a dataset is already there", hint="--append adds to it")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in _DATASET_ENTRIES)
    if foreign:
        raise InputError(f"{out}: already there, and holds {foreign[0]}", hint="choose a new --out")


def _remove_empty_record(folder: Path) -> None:
    """Remove the record of a call that read no row, with the folders that only it has made."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parents[1]):
        with contextlib.suppress(OSError):
            parent.rmdir()  # unless something else lies there


class _RowReader:
    """Reads rows, gathers them into queries and hands these to the packer."""

    def __init__(self, config: PackConfig, packer: Packer, stage: StageContext) -> None:
        self.config = config
        self.packer = packer
        self.sources: dict[str, dict[str, Any]] = {}
        self.fields_ignored: Counter[str] = Counter()
        self._stage = stage
        self._max_bad = parse_share(config.max_bad, "pack.max_bad") if config.max_bad else None
        self._gatherer = Gatherer(packer.accounting, keep_ties=config.ties == "keep")
        self._waiting: list[Query] = []
        self._waiting_bytes = 0

    def read(self, file: SourceFile) -> None:
        """Every row of one file.

        Raises:
            InputError: its rows are of no known format, or too many rows are bad.
        """
        rows = read_rows(file)
        first: list[Row] = []
        for row in rows:
            first.append(row)
            known = [record for _, record in first if isinstance(record, dict)]
            if len(known) >= _ROWS_TO_DETECT or len(first) >= _MOST_TO_DETECT:
                break
        if not first:
            raise InputError(f"{file.path}: no record in it", hint="leave it out")
        format = self._format(file, [record for _, record in first])
        source = self.sources.setdefault(
            file.source, {"number": len(self.sources), "format": format.name, "rows": 0}
        )
        for position, record in chain(first, rows):
            source["rows"] += 1
            self._take(file, source["number"], format, position, record)

    def finish(self) -> None:
        """Pack what is still waiting, and judge the whole.

        Raises:
            InputError: no row could be used, or too many are bad.
        """
        self._waiting += self._gatherer.rest()
        self._pack()
        self.packer.accounting.check_share(self._max_bad, final=True)

    def _format(self, file: SourceFile, records: list[object]) -> Format:
        if self.config.format != "auto":
            return FORMATS[self.config.format]
        if not any(isinstance(record, dict) for record in records):
            # Every one of them is rejected anyway; the format makes no difference.
            return FORMATS["trl"]
        return detect(records, str(file.path))

    def _take(
        self,
        file: SourceFile,
        source: int,
        format: Format,
        position: str,
        record: dict[str, Any] | BadRecordError,
    ) -> None:
        accounting = self.packer.accounting
        accounting.rows_in += 1
        self._stage.progress(f"reading {file.source}", accounting.rows_in)
        try:
            if isinstance(record, BadRecordError):
                raise record
            preference = format.parse(record)
        except BadRecordError as error:
            accounting.reject_row(file.source, position, error.reason, error.detail)
            accounting.check_share(self._max_bad)
            return
        ignored = (key for key in record if key not in format.fields and record[key] is not None)
        self.fields_ignored.update(map(str, ignored))
        row = PackedRow(file.source, position, 0)
        left = self._gatherer.add(preference, source=source, root=file.root, row=row)
        self._waiting += left
        self._waiting_bytes += sum(query.content_bytes for query in left)
        if len(self._waiting) >= _QUERIES_AT_ONCE or self._waiting_bytes >= _BYTES_AT_ONCE:
            self._pack()

    def _pack(self) -> None:
        for start in range(0, len(self._waiting), _QUERIES_AT_ONCE):
            self.packer.pack(self._waiting[start : start + _QUERIES_AT_ONCE])
        self._waiting, self._waiting_bytes = [], 0
        self.packer.accounting.check_share(self._max_bad)


STAGE = Stage(
    name="pack",
    config=PackConfig,
    run=run,
    writes=("rejected", "changed"),
    external=external,
    memory=memory,
    no_effect_on_output=frozenset({"threads", "memory", "append"}),
)
