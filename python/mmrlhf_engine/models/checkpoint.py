"""Read a model of transformers from its files; refuse one that cannot read packs as it was trained.

What is refused: families that are not known, a reward model where a policy is expected and the
other way round, weights that are missing and would be random, layers of another kind than
attention.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.adapters import (
    adapter_base,
    adapter_reward_head,
    check_adapter_head,
    merge_adapter,
)
from mmrlhf_engine.models.families import FAMILIES
from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.reward_head import RewardHeadSettings, add_reward_head, reward_class

__all__ = ["is_reward_model", "read_model", "read_reward_model"]

_REWARD_CLASS = re.compile(r"(RewardModel|ForSequenceClassification)$")
_REWARD_WEIGHT = re.compile(r"(^|\.)(rm_head|reward_head|v_head|score)\.")
_ATTENTION = {"full_attention", "sliding_attention"}
_ALIGNMENT = 64
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
    reward = _reward_name(config)
    if base is not None and reward is None and adapter_reward_head(name) is not None:
        reward = "an adapter with a reward head"
    if reward is not None:
        raise ConfigError(
            f"{name}: a reward model ({reward}), expected a language model",
            hint="a policy needs an output head over the vocabulary",
        )
    model, family = _read(base or name, config, dtype)
    return (model if base is None else merge_adapter(model, name)), family


def is_reward_model(name: str) -> bool:
    """Whether a folder, or a name on the hub, is of a reward model or an adapter of one.

    Raises:
        ConfigError: there is no such model.
    """
    base = adapter_base(name)
    of_adapter = None if base is None else adapter_reward_head(name)
    return of_adapter is not None or _reward_name(_config(base or name)) is not None


def read_reward_model(
    name: str, dtype: torch.dtype, new_head: RewardHeadSettings | None = None
) -> tuple[Any, Family | None]:
    """A ``PreTrainedModel`` with ``rm_head``, and its family; None for one that reads text alone.

    Args:
        name: A folder or a name on the hub; of an adapter alone, its base is read, and the adapter
            merged.
        dtype: Of the weights; those of the reward head are float32.
        new_head: Gives a policy a new head, drawn by torch's generator; None reads a reward model.

    Raises:
        ConfigError: there is no such model, it cannot read packs, it is a policy where a reward
            model is expected or the other way round, or weights of its head are missing.
    """
    if new_head is not None:
        model, family = read_model(name, dtype)
        return add_reward_head(model, new_head), family
    base = adapter_base(name)
    config = _config(base or name)
    head = None if base is None else adapter_reward_head(name)
    if getattr(config, "is_rm", False):
        settings = _head_settings(base or name, getattr(config, "reward_head", None))
        config.reward_head = settings.model_dump()
        model, family = _read(base or name, config, dtype, reward=True)
    elif base is not None and head is not None:
        model, family = read_model(base, dtype)
        # What is drawn here is replaced by the head of the adapter.
        model = add_reward_head(model, _head_settings(name, head))
    else:
        kind = _reward_name(config)
        what = "a policy" if kind is None else "another reward model"
        raise ConfigError(
            f"{name}: {what} ({kind or _classes(config)}), expected a reward model",
            hint="train one: mmrlhf-engine reward",
        )
    if base is None:
        return model, family
    if head is not None:
        check_adapter_head(name, model)
    return merge_adapter(model, name), family


def _head_settings(name: str, found: Any) -> RewardHeadSettings:
    try:
        return RewardHeadSettings.model_validate(found)
    except ValidationError:
        raise ConfigError(
            f"{name}: reward_head of its configuration is {found!r}, expected activation tanh, "
            "silu or linear",
            hint="a released checkpoint has to be imported: mmrlhf-engine import-checkpoint",
        ) from None


def _read(
    name: str, config: Any, dtype: torch.dtype, *, reward: bool = False
) -> tuple[Any, Family | None]:
    family = _family(name, config)
    model = _weights(name, config, family, dtype, reward=reward)
    _align(model)
    _check_layers(name, model)
    return model, family


def _config(name: str) -> Any:
    from transformers import AutoConfig

    from mmrlhf_engine.models.tower_configs import register_towers

    try:
        register_towers(name)
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{name}: cannot be loaded: {first}", hint="a folder or a name on the hub"
        ) from None


def _reward_name(config: Any) -> str | None:
    """What is called a reward model by its configuration; None of another model."""
    classes = [str(one) for one in config.architectures or ()]
    if getattr(config, "is_rm", False) or any(map(_REWARD_CLASS.search, classes)):
        return ", ".join(classes) or "is_rm"
    return None


def _classes(config: Any) -> str:
    return ", ".join(map(str, config.architectures or ())) or str(config.model_type)


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


def _class_of(config: Any, family: Family | None, *, reward: bool) -> Any:
    """The class that opens the files."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    if not reward:
        kind = "AutoModelForCausalLM" if family is None else "AutoModelForImageTextToText"
        return getattr(transformers, kind)
    classes = (
        MODEL_FOR_CAUSAL_LM_MAPPING if family is None else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    return reward_class(classes[type(config)])


def _weights(
    name: str, config: Any, family: Family | None, dtype: torch.dtype, *, reward: bool
) -> Any:
    try:
        with _without_progress_bar():
            model, found = _class_of(config, family, reward=reward).from_pretrained(
                name, config=config, dtype=dtype, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name}: cannot be loaded: {error}") from None
    _check_unexpected(name, config, found["unexpected_keys"], reward=reward)
    missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if missing:
        raise ConfigError(
            f"{name}: {len(missing)} weights are missing or of another shape, and would be random: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            hint="the files of the checkpoint must fit its config.json",
        )
    return model


def _check_unexpected(name: str, config: Any, unexpected: Iterable[str], *, reward: bool) -> None:
    heads = sorted(key for key in unexpected if _REWARD_WEIGHT.search(key))
    if not heads:
        return
    if reward:
        raise ConfigError(
            f"{name}: found the weight {heads[0]}, which a reward head of {config.reward_head} "
            "does not have",
            hint="the files of the checkpoint must fit its config.json",
        )
    raise ConfigError(
        f"{name}: a reward model, as it has the weight {heads[0]}, expected a language model",
        hint="a policy needs an output head over the vocabulary",
    )


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


@torch.no_grad()
def _align(model: Any) -> None:
    """Move weights of a CPU that do not begin at a multiple of 64 bytes, as in a mapped file.

    Where they begin decides how products of matrices are summed, in the last bit: equal weights
    give equal results wherever their file has them.
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % _ALIGNMENT:
            weight.data = weight.data.clone()


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
