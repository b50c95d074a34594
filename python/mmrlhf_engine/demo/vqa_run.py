"""Running stages of the engine in folders of the demo, where they can be made again at any time."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.demo.vqa_questions import Question
from mmrlhf_engine.demo.vqa_rows import Row, write_rows
from mmrlhf_engine.errors import ConfigError, StageError
from mmrlhf_engine.measure.evaluations import stage_of
from mmrlhf_engine.measure.section import run_evaluation
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.pack import PackConfig
from mmrlhf_engine.run.command import run_command
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Stage

__all__ = ["answers_of", "evaluate_in", "pack_rows", "run_stage_in"]

_STAGES = {
    "pair": "collect.pair",
    "sft": "train.sft",
    "sample": "train.sample",
    "reward": "train.reward",
    "score": "train.score",
    "reference": "train.reference",
    "mm_dpo": "train.mm_dpo",
}
_PACKED = "packed.json"


def run_stage_in(
    name: str, settings: Mapping[str, Any], folder: Path, progress: Any = "silent"
) -> dict[str, Any]:
    """Run a stage by its settings, by dotted name; its report, with ``folder``.

    What an earlier run has left under other settings or inputs is replaced: a demo's folder holds
    nothing that could not be made again.
    """
    stage: Stage = import_module(f"mmrlhf_engine.{_STAGES[name]}").STAGE
    config = _config(stage, settings)
    try:
        return run_command(stage, config, folder, Progress(progress))
    except ConfigError as error:
        if "--restart" not in (error.hint or ""):
            raise
        return run_command(stage, config, folder, Progress(progress), restart=True)


def evaluate_in(name: str, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run an evaluation into the scorecard of a folder; its section."""
    stage = stage_of(name)
    return run_evaluation(stage, _config(stage, settings), folder)


def _config(stage: Stage, settings: Mapping[str, Any]) -> Any:
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(stage.config, None, overrides)


def pack_rows(shards: Path, file: Path, rows: Sequence[Row] | None, model: Path) -> Path:
    """Pack a file of rows for a model, unless the shards are of this file and tokenizer.

    Args:
        shards: The dataset.
        file: Of rows; written first where ``rows`` are given.
        rows: None where the file is there.
        model: Whose tokenizer, template and processor are used.
    """
    if rows is not None:
        write_rows(file, rows)
    read = (file, model / "tokenizer.json", model / "processor_config.json")
    hashes = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in read}
    if read_json(shards / "reports" / _PACKED) == hashes:
        return shards
    shutil.rmtree(shards, ignore_errors=True)
    config = PackConfig(sources=[str(file)], model=str(model), root="/")
    pack.pack_dataset(config, shards, Progress("silent"))
    write_atomically(shards / "reports" / _PACKED, json.dumps(hashes))
    return shards


def answers_of(
    shards: Path,
    model: Path,
    folder: Path,
    questions: Sequence[Question | str],
    settings: Mapping[str, Any],
    progress: Any = "silent",
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Answers of a model, by the id of the question, and the report of ``sample``.

    Args:
        shards: The questions, a query each.
        model: That answers.
        folder: Of the stage.
        questions: Those of the shards, in their order; or their ids.
        settings: Of ``sample``.
        progress: What is written to stderr.

    Raises:
        StageError: the shards have another number of queries.
    """
    chosen = {"shards": str(shards), "model": str(model), "batch": 64, "threads": 1}
    report = run_stage_in("sample", {**chosen, "max_new_tokens": 4, **settings}, folder, progress)
    table = pl.read_parquet(Path(report["folder"]) / "responses" / "*.parquet")
    texts = table.sort("query", "sample").group_by("query", maintain_order=True).agg("text")
    if texts["query"].to_list() != list(range(len(questions))):
        raise StageError(
            f"{shards}: answers to {texts.height:,} queries, expected one for each of the "
            f"{len(questions):,} questions"
        )
    ids = [one if isinstance(one, str) else one.id for one in questions]
    return dict(zip(ids, texts["text"].to_list(), strict=True)), report
