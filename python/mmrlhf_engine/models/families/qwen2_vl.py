"""Qwen2-VL: an image or a video is one run of tokens, between marks that the template writes."""

from typing import Any

from mmrlhf_engine.models.families.family import Family, Videos
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.placeholders import run_of_frames
from mmrlhf_engine.models.families.resize import resize_rule, resize_video_rule

__all__ = ["FAMILY", "TOKENS", "VIDEOS", "forward_inputs"]

TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}

VIDEOS = Videos(
    mark="video_token",
    token="video_token",
    text=lambda _, times: run_of_frames(len(times), first=True),
    rule=lambda files: resize_video_rule(
        files, least=128 * 28 * 28, most=768 * 28 * 28, over="frame"
    ),
)


def forward_inputs(shown: ShownPictures) -> dict[str, Any]:
    """Patches of all images, and of all videos, with the grid of each."""
    inputs: dict[str, Any] = {}
    if shown.images:
        inputs["pixel_values"] = shown.joined(shown.images)
        inputs["image_grid_thw"] = shown.grids(shown.images)
    if shown.videos:
        inputs["pixel_values_videos"] = shown.joined(shown.videos)
        inputs["video_grid_thw"] = shown.grids(shown.videos)
    return inputs


FAMILY = Family(
    name="qwen2_vl",
    processor_class="Qwen2VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    image_rule=lambda files: resize_rule(files, patch=14, least=56 * 56, most=1280 * 28 * 28),
    forward_inputs=forward_inputs,
    tokens=TOKENS,
    videos=VIDEOS,
    temporal=2,
)
