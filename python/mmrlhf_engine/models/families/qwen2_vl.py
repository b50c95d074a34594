"""Qwen2-VL: an image or a video is one run of tokens, between marks that the template writes."""

from typing import Any

from mmrlhf_engine.models.families.family import Family, Videos
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.placeholders import run_of_frames
from mmrlhf_engine.models.families.resize import resize_rule, resize_video_rule
from mmrlhf_engine.models.families.vision import Vision

__all__ = ["FAMILY", "TOKENS", "VIDEOS", "VISION", "encode", "forward_inputs", "project"]

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


def encode(base: Any, pixels: Any, grids: Any) -> Any:
    """What the mergers are given, one after the other along the width: [patches, ...]."""
    import torch

    tower, given = base.visual, {}

    def keep(merger: Any, arguments: tuple[Any, ...]) -> None:
        given[merger] = arguments[0]

    hooks = [merger.register_forward_pre_hook(keep) for merger in _mergers(tower)]
    try:
        tower(pixels.to(tower.dtype), grid_thw=grids)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([given[merger] for merger in _mergers(tower)], dim=-1)


def project(base: Any, patches: Any, pictures: DistinctPictures) -> list[Any]:
    """The output of each merger, one after the other along the width."""
    import torch

    tower = base.visual
    mergers = _mergers(tower)
    parts = patches.chunk(len(mergers), dim=-1)
    merged = [merger(part.contiguous()) for merger, part in zip(mergers, parts, strict=True)]
    counts = pictures.grids.prod(-1) // tower.spatial_merge_size**2
    return list(torch.split(torch.cat(merged, dim=-1), counts.tolist()))


def _mergers(tower: Any) -> list[Any]:
    return [tower.merger, *getattr(tower, "deepstack_merger_list", ())]


def _blank(config: Any) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """One feature's worth of patches."""
    vision = config.vision_config
    side = vision.spatial_merge_size
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return (side * side, width), (1, side, side)


VISION = Vision(
    tower=("visual",),
    projector=("visual.merger",),
    encode=encode,
    project=project,
    blank=_blank,
)

FAMILY = Family(
    name="qwen2_vl",
    processor_class="Qwen2VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    image_rule=lambda files: resize_rule(files, patch=14, least=56 * 56, most=1280 * 28 * 28),
    forward_inputs=forward_inputs,
    vision=VISION,
    tokens=TOKENS,
    videos=VIDEOS,
    temporal=2,
)
