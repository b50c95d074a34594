"""LLaVA-NeXT (1.6): a view of the whole and the tiles of the best grid, however many images."""

from typing import Any

from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.tiles import class_tokens, edge_of, patch_of

__all__ = ["FAMILY"]

_CANVASES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _image_rule(files: ProcessorFiles) -> dict[str, Any]:
    tile = edge_of(files.image, 224)
    return {
        "family": "llava_next",
        "tile": tile,
        "tile_tokens": (tile // patch_of(files)) ** 2,
        "canvases": files.image.get("image_grid_pinpoints") or _CANVASES,
        "extra_tokens": class_tokens(files),
    }


def _forward_inputs(shown: ShownPictures) -> dict[str, Any]:
    """The view of the whole and the tiles of each image."""
    if not shown.images:
        return {}
    return {
        "pixel_values": shown.padded(shown.images),
        "image_sizes": shown.sizes(shown.images),
    }


FAMILY = Family(
    name="llava_next",
    processor_class="LlavaNextProcessor",
    image_processor="LlavaNextImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
    tokens={"image_token": "<image>"},
)
