"""Steps of the contenders in turn, and the memory of a step of one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from training import ours, trl_trainer
from training.steps import Steps

MEMORY_OF = 2
"""The third step: the optimizer has its states, and lazily made buffers are there."""


def steps(request: dict[str, Any]) -> dict[str, Any]:
    """A run of each contender in every round, of ``steps_of_rounds`` steps."""
    plan: dict[str, list[int]] = request["steps_of_rounds"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for counts in zip(*plan.values(), strict=True):
        for name, count in zip(plan, counts, strict=True):
            found[name].append(asdict(_run(name, request | {"steps": count})))
    return found


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """The allocations of one step."""
    short = request | {"steps": MEMORY_OF + 1}
    return _run(request["contender"], short, memory_of=MEMORY_OF).memory


def _run(name: str, request: dict[str, Any], memory_of: int | None = None) -> Steps:
    folder, count = Path(request["folder"]), request["steps"]
    model, shards = folder / "model", folder / "shards"
    tokens, checkpointing = request["tokens"], request["checkpointing"]
    if name == "ours":
        config = ours.settings(shards, model, tokens, count, checkpointing)
        with ours.opened(config, folder / "run" / "ours") as run:
            return ours.run_steps(run, memory_of=memory_of)
    rows = request["rows"][:count]
    pairs = trl_trainer.load_pairs(
        folder / "pairs.parquet", folder / "cache", [row for step in rows for row in step]
    )
    trainer, found = trl_trainer.make_trainer(
        trl_trainer.load_model(model, trl_trainer.frozen_names(model)),
        model,
        pairs,
        folder / "run" / name,
        steps=count,
        pairs_of_step=len(rows[0]),
        checkpointing=checkpointing,
        memory_of=memory_of,
    )
    return trl_trainer.run_steps(trainer, found, compact=name == "trl_compact")
