"""LLaVA-1.5: the middle square of an image, brought to one size."""

from typing import Any

from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.tiles import class_tokens, patch_of, sides_of
from mmrlhf_engine.models.families.vision import Vision, square_view, views_of_tower

__all__ = ["FAMILY"]


def _image_rule(files: ProcessorFiles) -> dict[str, Any]:
    image, patch = files.image, patch_of(files)
    width, height = sides_of(image.get("crop_size") or image.get("size"), 224)
    return {
        "family": "fixed",
        "width": width,
        "height": height,
        "tokens": (width // patch) * (height // patch) + class_tokens(files),
        "fit": "pad" if image.get("do_pad") else "crop",
    }


def _forward_inputs(shown: ShownPictures) -> dict[str, Any]:
    return {"pixel_values": shown.joined(shown.images)} if shown.images else {}


def _project(base: Any, views: Any, _: DistinctPictures) -> list[Any]:
    return list(base.multi_modal_projector(views))


FAMILY = Family(
    name="llava",
    processor_class="LlavaProcessor",
    image_processor="LlavaImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
    vision=Vision(
        tower=("vision_tower",),
        projector=("multi_modal_projector",),
        encode=views_of_tower,
        project=_project,
        blank=square_view,
    ),
    tokens={"image_token": "<image>"},
)
