"""Optimizer and schedule by name, as torch and transformers have them."""

from typing import Any

import torch
from torch import nn

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.train.settings import OptimizerSettings, ScheduleSettings

__all__ = ["make_optimizer", "make_schedule"]


def make_optimizer(settings: OptimizerSettings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the parameters that train; those with one axis have no weight decay.

    Raises:
        ConfigError: no parameter trains.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("freeze: every part is frozen, so that nothing trains")
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in trained if parameter.dim() > 1],
            "weight_decay": settings.weight_decay,
        },
        {
            "params": [parameter for parameter in trained if parameter.dim() <= 1],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    rate = settings.learning_rate
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, eps=settings.epsilon)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate)


def make_schedule(
    settings: ScheduleSettings, optimizer: torch.optim.Optimizer, total_steps: int
) -> Any:
    """The schedule of ``transformers.get_scheduler`` over so many steps."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if settings.name == "constant" else settings.name
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=round(settings.warmup * total_steps),
        num_training_steps=total_steps,
    )
