"""From settings to everything that a run holds: checks first, then data, model and checkpoints."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mmrlhf_engine import __version__
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.adapters import adapter_base
from mmrlhf_engine.models.checkpoint import is_reward_model, read_model, read_reward_model
from mmrlhf_engine.models.policy import FeatureCache, PackedPolicy
from mmrlhf_engine.run.differences import differences
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.accounting import Accounting
from mmrlhf_engine.train.checkpoint import Checkpoints, copy_processor
from mmrlhf_engine.train.compatible import check_model_fits, model_folder
from mmrlhf_engine.train.device import is_deepspeed_asked_for, with_precision
from mmrlhf_engine.train.metrics import MetricsWriter, read_metrics, require_trackers
from mmrlhf_engine.train.objective import Objective
from mmrlhf_engine.train.plan import plan_of
from mmrlhf_engine.train.settings import TrainSettings
from mmrlhf_engine.train.training import Training

__all__ = ["RunFolder", "checked", "halve_frozen_weights", "open_training", "resolved"]

FREE_TO_CHANGE = frozenset(
    {"track", "threads", "checkpoint", "cache_features", "shards", "model", "reference"}
)
"""Settings that do not change what is trained, and names of what is compared by its content; a run
may go on with others."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run writes, and what it is called in messages."""

    folder: Path
    command: str
    progress: Progress


def resolved(config: Any) -> Any:
    """The settings with the precision that null stands for.

    Raises:
        ConfigError: the shards or the model are not named, or settings do not fit together.
    """
    config = with_precision(config)
    evaluation = config.evaluation
    if evaluation.share and evaluation.shards is not None:
        raise ConfigError("evaluation: found share and shards, expected one of them")
    if config.precision == "bfloat16" and is_deepspeed_asked_for():
        # DeepSpeed casts every weight; a reference has to be made with such weights as well.
        return config.model_copy(update={"frozen_weights": "bfloat16"})
    if config.frozen_weights == "bfloat16" and config.lora is None and "text" not in config.freeze:
        raise ConfigError(
            "frozen_weights: found bfloat16, but the weights of the text model train",
            hint="lora, or freeze the text model",
        )
    return config


def checked(config: TrainSettings) -> ShardDataset:
    """The dataset, packed for the model.

    Raises:
        InputError: there is none, or it was packed for another model.
    """
    dataset = open_dataset(config.shards)
    check_model_fits(dataset, config.model, other_template=config.other_template)
    return dataset


def open_training(
    config: TrainSettings,
    objective: Objective,
    accelerator: Accelerator,
    place: RunFolder,
    *,
    inputs: dict[str, Any],
    evaluation_objective: Objective,
) -> Training:
    """Everything that the loop needs; from the newest checkpoint where there is one.

    Args:
        config: Of the command.
        objective: What is minimised.
        accelerator: Of this process.
        place: Of the run.
        inputs: What shards, weights and columns are; a checkpoint of others is refused.
        evaluation_objective: The same over the held-out pairs.

    Raises:
        ConfigError: the newest checkpoint was made under other settings.
        InputError: data, columns or model do not fit together.
    """
    require_trackers(config.track)
    torch.manual_seed(config.seed)
    checkpoints = Checkpoints(place.folder / "checkpoints", config.checkpoint.keep)
    is_main = accelerator.is_main_process
    if is_main:
        checkpoints.remove_partial()
    accelerator.wait_for_everyone()
    newest = checkpoints.newest()
    state = None if newest is None else checkpoints.read_state(newest)
    if state is not None:
        _check_settings(config, inputs, state, place)
        place.progress.say(f"{objective.name}: goes on after step {state['step']:,}")
    data = _data(config, objective, place)
    run = Training(
        config=config,
        objective=objective,
        accelerator=accelerator,
        policy=_policy(config, objective, newest, accelerator, place),
        data=data,
        evaluation=_evaluation(config, evaluation_objective),
        evaluation_objective=evaluation_objective,
        total_steps=_total_steps(config, data, accelerator),
        checkpoints=checkpoints,
        accounting=Accounting(
            open_dataset(config.shards).rows("pairs"),
            config.data.max_unreadable,
            ties_train=objective.ties_train,
            progress=place.progress,
        ),
        processor=model_folder(config.model),
        evaluated=_evaluated_before(place, state),
        state=state,
        inputs=inputs,
        # Last, as it opens a file that the caller closes.
        metrics=_metrics(config, objective, place, state) if is_main else None,
    )
    if is_main:
        _write_facts(run, place)
    return run


def _metrics(
    config: TrainSettings, objective: Objective, place: RunFolder, state: dict[str, Any] | None
) -> MetricsWriter:
    return MetricsWriter(
        place.folder,
        track=config.track,
        run_name=place.folder.resolve().parent.name,
        config=config.model_dump(mode="json"),
        progress=place.progress,
        command=objective.name,
        after_step=0 if state is None else state["step"],
    )


def _evaluated_before(place: RunFolder, state: dict[str, Any] | None) -> frozenset[int]:
    """Steps up to the checkpoint whose evaluation is in the metrics."""
    if state is None:
        return frozenset()
    lines = read_metrics(place.folder / "metrics.jsonl")
    steps = (line["step"] for line in lines if "eval_loss" in line)
    return frozenset(step for step in steps if step <= state["step"])


