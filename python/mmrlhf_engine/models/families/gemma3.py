"""Gemma 3: every image is brought to one square, whatever its shape, and has as many tokens.

Without pan and scan, which the processor leaves off unless a call asks for it.
"""

from typing import Any

from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.placeholders import IMAGE
from mmrlhf_engine.models.families.tiles import sides_of

__all__ = ["FAMILY"]


def _image_rule(files: ProcessorFiles) -> dict[str, Any]:
    width, height = sides_of(files.image.get("size"), 224)
    return {
        "family": "fixed",
        "width": width,
        "height": height,
        "tokens": int(files.processor.get("image_seq_length") or 256),
        "fit": "stretch",
    }


def _forward_inputs(shown: ShownPictures) -> dict[str, Any]:
    """Besides the pixels, which tokens stand for images: these see each other both ways."""
    inputs = {"token_type_ids": shown.token_types()[None]}
    if shown.images:
        inputs["pixel_values"] = shown.joined(shown.images)
    return inputs


FAMILY = Family(
    name="gemma3",
    processor_class="Gemma3Processor",
    image_processor="Gemma3ImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
    vision="the tokens of an image attend to each other in both directions",
    tokens={
        "boi_token": "<start_of_image>",
        "image_token": "<image_soft_token>",
        "eoi_token": "<end_of_image>",
    },
    image_mark="boi_token",
    image_text=lambda tokens: f"\n\n{tokens['boi_token']}{IMAGE}{tokens['eoi_token']}\n\n",
    image_defaults={
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "resample": 2,
    },
)
