"""What the training commands have in common as stages: a folder, the loop in it, a page at its end.

``checkpoints`` outlives an interruption, and ``model`` names the newest of them.
"""

from collections.abc import Callable
from typing import Any

from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.run.stage import StageContext
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.train.compatible import model_folder
from mmrlhf_engine.train.device import accelerator_for
from mmrlhf_engine.train.loop import train
from mmrlhf_engine.train.objective import Objective
from mmrlhf_engine.train.page import write_training_page
from mmrlhf_engine.train.setup import FREE_TO_CHANGE, RunFolder, checked, open_training, resolved

__all__ = ["KEEPS", "NO_EFFECT", "WRITES", "external", "run_training"]

WRITES = ("checkpoints", "model", "metrics.jsonl", "facts.json", "report.html")
KEEPS = ("checkpoints", "metrics.jsonl", "facts.json", "tensorboard", "wandb", "model")
NO_EFFECT = FREE_TO_CHANGE


def external(config: Any) -> list[object]:
    """What a training run depends on outside of its folder: the shards, and the model's files."""
    config = resolved(config)
    dataset = open_dataset(config.shards)
    return [dataset.fingerprint, weights_hash(config.model), str(model_folder(config.model).name)]


def run_training(
    config: Any,
    context: StageContext,
    make_objective: Callable[[Any, ShardDataset], Objective],
) -> None:
    """Train in the folder of a stage, from its newest checkpoint on if it has one."""
    config = resolved(config)
    dataset = checked(config)
    folder = context.folder
    place = RunFolder(folder, context.stage.name, context.resources.progress)
    with accelerator_for(config.precision) as accelerator:
        run = open_training(config, make_objective(config, dataset), accelerator, place)
        try:
            train(run)
        finally:
            if run.metrics is not None:
                run.metrics.close()
                write_training_page(folder, folder / "report.html")
        if accelerator.is_main_process:
            newest = run.checkpoints.newest()
            assert newest is not None
            model = folder / "model"
            model.unlink(missing_ok=True)
            model.symlink_to(newest.relative_to(folder))
    evaluated = sorted(run.evaluated)
    pictures: dict[str, Any] = run.accounting.pictures()
    context.finish(
        **run.accounting.rows(),
        **pictures,
        steps=run.total_steps,
        before=run.evaluated[evaluated[0]] if evaluated else None,
        after=run.evaluated[evaluated[-1]] if evaluated else None,
    )
