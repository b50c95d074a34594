"""TRL's side: its ``DPOTrainer`` with a copy of the model as reference. Written for TRL 1.16."""

import copy
from pathlib import Path
from typing import Any

import transformers as hf
import trl.trainer.utils as trl_utils
from datasets import Dataset, load_dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from mmrlhf_engine.models.policy import load_policy
from training.memory import AllocationCount
from training.steps import Clock, Steps, trained, weight_bytes

_AS_IT_SHIPS = trl_utils._use_triton


class _Watch(TrainerCallback):
    """Clocks around the steps; allocations of one of them."""

    def __init__(self, model: Any, reference: Any, memory_of: int | None) -> None:
        self.found = Steps()
        self._model, self._reference, self._memory_of = model, reference, memory_of
        self._count = AllocationCount(trained(model)) if memory_of is not None else None
        self._whole = self._step = Clock()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._whole = Clock()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self._count is not None and len(self.found.seconds) == self._memory_of:
            self._count.start()
        self._step = Clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.found.seconds.append(self._step.since())
        if self._count is not None and len(self.found.seconds) - 1 == self._memory_of:
            self._count.stop()
            self.found.memory = {
                **self._count.peaks(),
                "weights": weight_bytes(self._model),
                "second_model": weight_bytes(self._reference),
            }
        self.found.whole = self._whole.since()


def load_pairs(file: Path, cache: Path, rows: list[int] | None = None) -> Dataset:
    """The pairs of the file, in the order of ``rows``."""
    found = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(cache))
    return found if rows is None else found.select(rows)


def frozen_names(folder: Path) -> set[str]:
    """The weights that are frozen on our side: those of the tower."""
    model = load_policy(str(folder), freeze=("tower",)).model
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def load_model(folder: Path, frozen: set[str]) -> Any:
    """The model, some of its weights frozen."""
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


def processor_of(folder: Path) -> Any:
    """The model's processor with the PIL backend, whose pixels ours are.

    Those of torchvision, which transformers takes by itself, differ by 1 of 255 where a picture is
    resized, which is more than the losses may differ.
    """
    processor = hf.AutoProcessor.from_pretrained(folder)
    processor.image_processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor


def make_trainer(
    model: Any,
    folder: Path,
    pairs: Dataset,
    out: Path,
    *,
    steps: int,
    pairs_of_step: int,
    checkpointing: bool,
    memory_of: int | None = None,
) -> tuple[DPOTrainer, Steps]:
    """A trainer whose steps are those of ours, and where it writes down what they take."""
    reference = copy.deepcopy(model)
    watch = _Watch(model, reference, memory_of)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=pairs_of_step,
            train_sampling_strategy="sequential",
            gradient_checkpointing=checkpointing,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            beta=0.1,
            max_length=None,
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        processing_class=processor_of(folder),
        callbacks=[watch],
    )
    return trainer, watch.found


def run_steps(trainer: DPOTrainer, found: Steps, *, compact: bool) -> Steps:
    """Every step; ``compact`` scores the rows of answers alone, as TRL does on a GPU."""
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        batch = collate(examples)
        found.tokens.append(batch["input_ids"].numel())
        found.pictures.append(2 * sum(len(example["images"]) for example in examples))
        return batch

    trainer.data_collator = counted
    trl_utils._use_triton = (lambda _: True) if compact else _AS_IT_SHIPS
    try:
        trainer.train()
    finally:
        trl_utils._use_triton = _AS_IT_SHIPS
    found.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return found
