"""A policy on preference pairs: does its implicit reward prefer the chosen answer?

The implicit reward of DPO is beta * (log pi(y|x) - log pi_ref(y|x)) (arXiv 2305.18290, equation 5).
Both log-probabilities are sidecar columns, so nothing runs a model here. Pairs of equal rank have
no right answer and are counted apart. The pairs of a query are resampled together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, NonNegativeInt

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.bootstrap import (
    Floats,
    Resampling,
    cluster_numbers,
    cluster_sums,
    difference_of_ratios,
    ratio,
)
from mmrlhf_engine.measure.section import write_section
from mmrlhf_engine.run.differences import differences
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.shards.dataset import FLAGS, ColumnSet, ShardDataset, open_dataset
from mmrlhf_engine.shards.parts import pairs_there, queries_of
from mmrlhf_engine.shards.plan import HoldOut

__all__ = ["STAGE", "PreferencesConfig", "preference_accuracy"]

_FIELD = "logp"
_COMPARED = ("tokenizer", "image_rule", "pictures", "precision")
"""Conditions that two columns must share for their difference to be of the models alone."""

Flags = npt.NDArray[np.bool_]


class PreferencesConfig(Resampling):
    """Settings of ``preferences``."""

    shards: str
    """The dataset."""
    policy_column: str
    """Column set of the policy's log-probabilities, such as ``reflogp/model``."""
    reference_column: str
    """That of the reference model's."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of margins; accuracies do not depend on it."""
    held_out: float | None = Field(default=None, gt=0, lt=1)
    """Only the queries that training with ``evaluation.share`` holds out; null is all."""
    held_out_seed: NonNegativeInt = 0
    """The ``seed`` of that training."""


def preference_accuracy(
    dataset: ShardDataset,
    policy_column: str,
    reference_column: str,
    *,
    beta: float = 0.1,
    hold_out: HoldOut | None = None,
    settings: Resampling | None = None,
) -> dict[str, Any]:
    """The section ``preferences`` of a scorecard.

    Args:
        dataset: The shards.
        policy_column: Column set of responses with a field ``logp``.
        reference_column: Another one.
        beta: Scale of margins.
        hold_out: The part of the dataset; None is all of it.
        settings: How intervals are made.

    Raises:
        InputError: a column is not there, or the two were made under different conditions; or no
            pair can be measured.
    """
    settings = settings or Resampling()
    _check_columns(dataset, policy_column, reference_column)
    rows = _pairs(dataset, policy_column, reference_column, hold_out)
    known = rows.filter(pl.col("chosen_change").is_finite() & pl.col("rejected_change").is_finite())
    decided = known.filter(~pl.col("tie"))
    if not decided.height:
        raise InputError(
            f"{dataset.path}: none of {rows.height:,} pairs can be measured: "
            f"{rows.height - known.height:,} lack a log-probability, "
            f"{known.height - decided.height:,} are ties"
        )
    return {
        "policy_column": policy_column,
        "reference_column": reference_column,
        "beta": beta,
        "overall": _measured(decided, beta, settings),
        "by_source": {
            str(name): _measured(decided.filter(pl.col("source") == name), beta, settings)
            for name in decided["source"].unique(maintain_order=True)
        },
        "baselines": {
            "longer_answer": {"rule": "more tokens", **_longer(decided, settings)},
            "policy_alone": {
                "rule": "the policy's log-probability, without the reference",
                **_accuracy(
                    decided["policy_chosen"] > decided["policy_rejected"], decided, settings
                ),
            },
            "random": {"rule": "a coin for each pair", "acc": 0.5},
        },
        "ties": {
            "pairs": known.height - decided.height,
            "mean_size_of_margin": _mean_size(known.filter("tie"), beta),
        },
        "left_out": {"no_log_probability": rows.height - known.height},
        "interval": {
            "method": "percentile bootstrap over queries",
            **settings.model_dump(include={"resamples", "seed", "level"}),
        },
    }


def _pairs(
    dataset: ShardDataset, policy: str, reference: str, hold_out: HoldOut | None
) -> pl.DataFrame:
    """The pairs that are not deleted, with the change of log-probability of both answers."""
    pairs = dataset.pairs.select("q", "chosen", "rejected", "flags").collect()
    pairs = pairs.filter(pairs_there(dataset))
    if hold_out is not None:
        pairs = pairs.filter(pl.col("q").is_in(queries_of(dataset, hold_out).implode()))
        if not pairs.height:
            raise InputError(
                f"{dataset.path}: no pair is held out by share {hold_out.share:g} and seed "
                f"{hold_out.seed}",
                hint="--held-out and --held-out-seed are evaluation.share and seed of the training",
            )
    values = pl.DataFrame(
        {
            "policy": dataset.column(policy, _FIELD).cast(pl.Float64),
            "reference": dataset.column(reference, _FIELD).cast(pl.Float64),
            "tokens": dataset.responses.select("n_tok").collect()["n_tok"],
        }
    )
    sources = dataset.queries.select("source").collect()["source"]
    columns: dict[str, pl.Series] = {}
    for side in ("chosen", "rejected"):
        of_side = values[pairs[side].to_list()]
        columns[f"{side}_change"] = of_side["policy"] - of_side["reference"]
        columns[f"policy_{side}"] = of_side["policy"]
        columns[f"tokens_{side}"] = of_side["tokens"].cast(pl.Int64)
    names = _source_names(dataset)
    source = [names.get(number, str(number)) for number in sources[pairs["q"].to_list()]]
    tie = (pairs["flags"].cast(pl.Int64) & FLAGS["tie"]) != 0
    return pairs.select("q").with_columns(
        pl.Series("source", source, pl.String), tie.alias("tie"), **columns
    )


