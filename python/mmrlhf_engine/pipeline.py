"""The walk: which stages there are, in which order, and how one is run.

``curate`` takes stages 1 to 5. Running a stage is always the same: compute the fingerprint of what
it would be made from, skip it if that is what lies in the folder, otherwise clear the folder, call
the stage's ``run`` and let it finish. The stages do not know of each other; this file is the only
place that does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from mmrlhf_engine.curate import cluster, dedup, embed, ingest, select
from mmrlhf_engine.curate.cluster import ClusterConfig
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.embed import EmbedConfig
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.curate.select import SelectConfig
from mmrlhf_engine.errors import ConfigError, StageError
from mmrlhf_engine.run.config import Section, available_memory, parse_bytes
from mmrlhf_engine.run.folder import Run, Stage
from mmrlhf_engine.run.progress import Progress

__all__ = [
    "CURATE",
    "CurateConfig",
    "StageState",
    "curate",
    "describe_plan",
    "plan",
    "with_sources",
]

STAGES: dict[str, ModuleType] = {
    "ingest": ingest,
    "dedup": dedup,
    "embed": embed,
    "cluster": cluster,
    "select": select,
}
CURATE = tuple(STAGES)

# For --dry-run. Disk: the tables of all five stages, and a float16 row of 512 to 1,280 values an
# image. Memory: the interpreter with torch and an encoder, and the columns dedup holds at once.
_BYTES_PER_ROW = 500
_DISK_PER_ROW = 400
_DISK_PER_IMAGE = 2_600
_MEMORY_BASE = 1 << 30
_MEMORY_PER_ROW = 1_200


class CurateConfig(Section):
    """Everything ``curate`` can be told; each section is documented beside its stage."""

    seed: int = 0
    """Seed of everything random: the k-means sample, and the order of picks within a cluster."""
    threads: int = Field(default=0, ge=0)
    """Threads to use; 0 means one per core. The output does not depend on it."""
    memory: str | None = None
    """Memory to stay within, for example ``4G``; half of the machine's when null."""
    ingest: IngestConfig = IngestConfig()
    dedup: DedupConfig = DedupConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    select: SelectConfig = SelectConfig()


@dataclass(frozen=True)
class StageState:
    """One stage of a planned run: its name, and whether it is already there."""

    name: str
    finished: bool
    fingerprint: dict[str, Any]


def with_sources(config: CurateConfig, paths: list[Path]) -> CurateConfig:
    """The config with the paths of the command line as its sources, if there are any."""
    if not paths:
        return config
    ingest = config.ingest.model_copy(
        update={"sources": [*config.ingest.sources, *(SourceConfig(path=str(p)) for p in paths)]}
    )
    return config.model_copy(update={"ingest": ingest})


def plan(config: CurateConfig, run: Run, stages: tuple[str, ...] = CURATE) -> list[StageState]:
    """What would run and what is already there; a stage after an unfinished one is unfinished."""
    states: list[StageState] = []
    for name in stages:
        fingerprint = _fingerprint(config, run, name)
        upstream_ready = all(state.finished for state in states)
        finished = upstream_ready and run.is_finished(name, fingerprint)
        states.append(StageState(name, finished, fingerprint))
    return states


def curate(
    config: CurateConfig,
    folder: Path,
    *,
    first: str = CURATE[0],
    last: str = CURATE[-1],
    progress: Progress | None = None,
    after_stage: Callable[[str], None] | None = None,
) -> Run:
    """Run the stages from ``first`` to ``last`` in ``folder``, skipping what is finished.

    Raises:
        MmrlhfError: a setting or an input does not fit; the run folder stays consistent, and the
            same call goes on where this one stopped.
    """
    run = Run(folder)
    progress = progress or Progress("silent")
    with run.locked():
        for name in stage_slice(first, last):
            _run_stage(config, run, name, progress)
            if after_stage is not None:
                after_stage(name)
    return run


