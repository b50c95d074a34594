"""Steps of TRL's ``DPOTrainer`` and of ``MMDPOTrainer`` on a tiny vision-language model."""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import transformers as hf
import trl.trainer.utils as trl_utils
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from heads.trl_trainer import settings
from mmrlhf_kernels.integrations.trl import MMDPOConfig, MMDPOTrainer
from training.content import write_pairs
from training.models import save_model

PAIRS, ANSWER = 4, 24
"""Pairs of a step, and tokens of an answer; a prompt has 360."""
CONTENDERS = ("TRL", "TRL, rows of answers", "ours", "ours, cached reference")
_AS_IT_SHIPS = trl_utils._use_triton


class _Clock(TrainerCallback):
    """[wall, processor] seconds of each step: forward passes, backward, optimizer."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self._begin = [0.0, 0.0]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begin = [time.perf_counter(), time.process_time()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter(), time.process_time()
        self.steps.append([b - a for a, b in zip(self._begin, now, strict=True)])


def compare(family: str, folder: Path, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Runs of all contenders in turn; a row each, with ratios to TRL as it ships."""
    save_model(family, folder / "model")
    processor = hf.AutoProcessor.from_pretrained(folder / "model")
    file = folder / "pairs.parquet"
    write_pairs(processor, family, file, queries=PAIRS * steps, answers=2, answer=ANSWER)
    pairs = Dataset.from_parquet(str(file), cache_dir=str(folder / "cache"))
    pairs = pairs.add_column("margin", [1.0] * len(pairs))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(_run(name, folder, processor, pairs, steps))
    return [_row(family, name, runs) for name in CONTENDERS]


def _run(name: str, folder: Path, processor: Any, pairs: Dataset, steps: int) -> dict[str, Any]:
    """Seconds of a step as means without the first, the losses, and tokens of a step."""
    ours = name.startswith("ours")
    cached = name == "ours, cached reference"
    clock = _Clock()
    model = hf.AutoModelForImageTextToText.from_pretrained(folder / "model", dtype="float32")
    # beta_w=0: all contenders have one beta, so that their losses must be equal.
    more = {"beta_w": 0.0, "precompute_ref_log_probs": cached} if ours else {}
    trainer = (MMDPOTrainer if ours else DPOTrainer)(
        model=model,
        ref_model=None if cached else copy.deepcopy(model),
        args=settings(
            folder / "run",
            MMDPOConfig if ours else DPOConfig,
            max_steps=steps,
            per_device_train_batch_size=PAIRS,
            gradient_checkpointing=False,
            weight_decay=0.0,
            **more,
        ),
        train_dataset=pairs,
        processing_class=processor,
        callbacks=[clock],
    )
    # On a GPU TRL scores the rows of answers alone, on a CPU all of them.
    trl_utils._use_triton = (lambda _: True) if name == CONTENDERS[1] else _AS_IT_SHIPS
    try:
        trainer.train()
    finally:
        trl_utils._use_triton = _AS_IT_SHIPS
    lines = [line for line in trainer.state.log_history if "loss" in line]
    wall, processor_time = (statistics.mean(step[k] for step in clock.steps[1:]) for k in (0, 1))
    return {
        "wall": wall,
        "processor": processor_time,
        "losses": [line["loss"] for line in lines],
        "tokens": int(lines[-1]["num_tokens"]) // steps,
    }


def _row(family: str, name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    mine, theirs = runs[name], runs[CONTENDERS[0]]
    wall = statistics.median(run["wall"] for run in mine)
    row = {
        "family": family,
        "contender": name,
        "tokens_of_step": mine[0]["tokens"],
        "steps_per_second": round(1 / wall, 3),
        "tokens_per_second": round(mine[0]["tokens"] / wall, 1),
        "largest_difference_of_losses": max(
            abs(a - b) for a, b in zip(mine[0]["losses"], theirs[0]["losses"], strict=True)
        ),
    }
    for what in ("wall", "processor"):
        ratios = sorted(b[what] / a[what] for a, b in zip(mine, theirs, strict=True))
        spread = [statistics.median(ratios), ratios[0], ratios[-1]]
        row[f"times_as_fast_{what}"] = [round(value, 3) for value in spread]
    return row
