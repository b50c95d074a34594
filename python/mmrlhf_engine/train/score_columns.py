"""The sidecar columns that ``score`` writes: their names, their values, and whether they are there.

``reward/NAME`` of the responses has ``reward`` and, where critiques were read, ``critique``;
``margin/NAME`` of the pairs has ``margin``.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.shards.dataset import FLAGS, ColumnSet, ShardDataset
from mmrlhf_engine.shards.tables import Table
from mmrlhf_engine.train.compatible import model_folder
from mmrlhf_engine.train.margins import normalised
from mmrlhf_engine.train.score_settings import ScoreConfig

__all__ = ["Scored", "are_there", "digest_of", "margins_of", "name_of", "write_columns"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """Values by the rows of a dataset; NaN is one that is not known."""

    margins: Floats
    """Float32 [pairs], as they were computed, before they are normalised."""
    rewards: Floats | None
    """Float32 [responses]; None where only margins are known."""
    critiques: pl.Series | None = None
    """Text [responses], null where none was read; None where the rewards are of a file."""


def margins_of(dataset: ShardDataset, rewards: Floats) -> Floats:
    """Float32 [pairs], chosen less rejected; NaN where a reward is not known."""
    pairs = dataset.pairs.select("chosen", "rejected").collect()
    margins: Floats = rewards[pairs["chosen"].to_numpy()] - rewards[pairs["rejected"].to_numpy()]
    return margins


def write_columns(
    config: ScoreConfig, dataset: ShardDataset, scored: Scored, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the columns; what the report says of them.

    Args:
        config: The settings.
        dataset: The shards.
        scored: The values.
        provenance: What made the values; the rule of normalisation is added to that of margins.

    Raises:
        InputError: no pair has a margin, or the rule of normalisation does not apply.
    """
    margins, name = scored.margins, str(provenance["model"]["name"])
    known = ~np.isnan(margins)
    if len(margins) and not known.any():
        raise InputError(
            f"{config.scores or dataset.path}: none of the {len(margins):,} pairs of "
            f"{dataset.path} has a score of both answers",
            hint="scores of other rows, or of answers that are in no pair; nothing was written",
        )
    flags = dataset.pairs.select("flags").collect()["flags"].to_numpy()
    ties = (flags & FLAGS["tie"]) != 0
    scaled, rule = normalised(margins, config.normalise, ties)
    sets: dict[str, tuple[Table, dict[str, pl.Series], dict[str, Any]]] = {}
    if scored.rewards is not None:
        fields = {"reward": pl.Series(scored.rewards).fill_nan(None)}
        if scored.critiques is not None:
            fields["critique"] = scored.critiques
        sets[f"reward/{name}"] = ("responses", fields, dict(provenance))
    fields = {"margin": pl.Series(scaled).cast(pl.Float32).fill_nan(None)}
    sets[f"margin/{name}"] = ("pairs", fields, {**provenance, "normalise": rule})
    for column_set, (table, values, made_with) in sets.items():
        _write(dataset, column_set, table, pl.DataFrame(values), made_with)
    ranked, tied = margins[~ties & known], np.abs(margins[ties & known])
    return {
        "column": f"margin/{name}/margin",
        "columns": {
            column_set: {
                "filled": int(next(iter(values.values())).is_not_null().sum()),
                "provenance": made_with,
            }
            for column_set, (_, values, made_with) in sets.items()
        },
        "pairs": len(margins),
        "pairs_with_margin": int(known.sum()),
        "ties": int(ties.sum()),
        # How often the scores agree with the ranks, of pairs that are no ties.
        "agreement": float((ranked > 0).mean()) if len(ranked) else None,
        "margin_mean": float(ranked.mean()) if len(ranked) else None,
        "margin_std": float(ranked.std()) if len(ranked) else None,
        "tie_gap_mean": float(tied.mean()) if len(tied) else None,
        "normalise": rule,
    }


def are_there(dataset: ShardDataset, columns: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a dataset has the columns that a report names under ``columns``, all filled."""
    there = {entry.name: entry for entry in dataset.column_sets}
    return all(
        name in there
        and there[name].provenance == wanted["provenance"]
        and there[name].filled >= wanted["filled"]
        for name, wanted in columns.items()
    )


def _write(
    dataset: ShardDataset,
    column_set: str,
    table: Table,
    frame: pl.DataFrame,
    provenance: dict[str, Any],
) -> None:
    """Write what the column set lacks; one of another provenance is replaced.

    Of a dataset that rows were added to, the earlier rows have their values already.
    """
    first = frame.columns[0]
    lacking = frame[first].is_not_null()
    if any(one.name == column_set and one.provenance == provenance for one in dataset.column_sets):
        lacking &= dataset.column(column_set, first).is_null()
    if not lacking.any():
        return
    start = int(lacking.arg_true()[0])
    new = frame.select(pl.when(lacking).then(pl.col(field)).alias(field) for field in frame.columns)
    dataset.add_column(
        new[start:], table=table, column_set=column_set, provenance=provenance, start=start
    )


def name_of(config: ScoreConfig, dataset: ShardDataset) -> str:
    """Of the column sets; with its hash where another model or file of the name has them.

    Trained models are all called ``model``, and files of several judges ``scores.jsonl``; their
    columns must not replace each other.

    Raises:
        ConfigError: no letter or digit is in the name.
        InputError: there is no file of scores.
    """
    given = config.name
    if given is None:
        given = Path(config.scores).stem if config.scores else model_folder(config.model).name
    name = re.sub(r"[^a-z0-9._-]+", "-", given.lower()).strip("-.")
    if not name:
        raise ConfigError(f"name: found {given!r}, expected letters or digits", hint="--name NAME")
    if config.name is not None:
        return name
    own = digest_of(config) if config.scores is not None else weights_hash(config.model)
    hashed = f"{name}-{own.rpartition(':')[2][:8]}"
    makers = {entry.name: _maker(entry) for entry in dataset.column_sets}
    of = {
        one: {makers.get(f"{kind}/{one}") for kind in ("reward", "margin")}
        for one in (hashed, name)
    }
    # The columns are found again under the name that they were written with.
    if own in of[hashed] or of[name] - {own, None}:
        return hashed
    return name


def _maker(entry: ColumnSet) -> str:
    """The hash of the model or of the file of scores that a column set was made from."""
    made = entry.provenance
    return str(made.get("scores") or made.get("model", {}).get("weights"))


def digest_of(config: ScoreConfig) -> str:
    """SHA-256 in hex of the file of scores.

    Raises:
        InputError: there is no such file.
    """
    file = Path(str(config.scores))
    if file.is_dir():
        raise InputError(f"{file}: found a folder, expected a file of scores")
    if not file.is_file():
        raise InputError(f"{file}: no such file of scores")
    return hashlib.sha256(file.read_bytes()).hexdigest()
