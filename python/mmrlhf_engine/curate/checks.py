"""What ``curate`` refuses before it writes or removes anything, beyond what a stage checks itself.

A run folder belongs to one corpus: other sources are refused, more of them need ``--add``.
"""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.curate.kept_sources import last_sources
from mmrlhf_engine.curate.quotas import Groups
from mmrlhf_engine.curate.select import SelectConfig
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.config import parse_share
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.memory import format_size
from mmrlhf_engine.run.stage import Stage, fingerprint
from mmrlhf_engine.sources.bad_share import check_bad_share

__all__ = [
    "absolute",
    "check_bounds",
    "check_corpus",
    "check_max_bad",
    "check_space",
    "check_tables",
    "check_writable",
    "free_space",
    "sources_of",
    "with_sources_of",
]

_SHOWN = 4


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuse a folder, given by an option, that cannot be written or made.

    Raises:
        InputError: it is a file, or lies below one, or below a folder without permission.
    """
    place = folder.absolute()
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    if not place.is_dir():
        raise InputError(
            f"{folder}: cannot be written: {place} is not a folder", hint=f"another {option}"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder}: cannot be written: no permission for {place}", hint=f"another {option}"
        )


def sources_of(run: Run) -> list[str]:
    """The sources of the run's finished ingest, empty where there is none."""
    return [absolute(source.path) for source in _settings_of(run).sources]


def _settings_of(run: Run) -> IngestConfig:
    """Those of the finished ingest; where there is none, the defaults."""
    if run.manifest("ingest") is None:
        return IngestConfig()
    file = run.stage_folder("ingest") / "config.yaml"
    return IngestConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})


def with_sources_of(run: Run, given: list[SourceConfig]) -> list[SourceConfig]:
    """The sources given, and those of the run that are not among them, for ``--add``.

    An interrupted ``--add`` has changed nothing about what the run is of.

    Raises:
        InputError: none is given, or no ingest of the run has finished.
    """
    before = _settings_of(run).sources or last_sources(run)
    if not before:
        raise InputError(
            f"{run.folder}: --add extends a finished run, and found none in this folder",
            hint="leave out --add",
        )
    if not given:
        raise InputError(
            f"{run.folder}: --add was given no source",
            hint="name the new ones, or leave out --add",
        )
    named = {absolute(source.path) for source in given}
    return [*given, *(source for source in before if absolute(source.path) not in named)]


def check_corpus(run: Run, paths: list[str], *, add: bool) -> None:
    """Refuse other sources than those of the run's finished ingest.

    Args:
        run: The run.
        paths: The sources given; none stands for those of the run.
        add: Sources may be added to those of the run.

    Raises:
        ConfigError: they are others, or more of them and ``add`` is not set.
    """
    before, now = set(sources_of(run)), {absolute(path) for path in paths}
    if not before or not now or before == now or (add and before < now):
        return
    # The order is that of the names, so that the same mistake has the same message.
    new, missing = sorted(now - before), sorted(before - now)
    if before < now:
        raise ConfigError(
            f"{run.folder}: is a run of {_listed(sorted(before))}; these sources are new: "
            f"{_listed(new)}",
            hint="--add extends the run by them; or another --out",
        )
    what = f"found {_listed(sorted(now))}, expected {_listed(sorted(before))}"
    if not new:
        what = f"these of its sources were not given: {_listed(missing)}"
    raise ConfigError(
        f"{run.folder}: is a run of another corpus: {what}",
        hint="another --out; --add extends this run by other sources",
    )


def absolute(path: str) -> str:
    """The path from the root of the file system on; an address (``s3://...``) as it is.

    Links stay as they are, but for those before a ``..``.
    """
    if "://" in path:
        return path
    whole = Path(path).expanduser().absolute()
    return str(whole.resolve() if ".." in whole.parts else whole)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def check_tables(run: Run, stages: list[Stage]) -> None:
    """Refuse to begin at a stage whose tables are not there yet.

    Raises:
        InputError: a table is made neither by one of these stages nor by a finished one before.
    """
    made: set[str] = set()
    for stage in stages:
        for name in stage.reads:
            if name not in made and run.find(name, before=stage.name) is None:
                raise InputError(
                    f"{run.folder}: {stage.name} needs {name}, which no stage before it has",
                    hint="run the stages before it first (leave out --from)",
                )
        made.update(stage.writes)


def check_bounds(config: SelectConfig, sources: list[str]) -> None:
    """Refuse floors and caps that contradict each other, or are of a source that is not there.

    Raises:
        ConfigError: it is so.
    """
    Groups("modality", config.modality.items(), config.count)
    groups = Groups("source", config.source.items(), config.count)
    if sources:
        groups.expect_known(sorted(sources))


def check_max_bad(run: Run, stage: Stage, config: IngestConfig, seed: int) -> None:
    """Refuse a stricter ``max_bad`` that a finished ingest is known to fail.

    Raises:
        InputError: ingest has run under the same settings but this one, and more rows were bad.
    """
    manifest, report = run.manifest("ingest"), run.report("ingest")
    if manifest is None or report is None or config.max_bad is None:
        return
    file = run.stage_folder("ingest") / "config.yaml"
    before: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    as_before = config.model_copy(update={"max_bad": before.get("max_bad")})
    if fingerprint(stage, as_before, seed, run) == manifest["fingerprint"]:
        share = parse_share(config.max_bad, "ingest.max_bad")
        check_bad_share(report["rows_in"], Counter(report["dropped"]), share, final=True)


def free_space(folder: Path) -> int:
    """Bytes free where the folder is, or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin where not even half of what will be needed is free; it is an estimate.

    Raises:
        InputError: it is so.
    """
    free = free_space(folder)
    if free < needed / 2:
        raise InputError(
            f"{folder}: the tables will need about {format_size(needed)}, and {format_size(free)} "
            "are free",
            hint="another --out, or fewer sources at once",
        )
