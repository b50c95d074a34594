"""Preference data of any known format to one memory-mapped dataset.

1. Rows are read one at a time, parsed into one shape, and gathered into queries, so that a prompt,
   its images and each of its answers are stored once (`gather.py`).
2. Queries are prepared and appended batch by batch (`prepare.py`); memory does not grow with the
   input.
3. The dataset appears whole, by one commit; several processes may pack into the same one. Beside it
   lie ``reports/pack-VERSION/``: report.json, the tables ``rejected`` (rows that gave nothing, with
   the reason) and ``changed`` (rows that stayed, and what was done to them).
"""

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from mmrlhf_engine._core import DatasetWriter
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.pack.gather import Gatherer, PackedRow, Query, RowAccounting
from mmrlhf_engine.pack.over_long import OverLongPolicy
from mmrlhf_engine.pack.prepare import Counts, Packer
from mmrlhf_engine.pack.report import describe, make_report
from mmrlhf_engine.pack.tokenize import ChatTokenizer, load_tokenizer
from mmrlhf_engine.run.config import Section, parse_share, to_yaml
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.tables import REJECTED, TableSchema, TableWriter
from mmrlhf_engine.shards.image_rule import ImageRule, read_rule
from mmrlhf_engine.sources.pictures import FrameSettings
from mmrlhf_engine.sources.preferences import FORMATS, Format, detect
from mmrlhf_engine.sources.preferences.record import BadRecordError
from mmrlhf_engine.sources.preferences.rows import Row, SourceFile, find_files, read_rows

__all__ = ["CHANGED", "PackConfig", "describe", "run"]

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
_SETTINGS_TOLD = ("image_rule", "max_length", "over_long", "ties", "strings", "frames")


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
    tokenizer: str = ""
    """A fast tokenizer by name or folder; there is no default."""
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

    @field_validator("max_bad")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None:
            parse_share(value, "pack.max_bad")
        return value


def run(config: PackConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Pack the sources into the dataset at ``out``; returns the report.

    Raises:
        ConfigError: the tokenizer, template or image rule does not fit.
        InputError: a source cannot be read, too much of it is bad, a sequence is too long under the
            policy ``error``, or a dataset is there already and ``append`` is not set.
        MissingExtraError: a package that only some inputs need is not installed.
    """
    started = time.monotonic()
    files, rule, tokenizer = _check(config, out)
    desk = out / "reports" / f".pack-{os.getpid()}-{time.time_ns():x}"
    writer = DatasetWriter(
        out,
        tokenizer=json.dumps(tokenizer.identity, sort_keys=True),
        shard_pairs=config.shard_pairs,
        threads=config.threads,
    )
    try:
        walk = _walk(config, files, writer, tokenizer, rule, desk, progress or Progress("silent"))
        report = make_report(
            walk.packer,
            sources=walk.sources,
            fields_ignored=dict(sorted(walk.fields_ignored.items())),
            settings=config.model_dump(mode="json", include=set(_SETTINGS_TOLD)),
        )
        report["seconds"] = round(time.monotonic() - started, 3)
        report["version"] = writer.commit()
    except BaseException:
        shutil.rmtree(desk, ignore_errors=True)
        with contextlib.suppress(OSError):
            desk.parent.rmdir()  # unless reports of other runs lie there
        writer.abort()
        raise
    write_atomically(desk / "config.yaml", to_yaml(config))
    write_atomically(desk / "report.json", json.dumps(report, indent=2) + "\n")
    desk.replace(out / "reports" / f"pack-{report['version']:010d}")
    return report


def _check(config: PackConfig, out: Path) -> tuple[list[SourceFile], ImageRule, ChatTokenizer]:
    """Everything that can be wrong before the work starts."""
    if not config.append and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there", hint="--append adds to a dataset")
    if not config.tokenizer:
        raise ConfigError("no tokenizer given", hint="--tokenizer NAME_OR_FOLDER")
    files = find_files(config.sources, config.root)
    rule = read_rule(config.image_rule)
    tokenizer = load_tokenizer(
        config.tokenizer,
        chat_template=config.chat_template,
        image_mark=rule.image_mark,
        strings=config.strings,
    )
    return files, rule, tokenizer


def _walk(
    config: PackConfig,
    files: list[SourceFile],
    writer: DatasetWriter,
    tokenizer: ChatTokenizer,
    rule: ImageRule,
    desk: Path,
    progress: Progress,
) -> "_Walk":
    """Read, gather and append everything; what is not packed is in the tables at ``desk``."""
    frames = FrameSettings(
        frames=config.frames,
        frames_per_second=config.frames_per_second,
        max_pixels=config.max_pixels,
        threads=config.threads,
    )
    with (
        TableWriter(desk / "rejected", REJECTED) as rejected,
        TableWriter(desk / "changed", CHANGED) as changed,
    ):
        packer = Packer(
            writer=writer,
            tokenizer=tokenizer,
            frames=frames,
            count_tokens=rule.count,
            max_length=config.max_length,
            over_long=config.over_long,
            accounting=RowAccounting(rejected, changed),
            counts=Counts(),
        )
        walk = _Walk(config, packer, progress)
        for file in files:
            walk.read(file)
        walk.finish()
    return walk


class _Walk:
    """The rows on their way from the files to the packer."""

    def __init__(self, config: PackConfig, packer: Packer, progress: Progress) -> None:
        self.config = config
        self.packer = packer
        self.sources: dict[str, dict[str, Any]] = {}
        self.fields_ignored: Counter[str] = Counter()
        self._progress = progress
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
        self.packer.accounting.flush()

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
        self._progress.update("pack", f"reading {file.source}", accounting.rows_in, None)
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
