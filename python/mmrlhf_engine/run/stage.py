"""What a stage is, how it is run, and when it counts as finished.

A stage is declared once, at the end of its file, as a :class:`Stage`: its config, the tables it
reads and writes, what it reads from outside of the run, and the memory it needs. Everything else is
the same for all of them and is done here by :func:`run_stage`:

1. The fingerprint is what the output is a function of: config, seed, the content of the tables
   read, the state of what lies outside, and the code. A folder whose manifest has this fingerprint
   and whose files are all there is finished, and the stage is skipped.
2. Everything that can be refused is refused before anything is removed.
3. A folder without a manifest was interrupted. Its tables are made again; its scratch folder is
   kept if the fingerprint is the same, so that a long stage goes on where it was.
4. Rows in are rows out plus rows dropped by reason, or the stage fails. Then the report is written,
   and last the manifest.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from mmrlhf_engine.errors import ConfigError, FileError, InputError, StageError
from mmrlhf_engine.run.code_hash import code_hash
from mmrlhf_engine.run.config import Section, to_yaml
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import Run, read_json
from mmrlhf_engine.run.memory import (
    current_memory,
    default_budget,
    format_size,
    held_memory,
    peak_memory,
    release_memory,
    reset_peak_memory,
)
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.tables import TableSchema, TableWriter

__all__ = [
    "Inputs",
    "Resources",
    "Stage",
    "StageContext",
    "fingerprint",
    "is_finished",
    "run_stage",
]

_RECORDS = frozenset({"manifest.json", "report.json", "config.yaml", "started.json", ".lock"})


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline, declared at the end of its file."""

    name: str
    """One of ``STAGE_ORDER``."""
    config: type[Section]
    """Its settings; the output is a function of all of them but ``no_effect_on_output``."""
    run: Callable[[Any, "StageContext"], None]
    """Does the work and calls ``context.finish``."""
    reads: tuple[str, ...] = ()
    """Tables and files of stages before it."""
    writes: tuple[str, ...] = ()
    """Tables and files it makes, all of them, every time."""
    keeps: tuple[str, ...] = ()
    """What an interrupted attempt leaves that the next one goes on from, whatever has changed; the
    stage itself refuses what does not fit."""
    stores: tuple[str, ...] = ()
    """Likewise, but no part of the output: what spares work, and may be deleted at any time."""
    external: Callable[[Any], list[object]] = lambda _: []
    """What it depends on outside of the run (files with size and time of change), as JSON values;
    raises InputError where something is missing."""
    memory: Callable[[Any, "Inputs", int], int] = lambda _config, _inputs, _threads: 0
    """An upper bound in bytes of what it holds at once, by its inputs and number of threads."""
    no_effect_on_output: frozenset[str] = frozenset()
    """Fields of the config that change how it works, not what it makes."""
    run_files: tuple[str, ...] = ()
    """Files at the top of the run folder that are written by other commands, or by hand; each may
    be absent. Their content is an input like that of a table."""
    check: Callable[[Any], None] = lambda _: None
    """Raises MmrlhfError for what can be known to fail before any stage of a command begins: a
    name that is of nothing, a package or a file that is not there. Changes nothing."""


class Inputs(Protocol):
    """How large the tables and files are that a stage reads."""

    def rows(self, name: str) -> int:
        """Rows of a table, or of a ``.npy`` file."""
        ...

    def width(self, name: str) -> int:
        """Columns of a ``.npy`` file."""
        ...

    def text_bytes(self, name: str, *columns: str) -> int:
        """Bytes of the texts in columns of a table."""
        ...


@dataclass(frozen=True)
class Resources:
    """What a stage may use, and the seed; none but the seed changes its output."""

    threads: int = 0
    """0 means one per core."""
    memory: int | None = None
    """Bytes; None: half of what the machine, or its control group, has."""
    seed: int = 0
    progress: Progress = field(default_factory=lambda: Progress("silent"))

    @property
    def memory_budget(self) -> int:
        """Bytes the process may hold."""
        return default_budget() if self.memory is None else self.memory

    @property
    def cores(self) -> int:
        """``threads``, with 0 resolved."""
        return self.threads or os.cpu_count() or 1


