"""Qwen3-VL: patches of 16 pixels; a video is a run for every two frames, each after its time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmrlhf_engine.models.families import qwen2_vl
from mmrlhf_engine.models.families.family import Family, Tokens, Videos
from mmrlhf_engine.models.families.placeholders import run_of_frames
from mmrlhf_engine.models.families.resize import resize_rule, resize_video_rule
from mmrlhf_engine.models.families.vision import place_features

__all__ = ["FAMILY"]

_FRAMES_OF_A_RUN = 2


def _video_text(tokens: Tokens, times: Sequence[float]) -> str:
    """Each run after the mean time of its frames, the last frame counting twice where one lacks."""
    texts = []
    for start in range(0, len(times), _FRAMES_OF_A_RUN):
        own = times[start : start + _FRAMES_OF_A_RUN]
        run = run_of_frames(len(own), first=start == 0)
        seconds = f"<{(own[0] + own[-1]) / 2:.1f} seconds>"
        texts.append(seconds + tokens["vision_start_token"] + run + tokens["vision_end_token"])
    return "".join(texts)


def _place(embeddings: Any, features: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
    """The last layer's features in the text; those of others go to the first text layers."""
    own, *others = features.split(embeddings.shape[-1], dim=-1)
    placed, _ = place_features(embeddings, own, tokens)
    mask = embeddings.new_zeros(len(embeddings), dtype=bool).index_fill(0, tokens, True)
    return placed, {"visual_pos_masks": mask[None], "deepstack_visual_embeds": others}


FAMILY = Family(
    name="qwen3_vl",
    processor_class="Qwen3VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    image_rule=lambda files: resize_rule(files, patch=16, least=56 * 56, most=1280 * 28 * 28),
    forward_inputs=qwen2_vl.forward_inputs,
    vision=replace(
        qwen2_vl.VISION,
        projector=("visual.merger", "visual.deepstack_merger_list"),
        place=_place,
    ),
    tokens={
        **qwen2_vl.TOKENS,
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    videos=Videos(
        mark="video_token",
        token="video_token",
        text=_video_text,
        rule=lambda files: resize_video_rule(
            files, least=128 * 32 * 32, most=768 * 32 * 32, over="video"
        ),
    ),
    video_defaults={"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
    temporal=2,
)
