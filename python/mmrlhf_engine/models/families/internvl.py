"""InternVL (the checkpoints of transformers): a grid of tiles and a thumbnail, between two tokens.

A frame of a video is one tile on a line of its own, after its number.
"""

from collections.abc import Sequence
from typing import Any

from mmrlhf_engine.models.families.family import Family, Tokens, Videos
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.placeholders import IMAGE, run_of_frames
from mmrlhf_engine.models.families.tiles import frame_rule, sides_of

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


FAMILY = Family(
    name="internvl",
    processor_class="InternVLProcessor",
    image_processor="GotOcr2ImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
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
