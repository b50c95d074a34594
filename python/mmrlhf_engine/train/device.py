"""The device and the processes of a run, by accelerate.

``accelerate launch`` and ``torchrun`` say by environment variables how many processes there are and
whether DeepSpeed shares the model out; nothing here depends on which.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers.utils import logging as transformers_logging

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.train.settings import ModelSettings

__all__ = [
    "accelerator_for",
    "gather_values",
    "is_deepspeed_asked_for",
    "is_sharded",
    "with_precision",
]

SettingsOf = TypeVar("SettingsOf", bound=ModelSettings)


def with_precision(config: SettingsOf) -> SettingsOf:
    """The settings of a command with the precision that null stands for.

    Raises:
        ConfigError: the shards or the model are not named.
    """
    for name in ("shards", "model"):
        if not getattr(config, name):
            raise ConfigError(
                f"{name}: not given", hint="mmrlhf-engine COMMAND SHARDS --model MODEL --out RUN"
            )
    if config.precision is None:
        precision = "bfloat16" if torch.cuda.is_available() else "float32"
        return config.model_copy(update={"precision": precision})
    return config


@contextmanager
def accelerator_for(precision: str) -> Iterator[Accelerator]:
    """The accelerator of this process, and its state forgotten afterwards.

    Raises:
        ConfigError: the environment names more processes than accelerate has found.
    """
    # Made first: without a GPU, an Accelerator with DeepSpeed takes each process for the only one.
    PartialState(cpu=not torch.cuda.is_available())
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bfloat16" else "no")
    # Its bars for files of weights would stand between the lines of progress.
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if accelerator.num_processes != expected:
            raise ConfigError(
                f"found {accelerator.num_processes} processes, expected {expected} by WORLD_SIZE",
                hint="start with accelerate launch or torchrun",
            )
        yield accelerator
    finally:
        if had_bars:
            transformers_logging.enable_progress_bar()
        AcceleratorState._reset_state(reset_partial_state=expected == 1)


def is_deepspeed_asked_for() -> bool:
    """Whether ``accelerate launch`` says by its variable that DeepSpeed is to share a model out."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed shares the optimizer's states, and perhaps the weights, out."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def gather_values(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The values [n] of all processes one after the other; n may differ from one to another."""
    if accelerator.num_processes == 1:
        return values
    count = torch.tensor([len(values)], device=values.device)
    counts = accelerator.gather(count).tolist()
    padded = values.new_zeros(max(counts))
    padded[: len(values)] = values
    gathered = accelerator.gather(padded).reshape(len(counts), -1)
    return torch.cat([row[:count] for row, count in zip(gathered, counts, strict=True)])
