"""Sidecar columns of reference log-probabilities: their names, and the conditions they hold for."""

import re
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.columns import ColumnRequest
from mmrlhf_engine.shards.dataset import ShardDataset

__all__ = ["FIELD", "column_set_of", "find_reference", "model_conditions"]

FIELD = "logp"
"""The sum of the log-probabilities of a response's tokens, float32."""
_PREFIX = "reflogp/"


def column_set_of(name: str) -> str:
    """The column set of a reference model: ``reflogp/`` and the last part of its name."""
    last = name.rstrip("/").rpartition("/")[2]
    return _PREFIX + (re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.") or "model")


def model_conditions(weights: str, precision: str, frozen_weights: str) -> dict[str, Any]:
    """What a reference's values depend on, beside tokenizer and pictures.

    Args:
        weights: The hash of the model's weights.
        precision: Of the products.
        frozen_weights: How weights are kept that do not train.
    """
    return {
        "model": {"weights": weights},
        "precision": {"products": precision, "weights": frozen_weights},
    }


def find_reference(
    dataset: ShardDataset,
    name: str | None,
    conditions: dict[str, Any],
    *,
    command: str,
) -> ColumnRequest:
    """The column of the reference model.

    Args:
        dataset: The shards.
        name: The column set; None is the one made with the weights of ``conditions``.
        conditions: From :func:`model_conditions`, of the run.
        command: The command that makes the column, for the message.

    Raises:
        InputError: no such column is there.
    """
    sets = {
        entry.name: entry.provenance
        for entry in dataset.column_sets
        if entry.name.startswith(_PREFIX)
    }
    if name is not None:
        full = name if name.startswith(_PREFIX) else column_set_of(name)
        if full in sets:
            # Another model than the one that trains is meant; the precision still has to agree.
            return ColumnRequest(full, FIELD, expect={"precision": conditions["precision"]})
        found = full
        command += f" --name {full.removeprefix(_PREFIX)}"
    else:
        weights, precision = conditions["model"]["weights"], conditions["precision"]
        of_model = [
            n for n, made in sets.items() if made.get("model", {}).get("weights") == weights
        ]
        # The same model may have several, and one that differs in precision says best what to do.
        of_model.sort(key=lambda entry: sets[entry].get("precision") != precision)
        if of_model:
            return ColumnRequest(of_model[0], FIELD, expect={"precision": precision})
        found = "the model that trains"
    there = ", ".join(sorted(sets)) or "none"
    raise InputError(
        f"{dataset.path}: no log-probabilities of {found} as the reference; there are: {there}",
        hint=f"make them once: {command}",
    )
