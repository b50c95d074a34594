"""The parts of a model: which of its weights belong to tower, projector, text model and head."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families.vision import Vision

__all__ = ["PARTS", "freeze_parts", "part_of", "turn_dropout_off"]

PARTS = ("tower", "projector", "text", "head")
"""``text`` is all that is none of the others, embeddings included."""

# Numbers that modules of transformers pass to functions, where they have no module of dropout.
_RATES = ("attention_dropout", "activation_dropout", "dropout", "layerdrop")


def freeze_parts(model: Any, vision: Vision | None, parts: Sequence[str]) -> None:
    """Keep parts of a model from being trained, and what nothing depends on.

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
    unused = () if vision is None else vision.unused
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if part_of(name, model, vision) in parts or _is_within(name, model, unused):
            parameter.requires_grad_(False)


def part_of(name: str, model: Any, vision: Vision | None) -> str:
    """The part of :data:`PARTS` that a parameter or module belongs to, by its name in the model."""
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
