"""The image-token rule of a model, by family name or from the folder of its processor.

The arithmetic is the core's (`image_tokens`); here are the families' usual parameters, and how the
family's chat template marks an image. The tokens of an image include those that its processor sets
around it.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmrlhf_engine._core import image_tokens
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.shards.plan import rule_from_processor
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["FAMILIES", "ImageRule", "read_rule"]

_LLAVA_SIDES = [384 * number for number in range(1, 7)]

FAMILIES: dict[str, dict[str, Any]] = {
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

_MARKS = {
    "qwen2_vl": "<|image_pad|>",
    "llava_onevision": "<image>",
    "internvl": "<IMG_CONTEXT>",
}


@dataclass(frozen=True)
class ImageRule:
    """How many tokens images become; no rule counts none."""

    parameters: dict[str, Any] | None = None
    """The JSON that the core reads, ``family`` included."""
    image_mark: str | None = None
    """What the chat template of the family writes for an image."""

    def count(self, sizes: list[tuple[int, int]]) -> list[int]:
        """Tokens of each image of one sample, from (width, height) in pixels.

        Raises:
            BadRecordError: the model's own processor would refuse one of them.
        """
        if self.parameters is None or not sizes:
            return [0] * len(sizes)
        tokens = []
        rule = json.dumps(self.parameters)
        for size, count in zip(sizes, _count(rule, tuple(sizes)), strict=True):
            if count is None:
                shape = "{} x {} pixels".format(*size)
                raise BadRecordError("image_refused", f"the model's processor refuses {shape}")
            tokens.append(count)
        return tokens


@lru_cache(maxsize=65_536)
def _count(rule: str, sizes: tuple[tuple[int, int], ...]) -> tuple[int | None, ...]:
    widths, heights = (pa.array(side, pa.uint32()) for side in zip(*sizes, strict=True))
    together = pa.array([len(sizes)] * len(sizes), pa.uint32())
    return tuple(pa.array(image_tokens(rule, widths, heights, together)).to_pylist())


def read_rule(name: str) -> ImageRule:
    """The rule of a family name, ``none``, or the folder of a processor.

    Raises:
        ConfigError: it is none of these.
        InputError: the folder's processor is of no family that is known.
    """
    if name == "none":
        return ImageRule()
    if name in FAMILIES:
        return ImageRule({"family": name, **FAMILIES[name]}, _MARKS[name])
    folder = Path(name)
    if not folder.is_dir():
        known = ", ".join([*FAMILIES, "none"])
        raise ConfigError(f"--image-rule {name}: no such folder", hint=f"known rules: {known}")
    parameters = rule_from_processor(
        {**_read(folder / "preprocessor_config.json"), **_read(folder / "processor_config.json")}
    )
    return ImageRule(parameters, _MARKS[str(parameters["family"])])


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