def describe_plan(config: CurateConfig, folder: Path, stages: tuple[str, ...] = CURATE) -> str:
    """What ``curate`` would do, without doing it: stages, sources, disk and memory, as text.

    Numbers of rows are those of the finished stages of the run where there are any, else a guess
    from the size of the sources, and marked as such.
    """
    run = Run(folder)
    lines = [f"run folder  {folder}{'' if folder.exists() else ' (new)'}"]
    if "ingest" in stages:
        sources = ingest.describe(config.ingest)
        lines.append(f"sources     {sources['files']:,} files, {_size(sources['bytes'])}")
    for state in plan(config, run, stages):
        action = "finished and unchanged, skipped" if state.finished else "runs"
        lines.append(f"{state.name:11} {action}")
    curve = [
        f"{jaccard:.2f}: {config.dedup.candidate_probability(jaccard):.3f}"
        for jaccard in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
    ]
    lines += ["", "chance that two texts are compared, by their Jaccard index"]
    lines += [f"  {'   '.join(curve)}", "", *_needs(config, run)]
    return "\n".join(lines)


def _needs(config: CurateConfig, run: Run) -> list[str]:
    """Disk and memory, from measured bytes a row."""
    report = run.report("ingest")
    if report is not None:
        rows, media, origin = report["rows_out"], report["media"], "by the finished ingest"
    else:
        size = ingest.describe(config.ingest)["bytes"]
        rows = media = size // _BYTES_PER_ROW
        origin = f"guessed at {_BYTES_PER_ROW} bytes a row; known once ingest has run"
    disk = rows * _DISK_PER_ROW + media * _DISK_PER_IMAGE
    memory = _MEMORY_BASE + rows * _MEMORY_PER_ROW
    budget = parse_bytes(config.memory) if config.memory else available_memory()
    return [
        f"rows        about {rows:,} samples, {media:,} distinct media ({origin})",
        f"disk        about {_size(disk)} in the run folder",
        f"memory      about {_size(memory)} of {_size(budget)} allowed",
    ]


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def stage_slice(first: str, last: str) -> tuple[str, ...]:
    """The stages from ``first`` to ``last``, both included.

    Raises:
        ConfigError: a name is not a stage of ``curate``, or they come in the wrong order.
    """
    for name in (first, last):
        if name not in CURATE:
            raise ConfigError(f"unknown stage {name!r}", hint=f"stages: {', '.join(CURATE)}")
    chosen = CURATE[CURATE.index(first) : CURATE.index(last) + 1]
    if not chosen:
        raise ConfigError(f"--from {first} comes after --to {last}")
    return chosen


def _run_stage(config: CurateConfig, run: Run, name: str, progress: Progress) -> None:
    fingerprint = _fingerprint(config, run, name)
    if run.is_finished(name, fingerprint):
        progress.say(f"{name}: finished and unchanged, skipped", stage=name, skipped=True)
        return
    stage = Stage(
        name=name,
        run=run,
        config=getattr(config, name),
        fingerprint=fingerprint,
        threads=config.threads,
        memory=parse_bytes(config.memory) if config.memory else available_memory(),
        seed=config.seed,
        progress_voice=progress,
    )
    stage.begin()
    progress.say(f"{name}: running", stage=name)
    STAGES[name].run(stage.config, stage)
    if not stage.finished:
        raise StageError(f"{name}: returned without finishing")
    report = run.report(name) or {}
    progress.say(
        f"{name}: {report['rows_in']:,} in, {report['rows_out']:,} out, "
        f"{report['seconds']:.1f} s, peak {report['peak_rss_bytes'] / 2**20:,.0f} MiB",
        **report,
    )


def _fingerprint(config: CurateConfig, run: Run, name: str) -> dict[str, Any]:
    """The fingerprint of a stage; some look outside of the run folder, and say at what."""
    section = getattr(config, name)
    outside = getattr(STAGES[name], "outside", None)
    return run.fingerprint(name, section, config.seed, outside(section) if outside else None)
