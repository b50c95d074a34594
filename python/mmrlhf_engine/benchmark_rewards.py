"""Rewards of a benchmark's pairs by a reward model: packed, scored, and put back to their rows.

The rows go the way of any preference data, through ``pack`` and ``score``, so that a benchmark sees
what training sees. Each row carries its number as the margin of its pair, which the shards keep.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.pack import PackConfig
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.shards.dataset import open_dataset

__all__ = ["rewards_of_rows", "scores_file"]


def scores_file(
    file: Path,
    reward_model: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The rewards of :func:`rewards_of_rows` as a file that ``evaluate reward-bench`` reads."""
    rewards = rewards_of_rows(file, reward_model, out, settings, progress)
    lines = [
        json.dumps({"row": row, "rewards": [float(value) for value in both]}) + "\n"
        for row, both in enumerate(rewards)
    ]
    scores = out / "scores.jsonl"
    _write_if_other(scores, "".join(lines))
    return scores


def rewards_of_rows(
    file: Path,
    reward_model: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """The rewards of the chosen and the rejected answer of each row.

    Args:
        file: JSON Lines of MM-RLHF's pairs; media are named from its folder on.
        reward_model: A folder or a name on the hub.
        out: Shards and critiques are kept here, and found again by the same call.
        settings: Of ``score``: ``{"critiques": "packed"}`` scores the critiques of the file.
        progress: What is said on the way.

    Returns:
        float32 [rows, 2].

    Raises:
        InputError: a row cannot be packed; the message names it.
        ConfigError: the model is no reward model, or a setting does not fit.
    """
    from mmrlhf_engine.train.score import STAGE, run_in

    progress = progress or Progress("silent")
    rows = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]
    keys = [_key(row) for row in rows]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    numbered = out / "rows.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({**rows[number], "margin": number}) + "\n" for number in sorted(first.values())
    ]
    _write_if_other(numbered, "".join(lines))
    config = PackConfig(
        sources=[str(numbered)], root=str(file.parent.resolve()), model=reward_model
    )
    shards = out / "shards"
    pack.pack_dataset(_for_model(config), shards, progress)
    given = {**(settings or {}), "shards": str(shards), "model": reward_model, "name": "benchmark"}
    overrides = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    run_in(load_config(STAGE.config, None, overrides), out, progress)
    dataset = open_dataset(shards)
    rewards = dataset.column("reward/benchmark", "reward").fill_null(float("nan")).to_numpy()
    pairs = dataset.pairs.select("chosen", "rejected", "margin").collect()
    of_row = np.full((len(rows), 2), np.nan, np.float32)
    for place, side in enumerate(("chosen", "rejected")):
        of_row[pairs["margin"].cast(pl.Int64).to_numpy(), place] = rewards[pairs[side].to_numpy()]
    of_row = of_row[[first[key] for key in keys]]
    _check_all_scored(file, of_row, shards)
    return of_row


def _key(row: Mapping[str, Any]) -> str:
    """Equal for rows that are one pair of the shards."""
    names = ("image", "images", "video", "prompt", "chosen", "rejected")
    return json.dumps([row.get(name) for name in names])


def _for_model(config: PackConfig) -> PackConfig:
    """The model's processor, or the tokenizer of one that reads text alone."""
    folder = Path(config.model)
    processors = ("processor_config.json", "preprocessor_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in processors):
        return config.model_copy(update={"tokenizer": config.model, "model": ""})
    return config


def _write_if_other(file: Path, text: str) -> None:
    """Keep a file that is the same: what was made from it is then found again."""
    if not file.is_file() or file.read_text("utf-8") != text:
        write_atomically(file, text)


def _check_all_scored(file: Path, rewards: npt.NDArray[np.float32], shards: Path) -> None:
    missing = np.flatnonzero(np.isnan(rewards).any(axis=1))
    if not len(missing):
        return
    tables = sorted(shards.glob("reports/pack-*/rejected/*.parquet"))
    reasons = [f"{row['position']}: {row['detail']}" for row in _rows(tables)[:3]]
    raise InputError(
        f"{file}: {len(missing):,} of {len(rewards):,} rows have no rewards, the first is row "
        f"{missing[0]} from zero; {'; '.join(reasons) or 'a picture cannot be read'}",
        hint="a benchmark is scored as a whole: repair the rows, or take them out",
    )


def _rows(tables: list[Path]) -> list[dict[str, Any]]:
    return pl.read_parquet(tables).to_dicts() if tables else []
