"""All stages in order, and how ``curate`` runs its five.

The stages do not know of each other: a stage is a function from tables on disk to tables on disk,
and this file is the only one that knows which there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mmrlhf_engine.curate import cluster, dedup, embed, ingest, select
from mmrlhf_engine.curate.cluster import ClusterConfig
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.embed import EmbedConfig
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.curate.select import SelectConfig
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.run.config import MemorySize, Section, parse_bytes
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.memory import format_size
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Resources, Stage, fingerprint, is_finished, run_stage

__all__ = [
    "CURATE",
    "STAGES",
    "CurateConfig",
    "StageState",
    "curate",
    "describe_plan",
    "plan",
    "stage_slice",
    "with_sources",
]

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (ingest.STAGE, dedup.STAGE, embed.STAGE, cluster.STAGE, select.STAGE, pack.STAGE)
}
CURATE = ("ingest", "dedup", "embed", "cluster", "select")

# Guesses of --dry-run before ingest has run: a row of the source; the tables of all five stages; a
# float16 row of 512 to 1,280 values an image.
_BYTES_PER_ROW = 500
_DISK_PER_ROW = 400
_DISK_PER_IMAGE = 2_600
_WIDEST_EMBEDDING = 1_280


class CurateConfig(Section):
    """Everything ``curate`` can be told; each section is documented in the file of its stage."""

    seed: int = 0
    """Seed of everything random: the k-means sample, and the order of picks within a cluster."""
    threads: int = Field(default=0, ge=0)
    """Threads to use; 0 means one per core. The output does not depend on it."""
    memory: MemorySize = None
    """Memory that a stage may use, for example ``4G``; half of the machine's, or of its control
    group's, when null. A stage that would need more is refused before it starts."""
    ingest: IngestConfig = IngestConfig()
    dedup: DedupConfig = DedupConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    select: SelectConfig = SelectConfig()

    def resources(self, progress: Progress | None = None) -> Resources:
        """What each stage may use."""
        memory = parse_bytes(self.memory) if self.memory is not None else None
        return Resources(self.threads, memory, self.seed, progress or Progress("silent"))


@dataclass(frozen=True)
class StageState:
    """One stage of a planned run: its name, and whether it is already there."""

    name: str
    finished: bool


def with_sources(
    config: CurateConfig, paths: Sequence[Path | str], *, follow_links: bool = False
) -> CurateConfig:
    """The config with the paths and addresses of the command line as its sources, if any.

    ``follow_links`` lets links lead out of any source, also of those of the config.
    """
    sources = [*config.ingest.sources, *(SourceConfig(path=str(path)) for path in paths)]
    if follow_links:
        sources = [source.model_copy(update={"follow_links": True}) for source in sources]
    if sources == config.ingest.sources:
        return config
    ingest = config.ingest.model_copy(update={"sources": sources})
    return config.model_copy(update={"ingest": ingest})


def plan(config: CurateConfig, run: Run, stages: tuple[str, ...] = CURATE) -> list[StageState]:
    """What would run and what is already there; a stage after an unfinished one is unfinished."""
    states: list[StageState] = []
    for name in stages:
        made_from = fingerprint(STAGES[name], getattr(config, name), config.seed, run)
        upstream_ready = all(state.finished for state in states)
        finished = upstream_ready and is_finished(run.stage_folder(name), made_from)
        states.append(StageState(name, finished))
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
    resources = config.resources(progress)
    with run.locked():
        for name in stage_slice(first, last):
            folder = run.stage_folder(name)
            run_stage(STAGES[name], getattr(config, name), folder, resources, run)
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
        lines.append(f"sources     {sources['files']:,} files, {format_size(sources['bytes'])}")
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
    """Rows, disk and memory, by the finished ingest or guessed from the size of the sources."""
    report = run.report("ingest")
    if report is not None:
        rows, media, origin = report["rows_out"], report["media"], "by the finished ingest"
    else:
        size = ingest.describe(config.ingest)["bytes"]
        rows = media = size // _BYTES_PER_ROW
        origin = f"guessed at {_BYTES_PER_ROW} bytes a row; known once ingest has run"
    disk = rows * _DISK_PER_ROW + media * _DISK_PER_IMAGE
    resources = config.resources()
    inputs = _EstimatedInputs(rows, media)
    bounds = [
        (name, STAGES[name].memory(getattr(config, name), inputs, resources.cores))
        for name in CURATE
    ]
    return [
        f"rows        about {rows:,} samples, {media:,} distinct media ({origin})",
        f"disk        about {format_size(disk)} in the run folder",
        f"memory      {format_size(resources.memory_budget)} allowed; at most, by stage",
        *(f"  {name:9} {format_size(bound)}" for name, bound in bounds),
    ]


@dataclass(frozen=True)
class _EstimatedInputs:
    """The sizes of what stages read, before it is there."""

    samples: int
    media: int

    def rows(self, name: str) -> int:
        """Distinct media for what has a row for each of them, else samples."""
        return self.media if name in ("media", "embeddings.npy") else self.samples

    def text_bytes(self, name: str, *columns: str) -> int:  # noqa: ARG002
        """As much as a row of a source is guessed to have."""
        return self.samples * _BYTES_PER_ROW

    def width(self, name: str) -> int:  # noqa: ARG002
        """That of the widest encoder."""
        return _WIDEST_EMBEDDING


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
