"""What the families that cut images into square tiles read alike."""

from collections.abc import Mapping
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.files import ProcessorFiles

__all__ = ["class_tokens", "edge_of", "frame_rule", "patch_of", "sides_of"]


def sides_of(size: Mapping[str, Any] | None, default: int) -> tuple[int, int]:
    """Width and height in pixels of a ``size`` as image processors write it."""
    size = size or {}
    if size.get("height") and size.get("width"):
        return int(size["width"]), int(size["height"])
    edge = int(size.get("shortest_edge") or default)
    return edge, edge


def edge_of(settings: Mapping[str, Any], default: int) -> int:
    """The side in pixels of a square tile."""
    return min(sides_of(settings.get("size"), default))


def patch_of(files: ProcessorFiles) -> int:
    """The side in pixels of a patch of the vision tower.

    Raises:
        InputError: the processor's settings do not say.
    """
    patch = files.processor.get("patch_size")
    if not patch:
        raise InputError(f"{files.name}: patch_size is missing in the processor's settings")
    return int(patch)


def class_tokens(files: ProcessorFiles) -> int:
    """Tokens of a view beside those of its patches: a class token, if it is kept."""
    processor = files.processor
    extra = int(processor.get("num_additional_image_tokens") or 0)
    return extra - (processor.get("vision_feature_select_strategy") == "default")


def frame_rule(
    files: ProcessorFiles, default: int, *, frame_tokens: int, extra_tokens: int
) -> dict[str, Any]:
    """The part ``video`` of a rule of tiles: every frame becomes one view."""
    width, height = sides_of(files.video.get("size"), default)
    return {
        "width": width,
        "height": height,
        "frame_tokens": frame_tokens,
        "extra_tokens": extra_tokens,
    }