@dataclass
class StageContext:
    """What the code of a stage is given: its folder, its inputs, what it may use."""

    stage: Stage
    config: Section
    folder: Path
    run: Run | None
    """The run whose tables it reads; None for a stage that works alone."""
    resources: Resources
    finished: bool = False

    def __post_init__(self) -> None:
        self.scratch = self.folder / "scratch"
        self._started = time.monotonic()
        self._start_memory = current_memory()

    @property
    def threads(self) -> int:
        """Threads to use; 0 means one per core."""
        return self.resources.threads

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.resources.seed

    def path(self, name: str) -> Path:
        """The newest table (a folder) or file of this name of a stage before this one.

        Raises:
            InputError: no finished stage before this one has it.
            StageError: the stage does not declare that it reads it.
        """
        if name not in self.stage.reads:
            raise StageError(f"{self.stage.name} reads {name}, but declares {self.stage.reads}")
        found = self.run.find(name, before=self.stage.name) if self.run is not None else None
        if found is None:
            where = self.run.folder if self.run is not None else self.folder
            raise InputError(
                f"{where}: {self.stage.name} needs {name}, which no stage before it has",
                hint="run the stages before it first (leave out --from)",
            )
        return found

    def run_file(self, name: str) -> Path | None:
        """A file at the top of the run folder; None where it is not there.

        Raises:
            StageError: the stage does not declare that it reads it.
        """
        if name not in self.stage.run_files:
            raise StageError(f"{self.stage.name} reads {name}, but declares {self.stage.run_files}")
        file = self.run.folder / name if self.run is not None else None
        return file if file is not None and file.is_file() else None

    def scan(self, name: str) -> pl.LazyFrame:
        """The table :meth:`path` finds."""
        return pl.scan_parquet(self.path(name) / "*.parquet")

    def parts(
        self, name: str, *columns: str, where: pl.Expr | None = None
    ) -> Iterator[pl.DataFrame]:
        """The table :meth:`path` finds, part by part: for what is larger than memory.

        Args:
            name: Of the table.
            columns: Those that are read; all where none is named.
            where: Condition of the rows that are taken.
        """
        for file in sorted(self.path(name).glob("*.parquet")):
            rows = pl.scan_parquet(file)
            rows = rows if where is None else rows.filter(where)
            yield (rows.select(columns) if columns else rows).collect()

    def rows(self, name: str) -> int:
        """Rows of a table, from the footers of its parts, or of a ``.npy`` file."""
        if name.endswith(".npy"):
            return int(self.array(name).shape[0])
        return int(self.scan(name).select(pl.len()).collect().item())

    def width(self, name: str) -> int:
        """Columns of a ``.npy`` file."""
        return int(self.array(name).shape[1])

    def text_bytes(self, name: str, *columns: str) -> int:
        """Bytes of the texts in columns of a table, counted in one pass over them."""
        sizes = [pl.col(column).str.len_bytes().sum() for column in columns]
        return sum(self.scan(name).select(sizes).collect(engine="streaming").row(0))

    def array(self, name: str) -> np.ndarray:
        """A ``.npy`` file, mapped, not read."""
        mapped: np.ndarray = np.load(self.path(name), mmap_mode="r")
        return mapped

    def table(self, name: str, schema: TableSchema) -> TableWriter:
        """A new table of this stage, as a context manager with ``write``.

        Raises:
            StageError: the stage does not declare that it writes it.
        """
        if name not in self.stage.writes:
            raise StageError(f"{self.stage.name} writes {name}, but declares {self.stage.writes}")
        return TableWriter(self.folder / name, schema)

    def progress(self, task: str, done: int, total: int | None = None) -> None:
        """Say how far ``task`` is; cheap."""
        self.resources.progress.update(self.stage.name, task, done, total)

    def begin(self, made_from: dict[str, Any]) -> None:
        """Clear what an earlier attempt left, but for scratch of the same fingerprint."""
        resumable = read_json(self.folder / "started.json") == made_from
        if self.folder.exists():
            # The manifest goes first: from here on the stage is unfinished.
            (self.folder / "manifest.json").unlink(missing_ok=True)
            for entry in self.folder.iterdir():
                if entry.name in (".lock", *self.stage.keeps, *self.stage.stores):
                    continue
                if entry == self.scratch and resumable:
                    continue
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.scratch.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "started.json", json.dumps(made_from))
        write_atomically(self.folder / "config.yaml", to_yaml(self.config))
        reset_peak_memory()

    def finish(
        self,
        *,
        rows_in: int,
        rows_out: int,
        dropped: dict[str, int],
        publish: Callable[[], dict[str, Any]] | None = None,
        **facts: Any,
    ) -> None:
        """Check that nothing disappeared, write the report, then the manifest.

        Args:
            rows_in: Rows read.
            rows_out: Rows kept.
            dropped: Rows dropped, by reason.
            publish: Makes what lies outside of the folder visible, once the report is on disk;
                what it returns is kept in the manifest.
            facts: Further entries of the report.

        Raises:
            StageError: ``rows_in`` is not ``rows_out`` plus everything dropped, or something that
                the stage declares to write is not there.
        """
        name = self.stage.name
        if rows_in != rows_out + sum(dropped.values()):
            raise StageError(
                f"{name}: {rows_in} rows came in, but {rows_out} went out and "
                f"{sum(dropped.values())} were dropped by name"
            )
        missing = [entry for entry in self.stage.writes if not (self.folder / entry).exists()]
        if missing:
            raise StageError(f"{name}: declares to write {', '.join(missing)}, but did not")
        report = {
            "stage": name,
            "rows_in": rows_in,
            "rows_out": rows_out,
            "dropped": dict(sorted(dropped.items())),
            "seconds": round(time.monotonic() - self._started, 3),
            "start_rss_bytes": self._start_memory,
            "peak_rss_bytes": peak_memory(),
            **facts,
        }
        shutil.rmtree(self.scratch, ignore_errors=True)
        write_atomically(self.folder / "report.json", json.dumps(report, indent=2) + "\n")
        manifest = {
            "fingerprint": read_json(self.folder / "started.json"),
            "outputs": _describe_outputs(self.folder, self.stage.stores),
            **(publish() if publish is not None else {}),
        }
        write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        self.finished = True