def _data(config: TrainSettings, objective: Objective, place: RunFolder) -> PreferenceDataset:
    data = PreferenceDataset(
        config.shards,
        columns=objective.columns,
        added_tokens=objective.added_tokens,
        threads=config.threads,
        **plan_of(config).model_dump(exclude={"added_tokens"}),
    )
    if data.units_above_budget:
        what = "left out" if config.data.too_large == "drop" else "packed alone"
        place.progress.say(
            f"{data.units_above_budget:,} units above {config.data.tokens:,} tokens are {what}"
        )
    return data


def _evaluation(config: TrainSettings, objective: Objective) -> PreferenceDataset | None:
    other = config.evaluation.shards
    if other is None and not config.evaluation.share:
        return None
    # A step of it is a pack a process: there is none to wait for.
    plan = plan_of(config, "held_out" if other is None else None).model_dump(
        exclude={"packs_per_step", "added_tokens"}
    )
    return PreferenceDataset(
        other or config.shards,
        columns=objective.columns,
        added_tokens=objective.added_tokens,
        threads=config.threads,
        **plan,
    )


def _total_steps(config: TrainSettings, data: PreferenceDataset, accelerator: Accelerator) -> int:
    """Steps of all epochs, whose packs differ by a few."""
    packs = -(-config.data.packs_per_step // accelerator.num_processes)
    steps = 0
    for epoch in range(config.epochs):
        data.set_epoch(epoch)
        steps += len(data) // packs
    data.set_epoch(0)
    return steps if config.steps is None else min(config.steps, steps)


def _base_of_adapters(model: str, place: RunFolder, accelerator: Accelerator) -> str:
    """The folder or name that new adapters say they belong to.

    Of a model that is an adapter itself, its base with it merged, which is kept in the run.
    """
    if adapter_base(model) is None:
        return str(Path(model).resolve()) if Path(model).is_dir() else model
    base = place.folder.resolve() / "base"
    if accelerator.is_main_process and not base.is_dir():
        partial = base.with_name(".base.partial")
        shutil.rmtree(partial, ignore_errors=True)
        read = read_reward_model if is_reward_model(model) else read_model
        merged, _ = read(model, torch.float32)
        merged.save_pretrained(partial)
        copy_processor(model_folder(model), partial)
        partial.rename(base)
    accelerator.wait_for_everyone()
    return str(base)


def _policy(
    config: TrainSettings,
    objective: Objective,
    newest: Path | None,
    accelerator: Accelerator,
    place: RunFolder,
) -> PackedPolicy:
    lora = None if config.lora is None else config.lora.model_dump()
    if lora is not None and lora["targets"] == ("all-linear",):
        lora["targets"] = "all-linear"
    # A checkpoint of adapters holds these alone, and is laid over the model they were made for.
    weights = str(newest) if newest is not None and lora is None else config.model
    if lora is not None:
        weights = _base_of_adapters(config.model, place, accelerator)
    policy = objective.load_model(
        weights,
        device=accelerator.device,
        freeze=config.freeze,
        lora=lora,
        gradient_checkpointing=config.gradient_checkpointing,
        compile=config.compile,
        features=None if config.cache_features is None else FeatureCache(config.cache_features),
    )
    if newest is not None and lora is not None:
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(policy.model, load_peft_weights(str(newest), device="cpu"))
    if config.frozen_weights == "bfloat16":
        halve_frozen_weights(policy)
    return policy


def halve_frozen_weights(policy: PackedPolicy) -> None:
    """Keep the weights that do not train in bfloat16; buffers, such as frequencies, stay."""
    for parameter in policy.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def _check_settings(
    config: TrainSettings, inputs: dict[str, Any], state: dict[str, Any], place: RunFolder
) -> None:
    now, kept = json.loads(config.model_dump_json()), json.loads(state["settings"])
    lines = [
        line
        for key in now
        if key not in FREE_TO_CHANGE
        for line in differences(key, kept.get(key), now[key])
    ]
    lines += differences("", json.loads(state["inputs"]), json.loads(json.dumps(inputs)))
    if lines:
        raise ConfigError(
            f"{place.folder}: the checkpoints there are of a run with other settings or inputs: "
            + "; ".join(lines),
            hint="--restart removes them and begins again; or another --out",
        )


def _write_facts(run: Training, place: RunFolder) -> None:
    """What the page says of a run, beside its settings and metrics."""
    config, file = run.config, place.folder / "facts.json"
    dataset = open_dataset(config.shards)
    parameters = list(run.policy.parameters())
    resumed = read_json(file) if run.state is not None else None
    reference = run.objective.columns.get("reference")
    facts = {
        "command": place.command,
        "version": __version__,
        "model": config.model,
        "family": run.policy.family.name if run.policy.family is not None else "text",
        "parameters_total": sum(parameter.numel() for parameter in parameters),
        "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
        "shards": config.shards,
        "pairs": dataset.rows("pairs"),
        "queries": dataset.rows("queries"),
        "steps": run.total_steps,
        "packs_per_step": config.data.packs_per_step,
        "tokens_per_pack": config.data.tokens,
        "precision": config.precision,
        "devices": [str(run.accelerator.device)] * run.accelerator.num_processes,
        "reference": None if reference is None else reference.column_set,
        "resumed_at": (resumed or {}).get("resumed_at", []),
    }
    if run.state is not None:
        facts["resumed_at"] = [*facts["resumed_at"], run.state["step"]]
    write_atomically(file, json.dumps(facts, indent=2) + "\n")
