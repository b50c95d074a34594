"""What ingest made of each source, kept in its folder: an unchanged source is not read again.

    by_source/NAME/samples/ media/ rejected/    the tables of this source alone
                   embedded.bin                  pictures that stood in its records
                   made.json                     what it was made from, counts, hash of each file
    by_source/sources.json                       the settings of the sources of the last run

The tables of the stage are hard links to these files, so they take no room of their own. A folder
appears when it is complete. It counts as long as the source as resolved, the size and time of its
files, the settings and the code are the same; files whose hash is another one are made again.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf_engine._core import file_hash
from mmrlhf_engine.run.code_hash import code_hash
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import Run, read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.sources.samples.batch import Source
from mmrlhf_engine.sources.samples.resolve import SourceConfig, files_of

__all__ = ["BY_SOURCE", "EMBEDDED", "KeptSources", "SourceTables", "file_states", "last_sources"]

BY_SOURCE = "by_source"
EMBEDDED = "embedded"
_MADE = "made.json"
_SOURCES = "sources.json"
_MODULE = "mmrlhf_engine.curate.ingest"


@dataclass(frozen=True)
class SourceTables:
    """The tables of one source."""

    folder: Path
    counts: dict[str, Any]
    """What the reader counted, as JSON values."""
    reused: bool
    """Whether they were there already."""

    def parts(self, table: str) -> list[Path]:
        """The files of a table, in the order of its rows."""
        return sorted((self.folder / table).glob("*.parquet"))


class KeptSources:
    """The folders of all sources of a run.

    Args:
        stage: The folder of ingest.
        settings: What the tables depend on beside the source and the code, as JSON values.
        progress: Where it is said that a source has to be read again.
    """

    def __init__(self, stage: Path, settings: dict[str, Any], progress: Progress) -> None:
        self._stage = stage
        self._folder = stage / BY_SOURCE
        self._settings = settings
        self._progress = progress
        self._used = {_SOURCES}
        self._made_from: dict[str, str] = {}

    def place(self) -> Path:
        """An empty folder, in which the tables of one source are made."""
        place = self._stage / "scratch" / "source"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def embedded(self, source: Source) -> Path:
        """The file for pictures that stood in records, as ``media`` names it."""
        return (self._stage / EMBEDDED / f"{_folder_name(source.name)}.bin").absolute()

    def find(self, source: Source) -> SourceTables | None:
        """The tables that were made of exactly this source; None where they have to be made."""
        folder = self._folder / _folder_name(source.name)
        # Before it is read: a file that changes meanwhile has to be read again.
        made_from = self._made_from[source.name] = self._state_of(source)
        made = _made(folder)
        if made.get("made_from") != made_from:
            return None
        for name, state in made["files"].items():
            if _state(folder / name) != state:
                self._progress.say(
                    f"ingest: {folder / name} is not as it was written, so {source.name} is read "
                    "again"
                )
                return None
        if EMBEDDED in made and made[EMBEDDED] != str(self.embedded(source)):
            return None  # the run folder was moved
        self._used.add(folder.name)
        return SourceTables(folder, made["counts"], reused=True)

    def is_there(self, source: Source) -> bool:
        """Whether :meth:`find` will find it, unless files are damaged, which takes long to see."""
        made = _made(self._folder / _folder_name(source.name))
        return bool(made.get("made_from") == self._state_of(source))

    def keep(self, source: Source, place: Path, counts: dict[str, Any]) -> SourceTables:
        """Keep what was made in ``place`` of a source that :meth:`find` did not find."""
        folder = self._folder / _folder_name(source.name)
        files = sorted(file for file in place.rglob("*") if file.is_file())
        made: dict[str, Any] = {
            "made_from": self._made_from[source.name],
            "counts": counts,
            "files": {file.relative_to(place).as_posix(): _state(file) for file in files},
        }
        if (place / f"{EMBEDDED}.bin").exists():
            made[EMBEDDED] = str(self.embedded(source))
        write_atomically(place / _MADE, json.dumps(made))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        place.replace(folder)
        self._used.add(folder.name)
        return SourceTables(folder, counts, reused=False)

    def finish(self, sources: list[SourceConfig]) -> None:
        """Remove what belongs to no source of this run, and write down its sources."""
        settings = [source.model_dump(mode="json") for source in sources]
        write_atomically(self._folder / _SOURCES, json.dumps(settings))
        for entry in self._folder.iterdir():
            if entry.name not in self._used:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _state_of(self, source: Source) -> str:
        known = [code_hash(_MODULE), self._settings, repr(source), file_states(source)]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _made(folder: Path) -> dict[str, Any]:
    """What is written down in a folder; nothing where that is not there, or damaged."""
    try:
        return read_json(folder / _MADE) or {}
    except (ValueError, OSError):
        return {}


def last_sources(run: Run) -> list[SourceConfig]:
    """The sources of the last ingest of a run that has finished, also while it runs again."""
    settings = read_json(run.stage_folder("ingest") / BY_SOURCE / _SOURCES)
    return [SourceConfig.model_validate(source) for source in settings or []]


def file_states(source: Source) -> list[list[str | int]]:
    """Path, size and time of change of every file of a source.

    Pictures that records only name are not listed: there may be millions.
    """
    return [
        [str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files_of(source)
    ]


def _folder_name(source: str) -> str:
    """Readable, and another one for every name, also where case makes no difference."""
    readable = re.sub(r"[^\w.-]", "_", source)[:60]
    return f"{readable}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _state(file: Path) -> str | None:
    """A hash of its content; None where it is not there."""
    return file_hash(file) if file.is_file() else None
