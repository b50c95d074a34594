"""From the file of raw pairs to the end of the first step, part by part, without imports."""

from pathlib import Path
from typing import Any

from training import ours, trl_trainer
from training.steps import Clock


def first_step(request: dict[str, Any]) -> dict[str, Any]:
    """[wall, processor] seconds of each part."""
    return _ours(request) if request["contender"] == "ours" else _trl(request)


def _ours(request: dict[str, Any]) -> dict[str, Any]:
    folder, out = Path(request["folder"]), Path(request["out"])
    model, shards, tokens = folder / "model", out / "shards", request["tokens"]
    clock = Clock()
    ours.make_shards(folder / "many.parquet", model, shards)
    packed = clock.since()
    clock = Clock()
    ours.add_reference(shards, model, out / "reference", tokens)
    reference = clock.since()
    clock = Clock()
    config = ours.settings(shards, model, tokens, 1, request["checkpointing"])
    with ours.opened(config, out / "run") as run:
        ours.run_steps(run)
        step = clock.since()
    return {"pack": packed, "reference": reference, "open_and_step": step}


def _trl(request: dict[str, Any]) -> dict[str, Any]:
    folder, out = Path(request["folder"]), Path(request["out"])
    frozen = trl_trainer.frozen_names(folder / "model")
    clock = Clock()
    pairs = trl_trainer.load_pairs(folder / "many.parquet", out / "cache")
    loaded = clock.since()
    clock = Clock()
    model = trl_trainer.load_model(folder / "model", frozen)
    trainer, found = trl_trainer.make_trainer(
        model,
        folder / "model",
        pairs,
        out / "run",
        steps=1,
        pairs_of_step=request["pairs_of_step"],
        checkpointing=request["checkpointing"],
    )
    trl_trainer.run_steps(trainer, found, compact=request["contender"] == "trl_compact")
    return {"load": loaded, "open_and_step": clock.since()}
