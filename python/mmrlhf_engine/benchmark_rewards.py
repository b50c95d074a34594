"""Rewards of a benchmark's pairs by a reward model: packed, scored, and put back to their rows.

The rows go the way of any preference data, through ``pack`` and ``score``, so that a benchmark sees
what training sees. Each row carries its number as the margin of its pair, which the shards keep.
"""

import json
import shutil
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.reward_bench import read_bench
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.pack import PackConfig
from mmrlhf_engine.run.command import place_of
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import fingerprint
from mmrlhf_engine.shards.dataset import open_dataset
from mmrlhf_engine.sources.preferences.mm_rlhf import parse_pair
from mmrlhf_engine.sources.preferences.record import BadRecordError

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
        InputError: the file is no benchmark, or a row cannot be packed; the message names it.
        ConfigError: the model is no reward model, or a setting does not fit.
    """
    from mmrlhf_engine.train.score import STAGE, run_in
    from mmrlhf_engine.train.score_settings import ScoreConfig

    progress = progress or Progress("silent")
    rows = [line.fields for line in read_bench(file)]
    keys = [_key(row) for row in rows]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    numbered = out / "rows.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({**_as_pair(rows[number]), "margin": number}) + "\n"
        for number in sorted(first.values())
    ]
    _write_if_other(numbered, "".join(lines))
    config = _for_model(
        PackConfig(sources=[str(numbered)], root=str(file.parent.resolve()), model=reward_model)
    )
    shards = out / "shards"
    _remove_other(shards, config)
    pack.pack_dataset(config, shards, progress)
    given = {**(settings or {}), "shards": str(shards), "model": reward_model, "name": "benchmark"}
    overrides = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    score = load_config(ScoreConfig, None, overrides)
    finished = read_json(place_of(STAGE, out) / "manifest.json")
    # What was finished for another model or benchmark is replaced, as its section will be.
    other = finished is not None and finished["fingerprint"] != fingerprint(STAGE, score, 0, None)
    run_in(score, out, progress, restart=other)
    dataset = open_dataset(shards)
    rewards = dataset.column("reward/benchmark", "reward").fill_null(float("nan")).to_numpy()
    pairs = dataset.pairs.select("chosen", "rejected", "margin").collect()
    of_row = np.full((len(rows), 2), np.nan, np.float32)
    for place, side in enumerate(("chosen", "rejected")):
        of_row[pairs["margin"].cast(pl.Int64).to_numpy(), place] = rewards[pairs[side].to_numpy()]
    of_row = of_row[[first[key] for key in keys]]
    same = np.array([row["chosen"] == row["rejected"] for row in rows])
    of_row[same, 1] = of_row[same, 0]
    _check_all_scored(file, of_row, shards)
    return of_row


def _key(row: Mapping[str, Any]) -> Hashable:
    """Equal for rows that are one pair of the shards, as ``pack`` reads them."""
    try:
        read = parse_pair(dict(row))
    except BadRecordError:
        return json.dumps(row, sort_keys=True)  # pack says what is wrong with it
    return (read.prompt, *(response.messages for response in read.responses))


def _as_pair(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row as one of MM-RLHF's pairs, with two answers.

    Where both are the same, which is no pair of shards, the rejected one is replaced. The reward of
    an answer does not depend on the other one: :func:`rewards_of_rows` gives both sides that of the
    chosen one.
    """
    # The field marks the format, which pack does not know by the others where there is no picture.
    marked = row if "images" in row else {**row, "is_tie": False}
    if row["chosen"] != row["rejected"]:
        return marked
    return {**marked, "rejected": "-" if row["chosen"] != "-" else "+"}


def _remove_other(shards: Path, config: PackConfig) -> None:
    """Remove shards of another benchmark, or packed for another model."""
    made_from = fingerprint(pack.STAGE, config, 0, None)
    reports = [read_json(file) or {} for file in shards.glob("reports/pack-*/manifest.json")]
    if all(report.get("fingerprint") != made_from for report in reports):
        shutil.rmtree(shards, ignore_errors=True)


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
