"""Rewards of all answers, and the margins of all pairs, as sidecar columns of the shards.

A reward model reads an answer, writes a critique of it, and gives a reward after the critique
(MM-RLHF, arXiv 2502.10391, section 3). The margin of a pair is the reward of its chosen answer less
that of its rejected one; MM-DPO reads it with ``--margin margin/NAME/margin``. Scores of any other
model come in from a file, to the same columns.

What is done is kept in the scratch folder query by query; a run that was killed goes on there.
"""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.run.command import run_command
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.run.tables import TableSchema
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.compatible import check_model_fits
from mmrlhf_engine.train.device import accelerator_for, with_precision
from mmrlhf_engine.train.finished_parts import FinishedParts, groups_of
from mmrlhf_engine.train.given_scores import GivenScores, read_scores
from mmrlhf_engine.train.score_columns import (
    Scored,
    are_there,
    digest_of,
    margins_of,
    name_of,
    write_columns,
)
from mmrlhf_engine.train.score_settings import ScoreConfig
from mmrlhf_engine.train.scorer import Scorer

__all__ = ["CRITIQUES", "STAGE", "run_in"]

CRITIQUES: TableSchema = {
    "response": pl.UInt64(),  # row of the shards' responses
    "sample": pl.UInt32(),  # 0 to samples - 1
    "reward": pl.Float32(),  # after this critique
    "critique": pl.String(),  # null where none was read
    "n_tok": pl.UInt32(),  # tokens of the critique, the one that ended it included
    "finish": pl.String(),  # stop, length: cut at max_new_tokens; or given
}
"""The table ``critiques``, by response and sample."""

_GROUPS_PER_PART = 8
"""Groups of queries between two records of what is done."""


def run_in(
    config: ScoreConfig, out: Path, progress: Progress | None = None, *, restart: bool = False
) -> dict[str, Any]:
    """Score in ``out/11_score``, and see to it that the dataset has the columns; the report.

    What is finished in the folder is not scored again; where the dataset lacks its columns, since
    another run has replaced them or this is another copy of the shards, they are written from what
    the folder keeps.

    Args:
        config: The settings.
        out: The run folder.
        progress: What is said on the way.
        restart: Remove what an earlier attempt has left, and begin again.

    Raises:
        MmrlhfError: a setting or an input does not fit, or the work failed.
    """
    report = run_command(STAGE, config, out, progress, restart=restart)
    if "columns" not in report:  # of several processes the first one has the report
        return report
    dataset, columns = open_dataset(config.shards), report["columns"]
    column_set = f"margin/{name_of(config, dataset)}"
    if column_set in columns and are_there(dataset, columns):
        return report
    folder = Path(report["folder"])
    made_with = dict(columns[report["column"].removesuffix("/margin")]["provenance"])
    del made_with["normalise"]  # which is added when margins are written
    made_with["model"] = {**made_with["model"], "name": column_set.removeprefix("margin/")}
    facts = write_columns(config, dataset, _kept(config, dataset, folder), made_with)
    kept = {**(read_json(folder / "report.json") or {}), **facts}
    write_atomically(folder / "report.json", json.dumps(kept, indent=2) + "\n")
    return {**report, **facts}


def run(config: ScoreConfig, context: StageContext) -> None:
    """Score every answer, then write the columns."""
    if config.scores is not None:
        _take_over(config, context)
        return
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    check_model_fits(dataset, config.model, other_template=config.other_template)
    parts = FinishedParts(context.scratch, CRITIQUES, ("unreadable",))
    with accelerator_for(str(config.precision)) as accelerator:
        scorer = Scorer(config, dataset, accelerator.device)
        _score(config, context, scorer, parts)
    rows = parts.rows().sort("response", "sample")
    with context.table("critiques", CRITIQUES) as table:
        table.write(rows)
    made_by = {**scorer.stated["model"], "name": name_of(config, dataset)}
    provenance = dataset.provenance(**{**scorer.stated, "model": made_by})
    kept = _by_response(dataset, rows)
    facts = write_columns(config, dataset, kept, provenance)
    total, scored = dataset.rows("responses"), rows["response"].n_unique()
    context.finish(
        rows_in=total,
        rows_out=scored,
        dropped=_not_scored(total - scored, parts),
        finish=dict(sorted(Counter(rows["finish"]).items())),
        critique_tokens=int(rows["n_tok"].sum()),
        critiques=scorer.critiques,
        **facts,
    )


