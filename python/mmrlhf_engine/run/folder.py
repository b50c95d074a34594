"""The run folder: which stages are finished, and where their tables and files are.

``RUN/02_dedup/`` holds the tables of one stage, ``config.yaml`` (its settings as resolved),
``report.json`` (rows in and out, what was dropped and why, seconds, memory) and, written last,
``manifest.json``: what the stage was made from and the hash of each file it made. A stage with a
manifest is finished.
"""

import contextlib
import fcntl
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import InputError

__all__ = ["STAGE_ORDER", "Run", "folder_name", "locked", "read_json"]

STAGE_ORDER = (
    *("ingest", "dedup", "embed", "cluster", "select"),
    *("respond", "annotate", "pair"),
    *("pack", "reward", "score", "reference", "mm_dpo"),
    "evaluate",
)


def folder_name(stage: str) -> str:
    """``dedup`` -> ``02_dedup``: the folders of a run sort in the order of the pipeline."""
    return f"{STAGE_ORDER.index(stage) + 1:02d}_{stage}"


class Run:
    """A run folder, open for one writing process at a time.

    Args:
        folder: The folder.
        without: Stages that are not looked at, as if they were not there: those that were made from
            other tables or settings than the stages before them are now.
    """

    def __init__(self, folder: Path, *, without: Collection[str] = ()) -> None:
        self.folder = folder
        self._without = frozenset(without)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep a second process out of the folder while this one writes.

        Raises:
            InputError: another process holds the folder.
        """
        return locked(self.folder)

    def stage_folder(self, stage: str) -> Path:
        """The folder of a stage of this run, whether it exists or not."""
        return self.folder / folder_name(stage)

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a finished stage, or None."""
        if stage in self._without:
            return None
        return read_json(self.stage_folder(stage) / "manifest.json")

    def report(self, stage: str) -> dict[str, Any] | None:
        """The report of a finished stage, or None."""
        if self.manifest(stage) is None:
            return None
        return read_json(self.stage_folder(stage) / "report.json")

    def find(self, name: str, before: str | None = None) -> Path | None:
        """The newest table (a folder) or file of this name among the finished stages.

        Args:
            name: For example ``samples`` or ``embeddings.npy``.
            before: Only stages before this one in the pipeline count.
        """
        owner = self.owner(name, before)
        return None if owner is None else self.stage_folder(owner) / name

    def owner(self, name: str, before: str | None = None) -> str | None:
        """The finished stage that :meth:`find` finds ``name`` in."""
        stages = STAGE_ORDER if before is None else STAGE_ORDER[: STAGE_ORDER.index(before)]
        for stage in reversed(stages):
            folder = self.stage_folder(stage)
            if stage in self._without:
                continue
            if (folder / "manifest.json").exists() and (folder / name).exists():
                return stage
        return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if need be) for this process by a lock that ends with it.

    Raises:
        InputError: another process holds it; or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written: {error.strerror}, expected a folder or none",
            hint="another --out",
        ) from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another process is working in this folder",
                hint="wait for it, or choose another --out",
            ) from None
        yield


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file that appears by rename, or None where there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content
