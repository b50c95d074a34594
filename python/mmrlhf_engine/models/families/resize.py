"""The image rule of the Qwen-VL families: sides in whole patches, an area between two bounds."""

from collections.abc import Mapping
from typing import Any

from mmrlhf_engine.models.families.files import ProcessorFiles

__all__ = ["resize_rule", "resize_video_rule"]


def resize_rule(files: ProcessorFiles, *, patch: int, least: int, most: int) -> dict[str, Any]:
    """The rule ``qwen2_vl`` of the core, with defaults of a family (pixels)."""
    settings = files.image
    return {
        "family": "qwen2_vl",
        "patch": int(settings.get("patch_size") or patch),
        "merge": int(settings.get("merge_size") or 2),
        **_pixels(settings, least, most),
    }


def resize_video_rule(
    files: ProcessorFiles,
    *,
    least: int,
    most: int,
    over: str,
    tokens_per_second: float | None = None,
) -> dict[str, Any] | str:
    """Its part ``video``: bounds of the area of each frame, or of all frames of a video.

    With ``cap_pixels_per_frame`` frames have a share of 90 % of ``max_video_tokens``; where the
    bounds are over all frames already, that is not followed.
    """
    settings = files.video
    rule = {
        **_pixels(settings, least, most),
        "over": over,
        "temporal": int(settings.get("temporal_patch_size") or 2),
        "tokens_per_second": tokens_per_second,
    }
    if settings.get("cap_pixels_per_frame"):
        if over == "video":
            return "cap_pixels_per_frame is set, which is not followed here"
        side = int(settings.get("patch_size") or 14) * int(settings.get("merge_size") or 2)
        tokens = int(settings.get("max_video_tokens") or 128_000)
        rule["max_video_pixels"] = int(tokens * side * side * 0.9)
    return rule


def _pixels(settings: Mapping[str, Any], least: int, most: int) -> dict[str, int]:
    size = settings.get("size") or {}
    smallest = settings.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    largest = settings.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    return {"min_pixels": int(smallest or least), "max_pixels": int(largest or most)}
