"""The head that gives a reward, and the classes of transformers with it beside their output head.

The names are those of the released checkpoint of MM-RLHF (``rm_head.dense``, ``rm_head.out_proj``);
all other weights have the names that they have in the policy. The class is made at run time from
the one that transformers has for the model, so that every family has one.
"""

import math
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmrlhf_engine.models.parts import REWARD_HEAD
from mmrlhf_engine.run.config import Section

__all__ = ["RewardHead", "RewardHeadSettings", "add_reward_head", "reward_class"]

_TASKS = ("ForConditionalGeneration", "ForCausalLM")


class RewardHeadSettings(Section):
    """The head of a reward model."""

    activation: Literal["tanh", "silu", "linear"] = "tanh"
    """``tanh`` is the released one: ``Linear(H, H)``, tanh, ``Linear(H, 1)``; ``silu`` the same
    with SiLU; ``linear`` is ``Linear(H, 1)`` alone, as the paper (arXiv 2502.10391) has it."""


class _Float32Linear(nn.Linear):
    """A product in float32, whatever type the weights have and whether autocast is on."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


class RewardHead(nn.Module):
    """``out_proj(activation(dense(hidden)))``, or ``out_proj(hidden)``, with biases.

    Args:
        width: H, of the hidden states.
        settings: Which of them.
    """

    def __init__(self, width: int, settings: RewardHeadSettings) -> None:
        super().__init__()
        self.activation = settings.activation
        if settings.activation != "linear":
            self.dense = _Float32Linear(width, width)
        self.out_proj = _Float32Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Rewards float32 [S] of hidden states [S, H]."""
        if self.activation != "linear":
            activation = torch.tanh if self.activation == "tanh" else nn.functional.silu
            hidden = activation(self.dense(hidden))
        rewards: Tensor = self.out_proj(hidden)
        return rewards[..., 0]

    @torch.no_grad()
    def draw(self) -> None:
        """Draw the weights by torch's generator.

        Normal with standard deviation ``1 / sqrt(H + 1)`` (Stiennon et al., 2020, appendix B.1);
        biases are 0.
        """
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            layer.weight.normal_(std=1 / math.sqrt(layer.in_features + 1))
            layer.bias.zero_()


@cache
def reward_class(base: type[Any]) -> type[Any]:
    """The subclass of a class of transformers that has ``rm_head`` as well.

    Its configuration says which head (``reward_head``), and ``is_rm``. Transformers looks up how
    weights are renamed in files by module and name of a class; both are made to give the same as
    for ``base``.
    """

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        self.rm_head = _head_of(config)

    kept = list(getattr(base, "_keep_in_fp32_modules_strict", None) or ())
    name = base.__name__
    for task in _TASKS:
        name = name.removesuffix(task)
    name += "RewardModel"
    _rename_as(name, base.__name__)
    return type(
        name,
        (base,),
        {
            "__init__": __init__,
            "__module__": base.__module__,
            "__doc__": f"{base.__name__} with a reward head.",
            "_keep_in_fp32_modules_strict": [*kept, REWARD_HEAD],
        },
    )


def add_reward_head(model: Any, settings: RewardHeadSettings) -> Any:
    """Make a policy a reward model with a head that is drawn by torch's generator.

    Args:
        model: A ``PreTrainedModel``; it is changed.
        settings: Of the head.

    Returns:
        The same object, of the class :func:`reward_class` gives.
    """
    model.config.is_rm = True
    model.config.reward_head = settings.model_dump()
    base: Any = type(model)
    model.__class__ = reward_class(base)
    model.rm_head = _head_of(model.config)
    model.rm_head.draw()
    return model


def _head_of(config: Any) -> RewardHead:
    settings = RewardHeadSettings.model_validate(config.reward_head)
    return RewardHead(config.get_text_config().hidden_size, settings)


def _rename_as(name: str, base: str) -> None:
    """Let transformers convert the names of weights of one class as those of another."""
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
    except ImportError:
        return  # Before version 5 the class itself says how, and a subclass inherits it.
    mapping = get_checkpoint_conversion_mapping(base)
    if mapping is not None:
        register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
