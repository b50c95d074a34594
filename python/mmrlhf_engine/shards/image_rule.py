"""How many tokens the pictures of a sample become, by the rule of a model.

The arithmetic is the core's (``image_tokens``, ``video_shapes``). A rule comes with a model's
processor (``pack --model``); three families can also be named, with their usual parameters.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmrlhf_engine._core import image_tokens, video_shapes
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families import family_of
from mmrlhf_engine.models.families.files import read_processor_files
from mmrlhf_engine.models.families.placeholders import IMAGE, PLACEHOLDER_IDS, VIDEO
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["NAMED_RULES", "ImageRule", "read_rule"]

_LLAVA_SIDES = [384 * number for number in range(1, 7)]

NAMED_RULES: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"patch": 14, "merge": 2, "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280},
    "llava_onevision": {
        "tile": 384,
        "tile_tokens": 729,
        "max_tiles": 9,
        "drop_class_token": False,
        "canvases": [[height, width] for height in _LLAVA_SIDES for width in _LLAVA_SIDES],
    },
    "internvl": {
        "tile_width": 448,
        "tile_height": 448,
        "tile_tokens": 256,
        "min_tiles": 1,
        "max_tiles": 12,
        "crop": True,
    },
}
"""Rules that have a name of their own, with the parameters of the first released models."""

_MARKS = {
    "qwen2_vl": "<|image_pad|>",
    "llava_onevision": "<image>",
    "internvl": "<IMG_CONTEXT>",
}


@dataclass(frozen=True)
class ImageRule:
    """How many tokens pictures become; no rule counts none."""

    parameters: dict[str, Any] | None = None
    """The JSON that the core reads, ``family`` included."""
    image_mark: str | None = None
    """What the chat template of the family writes for an image."""

    def count(
        self, sizes: Sequence[tuple[int, int]], placeholders: Sequence[int] | None = None
    ) -> list[int]:
        """Tokens of each picture of one sample; a video's are all counted at its first frame.

        Args:
            sizes: (width, height) in pixels of each.
            placeholders: The id that stands for each; None: all are images.

        Raises:
            BadRecordError: the model's own processor would refuse one of them.
        """
        if self.parameters is None or not sizes:
            return [0] * len(sizes)
        rule = json.dumps(self.parameters)
        kinds = list(placeholders or [PLACEHOLDER_IDS[IMAGE]] * len(sizes))
        tokens = [0] * len(sizes)
        images = [place for place, kind in enumerate(kinds) if kind == PLACEHOLDER_IDS[IMAGE]]
        of_images = _count_images(rule, tuple(sizes[place] for place in images))
        for place, count in zip(images, of_images, strict=True):
            tokens[place] = _accepted(count, sizes[place])
        for place, frames in _videos(kinds):
            tokens[place] = _accepted(_count_video(rule, sizes[place], frames), sizes[place])
        return tokens


def _accepted(count: int | None, size: tuple[int, int]) -> int:
    if count is None:
        shape = "{} x {} pixels".format(*size)
        raise BadRecordError("image_refused", f"the model's processor refuses {shape}")
    return count


def _videos(kinds: Sequence[int]) -> list[tuple[int, int]]:
    """First frame and number of frames of each video."""
    videos: list[tuple[int, int]] = []
    for place, kind in enumerate(kinds):
        if kind == PLACEHOLDER_IDS[VIDEO]:
            videos.append((place, 1))
        elif kind != PLACEHOLDER_IDS[IMAGE]:
            first, frames = videos[-1]
            videos[-1] = (first, frames + 1)
    return videos


@lru_cache(maxsize=65_536)
def _count_images(rule: str, sizes: tuple[tuple[int, int], ...]) -> tuple[int | None, ...]:
    if not sizes:
        return ()
    widths, heights = (pa.array(side, pa.uint32()) for side in zip(*sizes, strict=True))
    together = pa.array([len(sizes)] * len(sizes), pa.uint32())
    return tuple(pa.array(image_tokens(rule, widths, heights, together)).to_pylist())


@lru_cache(maxsize=65_536)
def _count_video(rule: str, size: tuple[int, int], frames: int) -> int | None:
    columns = (pa.array([number], pa.uint32()) for number in (*size, frames))
    (shape,) = pa.array(video_shapes(rule, *columns)).to_pylist()
    tokens: int | None = shape["tokens"]
    return tokens


def read_rule(name: str) -> ImageRule:
    """The rule of a family name, ``none``, or the folder of a processor.

    Raises:
        ConfigError: it is none of these.
        InputError: the folder's processor is of no family that is known.
    """
    if name == "none":
        return ImageRule()
    if name in NAMED_RULES:
        return ImageRule({"family": name, **NAMED_RULES[name]}, _MARKS[name])
    if not Path(name).is_dir():
        known = ", ".join([*NAMED_RULES, "none"])
        raise ConfigError(f"--image-rule {name}: no such folder", hint=f"known rules: {known}")
    files = read_processor_files(name)
    family = family_of(files)
    return ImageRule(family.image_rule(files), family.tokens[family.image_mark])
