"""How the forward of a family sees: where its parts are, and from pixels to features in the text.

Nothing here imports torch until it is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.models.families.pictures import DistinctPictures

__all__ = ["Vision", "place_features", "square_view", "views_of_tower"]


def place_features(embeddings: Any, features: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
    """Put features in the place of the embeddings of tokens.

    Args:
        embeddings: [T, H].
        features: [V, H].
        tokens: int64 [V], distinct.

    Returns:
        [T, H], and what the text model takes besides: nothing.
    """
    return embeddings.index_copy(0, tokens, features.to(embeddings.dtype)), {}


@dataclass(frozen=True)
class Vision:
    """The parts of a family's model that see.

    Names are those of ``model.base_model`` of transformers, which has the text model as
    ``language_model``.
    """

    tower: tuple[str, ...]
    """Modules and parameters of the vision tower."""
    projector: tuple[str, ...]
    """Those of the projector; they may lie within the tower's."""
    encode: Callable[[Any, Any, Any], Any]
    """From the base model, pixels [B, ...] and grids [M, 3], the tower's output [B, ...]: all that
    does not depend on the projector."""
    project: Callable[[Any, Any, DistinctPictures], list[Any]]
    """From the base model, the tower's output and the pictures, the features [length, ...] of
    each picture."""
    blank: Callable[[Any], tuple[tuple[int, ...], tuple[int, int, int]]]
    """From the model's configuration, the shape of the pixels of a smallest picture, and its
    grid."""
    place: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]] = place_features
    """See :func:`place_features`."""


def views_of_tower(base: Any, pixels: Any, _: Any) -> Any:
    """The hidden states [B, patches, width] of views, of the layer that the configuration names.

    Of several layers one after the other along the width; without the class token where the
    configuration says so.
    """
    import torch

    config = base.config
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    output = base.vision_tower(pixels.to(base.vision_tower.dtype), output_hidden_states=layers)
    first = config.vision_feature_select_strategy == "default"
    return torch.cat([output.hidden_states[layer][:, first:] for layer in layers], dim=-1)


def square_view(config: Any) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """One view of the tower's size, [1, 3, side, side]."""
    side = config.vision_config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    return (1, 3, height, width), (1, 1, 1)
