"""Running the pipeline from Python: curate, pair, pack and the training commands as functions."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrlhf_engine import pipeline
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.pack import PackConfig
from mmrlhf_engine.pipeline import CurateConfig
from mmrlhf_engine.run.config import laid_over, load_config
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Stage

if TYPE_CHECKING:
    from mmrlhf_engine.collect.pair import PairConfig
    from mmrlhf_engine.train.mm_dpo import MMDPOConfig
    from mmrlhf_engine.train.reward import RewardConfig
    from mmrlhf_engine.train.sft import SupervisedConfig

__all__ = [
    "run_curate",
    "run_evaluate",
    "run_mm_dpo",
    "run_pack",
    "run_pair",
    "run_reference",
    "run_reward",
    "run_sample",
    "run_score",
    "run_sft",
]


def run_curate(
    sources: Path | str | Iterable[Path | str],
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: CurateConfig | Path | str | None = None,
    first: str = "ingest",
    last: str = "select",
    add: bool = False,
    reweigh: bool = False,
    progress: Literal["human", "jsonl", "silent"] = "silent",
) -> Run:
    """Choose diverse queries from raw corpora, as ``mmrlhf-engine curate`` does.

    A finished and unchanged stage is skipped; after an interruption the same call resumes the run.

    Args:
        sources: Files (jsonl, json, parquet, csv, tar) and folders, added to those of ``config``.
        out: The run folder.
        settings: Settings by dotted name, laid over ``config``: ``{"select.count": 30_000}``.
        config: A YAML file, or settings that are read already; None is the defaults.
        first: The first stage to run.
        last: The last stage to run.
        add: The run folder may hold a run of other sources, which is extended: settings that are
            not named are those of the run.
        reweigh: Dedup counts again how common shingles and words are, which it otherwise does once
            in a run.
        progress: What is written to stderr.

    Returns:
        The run folder: ``run.report(stage)`` is a stage's report, ``run.find(name)`` the
        folder of a table's Parquet parts.

    Raises:
        ConfigError: a setting is unknown or does not fit, or the folder holds a run of another
            corpus.
        InputError: a source cannot be read, or too much of it is bad.
        MissingExtraError: a package that a stage needs is not installed.
    """
    base = pipeline.settings_of(Run(Path(out))) if add else None
    resolved = _resolve(CurateConfig, config, settings, base)
    several = [sources] if isinstance(sources, str | Path) else list(sources)
    resolved = pipeline.with_sources(resolved, several)  # as texts: a path has no s3://
    return pipeline.curate(
        resolved,
        Path(out),
        first=first,
        last=last,
        add=add,
        reweigh=reweigh,
        progress=Progress(progress),
    )


def run_pack(
    sources: Path | str | Iterable[Path | str],
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: PackConfig | Path | str | None = None,
    progress: Literal["human", "jsonl", "silent"] = "silent",
) -> dict[str, Any]:
    """Pack preference pairs into a dataset of shards, as ``mmrlhf-engine pack`` does.

    Args:
        sources: Files (jsonl, json, parquet) and folders, added to those of ``config``.
        out: The dataset; it appears when it is complete.
        settings: Settings by name, laid over ``config``: ``{"tokenizer": "Qwen/Qwen2.5-7B"}``.
        config: A YAML file, or settings that are read already; None is the defaults.
        progress: What is written to stderr.

    Returns:
        The report, as in ``OUT/reports``: ``version``, ``rows_in``, ``rows_out``, ``dropped``, ...

    Raises:
        ConfigError: a setting, the tokenizer, template or image rule does not fit.
        InputError: a source cannot be read, too much of it is bad, a sequence is too long under the
            policy ``error``, or a dataset is there already and ``append`` is not set.
        MissingExtraError: a package that is needed is not installed.
    """
    resolved = _resolve(PackConfig, config, settings)
    paths = [*resolved.sources, *(str(path) for path in _paths(sources))]
    resolved = resolved.model_copy(update={"sources": paths})
    return pack.pack_dataset(resolved, Path(out), Progress(progress))


def run_pair(
    sources: Path | str | Iterable[Path | str],
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: "PairConfig | Path | str | None" = None,
    progress: Literal["human", "jsonl", "silent"] = "silent",
    restart: bool = False,
) -> dict[str, Any]:
    """Turn annotations into preference pairs, as ``mmrlhf-engine pair`` does.

    Args:
        sources: Files or folders of annotations; those of the config are read too.
        out: The run folder; the pairs are ``OUT/08_pair/pairs.jsonl`` and ``held_out.jsonl``.
        settings: Settings by name, laid over ``config``: ``{"hold_out": 0.05}``.
        config: A YAML file, or settings that are read already; None is the defaults.
        progress: What is written to stderr.
        restart: Remove what an earlier attempt has left, and begin again.

    Returns:
        The report: ``folder``, rows in, out and dropped by reason, pairs, ties, contradictions,
        agreement of annotators, and ``root``, which pack is given where pairs have media.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        InputError: a source cannot be read, too much of it is bad, or no row gives a pair.
        MissingExtraError: a package that only some inputs need is not installed.
    """
    from mmrlhf_engine.collect.pair import STAGE

    resolved = _resolve(STAGE.config, config, settings)
    paths = [*resolved.sources, *(str(path) for path in _paths(sources))]
    resolved = resolved.model_copy(update={"sources": paths})
    return _run_command(STAGE, resolved, out, progress, restart)


def run_mm_dpo(
    shards: Path | str,
    model: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: "MMDPOConfig | Path | str | None" = None,
    progress: Literal["human", "jsonl", "silent"] = "silent",
    restart: bool = False,
) -> dict[str, Any]:
    """Train a policy by MM-DPO, as ``mmrlhf-engine mm-dpo`` does.

    After an interruption the same call goes on from the newest checkpoint, to the same weights.

    Args:
        shards: The dataset, with reference log-probabilities (:func:`run_reference`).
        model: A name on the hub or a folder; the weights to begin with.
        out: The run folder; the policy is ``OUT/13_mm_dpo/model``.
        settings: Settings by dotted name, laid over ``config``: ``{"data.tokens": 8192}``.
        config: A YAML file, or settings that are read already; None is the defaults.
        progress: What is written to stderr.
        restart: Remove what an earlier attempt has left, and begin again.

    Returns:
        The report: ``folder``, ``steps``, pairs in, trained and left out by reason, and the
        evaluation ``before`` and ``after`` where pairs are held out.

    Raises:
        ConfigError: a setting is unknown or does not fit, or the checkpoints there are of a run
            with other settings.
        InputError: shards, columns and model do not fit together.
        StageError: a loss is not finite; the message names the pair.
        MissingExtraError: a package that is needed is not installed.
    """
    from mmrlhf_engine.train.mm_dpo import STAGE

    given = {**(settings or {}), "shards": str(shards), "model": str(model)}
    return _run_command(STAGE, _resolve(STAGE.config, config, given), out, progress, restart)


def run_sft(
    shards: Path | str,
    model: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: "SupervisedConfig | Path | str | None" = None,
    progress: Literal["human", "jsonl", "silent"] = "silent",
    restart: bool = False,
) -> dict[str, Any]:
    """Train a model on the chosen answers, as ``mmrlhf-engine sft`` does.

    Arguments, report and errors as those of :func:`run_mm_dpo`; the model is
    ``OUT/extra/sft/model``.
    """
    from mmrlhf_engine.train.sft import STAGE

    given = {**(settings or {}), "shards": str(shards), "model": str(model)}
    return _run_command(STAGE, _resolve(STAGE.config, config, given), out, progress, restart)


def run_reward(
    shards: Path | str,
    model: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: "RewardConfig | Path | str | None" = None,
    progress: Literal["human", "jsonl", "silent"] = "silent",
    restart: bool = False,
) -> dict[str, Any]:
    """Train a reward model that criticises and scores, as ``mmrlhf-engine reward`` does.

    Arguments, report and errors as those of :func:`run_mm_dpo`; the model is
    ``OUT/10_reward/model``.
    """
    from mmrlhf_engine.train.reward import STAGE

    given = {**(settings or {}), "shards": str(shards), "model": str(model)}
    return _run_command(STAGE, _resolve(STAGE.config, config, given), out, progress, restart)


def run_score(
    shards: Path | str,
    model: Path | str | None,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    progress: Literal["human", "jsonl", "silent"] = "silent",
    restart: bool = False,
) -> dict[str, Any]:
    """Score all answers by a reward model; rewards and margins are sidecar columns afterwards.

    Args:
        shards: The dataset that gets the columns.
        model: The reward model: a name on the hub or a folder; None with the setting ``scores``, a
            file of another model's.
        out: The run folder, for critiques and report.
        settings: Settings by dotted name: ``{"sampling.samples": 3}``.
        progress: What is written to stderr.
        restart: Remove what an earlier attempt has left, and begin again.

    Returns:
        The report: ``column`` of the margins, ``agreement`` with the ranks, ...

    Raises:
        ConfigError: a setting is unknown, or the model is no reward model.
        InputError: the shards were packed for another model, or scores are of other rows.
        StageError: a reward is not finite.
        MissingExtraError: a package that is needed is not installed.
    """
    from mmrlhf_engine.train.score import STAGE, run_in

    given = {**(settings or {}), "shards": str(shards), "model": str(model or "")}
    config = _resolve(STAGE.config, None, given)
    return run_in(config, Path(out), Progress(progress), restart=restart)


def run_reference(
    shards: Path | str,
    model: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    progress: Literal["human", "jsonl", "silent"] = "silent",
) -> dict[str, Any]:
    """Write a reference model's log-probabilities beside the shards, as a sidecar column.

    Args:
        shards: The dataset that gets the column.
        model: The reference model: a name on the hub or a folder.
        out: The run folder, for the report.
        settings: Settings by name: ``{"precision": "bfloat16"}``.
        progress: What is written to stderr.

    Returns:
        The report: ``column_set``, responses scored, ...

    Raises:
        ConfigError: a setting is unknown or does not fit.
        InputError: the shards were packed for another model.
        MissingExtraError: a package that is needed is not installed.
    """
    from mmrlhf_engine.train.reference import STAGE, run_in

    given = {**(settings or {}), "shards": str(shards), "model": str(model)}
    return run_in(_resolve(STAGE.config, None, given), Path(out), Progress(progress))


def run_sample(
    shards: Path | str,
    model: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    progress: Literal["human", "jsonl", "silent"] = "silent",
) -> dict[str, Any]:
    """Answer the queries of shards by a model, several times each.

    Args:
        shards: The dataset.
        model: A name on the hub or a folder.
        out: The run folder; the table is ``OUT/extra/sample/responses``.
        settings: Settings by name: ``{"samples": 8, "temperature": 0.7}``.
        progress: What is written to stderr.

    Returns:
        The report: ``folder``, queries in, answered, and left out by reason, ...

    Raises:
        ConfigError: a setting is unknown or does not fit.
        InputError: the shards were packed for another model.
        MissingExtraError: a package that is needed is not installed.
    """
    from mmrlhf_engine.train.sample import STAGE

    given = {**(settings or {}), "shards": str(shards), "model": str(model)}
    return _run_command(STAGE, _resolve(STAGE.config, None, given), out, progress, False)


def run_evaluate(
    evaluation: Literal["reward_bench", "preferences", "win_rate", "safety", "vqa", "benchmarks"],
    out: Path | str,
    settings: Mapping[str, Any],
    *,
    progress: Literal["human", "jsonl", "silent"] = "silent",
) -> dict[str, Any]:
    """Measure a reward model or a policy, as the commands ``mmrlhf-engine evaluate`` do.

    Args:
        evaluation: What is measured.
        out: The run folder; the evaluation is a section of ``OUT/scorecard.json``, and
            ``OUT/report.html`` shows all sections.
        settings: Settings by name: ``{"file": "bench.jsonl", "scores": "scores.jsonl"}``.
        progress: What is written to stderr.

    Returns:
        The section.

    Raises:
        ConfigError: the evaluation or a setting is unknown or does not fit.
        InputError: a file cannot be read, or a row does not fit; the message names its line.
        MissingExtraError: lmms-eval is needed and not installed.
    """
    from mmrlhf_engine.measure.evaluations import stage_of
    from mmrlhf_engine.measure.section import run_evaluation

    stage = stage_of(evaluation)
    config = _resolve(stage.config, None, settings)
    return run_evaluation(stage, config, Path(out), Progress(progress))


def _run_command(
    stage: Stage, config: Any, out: Path | str, progress: Any, restart: bool
) -> dict[str, Any]:
    from mmrlhf_engine.run.command import run_command

    return run_command(stage, config, Path(out), Progress(progress), restart=restart)


def _paths(sources: Path | str | Iterable[Path | str]) -> list[Path]:
    several = [sources] if isinstance(sources, str | Path) else sources
    return [Path(path) for path in several]


def _resolve(
    kind: type[Any],
    config: Any,
    settings: Mapping[str, Any] | None,
    base: Mapping[str, Any] | None = None,
) -> Any:
    """The settings of a file, or of a section, with single settings laid over them, and ``base``
    under them."""  # noqa: D205, D209
    overrides = [
        f"{key}={json.dumps(value, default=str)}" for key, value in (settings or {}).items()
    ]
    if isinstance(config, kind):
        base = laid_over(base or {}, config.model_dump(mode="json", exclude_unset=True))
        config = None
    return load_config(kind, None if config is None else Path(config), overrides, base=base)
