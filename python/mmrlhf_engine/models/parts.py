"""The parts of a model: which weights belong to tower, projector, text model and head."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.vision import Vision

__all__ = [
    "PARTS",
    "REWARD_HEAD",
    "blank_picture",
    "freeze_parts",
    "freeze_unused_tower",
    "is_partitioned",
    "part_of",
    "turn_dropout_off",
]

PARTS = ("tower", "projector", "text", "head")
"""``text`` is all that is none of the others, embeddings included. A reward model has the part
``reward_head`` besides, which is always trained."""
REWARD_HEAD = "rm_head"
"""The module of a reward model that gives rewards, by the name in the released checkpoint."""

# Numbers that modules of transformers pass to functions, where they have no module of dropout.
_RATES = ("attention_dropout", "activation_dropout", "dropout", "layerdrop")


def freeze_parts(model: Any, vision: Vision | None, parts: Sequence[str]) -> None:
    """Keep parts of a model from being trained.

    Args:
        model: A ``PreTrainedModel``.
        vision: How it sees; None where it reads text alone.
        parts: Of :data:`PARTS`; a weight that two parts share is frozen with either.

    Raises:
        ConfigError: a part is unknown.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"freeze: found {', '.join(unknown)}, expected any of {', '.join(PARTS)}")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if part_of(name, model, vision) in parts:
            parameter.requires_grad_(False)


def freeze_unused_tower(model: Any, vision: Vision) -> None:
    """Freeze the parameters of a tower that features do not depend on.

    Such as a norm after the layer that features are taken from: they have no gradient, for which
    processes that train together would wait.
    """
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and part_of(name, model, vision) == "tower"
    ]
    if not trained or is_partitioned(model):
        return
    base = model.base_model
    blank = blank_picture(vision, model.config, trained[0])
    encoded = vision.encode(base, blank.pixels, blank.grids)
    gradients = torch.autograd.grad(encoded.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def blank_picture(vision: Vision, config: Any, like: Tensor) -> DistinctPictures:
    """A smallest picture, shown nowhere; its pixels have type and device of another tensor."""
    shape, grid = vision.blank(config)
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    return DistinctPictures(
        pixels=torch.zeros(shape, dtype=like.dtype, device=like.device),
        blocks=[0, shape[0]],
        grids=torch.tensor([grid], device=like.device),
        sizes=torch.tensor([shape[-2:]], device=like.device),
        frames=[0],
        lengths=[0],
        tokens=none,
        features=none,
        content=torch.zeros(shape, dtype=torch.uint8),
        settings={},
    )


def is_partitioned(model: nn.Module) -> bool:
    """Whether DeepSpeed has divided the weights between ranks (ZeRO stage 3)."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def part_of(name: str, model: Any, vision: Vision | None) -> str:
    """The part that a parameter or module belongs to, by its name in the model.

    Returns:
        One of :data:`PARTS`, or ``reward_head``.
    """
    if name.partition(".")[0] == REWARD_HEAD:
        return "reward_head"
    head = model.get_output_embeddings()
    if any(name == own or name.startswith(f"{own}.") for own in _names_of(model, head)):
        return "head"
    if vision is not None:
        if _is_within(name, model, vision.projector):
            return "projector"
        if _is_within(name, model, vision.tower):
            return "tower"
    return "text"


def turn_dropout_off(model: nn.Module) -> None:
    """Set every dropout of a model to 0, as TRL's ``disable_dropout`` does."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in _RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _is_within(name: str, model: Any, modules: Sequence[str]) -> bool:
    prefix = f"{model.base_model_prefix}."
    own = name.removeprefix(prefix)
    return any(own == module or own.startswith(f"{module}.") for module in modules)


def _names_of(model: nn.Module, wanted: Any) -> Iterator[str]:
    return (name for name, module in model.named_modules() if module is wanted)
