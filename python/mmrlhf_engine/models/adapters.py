"""LoRA adapters by peft: new ones on the text model, and saved ones merged into their base."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mmrlhf_engine.errors import ConfigError, MissingExtraError
from mmrlhf_engine.models.families.vision import Vision
from mmrlhf_engine.models.parts import REWARD_HEAD, part_of

__all__ = [
    "Lora",
    "adapter_base",
    "adapter_reward_head",
    "add_lora",
    "check_adapter_head",
    "merge_adapter",
]

_ADAPTER = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_MODEL = "config.json"


@dataclass(frozen=True)
class Lora:
    """Settings of an adapter: ``W x + alpha / rank * B A x`` (Hu et al., 2021)."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Linear modules by the end of their names: ``q_proj`` is looked for in the text model, a name
    with a dot (``visual.merger.linear_fc1``) in the whole model. ``all-linear`` is every one of the
    text model."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Lora":
        """From a mapping of the names above.

        Raises:
            ConfigError: a name is unknown, or a value out of range.
        """
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"lora: found {unknown}, expected some of {sorted(known)}")
        given = dict(settings)
        if given.get("targets", "all-linear") != "all-linear":
            targets = given["targets"]
            named = (targets,) if isinstance(targets, str) else tuple(targets)
            given["targets"] = "all-linear" if named == ("all-linear",) else named
        made = cls(**given)
        if made.rank < 1 or made.alpha <= 0 or not 0 <= made.dropout < 1 or not made.targets:
            raise ConfigError(
                f"lora: found {made}, expected rank >= 1, alpha > 0, 0 <= dropout < 1 and a target"
            )
        return made


def add_lora(model: Any, vision: Vision | None, lora: Lora) -> Any:
    """Wrap a model by peft; its own weights are frozen, but for a reward head.

    A reward head is trained, and saved with the adapter, whose ``adapter_config.json`` then says
    which head it is (``reward_head``).

    Args:
        model: A ``PreTrainedModel``.
        vision: How it sees; None where it reads text alone.
        lora: What is added.

    Raises:
        ConfigError: a target is the output head, or no linear module.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtraError("peft", extra="train", needed_for="lora") from None
    head = getattr(model.config, "reward_head", None)
    config = (LoraConfig if head is None else _with_reward_head(LoraConfig, head))(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, vision, lora.targets),
        task_type="CAUSAL_LM",
        modules_to_save=None if head is None else [REWARD_HEAD],
    )
    with warnings.catch_warnings():
        # peft asks by a name that transformers is about to drop.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        return get_peft_model(model, config)


def _with_reward_head(base: type[Any], head: Mapping[str, Any]) -> Any:
    """A class of configurations that also says which head a reward model has, in its file."""

    @dataclass
    class RewardLoraConfig(base):  # type: ignore[misc]
        reward_head: dict[str, Any] = field(default_factory=lambda: dict(head))

    return RewardLoraConfig


def _targets(model: Any, vision: Vision | None, targets: tuple[str, ...] | str) -> list[str]:
    """Full names of the modules that are meant."""
    linear = {
        name: part_of(name, model, vision)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    text = [name for name, part in linear.items() if part == "text"]
    if targets == "all-linear":
        return text
    chosen: dict[str, None] = {}
    for target in targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if found and all(linear[name] == "reward_head" for name in found):
            raise ConfigError(
                f"lora: target {target!r} is the reward head, which is trained as it is",
                hint="leave it out",
            )
        if any(linear[name] == "head" for name in found):
            raise ConfigError(
                f"lora: target {target!r} is the output head, whose weight is read as it is",
                hint="leave it out; lora=None trains the head itself",
            )
        if "." not in target:
            found = [name for name in found if linear[name] == "text"]
        if not found:
            names = sorted({name.rpartition(".")[2] for name in text})
            raise ConfigError(
                f"lora: found no linear module {target!r}, expected one of {', '.join(names)}, or "
                "the end of a name with a dot in it"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


def adapter_base(name: str) -> str | None:
    """The base model of a folder that holds an adapter alone; None where it is no such folder.

    Raises:
        ConfigError: it does not say which base, or that is not there.
    """
    folder = Path(name)
    if not (folder / _ADAPTER).is_file() or (folder / _MODEL).is_file():
        return None
    base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    hint = "give the model that the adapter was trained on; merge_and_unload() of peft joins both"
    if not base:
        raise ConfigError(f"{name}: an adapter that does not name its base model", hint=hint)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ConfigError(f"{name}: an adapter, whose base model {base} is not there", hint=hint)
    return str(base)


def adapter_reward_head(name: str) -> Any:
    """``reward_head`` of the configuration of an adapter; None where it has none."""
    return json.loads((Path(name) / _ADAPTER).read_text(encoding="utf-8")).get("reward_head")


def check_adapter_head(name: str, model: Any) -> None:
    """The files of an adapter must hold every weight of its reward head.

    Args:
        name: The folder of the adapter.
        model: With the head it was trained with.

    Raises:
        ConfigError: they do not.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(name) / _WEIGHTS
    try:
        with safe_open(file, "pt") as weights:
            keys = list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    wanted = [f"{REWARD_HEAD}.{own}" for own in getattr(model, REWARD_HEAD).state_dict()]
    missing = [own for own in wanted if not any(key.endswith(f".{own}") for key in keys)]
    if missing:
        raise ConfigError(
            f"{name}: {len(missing)} weights are missing, and would be random: "
            f"{', '.join(missing)}",
            hint="an adapter of a reward model is saved with its head",
        )


def merge_adapter(model: Any, name: str) -> Any:
    """The model with the adapter of a folder added to its weights.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError("peft", extra="train", needed_for=f"the adapter {name}") from None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        # What this module adds to the file; see adapter_reward_head.
        warnings.filterwarnings("ignore", r"Unexpected keyword arguments \['reward_head'\]")
        merged = PeftModel.from_pretrained(model, name).merge_and_unload()
    # peft freezes the base that an adapter is put on.
    return merged.requires_grad_(True)
