"""All stages in order, and how ``curate`` runs its five.

The stages do not know of each other: a stage is a function from tables on disk to tables on disk,
and this file is the only one that knows which there are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from mmrlhf_engine.curate import checks, cluster, dedup, embed, ingest, select
from mmrlhf_engine.curate.cluster import ClusterConfig
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.embed import EmbedConfig
from mmrlhf_engine.curate.frequencies import forget
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.curate.precomputed import width_of
from mmrlhf_engine.curate.select import SelectConfig
from mmrlhf_engine.curate.sizes import SourceSize, size_of_source, space_needed
from mmrlhf_engine.errors import ConfigError, InputError, MmrlhfError
from mmrlhf_engine.models.encoder_check import is_on_the_hub, missing_weights
from mmrlhf_engine.pack import pack
from mmrlhf_engine.run.config import MemorySize, Section, parse_bytes
from mmrlhf_engine.run.folder import Run, read_json
from mmrlhf_engine.run.memory import format_size
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Resources, Stage, fingerprint, is_finished, run_stage
from mmrlhf_engine.sources.samples.resolve import resolve

__all__ = [
    "CURATE",
    "STAGES",
    "CurateConfig",
    "Plan",
    "StageState",
    "check",
    "curate",
    "describe_plan",
    "plan",
    "settings_of",
    "stage_slice",
    "with_sources",
]

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (ingest.STAGE, dedup.STAGE, embed.STAGE, cluster.STAGE, select.STAGE, pack.STAGE)
}
CURATE = ("ingest", "dedup", "embed", "cluster", "select")

_BYTES_PER_ROW = 500
"""Of text, as --dry-run guesses before ingest has run."""
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


@dataclass(frozen=True)
class Plan:
    """A run that has passed all checks: what is there, and what will run.

    Attributes:
        states: The stages asked for, in order.
        size: Of the sources; None where ingest is finished, or no part of it.
        notes: What the user should know before it runs, one sentence each.
        weights: The place on the hub of weights that are neither here nor can be downloaded; None
            where there is no such place.
    """

    states: list[StageState]
    size: SourceSize | None
    notes: list[str]
    weights: str | None


def with_sources(
    config: CurateConfig, paths: Iterable[Path | str], *, follow_links: bool = False
) -> CurateConfig:
    """The config with the paths and addresses of the command line added to its sources.

    All paths are absolute afterwards, so that a run does not depend on the folder that the
    command is called in. An address (``s3://...``) is given as text, which a path would change.
    ``follow_links`` lets links lead out of any source, also of those of the config.
    """
    given = [*config.ingest.sources, *(SourceConfig(path=str(path)) for path in paths)]
    sources = [
        source.model_copy(
            update={
                "path": checks.absolute(source.path),
                "root": source.root and checks.absolute(source.root),
                "follow_links": source.follow_links or follow_links,
            }
        )
        for source in given
    ]
    ingest = config.ingest.model_copy(update={"sources": sources})
    against = [str(checks.absolute(folder)) for folder in config.dedup.against]
    cache = config.dedup.cache and checks.absolute(config.dedup.cache)
    dedup = config.dedup.model_copy(update={"against": against, "cache": cache})
    return config.model_copy(update={"ingest": ingest, "dedup": dedup})


def settings_of(run: Run) -> dict[str, Any]:
    """What the stages of a run were last begun with, but for its sources, by section."""
    found: dict[str, Any] = {}
    for name in CURATE:
        folder = run.stage_folder(name)
        started, settings = read_json(folder / "started.json"), folder / "config.yaml"
        # Written one after the other: a kill may have come between.
        if started is None or not settings.is_file():
            continue
        found["seed"] = started["seed"]
        found[name] = yaml.safe_load(settings.read_text(encoding="utf-8"))
        found[name].pop("sources", None)
    return found


def _with_all_sources(config: CurateConfig, run: Run, *, add: bool) -> CurateConfig:
    """The config with absolute paths, and with ``add`` the sources of the run."""
    config = with_sources(config, ())
    if not add:
        return config
    sources = checks.with_sources_of(run, config.ingest.sources)
    return config.model_copy(
        update={"ingest": config.ingest.model_copy(update={"sources": sources})}
    )


def plan(
    config: CurateConfig, run: Run, stages: tuple[str, ...] = CURATE, *, reweigh: bool = False
) -> list[StageState]:
    """What would run and what is already there; a stage after an unfinished one is unfinished."""
    states: list[StageState] = []
    for name in stages:
        made_from = fingerprint(STAGES[name], getattr(config, name), config.seed, run)
        upstream_ready = all(state.finished for state in states) and not (
            reweigh and name == "dedup"
        )
        finished = upstream_ready and is_finished(run.stage_folder(name), made_from)
        states.append(StageState(name, finished))
    return states


def check(
    config: CurateConfig,
    run: Run,
    stages: tuple[str, ...] = CURATE,
    *,
    add: bool = False,
    reweigh: bool = False,
) -> Plan:
    """Refuse what can be known to fail before anything is written or removed.

    That is: sources that are absent, empty or of no known kind; other sources than those of the run
    without ``add``; an encoder or a package that is not there; bounds of ``select`` that cannot be
    met; a folder that cannot be written, and a disk that is nearly full.

    Raises:
        MmrlhfError: the first of these that is so.
    """
    config = _with_all_sources(config, run, add=add)
    given = [source.path for source in config.ingest.sources]
    checks.check_writable(run.folder)
    if "ingest" in stages and not given and (before := checks.sources_of(run)):
        raise InputError(
            f"no source given; {run.folder} is a run of {', '.join(before[:4])}",
            hint="name them again, or --from dedup goes on from the finished ingest",
        )
    sources = resolve(config.ingest.sources) if given or "ingest" in stages else []
    checks.check_corpus(run, given, add=add)
    checks.check_tables(run, [STAGES[name] for name in stages])
    if reweigh and "dedup" not in stages:
        raise ConfigError(
            f"--reweigh: dedup counts, found the stages {', '.join(stages)}", hint="--from dedup"
        )
    states = plan(config, run, stages, reweigh=reweigh)
    pending = [state.name for state in states if not state.finished]
    if "ingest" in pending:
        checks.check_max_bad(run, STAGES["ingest"], config.ingest, config.seed)
    known = [source.name for source in sources] or list(
        (run.report("ingest") or {}).get("sources", {})
    )
    checks.check_bounds(config.select, known)
    notes, weights = _unapplied(config, run, stages), None
    if not _is_text_alone(run, pending):
        for name in pending:
            STAGES[name].check(getattr(config, name))
        if "embed" in pending:
            note, weights = _look_for_weights(config.embed.encoder)
            notes += note
            _expect_weights(weights, run if "ingest" not in pending else None)
    size = None
    if "ingest" in pending:
        size = sum(map(size_of_source, sources), SourceSize(0, 0, 0))
        width = _width(config.embed.encoder)
        embedded = size.rows if "embed" in pending else 0
        checks.check_space(run.folder, space_needed(size.rows, embedded, width))
    return Plan(states, size, notes, weights)


def _is_text_alone(run: Run, pending: list[str]) -> bool:
    """Whether a finished ingest has found no picture, so that no encoder is needed."""
    report = run.report("ingest")
    return "ingest" not in pending and report is not None and report["media"] == 0


def _unapplied(config: CurateConfig, run: Run, stages: tuple[str, ...]) -> list[str]:
    """Stages before the first of this command that would run again if they were part of it."""
    before = CURATE[: CURATE.index(stages[0])]
    if not config.ingest.sources:
        before = before[1:]
    for name in before:
        manifest = run.manifest(name)
        made_from = fingerprint(STAGES[name], getattr(config, name), config.seed, run)
        if manifest is not None and manifest["fingerprint"] != made_from:
            return [
                f"{name}: its settings or inputs have changed since it ran, and --from {stages[0]} "
                f"leaves it as it is (--from {name} runs it again)"
            ]
    return []


def _look_for_weights(encoder: str) -> tuple[list[str], str | None]:
    """What to say of weights that are not on this machine, and their place if it is of no use."""
    place = missing_weights(encoder)
    if place is None:
        return [], None
    if is_on_the_hub(encoder, place):
        return [f"embed: the weights {place} will be downloaded"], None
    return [f"embed: {_UNREACHABLE.format(place)}: with pictures the run stops after ingest"], place


_UNREACHABLE = "the weights {} are not on this machine, and cannot be downloaded now"


def curate(
    config: CurateConfig,
    folder: Path,
    *,
    first: str = CURATE[0],
    last: str = CURATE[-1],
    add: bool = False,
    reweigh: bool = False,
    progress: Progress | None = None,
    after_stage: Callable[[str], None] | None = None,
) -> Run:
    """Run the stages from ``first`` to ``last`` in ``folder``, skipping what is finished.

    Args:
        config: All settings.
        folder: The run folder.
        first: The first stage.
        last: The last stage.
        add: The sources are added to those of the run: what was made of these is not made again
            where it is unchanged.
        reweigh: Dedup counts again how common shingles and words are.
        progress: What is said on the way.
        after_stage: Called with the name of each stage that has ended.

    Returns:
        The run, without stages after ``last`` that were made from other settings or tables.

    Raises:
        MmrlhfError: a setting or an input does not fit; the run folder stays consistent, and the
            same call goes on where this one stopped. See :func:`check` for what is refused before
            anything is touched.
    """
    run = Run(folder)
    config = _with_all_sources(config, run, add=add)
    resources = config.resources(progress)
    stages = stage_slice(first, last)
    planned = check(config, run, stages, add=add, reweigh=reweigh)
    for note in planned.notes:
        resources.progress.say(note)
    with run.locked():
        # Another process may have finished another corpus here since.
        checks.check_corpus(run, [source.path for source in config.ingest.sources], add=add)
        for name in stages:
            if name != "ingest":
                _expect_weights(planned.weights, run)
            if name == "dedup" and reweigh:
                forget(run)
            folder = run.stage_folder(name)
            run_stage(STAGES[name], getattr(config, name), folder, resources, run)
            if after_stage is not None:
                after_stage(name)
    return Run(run.folder, without=_outdated(config, run, stages[-1]))


def _outdated(config: CurateConfig, run: Run, last: str) -> list[str]:
    """The stages after ``last`` that are there, but not of the settings and tables as they are."""
    after = CURATE[CURATE.index(last) + 1 :]
    for number, name in enumerate(after):
        try:
            made_from = fingerprint(STAGES[name], getattr(config, name), config.seed, run)
        except MmrlhfError:  # something outside of the run, that this command did not need
            return list(after[number:])
        if not is_finished(run.stage_folder(name), made_from):
            return list(after[number:])
    return []


def _expect_weights(weights: str | None, run: Run | None) -> None:
    """Stop as soon as it is known that pictures are there and weights cannot be had.

    Raises:
        InputError: it is so.
    """
    report = run.report("ingest") if run is not None else None
    if weights is not None and report is not None and report["media"]:
        raise InputError(
            f"embed.encoder: {_UNREACHABLE.format(weights)}",
            hint="--encoder lite0 needs no download; --to dedup needs no encoder",
        )


def describe_plan(
    config: CurateConfig,
    folder: Path,
    stages: tuple[str, ...] = CURATE,
    *,
    add: bool = False,
    reweigh: bool = False,
) -> str:
    """What ``curate`` would do, without doing it: stages, sources, disk and memory, as text.

    Numbers of rows are those of the finished ingest where it is unchanged, else an estimate from
    the sources, and marked as such.

    Raises:
        MmrlhfError: ``curate`` would be refused; see :func:`check`.
    """
    run = Run(folder)
    config = _with_all_sources(config, run, add=add)
    planned = check(config, run, stages, add=add, reweigh=reweigh)
    lines = [f"run folder  {folder}{'' if folder.exists() else ' (new)'}"]
    if planned.size is not None:
        lines.append(f"sources     {planned.size.files:,} files, {format_size(planned.size.bytes)}")
        unchanged = ingest.unchanged_sources(config.ingest, run.stage_folder("ingest"))
        if unchanged:
            lines.append(f"unchanged   {unchanged:,} sources, which are not read again")
    for state in planned.states:
        action = "finished and unchanged, skipped" if state.finished else "runs"
        lines.append(f"{state.name:11} {action}")
    lines += planned.notes
    curve = [
        f"{jaccard:.2f}: {config.dedup.candidate_probability(jaccard):.3f}"
        for jaccard in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
    ]
    lines += ["", "chance that two texts are compared, by their Jaccard index"]
    lines += [f"  {'   '.join(curve)}", "", *_needs(config, run, planned)]
    return "\n".join(lines)


def _needs(config: CurateConfig, run: Run, planned: Plan) -> list[str]:
    """Rows, disk and memory, by the finished ingest or estimated from the sources."""
    report = run.report("ingest")
    reads = planned.states[0].name == "ingest" and not planned.states[0].finished
    if report is not None and not reads:
        rows, media, origin = report["rows_out"], report["media"], "by the finished ingest"
    else:
        rows = media = planned.size.rows if planned.size is not None else 0
        origin = "estimated from the sources; known once ingest has run"
    resources = config.resources()
    width = _width(config.embed.encoder)
    inputs = _EstimatedInputs(rows, media, width)
    bounds = [
        (name, STAGES[name].memory(getattr(config, name), inputs, resources.cores))
        for name in CURATE
    ]
    allowed = resources.memory_budget
    free = checks.free_space(run.folder)
    return [
        f"rows        about {rows:,} samples, {media:,} distinct media ({origin})",
        f"disk        about {format_size(space_needed(rows, media, width))} in the run folder, "
        f"{format_size(free)} free",
        f"memory      {format_size(allowed)} allowed; at most, by stage",
        *(
            f"  {name:9} {format_size(bound)}{' (more than allowed)' if bound > allowed else ''}"
            for name, bound in bounds
        ),
    ]


@dataclass(frozen=True)
class _EstimatedInputs:
    """The sizes of what stages read, before it is there."""

    samples: int
    media: int
    embedding_width: int

    def rows(self, name: str) -> int:
        """Distinct media for what has a row for each of them, else samples."""
        return self.media if name in ("media", "embeddings.npy") else self.samples

    def text_bytes(self, name: str, *columns: str) -> int:  # noqa: ARG002
        """As much as a row of a source is guessed to have."""
        return self.samples * _BYTES_PER_ROW

    def width(self, name: str) -> int:  # noqa: ARG002
        return self.embedding_width


def _width(encoder: str) -> int:
    """Of an embedding: of rows that are there what they have, else that of the widest encoder."""
    family, _, file = encoder.partition(":")
    is_there = family == "precomputed" and Path(file).is_file()
    return width_of(Path(file)) if is_there else _WIDEST_EMBEDDING


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
