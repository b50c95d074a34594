"""The training loop, whole and visible: copy it and change it.

A step is a few packs of the plan. Its totals are counted before its first pack, so that each pack's
loss is its part of the step's, whatever packs hold. After the step come what is logged, what is
evaluated, and what is kept; a run goes on from the newest checkpoint as if nothing had been.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from mmrlhf_engine.errors import StageError
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.run.memory import peak_memory
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.device import gather_values
from mmrlhf_engine.train.interrupt import StopRequest
from mmrlhf_engine.train.objective import Objective, StepMetrics, Totals
from mmrlhf_engine.train.optimizer import make_optimizer, make_schedule
from mmrlhf_engine.train.state import restore, save
from mmrlhf_engine.train.training import Training

__all__ = ["evaluate", "steps_of", "train", "train_step"]

Batch = PreferenceBatch[Any]


def train(run: Training) -> None:
    """Train to the last step; on Ctrl-C or SIGTERM finish the step and leave a checkpoint.

    Raises:
        KeyboardInterrupt: the run was stopped; a checkpoint of its last step is there.
        StageError: a value is not finite, too many pictures cannot be read, or the disk is full.
    """
    config, accelerator = run.config, run.accelerator
    optimizer = make_optimizer(config.optimizer, run.policy)
    schedule = make_schedule(config.schedule, optimizer, run.total_steps)
    model, optimizer = accelerator.prepare(run.policy, optimizer)
    if run.state is not None:
        restore(run, model, optimizer, schedule)
    # Also of the step that a checkpoint was written after, if the run ended before it.
    evaluate_if_due(run, model)
    model.train()
    with StopRequest() as stop:
        for batches in steps_of(run.data, run.total_steps - run.step):
            values = train_step(run, model, optimizer, batches)
            run.step += 1
            values |= {"learning_rate": schedule.get_last_lr()[0]}
            log(run, values)
            schedule.step()
            run.accounting.add(batches)
            last = run.step == run.total_steps
            if last or stop.requested or run.step % config.checkpoint.every == 0:
                save(run, model, optimizer, schedule, batches[-1])
            if stop.requested and not last:
                raise KeyboardInterrupt
            evaluate_if_due(run, model)


def steps_of(data: PreferenceDataset, steps: int) -> Iterator[list[Batch]]:
    """The packs of this process, step by step, epoch after epoch."""
    packs: list[Batch] = []
    while steps > 0:
        for batch in data:
            packs.append(batch)
            if batch.ends_step:
                yield packs
                packs = []
                steps -= 1
                if steps == 0:
                    return


def train_step(run: Training, model: Any, optimizer: Any, batches: list[Batch]) -> dict[str, float]:
    """One move of the optimizer; the values of the step.

    Raises:
        StageError: a value or the gradient is not finite; the weights are as before the step.
    """
    accelerator, objective = run.accelerator, run.objective
    totals = totals_of(run, batches)
    metrics = StepMetrics()
    began, tokens = time.monotonic(), 0
    # Gradients of processes are averaged, but the parts of a step add up.
    scale = accelerator.num_processes
    for batch in batches:
        pack = pack_of(run, batch, objective)
        tokens += pack.input_ids.shape[1]
        output = model(pack, objective.head(batch, totals, accelerator.device))
        metrics.add(output)
        last = batch is batches[-1]
        if last:
            stop_if_not_finite(run, metrics)
        # DeepSpeed moves its optimizer within this backward pass, the others below.
        accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last else accelerator.no_sync(model):
            accelerator.backward(output.loss * scale)
    largest = run.config.optimizer.max_grad_norm
    found = accelerator.clip_grad_norm_(model.parameters(), largest or float("inf"))
    norm = float(found) if found is not None else float("nan")
    if not torch.isfinite(torch.tensor(norm)):
        rows = sorted({int(row) for batch in batches for row in batch.pair_row})
        raise StageError(
            f"step {run.step + 1}: the norm of the gradient is {norm}, though the loss is finite; "
            f"pairs of the step: rows {rows[:20]}{' ...' if len(rows) > 20 else ''}",
            hint="a smaller learning rate, or precision=float32; the newest checkpoint is intact",
        )
    optimizer.step()
    optimizer.zero_grad()
    values = metrics.values(partial(gather_values, accelerator))
    objective.after_step(values, totals)
    values |= speed_of(batches, tokens, time.monotonic() - began, accelerator)
    return values | {"grad_norm": norm, "num_pairs": totals.pairs, "num_tokens": totals.tokens}


def pack_of(run: Training, batch: Batch, objective: Objective) -> ModelPack:
    """What the model reads of a batch.

    Of several processes each uses the projector in each step, with a blank picture if there is no
    other: gradients are averaged over all processes, and all have to have one.
    """
    pack = ModelPack.of(batch, run.accelerator.device, tails=objective.tails(batch))
    if run.accelerator.num_processes > 1 and run.policy.family is not None:
        return replace(pack, needs_vision=True)
    return pack


def totals_of(run: Training, batches: list[Batch]) -> Totals:
    """Pairs and tokens of a step over all processes."""
    counts = torch.tensor([run.objective.totals(batch) for batch in batches]).sum(0)
    pairs, tokens, ties = run.accelerator.reduce(counts.to(run.accelerator.device)).tolist()
    return Totals(max(1, pairs), max(1, tokens), ties)


def stop_if_not_finite(run: Training, metrics: StepMetrics) -> None:
    """An error that names the pair, before the optimizer has moved."""
    wrong = metrics.not_finite()
    if wrong is None:
        return
    name, row = wrong
    of_pair = f" of pair {row} of {run.config.shards}"
    raise StageError(
        f"step {run.step + 1}: {name}{of_pair if row >= 0 else ''} is not a finite number; "
        "the weights are as before the step",
        hint="look at this pair and its reference log-probabilities; a smaller learning rate; "
        "precision=float32",
    )


@torch.no_grad()
def evaluate(run: Training, model: Any) -> dict[str, float]:
    """Means over the held-out pairs, under the names of training with the prefix ``eval_``."""
    accelerator, objective = run.accelerator, run.evaluation_objective
    assert run.evaluation is not None
    objective.load_state_dict(run.objective.state_dict())
    run.evaluation.set_epoch(0)
    outputs = StepMetrics()
    counted = [torch.zeros(3, dtype=torch.int64, device=accelerator.device)]
    model.eval()
    for batch in run.evaluation:
        # Sums over the packs: means are taken when their number is known.
        pack = pack_of(run, batch, objective)
        outputs.add(model(pack, objective.head(batch, Totals(1, 1), accelerator.device)))
        counted.append(torch.tensor(objective.totals(batch), device=accelerator.device))
        if run.config.evaluation.share:
            run.accounting.hold_out(batch.pair_row)
    model.train()
    totals = Totals(*accelerator.reduce(torch.stack(counted).sum(0)).tolist())
    values = outputs.values(partial(gather_values, accelerator))
    return {f"eval_{name}": value for name, value in objective.means(values, totals).items()}


def evaluate_if_due(run: Training, model: Any) -> None:
    """Evaluate before the first step, every so many steps, and after the last."""
    due = run.step % run.config.evaluation.every == 0 or run.step == run.total_steps
    if run.evaluation is not None and due and run.step not in run.evaluated:
        log(run, evaluate(run, model))


def log(run: Training, values: dict[str, float]) -> None:
    """Write the values of this step, on the first process."""
    if run.metrics is not None:
        run.metrics.log(run.step, run.total_steps, values)


def speed_of(
    batches: list[Batch], tokens: int, seconds: float, accelerator: Accelerator
) -> dict[str, float]:
    """What a step of this process worked on, of all processes, and the memory of this one."""
    counts = torch.tensor(
        [tokens, sum(len(batch.image_blob) for batch in batches)], device=accelerator.device
    )
    tokens, pictures = accelerator.reduce(counts).tolist()
    on_gpu = accelerator.device.type == "cuda"
    return {
        "seconds": seconds,
        "num_input_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "pictures_per_second": pictures / seconds,
        "memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
    }
