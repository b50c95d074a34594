"""Columns that MM-DPO reads, checked before a run: reference log-probabilities, margins, betas."""

from typing import Any

import polars as pl

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.shards.columns import ColumnRequest
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset
from mmrlhf_engine.train.reference_columns import find_reference, model_conditions

__all__ = ["BETA_RULES", "columns_of"]

BETA_RULES = ("paper", "constant", "released")
"""Rules with a name of their own; any other is a column."""


def columns_of(config: Any, dataset: ShardDataset) -> dict[str, ColumnRequest]:
    """Requests of the columns that the settings of MM-DPO ask for.

    Raises:
        ConfigError: a setting does not name a column, or is not needed by the rule.
        InputError: a column is not there, or has values that a rule cannot use.
    """
    made_with = model_conditions(
        weights_hash(config.model), config.precision, config.frozen_weights
    )
    command = f"mmrlhf-engine reference {config.shards} --model {config.model}"
    requests = {"reference": find_reference(dataset, config.reference, made_with, command=command)}
    if config.beta_rule == "paper":
        if config.margin is not None:
            missing = config.missing_margin == "constant"
            requests["margin"] = _request("margin", config.margin, allow_missing=missing)
        _check_margins(config, dataset, requests.get("margin"))
    elif config.margin is not None:
        raise ConfigError(
            f"margin: given, but beta_rule {config.beta_rule!r} reads no margins",
            hint="beta_rule=paper, or leave margin out",
        )
    if config.beta_rule not in BETA_RULES:
        requests["beta"] = _request("beta_rule", config.beta_rule)
        _check_betas(dataset, requests["beta"])
    return requests


def _request(setting: str, text: str, *, allow_missing: bool = False) -> ColumnRequest:
    column_set, slash, field = text.rpartition("/")
    if not slash or not column_set:
        known = f"{', '.join(BETA_RULES)} or " if setting == "beta_rule" else ""
        raise ConfigError(f"{setting}: found {text!r}, expected {known}SET/FIELD, a sidecar column")
    return ColumnRequest(column_set, field, allow_missing=allow_missing)


def _check_margins(config: Any, dataset: ShardDataset, column: ColumnRequest | None) -> None:
    pairs = dataset.pairs.select("margin", "flags").collect()
    if column is not None:
        pairs = pairs.with_columns(dataset.column(column.column_set, column.field).alias("margin"))
    decided = pairs.filter((pl.col("flags") & FLAGS["tie"]) == 0)["margin"]
    infinite = int((decided.is_infinite() | decided.is_nan()).sum())
    where = f"{dataset.path}: " + ("margin" if column is None else column.column_set)
    if infinite:
        raise InputError(
            f"{where}: {infinite:,} of {len(decided):,} pairs have a margin that is not finite"
        )
    missing = decided.null_count()
    if missing and config.missing_margin == "error":
        raise InputError(
            f"{where}: {missing:,} of {len(decided):,} pairs that are no ties have no margin, and "
            "beta_rule 'paper' needs one",
            hint="mmrlhf-engine score writes margins; or beta_rule=constant; or "
            "missing_margin=constant gives these pairs beta",
        )


def _check_betas(dataset: ShardDataset, column: ColumnRequest) -> None:
    values = dataset.column(column.column_set, column.field)
    wrong = int(((values <= 0) | values.is_nan() | values.is_infinite()).sum())
    if wrong:
        raise InputError(
            f"{dataset.path}: {column.column_set}/{column.field}: {wrong:,} of {len(values):,} "
            "pairs have a beta that is no finite number above 0"
        )
