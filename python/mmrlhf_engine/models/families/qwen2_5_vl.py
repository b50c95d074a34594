"""Qwen2.5-VL: as Qwen2-VL, but the positions of a video's frames follow its seconds."""

from dataclasses import replace
from typing import Any

from mmrlhf_engine.models.families import qwen2_vl
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.resize import resize_video_rule

__all__ = ["FAMILY"]

_TOKENS_PER_SECOND = 4  # as transformers' Qwen2_5_VLVisionConfig; released models say 2


def _video_rule(files: ProcessorFiles) -> dict[str, Any] | str:
    vision = files.model.get("vision_config") or {}
    return resize_video_rule(
        files,
        least=128 * 28 * 28,
        most=768 * 28 * 28,
        over="frame",
        tokens_per_second=float(vision.get("tokens_per_second") or _TOKENS_PER_SECOND),
    )


def _encode(base: Any, pixels: Any, grids: Any) -> Any:
    """As Qwen2-VL; patches, which the tower orders by windows, in the order of the pixels."""
    from transformers.vision_utils import get_vision_window_index

    tower = base.visual
    patches = qwen2_vl.encode(base, pixels, grids)
    windows, _ = get_vision_window_index(
        grids,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    groups = patches.unflatten(0, (-1, tower.spatial_merge_unit))
    return groups[windows.argsort().to(groups.device)].flatten(0, 1)


FAMILY = replace(
    qwen2_vl.FAMILY,
    name="qwen2_5_vl",
    processor_class="Qwen2_5_VLProcessor",
    vision=replace(qwen2_vl.VISION, encode=_encode),
    videos=replace(qwen2_vl.VIDEOS, rule=_video_rule),
)
