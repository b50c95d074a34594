"""The sizes of a model that its configuration alone decides: no weight is read.

The model is built on torch's ``meta`` device, where parameters have a shape and no memory.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.train.settings import LoraSettings, TrainSettings

__all__ = ["ModelSizes", "Part", "TextShape", "TowerShape", "build_on_meta", "read_sizes"]

Part = Literal["tower", "projector", "text", "embeddings", "head", "adapters"]
PARTS: tuple[Part, ...] = ("tower", "projector", "text", "embeddings", "head", "adapters")

_TILES = ("vision_tower",), ("multi_modal_projector",)
_PATCHES = ("visual",), ("visual.merger",)
# TODO: replace by the fields of FAMILIES[...].vision, which name the same modules.
_VISION: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llava": _TILES,
    "llava_next": (("vision_tower",), ("multi_modal_projector", "image_newline")),
    "llava_onevision": (("vision_tower",), ("multi_modal_projector", "image_newline")),
    "internvl": _TILES,
    "gemma3": _TILES,
    "qwen2_vl": _PATCHES,
    "qwen2_5_vl": _PATCHES,
    "qwen3_vl": (("visual",), ("visual.merger", "visual.deepstack_merger_list")),
}
"""Modules and parameters of tower and projector in ``model.base_model``, by ``model_type``."""


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
    trained: frozenset[Part]
    """Parts whose weights change."""
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

    @property
    def head_trains(self) -> bool:
        """Whether the weight of the head needs a gradient."""
        return ("embeddings" if self.tied else "head") in self.trained

    def count(self, *, trained: bool) -> int:
        """Parameters of the parts that are trained, or of the others."""
        return sum(n for part, n in self.parameters.items() if (part in self.trained) == trained)


def build_on_meta(name: str) -> Any:
    """The model of a folder or of a name on the hub, by its ``config.json`` alone.

    Raises:
        ConfigError: there is no such file, or transformers has no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
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
    """The sizes of a model, some of it frozen or with adapters as the settings say.

    Args:
        model: A ``PreTrainedModel``; its weights may be on the ``meta`` device.
        settings: ``freeze`` and ``lora`` are read.

    Raises:
        ConfigError: no linear layer of the text model is a target of ``lora``.
    """
    base = model.base_model
    names = _VISION.get(model.config.model_type, ((), ()))
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    parts: dict[Part, dict[str, Any]] = {part: {} for part in PARTS}
    for name, parameter in base.named_parameters():
        part: Part = _part_of(name, *names)
        parts["embeddings" if parameter is embeddings.weight else part][name] = parameter
    parts["head"] = {} if tied or head is None else dict(head.named_parameters())
    linear = _linear_layers(base)
    adapted = {} if settings.lora is None else _adapters(settings.lora, linear, parts["text"])
    trained = _trained_parts(settings)
    counts = {part: sum(p.numel() for p in own.values()) for part, own in parts.items()}
    counts["adapters"] = sum(rows * columns for rows, columns in adapted)
    layers = _text_layers(base)
    shapes = [tuple(p.shape) for part in trained for p in parts[part].values()]
    products = {part: _product_weights(own, linear) for part, own in parts.items()}
    products["adapters"] = counts["adapters"]
    products["head"] = 0 if head is None else head.weight.numel()
    return ModelSizes(
        parameters=counts,
        trained=trained,
        products=products,
        patch_products=_patch_weights(base, names[0]),
        shapes=(*shapes, *adapted),
        largest_module=max(_count(layers[0]), embeddings.weight.numel()),
        text=_text_shape(model.config),
        tower=_tower_shape(model.config, parts["tower"]) if names[0] else None,
        tied=tied,
    )


def _part_of(name: str, tower: tuple[str, ...], projector: tuple[str, ...]) -> Part:
    def belongs(modules: tuple[str, ...]) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in modules)

    if belongs(projector):
        return "projector"
    return "tower" if belongs(tower) else "text"


def _trained_parts(settings: TrainSettings) -> frozenset[Part]:
    if settings.lora is not None:
        return frozenset({"adapters"})
    trained = {part for part in PARTS if part not in settings.freeze} - {"adapters"}
    return frozenset(trained - {"embeddings"} if "text" in settings.freeze else trained)


def _linear_layers(base: Any) -> dict[str, Any]:
    """The weights of linear layers, by the names of their parameters."""
    import torch

    return {
        f"{name}.weight": module
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def _product_weights(parameters: dict[str, Any], linear: dict[str, Any]) -> int:
    """Weights of linear layers, and matrices that a projector has beside them."""
    return sum(
        int(parameter.numel())
        for name, parameter in parameters.items()
        if name in linear or name.endswith("mm_input_projection_weight")
    )


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


def _adapters(
    lora: LoraSettings, linear: dict[str, Any], text: dict[str, Any]
) -> list[tuple[int, int]]:
    """Shapes of the two matrices of every adapter: [rank, in] and [out, rank]."""
    shapes = []
    for name in linear.keys() & text.keys():
        layer = name.removesuffix(".weight")
        if "all-linear" in lora.targets or any(layer.endswith(t) for t in lora.targets):
            module = linear[name]
            shapes += [(lora.rank, module.in_features), (module.out_features, lora.rank)]
    if not shapes:
        raise ConfigError(
            f"lora.targets: found {list(lora.targets)}, expected names of linear layers of the "
            "text model",
            hint="all-linear is all of them",
        )
    return shapes


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
    if getattr(config, "mm_tokens_per_image", None):
        return vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)
    return 1
