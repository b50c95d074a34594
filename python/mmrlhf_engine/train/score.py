"""Rewards of all answers, and the margins of all pairs, as sidecar columns of the shards.

A reward model reads an answer, writes a critique of it, and gives a reward after the critique
(MM-RLHF, arXiv 2502.10391, section 3). The margin of a pair is the reward of its chosen answer less
that of its rejected one; MM-DPO reads it with ``--margin margin/NAME/margin``. Scores of any other
model come in from a file, to the same columns.

What is done is kept in the scratch folder query by query; a run that was killed goes on there.
"""

import hashlib
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.run.tables import TableSchema
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset, open_dataset
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.compatible import check_model_fits, model_folder
from mmrlhf_engine.train.device import accelerator_for, with_precision
from mmrlhf_engine.train.finished_parts import FinishedParts, groups_of
from mmrlhf_engine.train.given_scores import read_scores
from mmrlhf_engine.train.margins import normalised
from mmrlhf_engine.train.score_settings import ScoreConfig
from mmrlhf_engine.train.scorer import Scorer

__all__ = ["CRITIQUES", "STAGE"]

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
    means = rows.group_by("response").agg(pl.col("reward").mean(), pl.col("critique").first())
    rewards = np.full(dataset.rows("responses"), np.nan, np.float32)
    rewards[means["response"].to_numpy()] = means["reward"].to_numpy()
    texts = pl.DataFrame({"response": np.arange(len(rewards), dtype=np.uint64)}).join(
        means.select("response", "critique"), on="response", how="left", maintain_order="left"
    )
    stated = {
        **scorer.stated,
        "model": {**scorer.stated["model"], "name": _name_of(config, dataset)},
    }
    frame = pl.DataFrame(
        {"reward": pl.Series(rewards).fill_nan(None), "critique": texts["critique"]}
    )
    provenance = dataset.provenance(**stated)
    _write(dataset, f"reward/{_name_of(config, dataset)}", "responses", frame, provenance)
    facts = _write_margins(config, dataset, _margins_of(dataset, rewards), provenance)
    scored = int((~np.isnan(rewards)).sum())
    context.finish(
        rows_in=len(rewards),
        rows_out=scored,
        dropped=_not_scored(len(rewards) - scored, parts),
        finish=dict(sorted(Counter(rows["finish"]).items())),
        critique_tokens=int(rows["n_tok"].sum()),
        critiques=scorer.critiques,
        **facts,
    )


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
        scores=_digest_of(config), model={"name": _name_of(config, dataset)}
    )
    margins = given.margins
    if given.rewards is not None:
        frame = pl.DataFrame({"reward": pl.Series(given.rewards).fill_nan(None)})
        _write(dataset, f"reward/{_name_of(config, dataset)}", "responses", frame, provenance)
    if margins is None:
        assert given.rewards is not None
        margins = _margins_of(dataset, given.rewards)
    facts = _write_margins(config, dataset, margins, provenance)
    known = int((~np.isnan(margins)).sum())
    with context.table("critiques", CRITIQUES):
        pass
    context.finish(
        rows_in=len(margins),
        rows_out=known,
        dropped={"no_score": len(margins) - known} if known < len(margins) else {},
        critiques="given",
        **facts,
    )


def _margins_of(dataset: ShardDataset, rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [pairs], NaN where a reward is not known."""
    pairs = dataset.pairs.select("chosen", "rejected").collect()
    margins: npt.NDArray[np.float32] = (
        rewards[pairs["chosen"].to_numpy()] - rewards[pairs["rejected"].to_numpy()]
    )
    return margins


def _write_margins(
    config: ScoreConfig,
    dataset: ShardDataset,
    margins: npt.NDArray[np.float32],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write the column; what there is to say of it."""
    flags = dataset.pairs.select("flags").collect()["flags"].to_numpy()
    ties = (flags & FLAGS["tie"]) != 0
    scaled, rule = normalised(margins, config.normalise, ties)
    frame = pl.DataFrame({"margin": pl.Series(scaled).cast(pl.Float32).fill_nan(None)})
    column_set = f"margin/{_name_of(config, dataset)}"
    _write(dataset, column_set, "pairs", frame, {**provenance, "normalise": rule})
    ranked = margins[~ties & ~np.isnan(margins)]
    tied = np.abs(margins[ties & ~np.isnan(margins)])
    return {
        "column": f"{column_set}/margin",
        "pairs": len(margins),
        "ties": int(ties.sum()),
        # How often the scores agree with the ranks, of pairs that are no ties.
        "agreement": float((ranked > 0).mean()) if len(ranked) else None,
        "margin_mean": float(ranked.mean()) if len(ranked) else None,
        "margin_std": float(ranked.std()) if len(ranked) else None,
        "tie_gap_mean": float(tied.mean()) if len(tied) else None,
        "normalise": rule,
    }


def _write(
    dataset: ShardDataset, column_set: str, table: Any, frame: pl.DataFrame, provenance: Any
) -> None:
    """Write a column set, unless the same values are there."""
    for entry in dataset.column_sets:
        if entry.name == column_set and entry.provenance == provenance and entry.filled:
            return
    dataset.add_column(frame, table=table, column_set=column_set, provenance=provenance)


def _name_of(config: ScoreConfig, dataset: ShardDataset) -> str:
    """Of the column sets; with its hash where another model of the name has them.

    Trained models are all called ``model``, and their columns must not replace each other.
    """
    given = config.name
    if given is None:
        given = Path(config.scores).stem if config.scores else model_folder(config.model).name
    name = re.sub(r"[^a-z0-9._-]+", "-", given.lower()).strip("-.")
    if not name:
        raise ConfigError(f"name: found {given!r}, expected letters or digits", hint="--name NAME")
    if config.name is None and config.scores is None:
        weights = weights_hash(config.model)
        for entry in dataset.column_sets:
            other = entry.provenance.get("model", {}).get("weights")
            if entry.name == f"reward/{name}" and other != weights:
                return f"{name}-{weights.rpartition(':')[2][:8]}"
    return name


def _digest_of(config: ScoreConfig) -> str:
    file = Path(str(config.scores))
    if not file.is_file():
        raise InputError(f"{file}: no such file of scores")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _external(config: ScoreConfig) -> list[object]:
    if config.model and config.scores is not None:
        raise ConfigError(
            f"found the reward model {config.model} and scores {config.scores}, expected one"
        )
    if config.scores is not None:
        if not config.shards:
            raise ConfigError("shards: not given", hint="mmrlhf-engine score SHARDS --scores FILE")
        dataset = open_dataset(config.shards)
        return [dataset.fingerprint, _digest_of(config), _name_of(config, dataset)]
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    given = config.critiques
    columns = [
        entry.provenance for entry in dataset.column_sets if given.startswith(f"{entry.name}/")
    ]
    facts = [weights_hash(config.model), config.precision, columns, _name_of(config, dataset)]
    return [dataset.fingerprint, *facts]


STAGE = Stage(
    name="score",
    config=ScoreConfig,
    run=run,
    writes=("critiques",),
    external=_external,
    no_effect_on_output=frozenset({"cache_features", "threads", "shards", "model", "scores"}),
)
