"""Read a model of transformers from its files; refuse one that cannot read packs as it was trained.

What is refused: families that are not known, reward models, weights that are missing and would be
random, layers of another kind than attention.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.adapters import adapter_base, merge_adapter
from mmrlhf_engine.models.families import FAMILIES
from mmrlhf_engine.models.families.family import Family

__all__ = ["read_model"]

_REWARD_CLASS = re.compile(r"(RewardModel|ForSequenceClassification)$")
_REWARD_WEIGHT = re.compile(r"(^|\.)(rm_head|reward_head|v_head|score)\.")
_ATTENTION = {"full_attention", "sliding_attention"}
_OF_OTHER_SENSES = ("vision_config", "audio_config")


def read_model(name: str, dtype: torch.dtype) -> tuple[Any, Family | None]:
    """A ``PreTrainedModel`` and its family; None for one that reads text alone.

    Args:
        name: A folder or a name on the hub; of an adapter alone, its base is read, and the adapter
            merged.
        dtype: Of the weights.

    Raises:
        ConfigError: there is no such model, or it cannot read packs.
    """
    base = adapter_base(name)
    config = _config(base or name)
    family = _family(base or name, config)
    model = _weights(base or name, config, family, dtype)
    _check_layers(base or name, model)
    return (model if base is None else merge_adapter(model, name)), family


def _config(name: str) -> Any:
    from transformers import AutoConfig

    from mmrlhf_engine.models.tower_configs import register_towers

    try:
        register_towers(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{name}: cannot be loaded: {first}", hint="a folder or a name on the hub"
        ) from None
    classes = [str(one) for one in config.architectures or ()]
    if getattr(config, "is_rm", False) or any(map(_REWARD_CLASS.search, classes)):
        raise ConfigError(
            f"{name}: a reward model ({', '.join(classes) or 'is_rm'}), expected a language model",
            hint="a policy needs an output head over the vocabulary",
        )
    return config


def _family(name: str, config: Any) -> Family | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    sees = any(getattr(config, part, None) is not None for part in _OF_OTHER_SENSES)
    if not sees and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    family = FAMILIES.get(config.model_type)
    if family is None or isinstance(family.vision, str):
        why = "an unknown family" if family is None else family.vision
        known = [own.name for own in FAMILIES.values() if not isinstance(own.vision, str)]
        raise ConfigError(
            f"{name}: model_type {config.model_type!r} ({why}), expected one of "
            f"{', '.join(known)}, or a model of text alone",
            hint="a family is one small file: docs/decisions/0010-model-families.md",
        )
    return family


def _weights(name: str, config: Any, family: Family | None, dtype: torch.dtype) -> Any:
    import transformers

    kind = "AutoModelForCausalLM" if family is None else "AutoModelForImageTextToText"
    try:
        with _without_progress_bar():
            model, found = getattr(transformers, kind).from_pretrained(
                name, config=config, dtype=dtype, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name}: cannot be loaded: {error}") from None
    rewards = sorted(key for key in found["unexpected_keys"] if _REWARD_WEIGHT.search(key))
    if rewards:
        raise ConfigError(
            f"{name}: a reward model, as it has the weight {rewards[0]}, expected a language model",
            hint="a policy needs an output head over the vocabulary",
        )
    missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if missing:
        raise ConfigError(
            f"{name}: {len(missing)} weights are missing or of another shape, and would be random: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            hint="the files of the checkpoint must fit its config.json",
        )
    return model


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    # Standard error may carry progress as JSON.
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_layers(name: str, model: Any) -> None:
    """Every layer of the text model must take its attention from transformers' interface."""
    text = model.base_model.get_decoder()
    layers = set(getattr(text.config, "layer_types", None) or _ATTENTION)
    if layers <= _ATTENTION and text._supports_attention_backend:
        return
    other = ", ".join(sorted(layers - _ATTENTION)) or "attention of its own"
    raise ConfigError(
        f"{name}: {type(text).__name__} has {other}, which would mix the sequences of a pack",
        hint="take a model whose layers are all attention",
    )
