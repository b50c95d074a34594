"""LLaVA-OneVision: a view of the whole and a grid of tiles; the frames of a video are one run."""

import math
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.family import Family, Videos
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.placeholders import run_of_frames
from mmrlhf_engine.models.families.tiles import edge_of, frame_rule
from mmrlhf_engine.models.families.vision import Vision, square_view, views_of_tower

__all__ = ["FAMILY"]

_SIDES = [384 * number for number in range(1, 7)]
_TILE_TOKENS = 729  # SigLIP's 384 pixels in patches of 14


def _image_rule(files: ProcessorFiles) -> dict[str, Any]:
    processor, image = files.processor, files.image
    aspect = str(processor.get("vision_aspect_ratio") or "anyres_max_9")
    if not aspect.startswith("anyres_max_"):
        raise InputError(f"{files.name}: vision_aspect_ratio {aspect!r}, expected anyres_max_N")
    return {
        "family": "llava_onevision",
        "tile": edge_of(image, 384),
        "tile_tokens": _tile_tokens(files),
        "max_tiles": int(aspect.removeprefix("anyres_max_")),
        "drop_class_token": processor.get("vision_feature_select_strategy") == "default",
        "canvases": image.get("image_grid_pinpoints")
        or [[height, width] for height in _SIDES for width in _SIDES],
    }


def _tile_tokens(files: ProcessorFiles) -> int:
    return int(files.processor.get("num_image_tokens") or _TILE_TOKENS)


def _video_rule(files: ProcessorFiles) -> dict[str, Any]:
    """The features of a frame are pooled two by two; one token ends the video."""
    side = math.ceil(math.isqrt(_tile_tokens(files)) / 2)
    return frame_rule(files, 384, frame_tokens=side * side, extra_tokens=1)


def _forward_inputs(shown: ShownPictures) -> dict[str, Any]:
    """Tiles of each image, and frames of each video; all videos of a batch must be as long."""
    import torch

    inputs: dict[str, Any] = {}
    if shown.images:
        inputs["pixel_values"] = shown.padded(shown.images)
        inputs["image_sizes"] = shown.sizes(shown.images)
        inputs["batch_num_images"] = shown.images_of_sequences()
    if shown.videos:
        videos = [shown.blocks(item) for item in shown.videos]
        lengths = sorted({len(video) for video in videos})
        if len(lengths) > 1:
            raise InputError(
                f"videos of {lengths} frames in one batch: LLaVA-OneVision's forward takes one "
                "number of frames",
                hint="pack with a number of --set frames=N that every video has",
            )
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs


def _project(base: Any, views: Any, pictures: DistinctPictures) -> list[Any]:
    """Of an image as LLaVA-NeXT, with a bound; of a video pooled frames, and one newline."""
    import torch

    newline = base.image_newline[None]
    projected = pictures.split(base.multi_modal_projector(views))
    features = []
    for own, size, frames in zip(projected, pictures.sizes, pictures.frames, strict=True):
        if frames:
            pooled = base.apply_pooling(own).flatten(0, 1)
            features.append(torch.cat([pooled, newline.to(pooled.dtype)]))
            continue
        (packed,), _ = base.pack_image_features(
            [own],
            size[None],
            image_newline=base.image_newline,
            vision_aspect_ratio=base.config.vision_aspect_ratio,
        )
        features.append(packed)
    return features


FAMILY = Family(
    name="llava_onevision",
    processor_class="LlavaOnevisionProcessor",
    image_processor="LlavaOnevisionImageProcessor",
    image_rule=_image_rule,
    forward_inputs=_forward_inputs,
    vision=Vision(
        tower=("vision_tower",),
        projector=("multi_modal_projector", "image_newline"),
        encode=views_of_tower,
        project=_project,
        blank=square_view,
    ),
    tokens={"image_token": "<image>", "video_token": "<video>"},
    videos=Videos(
        mark="video_token",
        token="video_token",
        text=lambda _, times: run_of_frames(len(times), first=True),
        rule=_video_rule,
    ),
)
