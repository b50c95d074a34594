"""The sizes of a model that its configuration alone decides: no weight is read.

The model is built on torch's ``meta`` device, where parameters have a shape and no memory.
"""

from dataclasses import dataclass
from typing import Any, Literal

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["ModelSizes", "Part", "TextShape", "TowerShape", "build_on_meta", "read_sizes"]

Part = Literal["tower", "projector", "text", "embeddings", "head", "adapters"]
PARTS: tuple[Part, ...] = ("tower", "projector", "text", "embeddings", "head", "adapters")


@dataclass(frozen=True)
class TextShape:
    """The layers of the text model."""

    layers: int
    hidden: int
    heads: int
    head_width: int
    intermediate: int
    vocabulary: int

    @property
    def attention_width(self) -> int:
        """Of all heads together."""
        return self.heads * self.head_width


@dataclass(frozen=True)
class TowerShape:
    """The layers of the vision tower, and how pixels become its tokens."""

    layers: int
    width: int
    heads: int
    intermediate: int
    patch: int
    """Side of a patch in pixels."""
    class_tokens: int
    """Tokens of a view beside its patches."""
    merge: int
    """Patches along a side that are projected together."""
    full_layers: int
    """Layers in which all patches of a frame see each other; in the others, those of a window."""
    window: int
    """Patches along the side of a window; 0 where there are none."""


@dataclass(frozen=True)
class ModelSizes:
    """Parameters by part, and what of them is multiplied with every token."""

    parameters: dict[Part, int]
    """All of them, none counted twice; a head that is tied to the embeddings has none."""
    trained_parameters: dict[Part, int]
    """Those whose weights change."""
    products: dict[Part, int]
    """Weights of linear layers, which each token is multiplied with."""
    patch_products: int
    """Weights of the layer that makes a token of a patch; not among those of the tower."""
    shapes: tuple[tuple[int, ...], ...]
    """Of every parameter that is trained."""
    largest_module: int
    """Parameters of the largest of the text layers, the embeddings and the head: ZeRO-3 collects
    the parameters of one at a time."""
    text: TextShape
    tower: TowerShape | None
    tied: bool
    """Whether the head is the embeddings."""

    head_trains: bool
    """Whether the weight of the head needs a gradient."""

    @property
    def trained(self) -> frozenset[Part]:
        """Parts of which some weights change."""
        return frozenset(part for part, count in self.trained_parameters.items() if count)

    def count(self, *, trained: bool) -> int:
        """Parameters that are trained, or the others."""
        of_trained = sum(self.trained_parameters.values())
        return of_trained if trained else sum(self.parameters.values()) - of_trained


