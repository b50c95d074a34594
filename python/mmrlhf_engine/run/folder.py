"""The run folder: what is finished, what is being made, and how a file comes to be.

``RUN/02_dedup/`` holds the tables of one stage, ``config.yaml`` (its settings as resolved),
``report.json`` (rows in and out, what was dropped and why, seconds, memory) and, written last,
``manifest.json``: what the stage was made from and the hash of each file it made. Few rules hold:

1. A file appears by rename, complete or not at all.
2. A stage with a manifest is finished; if its fingerprint (settings, seed, inputs, code version) is
   the one asked for and its files are all there, it is skipped.
3. A stage without one was interrupted. Its tables are made again; its scratch folder is kept if the
   fingerprint still fits, so that a long stage goes on where it was.
4. A stage's inputs are known by the hashes of their content, not by when they were made: a rebuilt
   but equal input does not cause work downstream.
"""

import contextlib
import fcntl
import hashlib
import json
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine import __version__
from mmrlhf_engine.errors import InputError, StageError
from mmrlhf_engine.run.config import Section, to_yaml
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.tables import TableSchema, TableWriter

__all__ = ["WALK", "Run", "Stage", "folder_name"]

WALK = (
    *("ingest", "dedup", "embed", "cluster", "select"),
    *("respond", "annotate", "pair"),
    *("pack", "reward", "score", "reference", "mm_dpo"),
    "evaluate",
)

_RECORDS = frozenset({"manifest.json", "report.json", "config.yaml", "started.json"})


def folder_name(stage: str) -> str:
    """``dedup`` -> ``02_dedup``: the folders of a run sort in the order of the walk."""
    return f"{WALK.index(stage) + 1:02d}_{stage}"


class Run:
    """A run folder, open for one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of the folder while this one writes.

        Raises:
            InputError: another process holds the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.folder}: another process is working in this run folder",
                    hint="wait for it, or choose another --out",
                ) from None
            yield

    def stage_folder(self, stage: str) -> Path:
        """Where a stage of this run lives, whether it exists or not."""
        return self.folder / folder_name(stage)

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage, or None."""
        return _read_json(self.stage_folder(stage) / "manifest.json")

    def report(self, stage: str) -> dict[str, Any] | None:
        """The report of a finished stage, or None."""
        if self.manifest(stage) is None:
            return None
        return _read_json(self.stage_folder(stage) / "report.json")

    def fingerprint(self, stage: str, config: Section, seed: int, extra: object) -> dict[str, Any]:
        """What the output of a stage is a function of; equal fingerprints mean equal output.

        ``extra`` is what the stage reads from outside the run (the files of a corpus).
        """
        upstream = WALK[: WALK.index(stage)]
        inputs = {name: self.manifest(name) for name in upstream}
        return {
            "stage": stage,
            "code": __version__,
            "config": _digest(config.model_dump(mode="json")),
            "seed": seed,
            "outside": _digest(extra),
            "inputs": {name: _digest(m["outputs"]) for name, m in inputs.items() if m},
        }

    def is_finished(self, stage: str, fingerprint: dict[str, Any]) -> bool:
        """Whether the stage was made from exactly this and all its files are still there."""
        manifest = self.manifest(stage)
        if manifest is None or manifest["fingerprint"] != fingerprint:
            return False
        folder = self.stage_folder(stage)
        return all(
            (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"]
            for name, entry in manifest["outputs"].items()
        )

    def find_table(self, name: str, before: str | None = None) -> Path | None:
        """The folder of the newest table of this name upstream of ``before``."""
        stages = WALK if before is None else WALK[: WALK.index(before)]
        for stage in reversed(stages):
            folder = self.stage_folder(stage)
            if (folder / "manifest.json").exists() and (folder / name).is_dir():
                return folder / name
        return None


@dataclass
class Stage:
    """What a stage function is given: its folder, its budget, its inputs, and how to finish."""

    name: str
    run: Run
    config: Section
    fingerprint: dict[str, Any]
    threads: int
    memory: int
    seed: int
    progress_voice: Progress = field(default_factory=lambda: Progress("silent"))
    finished: bool = False

    def __post_init__(self) -> None:
        self.folder = self.run.stage_folder(self.name)
        self.scratch = self.folder / "scratch"
        self._started = time.monotonic()

    def begin(self) -> None:
        """Clear what an earlier attempt left, but for scratch that still fits."""
        resumable = _read_json(self.folder / "started.json") == self.fingerprint
        if self.folder.exists():
            # The manifest goes first: from here on the stage is unfinished.
            (self.folder / "manifest.json").unlink(missing_ok=True)
            for entry in self.folder.iterdir():
                if entry == self.scratch and resumable:
                    continue
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.scratch.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "started.json", json.dumps(self.fingerprint))
        write_atomically(self.folder / "config.yaml", to_yaml(self.config))
        _reset_peak_memory()

    def scan(self, name: str) -> pl.LazyFrame:
        """The newest upstream table of this name.

        Raises:
            InputError: no finished stage before this one has such a table.
        """
        folder = self.run.find_table(name, before=self.name)
        if folder is None:
            raise InputError(
                f"{self.run.folder}: {self.name} needs {name}, which no stage before it has",
                hint="run the stages before it first (leave out --from)",
            )
        return pl.scan_parquet(folder / "*.parquet")

    def path(self, name: str) -> Path:
        """The newest upstream file of this name.

        Raises:
            InputError: no finished stage before this one has such a file.
        """
        for upstream in reversed(WALK[: WALK.index(self.name)]):
            candidate = self.run.stage_folder(upstream) / name
            if candidate.is_file() and self.run.manifest(upstream) is not None:
                return candidate
        raise InputError(
            f"{self.run.folder}: {self.name} needs {name}, which no finished stage has",
            hint="run the stages before it first (leave out --from)",
        )

    def table(self, name: str, schema: TableSchema) -> TableWriter:
        """A new table of this stage, as a context manager with ``write``."""
        return TableWriter(self.folder / name, schema)

    def progress(self, task: str, done: int, total: int | None = None) -> None:
        """Say how far ``task`` is; cheap."""
        self.progress_voice.update(self.name, task, done, total)

    def finish(self, *, rows_in: int, rows_out: int, dropped: dict[str, int], **facts: Any) -> None:
        """Check that nothing disappeared, write the report, then the manifest.

        Raises:
            StageError: ``rows_in`` differs from ``rows_out`` plus everything dropped.
        """
        if rows_in != rows_out + sum(dropped.values()):
            raise StageError(
                f"{self.name}: {rows_in} rows came in, but {rows_out} went out and "
                f"{sum(dropped.values())} were dropped by name"
            )
        report = {
            "stage": self.name,
            "rows_in": rows_in,
            "rows_out": rows_out,
            "dropped": dict(sorted(dropped.items())),
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_rss_bytes": _peak_memory(),
            **facts,
        }
        shutil.rmtree(self.scratch, ignore_errors=True)
        write_atomically(self.folder / "report.json", json.dumps(report, indent=2) + "\n")
        manifest = {"fingerprint": self.fingerprint, "outputs": _describe_outputs(self.folder)}
        write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        self.finished = True


def _describe_outputs(folder: Path) -> dict[str, dict[str, object]]:
    """Relative name -> bytes and SHA-256 of every file a stage made, in sorted order."""
    outputs: dict[str, dict[str, object]] = {}
    for file in sorted(folder.rglob("*")):
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


def _read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file written by :func:`write_atomically`, or None where there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def _reset_peak_memory() -> None:
    """Start a new high-water mark, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """The largest resident set in bytes since the stage began (Linux), else of the process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
