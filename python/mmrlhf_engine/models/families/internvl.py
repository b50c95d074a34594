"""InternVL (the checkpoints of transformers): a grid of tiles and a thumbnail, between two tokens.

A frame of a video is one tile on a line of its own, after its number.
"""

import math
from collections.abc import Sequence
from typing import Any

from mmrlhf_engine.models.families.family import Family, Tokens, Videos
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.placeholders import IMAGE, run_of_frames
from mmrlhf_engine.models.families.tiles import frame_rule, sides_of
from mmrlhf_engine.models.families.vision import Vision, square_view, views_of_tower

__all__ = ["FAMILY"]


def _image_rule(files: ProcessorFiles) -> dict[str, Any]:
    width, height = sides_of(files.image.get("size"), 384)
    return {
        "family": "internvl",
        "tile_width": width,
        "tile_height": height,
        "tile_tokens": _tile_tokens(files),
        "min_tiles": int(files.image.get("min_patches") or 1),
        "max_tiles": int(files.image.get("max_patches") or 12),
        # The processor asks for tiles, whatever its image processor would do on its own.
        "crop": True,
    }


def _tile_tokens(files: ProcessorFiles) -> int:
    return int(files.processor.get("image_seq_length") or 256)


def _between(tokens: Tokens, placeholders: str) -> str:
    return tokens["start_image_token"] + placeholders + tokens["end_image_token"]


def _video_text(tokens: Tokens, times: Sequence[float]) -> str:
    return "\n".join(
        f"Frame{number + 1}: " + _between(tokens, run_of_frames(1, first=number == 0))
        for number in range(len(times))
    )


def _forward_inputs(shown: ShownPictures) -> dict[str, Any]:
    """Tiles of images and frames of videos alike, in the order of the text."""
    return {"pixel_values": shown.joined(shown.items)} if shown.items else {}


def _encode(base: Any, pixels: Any, grids: Any) -> Any:
    """Hidden states of tiles; of the last layer after the tower's norm."""
    if base.config.vision_feature_layer != -1:
        return views_of_tower(base, pixels, grids)
    first = base.config.vision_feature_select_strategy == "default"
    states = base.vision_tower(pixel_values=pixels.to(base.vision_tower.dtype)).last_hidden_state
    return states[:, first:]


def _project(base: Any, tiles: Any, pictures: DistinctPictures) -> list[Any]:
    """Neighbouring patches joined, then projected."""
    side = math.isqrt(tiles.shape[1])
    squares = tiles.reshape(len(tiles), side, side, -1)
    joined = base.pixel_shuffle(squares, scale_factor=base.config.downsample_ratio)
    features = base.multi_modal_projector(joined.flatten(1, 2))
    return [own.flatten(0, 1) for own in pictures.split(features)]


FAMILY = Family(
    name="internvl",
    processor_class="InternVLProcessor",
    image_processor="GotOcr2ImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
    vision=Vision(
        tower=("vision_tower",),
        projector=("multi_modal_projector",),
        encode=_encode,
        project=_project,
        blank=square_view,
    ),
    tokens={
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
    image_mark="context_image_token",
    image_token="context_image_token",
    image_text=lambda tokens: _between(tokens, IMAGE),
    written={"framing_tokens": 0},
    videos=Videos(
        mark="video_token",
        token="context_image_token",
        text=_video_text,
        rule=lambda files: frame_rule(files, 384, frame_tokens=_tile_tokens(files), extra_tokens=0),
    ),
)