def run_stage(
    stage: Stage, config: Section, folder: Path, resources: Resources, run: Run | None = None
) -> dict[str, Any]:
    """Run ``stage`` in ``folder`` unless it is finished and unchanged there; its report.

    Raises:
        ConfigError: the stage needs more memory than it may use.
        FileError: the disk is full.
        InputError: a table it reads, or something outside of the run, is missing.
        StageError: it broke one of its own promises.
    """
    made_from = fingerprint(stage, config, resources.seed, run)
    progress = resources.progress
    if is_finished(folder, made_from):
        progress.say(
            f"{stage.name}: finished and unchanged, skipped", stage=stage.name, skipped=True
        )
        return read_json(folder / "report.json") or {}
    context = StageContext(stage, config, folder, run, resources)
    for name in stage.reads:
        context.path(name)
    release_memory()
    _check_memory(context)
    context.begin(made_from)
    progress.say(f"{stage.name}: running", stage=stage.name)
    try:
        stage.run(config, context)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FileError(
            f"{folder}: no space is left on the device for what {stage.name} writes: {error}",
            hint="make room and run the same command again: what is finished is kept",
        ) from error
    if not context.finished:
        raise StageError(f"{stage.name}: returned without finishing")
    report = read_json(folder / "report.json") or {}
    progress.say(
        f"{stage.name}: {report['rows_in']:,} in, {report['rows_out']:,} out, "
        f"{report['seconds']:.1f} s, peak {report['peak_rss_bytes'] / 2**20:,.0f} MiB",
        **report,
    )
    return report


def fingerprint(stage: Stage, config: Section, seed: int, run: Run | None) -> dict[str, Any]:
    """What the output of a stage is a function of; equal fingerprints mean equal output.

    Raises:
        InputError: something that it depends on outside of the run is missing.
    """
    settings = config.model_dump(mode="json", exclude=set(stage.no_effect_on_output))
    return {
        "stage": stage.name,
        "code": code_hash(stage.run.__module__),
        "config": _digest(settings),
        "seed": seed,
        "external": _digest(stage.external(config)),
        "inputs": {} if run is None else _input_hashes(stage, run),
    }


def is_finished(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether what lies in ``folder`` was made from exactly this and all its files are there."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None or manifest["fingerprint"] != made_from:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"]
        for name, entry in manifest["outputs"].items()
    )


def _input_hashes(stage: Stage, run: Run) -> dict[str, str]:
    """Name -> hash of the content of each table and file read, where it is there.

    By content, not by time: a rebuilt but equal input does not cause work.
    """
    files = ((name, run.folder / name) for name in stage.run_files)
    hashes = {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files
        if file.is_file()
    }
    for name in stage.reads:
        owner = run.owner(name, before=stage.name)
        manifest = run.manifest(owner) if owner is not None else None
        if manifest is not None:
            outputs = manifest["outputs"].items()
            mine = {key: value for key, value in outputs if key.split("/")[0] == name}
            hashes[name] = _digest(mine)
    return hashes


def _check_memory(context: StageContext) -> None:
    resources = context.resources
    held = held_memory() + context.stage.memory(context.config, context, resources.cores)
    budget = resources.memory_budget
    if held > budget:
        raise ConfigError(
            f"{context.stage.name} needs up to {format_size(held)} of memory for what it reads, "
            f"and may use {format_size(budget)}",
            # To a whole hundred: what is held before the stage begins is never the same.
            hint=f"--memory {-(-held // (100 << 20)) * 100}M, or a smaller corpus",
        )


def _describe_outputs(folder: Path, stores: Collection[str]) -> dict[str, dict[str, object]]:
    """Relative name -> bytes and SHA-256 of every file a stage made, in sorted order."""
    outputs: dict[str, dict[str, object]] = {}
    for file in sorted(folder.rglob("*")):
        if file.relative_to(folder).parts[0] in stores:
            continue
        if file.is_file() and file.name not in _RECORDS:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            outputs[file.relative_to(folder).as_posix()] = {
                "bytes": file.stat().st_size,
                "sha256": digest,
            }
    return outputs


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