def _by_response(dataset: ShardDataset, rows: pl.DataFrame) -> Scored:
    """The mean reward and the first critique of each answer, of the table ``critiques``."""
    means = rows.group_by("response").agg(
        pl.col("reward").mean(), pl.col("critique").sort_by("sample").first()
    )
    rewards = np.full(dataset.rows("responses"), np.nan, np.float32)
    rewards[means["response"].to_numpy()] = means["reward"].to_numpy()
    texts = pl.DataFrame({"response": np.arange(len(rewards), dtype=np.uint64)}).join(
        means.select("response", "critique"), on="response", how="left", maintain_order="left"
    )
    return Scored(margins_of(dataset, rewards), rewards, texts["critique"])


def _kept(config: ScoreConfig, dataset: ShardDataset, folder: Path) -> Scored:
    """The values of a finished run: from its table, or from the file of scores, as it was."""
    if config.scores is not None:
        return _given(dataset, read_scores(Path(config.scores), dataset))
    return _by_response(dataset, pl.read_parquet(folder / "critiques" / "*.parquet"))


def _not_scored(count: int, parts: FinishedParts) -> dict[str, int]:
    unreadable = parts.counts["unreadable"]
    named = {"unreadable": unreadable, "of_no_pair": count - unreadable}
    return {reason: number for reason, number in named.items() if number}


def _score(
    config: ScoreConfig, context: StageContext, scorer: Scorer, parts: FinishedParts
) -> None:
    """Score the queries that are left; what was scored is kept on the way."""
    generates = scorer.critiques == "generate"
    data = PreferenceDataset(
        config.shards,
        config.tokens,
        packs_per_step=1,
        unit="query",
        added_tokens=scorer.added_tokens,
        # A query at a time where critiques are written, of which a group of queries has many.
        window=1 if generates else None,
        threads=config.threads,
        rank=0,
        world_size=1,
        state=parts.cursor,
    )
    total = len(data)
    size = config.batch if generates else 1
    waiting: list[dict[str, Any]] = []
    left = islice(data, total - parts.taken)
    for number, group in enumerate(groups_of(left, size), 1):
        for batch in group:
            if batch.unreadable:
                parts.counts["unreadable"] += int((batch.sequence_response >= 0).sum())
        waiting += scorer.rows([batch for batch in group if not batch.unreadable])
        parts.taken += len(group)
        context.progress("packs", parts.taken, total)
        if number % _GROUPS_PER_PART == 0 or parts.taken == total:
            parts.keep(waiting, group[-1].cursor)
            waiting = []


def _take_over(config: ScoreConfig, context: StageContext) -> None:
    """Write the scores of a file as columns."""
    dataset = open_dataset(config.shards)
    given = read_scores(Path(str(config.scores)), dataset)
    provenance = dataset.provenance(
        scores=digest_of(config), model={"name": name_of(config, dataset)}
    )
    facts = write_columns(config, dataset, _given(dataset, given), provenance)
    pairs, known = facts["pairs"], facts["pairs_with_margin"]
    with context.table("critiques", CRITIQUES):
        pass
    context.finish(
        rows_in=pairs,
        rows_out=known,
        dropped={"no_score": pairs - known} if known < pairs else {},
        critiques="given",
        # Answers whose rewards differ between their pairs have margins, and no reward.
        responses_with_several_rewards=given.differing,
        **facts,
    )


def _given(dataset: ShardDataset, given: GivenScores) -> Scored:
    margins = given.margins
    if margins is None:
        assert given.rewards is not None
        margins = margins_of(dataset, given.rewards)
    return Scored(margins, given.rewards)


def _external(config: ScoreConfig) -> list[object]:
    if config.model and config.scores is not None:
        raise ConfigError(
            f"found the reward model {config.model} and scores {config.scores}, expected one"
        )
    if config.scores is not None:
        if not config.shards:
            raise ConfigError("shards: not given", hint="mmrlhf-engine score SHARDS --scores FILE")
        dataset = open_dataset(config.shards)
        name_of(config, dataset)  # refuses one without letters
        return [dataset.fingerprint, digest_of(config)]
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    name_of(config, dataset)
    given = config.critiques
    columns = [
        entry.provenance for entry in dataset.column_sets if given.startswith(f"{entry.name}/")
    ]
    return [dataset.fingerprint, weights_hash(config.model), config.precision, columns]


STAGE = Stage(
    name="score",
    config=ScoreConfig,
    run=run,
    writes=("critiques",),
    external=_external,
    no_effect_on_output=frozenset({"cache_features", "threads", "shards", "model", "scores"}),
)