def _source_names(dataset: ShardDataset) -> dict[int, str]:
    """Names of the sources by number, from the reports of packing; those that agree on one."""
    names: dict[int, set[str]] = {}
    for file in (dataset.path / "reports").glob("*/report.json"):
        for name, facts in (read_json(file) or {}).get("sources", {}).items():
            names.setdefault(facts["number"], set()).add(name)
    return {number: found.pop() for number, found in names.items() if len(found) == 1}


def _measured(rows: pl.DataFrame, beta: float, settings: Resampling) -> dict[str, Any]:
    margins = _margins(rows, beta)
    sums = cluster_sums(_clusters(rows), margins, np.ones(rows.height))
    return {
        "pairs": rows.height,
        "queries": rows["q"].n_unique(),
        **_accuracy(pl.Series(margins > 0), rows, settings),
        **ratio("mean_margin", sums, settings),
        "equal_rewards": int((margins == 0).sum()),
    }


def _margins(rows: pl.DataFrame, beta: float) -> Floats:
    return beta * (rows["chosen_change"] - rows["rejected_change"]).to_numpy()


def _accuracy(right: pl.Series, rows: pl.DataFrame, settings: Resampling) -> dict[str, Any]:
    sums = cluster_sums(_clusters(rows), right.to_numpy(), np.ones(rows.height))
    return ratio("acc", sums, settings)


def _longer(rows: pl.DataFrame, settings: Resampling) -> dict[str, Any]:
    """The baseline, and how far the policy is over it, on the same resamples."""
    longer = (rows["tokens_chosen"] > rows["tokens_rejected"]).to_numpy()
    right = _margins(rows, 1.0) > 0
    ones = np.ones(rows.height)
    sums = cluster_sums(_clusters(rows), right, ones, longer, ones)
    return {
        **_accuracy(pl.Series(longer), rows, settings),
        **difference_of_ratios("acc_of_policy_over_it", sums, settings),
    }


def _mean_size(rows: pl.DataFrame, beta: float) -> float | None:
    return float(np.abs(_margins(rows, beta)).mean()) if rows.height else None


def _clusters(rows: pl.DataFrame) -> npt.NDArray[np.int64]:
    return cluster_numbers(rows["q"].to_list())


def _check_columns(dataset: ShardDataset, policy: str, reference: str) -> None:
    sets = {entry.name: entry for entry in dataset.column_sets}
    for option, name in (("--policy-column", policy), ("--reference-column", reference)):
        _check_column(dataset, sets, option, name)
    if policy == reference:
        raise InputError(
            f"{dataset.path}: {policy} is both --policy-column and --reference-column: every "
            "implicit reward is 0"
        )
    made = [
        {key: sets[name].provenance.get(key) for key in _COMPARED} for name in (policy, reference)
    ]
    lines = differences("", made[0], made[1])
    if lines:
        raise InputError(
            f"{dataset.path}: {policy} was made under other conditions than {reference}: "
            + "; ".join(lines),
            hint="compute one of them again: mmrlhf-engine reference SHARDS --model MODEL",
        )


def _check_column(
    dataset: ShardDataset, sets: Mapping[str, ColumnSet], option: str, name: str
) -> None:
    found = sets.get(name)
    if found is not None and found.table == "responses" and _FIELD in found.fields:
        return
    there = sorted(
        entry.name
        for entry in sets.values()
        if entry.table == "responses" and _FIELD in entry.fields
    )
    raise InputError(
        f"{dataset.path}: {option}: no column set {name!r} with log-probabilities; there are: "
        f"{', '.join(there) or 'none'}",
        hint="make it: mmrlhf-engine reference SHARDS --model MODEL",
    )


def run(config: PreferencesConfig, context: StageContext) -> None:
    """Compare the implicit rewards of the answers of each pair."""
    section = _section(config)
    write_section(context, {"shards": config.shards, **section})
    measured = section["overall"]["pairs"]
    dropped = {"tie": section["ties"]["pairs"], **section["left_out"]}
    dropped = {name: count for name, count in dropped.items() if count}
    context.finish(rows_in=measured + sum(dropped.values()), rows_out=measured, dropped=dropped)


def _section(config: PreferencesConfig) -> dict[str, Any]:
    part: Literal["held_out"] = "held_out"
    hold_out = None
    if config.held_out is not None:
        hold_out = HoldOut(share=config.held_out, seed=config.held_out_seed, part=part)
    section = preference_accuracy(
        open_dataset(Path(config.shards)),
        config.policy_column,
        config.reference_column,
        beta=config.beta,
        hold_out=hold_out,
        settings=config,
    )
    held_out = None if hold_out is None else hold_out.model_dump(include={"share", "seed"})
    return {"held_out": held_out, **section}


def _external(config: PreferencesConfig) -> list[object]:
    dataset = open_dataset(Path(config.shards))
    # Everything that can be refused is refused here, before an earlier section is removed.
    _section(config.model_copy(update={"resamples": 1}))
    made = {
        entry.name: [entry.revision, entry.filled, entry.provenance]
        for entry in dataset.column_sets
    }
    names = (config.policy_column, config.reference_column, "deleted")
    return [dataset.fingerprint, *(json.dumps(made.get(name), sort_keys=True) for name in names)]


STAGE = Stage(
    name="preferences",
    config=PreferencesConfig,
    run=run,
    external=_external,
    writes=("section.json",),
    no_effect_on_output=frozenset({"shards"}),
)
