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


FAMILY = replace(
    qwen2_vl.FAMILY,
    name="qwen2_5_vl",
    processor_class="Qwen2_5_VLProcessor",
    videos=replace(qwen2_vl.VIDEOS, rule=_video_rule),
)