def build_on_meta(name: str) -> Any:
    """The model of a folder or of a name on the hub, by its ``config.json`` alone.

    Raises:
        ConfigError: there is no such file, or transformers has no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from mmrlhf_engine.models.tower_configs import register_towers

    try:
        register_towers(name)
        config = AutoConfig.from_pretrained(name)
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        with torch.device("meta"):
            return kind.from_config(config)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"--model {name}: its configuration cannot be read: {first}",
            hint="a folder with config.json, or a name on the hub",
        ) from None


def read_sizes(model: Any, settings: TrainSettings) -> ModelSizes:
    """The sizes of a model, after its parts are frozen, or adapters added, as training does it.

    Args:
        model: A ``PreTrainedModel``, which is changed by that; its weights may be on ``meta``.
        settings: ``freeze`` and ``lora`` are read.

    Raises:
        ConfigError: no linear layer of the text model is a target of ``lora``.
        InputError: packs are not given to models of this family.
    """
    from mmrlhf_engine.models.adapters import Lora, add_lora
    from mmrlhf_engine.models.parts import freeze_parts

    vision = _vision_of(model)
    base, config = model.base_model, model.config
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = _parameters_by_part(model, vision)
    linear = _linear_layers(model)
    freeze_parts(model, vision, settings.freeze)
    layers = _text_layers(base)
    largest = max(_count(layers[0]), embeddings.weight.numel())
    patch_products = 0 if vision is None else _patch_weights(base, vision.tower)
    products = {part: _product_weights(own, linear) for part, own in parts.items()}
    products["head"] = head.weight.numel()
    if settings.lora is not None:
        model = add_lora(model, vision, Lora.of(settings.lora.model_dump()))
        named = model.named_parameters()
        parts["adapters"] = {name: own for name, own in named if "lora_" in name}
        products["adapters"] = sum(own.numel() for own in parts["adapters"].values())
    trained = {
        part: [parameter for parameter in own.values() if parameter.requires_grad]
        for part, own in parts.items()
    }
    return ModelSizes(
        parameters={part: sum(p.numel() for p in own.values()) for part, own in parts.items()},
        trained_parameters={part: sum(p.numel() for p in own) for part, own in trained.items()},
        products=products,
        patch_products=patch_products,
        shapes=tuple(tuple(p.shape) for own in trained.values() for p in own),
        largest_module=largest,
        text=_text_shape(config),
        tower=None if vision is None else _tower_shape(config, parts["tower"]),
        tied=head.weight is embeddings.weight,
        head_trains=head.weight.requires_grad,
    )


def _vision_of(model: Any) -> Any:
    from mmrlhf_engine.models.families import FAMILIES

    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return None
    if isinstance(family.vision, str):
        raise InputError(f"{family.name} cannot read packs: {family.vision}")
    return family.vision


def _parameters_by_part(model: Any, vision: Any) -> dict[Part, dict[str, Any]]:
    from mmrlhf_engine.models.parts import part_of

    embeddings = model.get_input_embeddings().weight
    parts: dict[Part, dict[str, Any]] = {part: {} for part in PARTS}
    for name, parameter in model.named_parameters():
        part: Any = part_of(name, model, vision)
        parts["embeddings" if parameter is embeddings else part][name] = parameter
    return parts


def _linear_layers(model: Any) -> set[str]:
    """The names of the weights of linear layers."""
    import torch

    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def _product_weights(parameters: dict[str, Any], linear: set[str]) -> int:
    """Weights of linear layers."""
    return sum(int(own.numel()) for name, own in parameters.items() if name in linear)


def _patch_weights(base: Any, tower: tuple[str, ...]) -> int:
    """Weights of the convolutions of the tower, which make a token of a patch."""
    import torch

    convolutions = (torch.nn.Conv2d, torch.nn.Conv3d)
    return sum(
        int(module.weight.numel())
        for name in tower
        for module in base.get_submodule(name).modules()
        if isinstance(module, convolutions)
    )


def _text_layers(base: Any) -> Any:
    return getattr(base, "language_model", base).layers


def _count(module: Any) -> int:
    return sum(int(parameter.numel()) for parameter in module.parameters())


def _text_shape(config: Any) -> TextShape:
    text = config.get_text_config()
    heads = text.num_attention_heads
    return TextShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
    )


def _tower_shape(config: Any, parameters: dict[str, Any]) -> TowerShape:
    vision = config.vision_config
    # Qwen2-VL calls the width of its tower embed_dim, and hidden_size that of the text model.
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    heads = getattr(vision, "num_attention_heads", None) or vision.num_heads
    ratio = getattr(vision, "mlp_ratio", None)
    patch = vision.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    with_class = any(name.endswith(("class_embedding", "cls_token")) for name in parameters)
    full = getattr(vision, "fullatt_block_indexes", None)
    return TowerShape(
        layers=layers,
        width=width,
        heads=heads,
        intermediate=getattr(vision, "intermediate_size", None) or int(ratio * width),
        patch=patch,
        class_tokens=int(with_class),
        merge=_merge(config),
        full_layers=layers if full is None else len(full),
        window=0 if full is None else vision.window_size // patch,
    )


def _merge(config: Any) -> Any:
    vision = config.vision_config
    if getattr(vision, "spatial_merge_size", None):
        return vision.spatial_merge_size
    if getattr(config, "downsample_ratio", None):
        return round(1 / config.downsample_ratio)
    return 1
