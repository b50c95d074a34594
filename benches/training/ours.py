"""Our side: pack, reference and the loop of ``mmrlhf_engine.train.loop``, step by step."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrlhf_engine import open_dataset, run_pack, run_reference
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.device import accelerator_for
from mmrlhf_engine.train.loop import steps_of, train_step
from mmrlhf_engine.train.mm_dpo import MMDPO, MMDPOConfig
from mmrlhf_engine.train.optimizer import make_optimizer, make_schedule
from mmrlhf_engine.train.pair_columns import columns_of
from mmrlhf_engine.train.setup import RunFolder, open_training
from mmrlhf_engine.train.training import Training
from training.memory import AllocationCount
from training.steps import Clock, Steps, trained, weight_bytes


def make_shards(raw: Path, model: Path, shards: Path) -> None:
    """Pack the pairs for the model."""
    run_pack(raw, shards, {"model": str(model), "threads": 1})


def add_reference(shards: Path, model: Path, out: Path, tokens: int) -> None:
    """Log-probabilities of the model itself, beside the shards."""
    run_reference(shards, model, out, {"tokens": tokens, "threads": 1})


def settings(shards: Path, model: Path, tokens: int, steps: int, checkpointing: bool) -> Any:
    """DPO as TRL has it: one beta, a constant rate, no clipping, no decay; one pack a step."""
    return MMDPOConfig.model_validate(
        {
            "shards": str(shards),
            "model": str(model),
            "steps": steps,
            "precision": "float32",
            "freeze": ("tower",),
            "gradient_checkpointing": checkpointing,
            "beta": 0.1,
            "beta_rule": "constant",
            "data": {"tokens": tokens, "packs_per_step": 1, "unit": "query"},
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0, "max_grad_norm": None},
            "schedule": {"name": "constant", "warmup": 0.0},
            "threads": 1,
        }
    )


def rows_of_steps(shards: Path, tokens: int, steps: int) -> list[list[int]]:
    """Rows of the pairs of each step, in the order of training."""
    data = PreferenceDataset(shards, tokens, packs_per_step=1, unit="query", threads=1)
    return [
        [int(row) for batch in packs for row in batch.pair_row] for packs in steps_of(data, steps)
    ]


@contextmanager
def opened(config: Any, folder: Path) -> Iterator[Training]:
    """A run in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    objective = MMDPO(config, columns_of(config, open_dataset(config.shards)))
    place = RunFolder(folder, "mm_dpo", Progress("silent"))
    with accelerator_for(config.precision) as accelerator:
        run = open_training(
            config, objective, accelerator, place, inputs={}, evaluation_objective=objective
        )
        try:
            yield run
        finally:
            if run.metrics is not None:
                run.metrics.close()


def run_steps(run: Training, *, memory_of: int | None = None) -> Steps:
    """Every step of a run; the allocations of step ``memory_of`` are counted."""
    optimizer = make_optimizer(run.config.optimizer, run.policy)
    schedule = make_schedule(run.config.schedule, optimizer, run.total_steps)
    model, optimizer = run.accelerator.prepare(run.policy, optimizer)
    model.train()
    found = Steps()
    count = AllocationCount(trained(model)) if memory_of is not None else None
    clock = Clock()
    for number, packs in enumerate(steps_of(run.data, run.total_steps)):
        if count is not None and number == memory_of:
            count.start()
        with found.timed():
            values = train_step(run, model, optimizer, packs)
            schedule.step()
        if count is not None and number == memory_of:
            count.stop()
            found.memory = {**count.peaks(), "weights": weight_bytes(model), "second_model": 0}
        found.losses.append(values["loss"])
        found.tokens.append(sum(len(batch.input_ids) for batch in packs))
        found.pictures.append(sum(len(batch.image_blob) for batch in packs))
    found.whole = clock.since()
    return found
