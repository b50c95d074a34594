"""What the training commands have in common as stages: a folder, the loop in it, a page at its end.

``checkpoints`` outlives an interruption, and ``model`` names the newest of them.
"""

from collections.abc import Callable
from typing import Any

from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.run.stage import StageContext
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.train.compatible import model_folder
from mmrlhf_engine.train.device import accelerator_for
from mmrlhf_engine.train.loop import train
from mmrlhf_engine.train.metrics import read_metrics
from mmrlhf_engine.train.objective import Objective
from mmrlhf_engine.train.pair_columns import column_versions
from mmrlhf_engine.train.report.page import write_training_page
from mmrlhf_engine.train.setup import FREE_TO_CHANGE, RunFolder, checked, open_training, resolved

__all__ = ["KEEPS", "NO_EFFECT", "WRITES", "inputs_of", "run_training"]

WRITES = ("checkpoints", "model", "metrics.jsonl", "facts.json", "report.html")
KEEPS = ("base", "checkpoints", "metrics.jsonl", "facts.json", "tensorboard", "wandb", "model")
NO_EFFECT = FREE_TO_CHANGE


ObjectiveOf = Callable[[Any, ShardDataset], Objective]
"""From settings and the dataset that they name."""


def inputs_of(config: Any, make_objective: ObjectiveOf) -> dict[str, Any]:
    """What a training run depends on outside of its folder: shards, columns, the model's files.

    Raises:
        MmrlhfError: something is missing, or does not fit; so that it is known before any work.
    """
    config = resolved(config)
    found: dict[str, Any] = {
        "weights": weights_hash(config.model),
        "model": model_folder(config.model).name,
    }
    for given in (config, _of_evaluation(config)):
        if given is not None:
            dataset = checked(given)
            objective = make_objective(given, dataset)
            columns = column_versions(dataset, objective.columns)
            name = "shards" if given is config else "evaluation_shards"
            found[name] = {"data": dataset.fingerprint, "columns": columns, **objective.inputs()}
    return found


def _of_evaluation(config: Any) -> Any:
    """The same settings with the shards of the evaluation in place of those of training."""
    if config.evaluation.shards is None:
        return None
    return config.model_copy(update={"shards": config.evaluation.shards})


def run_training(config: Any, context: StageContext, make_objective: ObjectiveOf) -> None:
    """Train in the folder of a stage, from its newest checkpoint on if it has one."""
    config = resolved(config)
    inputs = inputs_of(config, make_objective)
    objective = make_objective(config, checked(config))
    held_out = _of_evaluation(config)
    evaluation = objective if held_out is None else make_objective(held_out, checked(held_out))
    folder = context.folder
    place = RunFolder(folder, context.stage.name, context.resources.progress)
    with accelerator_for(config.precision) as accelerator:
        run = open_training(
            config,
            objective,
            accelerator,
            place,
            inputs=inputs,
            evaluation_objective=evaluation,
        )
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
    evaluated = [line for line in read_metrics(folder / "metrics.jsonl") if "eval_loss" in line]
    pictures: dict[str, Any] = run.accounting.pictures()
    context.finish(
        **run.accounting.rows(),
        **pictures,
        steps=run.total_steps,
        before=evaluated[0] if evaluated else None,
        after=evaluated[-1] if evaluated else None,
    )
