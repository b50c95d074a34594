"""LLaVA-NeXT (1.6): a view of the whole and the tiles of the best grid, however many images."""

from typing import Any

from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.tiles import class_tokens, edge_of, patch_of
from mmrlhf_engine.models.families.vision import Vision, square_view, views_of_tower

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


def _project(base: Any, views: Any, pictures: DistinctPictures) -> list[Any]:
    """The features of the whole, then those of the tiles, without padding, a newline a row."""
    features, _ = base.pack_image_features(
        pictures.split(base.multi_modal_projector(views)),
        pictures.sizes,
        vision_feature_select_strategy=base.config.vision_feature_select_strategy,
        image_newline=base.image_newline,
    )
    return list(features)


FAMILY = Family(
    name="llava_next",
    processor_class="LlavaNextProcessor",
    image_processor="LlavaNextImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
    vision=Vision(
        tower=("vision_tower",),
        projector=("multi_modal_projector", "image_newline"),
        encode=views_of_tower,
        project=_project,
        blank=square_view,
    ),
    tokens={"image_token": "<image>"},
)
