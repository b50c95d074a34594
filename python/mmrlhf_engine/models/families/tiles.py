"""What the families that cut images into square tiles read alike."""

from collections.abc import Mapping
from typing import Any

from mmrlhf_engine.models.families.files import ProcessorFiles

__all__ = ["edge_of", "frame_rule", "sides_of"]


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
