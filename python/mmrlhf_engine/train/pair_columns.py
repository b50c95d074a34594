"""Columns that MM-DPO reads, checked before a run: reference log-probabilities, margins, betas."""

import hashlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.shards.columns import ColumnRequest
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset
from mmrlhf_engine.train.reference_columns import find_reference, model_conditions

__all__ = ["BETA_RULES", "column_versions", "columns_of", "margin_request"]

BETA_RULES = ("paper", "constant", "released")
"""Rules with a name of their own; any other is a column."""


def columns_of(config: Any, dataset: ShardDataset) -> dict[str, ColumnRequest]:
    """Requests of the columns that the settings of MM-DPO ask for.

    Raises:
        ConfigError: a setting does not name a column, or is not needed by the rule.
        InputError: a column is not there, or has values that a rule cannot use; or no pair trains.
    """
    made_with = model_conditions(
        weights_hash(config.model), config.precision, config.frozen_weights
    )
    command = f"mmrlhf-engine reference {dataset.path} --model {config.model}"
    requests = {"reference": find_reference(dataset, config.reference, made_with, command=command)}
    if config.beta_rule == "paper":
        if config.margin is not None:
            missing = config.missing_margin == "constant"
            requests["margin"] = _request("margin", config.margin, allow_missing=missing)
    elif config.margin is not None:
        raise ConfigError(
            f"margin: given, but beta_rule {config.beta_rule!r} reads no margins",
            hint="beta_rule=paper, or leave margin out",
        )
    if config.beta_rule not in BETA_RULES:
        requests["beta"] = _request("beta_rule", config.beta_rule)
    for name, request in requests.items():
        _check_table(dataset, request, "responses" if name == "reference" else "pairs")
    _check_reference(dataset, requests["reference"], command)
    _check_pairs(config, dataset)
    if config.beta_rule == "paper":
        _check_margins(config, dataset, requests.get("margin"))
    if "beta" in requests:
        _check_betas(dataset, requests["beta"])
    return requests


def margin_request(dataset: ShardDataset, name: str) -> ColumnRequest:
    """The request of a sidecar column of margins, some of which may be unknown.

    Raises:
        ConfigError: the name is not of the form ``SET/FIELD``.
        InputError: there is no such column of pairs.
    """
    request = _request("margin", name, allow_missing=True)
    _check_table(dataset, request, "pairs")
    return request


def column_versions(
    dataset: ShardDataset, requests: Mapping[str, ColumnRequest]
) -> dict[str, list[Any]]:
    """The set, and a hash of the values, of each column."""
    found = {}
    for name, request in requests.items():
        values = dataset.column(request.column_set, request.field).cast(pl.Float32)
        content = values.fill_null(float("nan")).to_numpy().tobytes()
        found[name] = [request.column_set, hashlib.sha256(content).hexdigest()]
    return found


def _request(setting: str, text: str, *, allow_missing: bool = False) -> ColumnRequest:
    column_set, slash, field = text.rpartition("/")
    if not slash or not column_set:
        known = f"{', '.join(BETA_RULES)} or " if setting == "beta_rule" else ""
        raise ConfigError(f"{setting}: found {text!r}, expected {known}SET/FIELD, a sidecar column")
    return ColumnRequest(column_set, field, allow_missing=allow_missing)


def _check_table(dataset: ShardDataset, request: ColumnRequest, table: str) -> None:
    found = {entry.name: entry for entry in dataset.column_sets}.get(request.column_set)
    name = f"{dataset.path}: {request.column_set}/{request.field}"
    if found is None or request.field not in found.fields:
        of_table = {e.name: e.fields for e in dataset.column_sets if e.table == table}
        there = [f"{one}/{field}" for one, fields in of_table.items() for field in fields]
        raise InputError(
            f"{name}: no such column, expected one of {', '.join(sorted(there)) or 'none'}"
        )
    if found.table != table:
        raise InputError(f"{name}: a column of {found.table}, expected one of {table}")


def _check_reference(dataset: ShardDataset, column: ColumnRequest, command: str) -> None:
    values = dataset.column(column.column_set, column.field)
    where = f"{dataset.path}: {column.column_set}/{column.field}"
    wrong = (~values.is_finite()).fill_null(False).arg_true()
    if len(wrong):
        raise InputError(
            f"{where}: {len(wrong):,} of {len(values):,} responses have a log-probability that is "
            f"not finite, the first is {values[int(wrong[0])]} of response {wrong[0]}",
            hint=f"make it again: {command} --name NAME, and then mm-dpo --reference NAME",
        )
    if values.null_count():
        raise InputError(
            f"{where}: {values.null_count():,} of {len(values):,} responses have no value",
            hint=f"compute the rest: {command} --set too_large=alone",
        )


def _check_pairs(config: Any, dataset: ShardDataset) -> None:
    flags = dataset.pairs.select("flags").collect()["flags"]
    ties = int(((flags & FLAGS["tie"]) != 0).sum())
    if config.ties == "leave_out" and ties == len(flags):
        raise InputError(
            f"{dataset.path}: all of {ties:,} pairs are ties, which ties 'leave_out' does not "
            "train on",
            hint="ties=fair_coin trains on pairs of equal rank",
        )


def _check_margins(config: Any, dataset: ShardDataset, column: ColumnRequest | None) -> None:
    pairs = dataset.pairs.select("margin", "flags").collect()
    if column is not None:
        pairs = pairs.with_columns(dataset.column(column.column_set, column.field).alias("margin"))
    decided = pairs.filter((pl.col("flags") & FLAGS["tie"]) == 0)["margin"]
    infinite = int((~decided.is_finite()).sum())
    name = "margin" if column is None else f"{column.column_set}/{column.field}"
    where = f"{dataset.path}: {name}"
    if infinite:
        raise InputError(
            f"{where}: {infinite:,} of {len(decided):,} pairs have a margin that is not finite",
            hint="write the column again; null is a margin that is not known",
        )
    missing = decided.null_count()
    if missing and config.missing_margin == "error":
        raise InputError(
            f"{where}: {missing:,} of {len(decided):,} pairs that are no ties have no margin, and "
            "beta_rule 'paper' needs one",
            hint="pack rows with a margin, or margin=SET/FIELD, a column of them; or "
            "beta_rule=constant; or missing_margin=constant gives these pairs beta0",
        )


def _check_betas(dataset: ShardDataset, column: ColumnRequest) -> None:
    values = dataset.column(column.column_set, column.field)
    wrong = int(((values <= 0) | ~values.is_finite()).fill_null(True).sum())
    if wrong:
        raise InputError(
            f"{dataset.path}: {column.column_set}/{column.field}: {wrong:,} of {len(values):,} "
            "pairs have a beta that is no finite number above 0",
            hint="write the column again",
        )
