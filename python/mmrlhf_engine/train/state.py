"""What a checkpoint has beside the weights: written after a step, and read to go on from it."""

import json
from typing import Any

import torch

from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.train.checkpoint import (
    SHARDED,
    STATE,
    copy_processor,
    random_state,
    set_random_state,
)
from mmrlhf_engine.train.device import is_sharded
from mmrlhf_engine.train.training import Training

__all__ = ["restore", "save"]


def save(
    run: Training, model: Any, optimizer: Any, schedule: Any, batch: PreferenceBatch[Any]
) -> None:
    """Write the checkpoint of this step."""
    accelerator = run.accelerator
    state = {
        "step": run.step,
        "schedule": schedule.state_dict(),
        "objective": run.objective.state_dict(),
        "accounting": run.accounting.state_dict(),
        "cursor": batch.cursor,
        "random": random_state(),
        "settings": run.config.model_dump_json(),
        "inputs": json.dumps(run.inputs),
    }
    weights = None
    with run.checkpoints.writing(run.step, accelerator) as folder:
        if is_sharded(accelerator):
            model.save_checkpoint(str(folder / SHARDED), tag=SHARDED)
            whole = accelerator.get_state_dict(model) or {}  # None but on the first process
            weights = {name.removeprefix("model."): value for name, value in whole.items()}
        else:
            state["optimizer"] = optimizer.state_dict()
        if accelerator.is_main_process:
            run.policy.model.save_pretrained(folder, state_dict=weights)
            copy_processor(run.processor, folder)
            run.objective.save(folder)
            torch.save(state, folder / STATE)


def restore(run: Training, model: Any, optimizer: Any, schedule: Any) -> None:
    """Go on from a checkpoint; the weights are loaded already, unless DeepSpeed has them."""
    assert run.state is not None
    if is_sharded(run.accelerator):
        folder = run.checkpoints.newest()
        assert folder is not None
        model.load_checkpoint(str(folder / SHARDED), tag=SHARDED)
    else:
        optimizer.load_state_dict(run.state["optimizer"])
    schedule.load_state_dict(run.state["schedule"])
    run.objective.load_state_dict(run.state["objective"])
    run.accounting.load_state_dict(run.state["accounting"])
    run.data.load_state_dict(run.state["cursor"])
    set_random_state(run.state["random"])
    run.step = run.state["step"]
