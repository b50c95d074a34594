"""Qwen3-VL: patches of 16 pixels; a video is a run for every two frames, each after its time."""

from collections.abc import Sequence

from mmrlhf_engine.models.families import qwen2_vl
from mmrlhf_engine.models.families.family import Family, Tokens, Videos
from mmrlhf_engine.models.families.placeholders import run_of_frames
from mmrlhf_engine.models.families.resize import resize_rule, resize_video_rule

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


FAMILY = Family(
    name="qwen3_vl",
    processor_class="Qwen3VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    image_rule=lambda files: resize_rule(files, patch=16, least=56 * 56, most=1280 * 28 * 28),
    forward_inputs=qwen2_vl.forward_inputs,
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
