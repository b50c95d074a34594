"""The image-token rules against the processors of transformers, over many sizes."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families import family_of
from mmrlhf_engine.models.families.files import ProcessorFiles

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from transformers.image_processing_utils import get_patch_output_size
from transformers.image_transforms import get_resize_output_image_size
from transformers.models.got_ocr2 import image_processing_got_ocr2 as got
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import (
    LlavaOnevisionImageProcessor,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl import image_processing_qwen2_vl as qwen

QWEN = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
LLAVA = {
    "processor_class": "LlavaOnevisionProcessor",
    "num_image_tokens": 729,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "size": {"height": 384, "width": 384},
    "image_grid_pinpoints": LlavaOnevisionImageProcessor.image_grid_pinpoints,
}
INTERNVL = {
    "processor_class": "InternVLProcessor",
    "image_seq_length": 256,
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 12,
    "size": {"height": 448, "width": 448},
}
SIDES = st.integers(1, 300) | st.integers(1, 5000)
SIZES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=60)


def rule_from_processor(config):
    """The image rule of a processor, from what ``processor.to_dict()`` gives."""
    files = ProcessorFiles("a processor", config, config.get("image_processor") or config)
    return family_of(files).image_rule(files)


def shapes(rule, sizes, images=1):
    width, height = (pa.array(side, pa.uint32()) for side in zip(*sizes, strict=True))
    count = pa.array([images] * len(sizes), pa.uint32())
    text = json.dumps(rule)
    rows = pa.array(_core.image_shapes(text, width, height, count)).to_pylist()
    tokens = pa.array(_core.image_tokens(text, width, height, count)).to_pylist()
    for row, total in zip(rows, tokens, strict=True):
        assert total == (None if row["tokens"] is None else row["tokens"] + row["framing_tokens"])
    return [SimpleNamespace(**row) for row in rows]


def random_sizes(count, seed):
    """Sizes of every order of magnitude, with many equal and simple shapes among them."""
    generator = np.random.default_rng(seed)
    width = np.exp(generator.uniform(0, np.log(6000), count)).astype(int).clip(1)
    height = np.exp(generator.uniform(0, np.log(6000), count)).astype(int).clip(1)
    height[: count // 4] = width[: count // 4]
    height[count // 4 : count // 2] = width[count // 4 : count // 2] * 3 // 4 + 1
    return [(int(w), int(h)) for w, h in zip(width, height, strict=True)]


def check_qwen(config, sizes):
    factor = config["patch_size"] * config["merge_size"]
    for (width, height), shape in zip(
        sizes, shapes(rule_from_processor(config), sizes), strict=True
    ):
        try:
            high, wide = qwen.smart_resize(
                height, width, factor, config["min_pixels"], config["max_pixels"]
            )
        except ValueError:
            assert shape.tokens is None, (width, height)
            continue
        grid = (wide // config["patch_size"], high // config["patch_size"])
        assert (shape.resized_width, shape.resized_height) == (wide, high), (width, height)
        assert (shape.columns, shape.rows) == grid
        assert shape.tokens == grid[0] * grid[1] // config["merge_size"] ** 2
        assert shape.framing_tokens == 0


@given(SIZES, st.sampled_from([(3136, 12845056), (200704, 1003520), (784, 784), (3136, 50176)]))
@example([(200, 1), (201, 1), (1, 200), (27, 27), (28, 28), (42, 14)], (3136, 12845056))
def test_qwen_resizes_as_its_processor_does(sizes, pixels):
    check_qwen(QWEN | {"min_pixels": pixels[0], "max_pixels": pixels[1]}, sizes)


def test_qwen_over_many_sizes():
    check_qwen(QWEN, random_sizes(20_000, 1))
    check_qwen(QWEN | {"patch_size": 16}, random_sizes(5_000, 2))


def check_llava(config, sizes):
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config["image_grid_pinpoints"]),
        num_image_tokens=config["num_image_tokens"],
        vision_aspect_ratio=config["vision_aspect_ratio"],
    )
    processor._get_unpadded_features = LlavaOnevisionProcessor._get_unpadded_features.__get__(
        processor
    )
    tile = config["size"]["height"]
    for (width, height), shape in zip(
        sizes, shapes(rule_from_processor(config), sizes), strict=True
    ):
        tokens = LlavaOnevisionProcessor._get_number_of_features(
            processor, height, width, tile, tile
        )
        tokens -= config["vision_feature_select_strategy"] == "default"
        assert shape.tokens == tokens, (width, height)
        canvas = (shape.canvas_height, shape.canvas_width)
        assert list(canvas) in config["image_grid_pinpoints"]
        image = np.broadcast_to(np.uint8(0), (3, height, width))
        resized = get_patch_output_size(image, canvas, "channels_first")
        assert (shape.resized_height, shape.resized_width) == resized, (width, height)
        assert (shape.rows, shape.columns) == (canvas[0] // tile, canvas[1] // tile)


@given(SIZES, st.sampled_from(["full", "default"]), st.sampled_from([1, 2, 4, 9]))
@example([(1, 5000), (5000, 1), (2304, 2304), (384, 384), (385, 384)], "full", 9)
def test_llava_counts_as_its_processor_does(sizes, strategy, most):
    check_llava(
        LLAVA
        | {
            "vision_feature_select_strategy": strategy,
            "vision_aspect_ratio": f"anyres_max_{most}",
        },
        sizes,
    )


def test_llava_over_many_sizes():
    check_llava(LLAVA, random_sizes(5_000, 3))


def test_llava_sees_each_of_several_pictures_once():
    config = {"num_image_tokens": 729}
    (shape,) = shapes(rule_from_processor(LLAVA | config), [(1000, 300)], images=2)
    assert (shape.tokens, shape.views, shape.columns) == (730, 1, 0)


LLAVA_NEXT = {
    "family": "llava_next",
    "tile": 336,
    "tile_tokens": 24 * 24,
    "extra_tokens": 0,
    "canvases": LlavaNextImageProcessor.image_grid_pinpoints,
}


def check_llava_next(rule, sizes, images=1):
    side = math.isqrt(rule["tile_tokens"])
    pinpoints = rule["canvases"]
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(
            size={"shortest_edge": rule["tile"]}, image_grid_pinpoints=pinpoints
        ),
        patch_size=rule["tile"] // side,
        # A class token that is left out counts as one less.
        num_additional_image_tokens=rule["extra_tokens"] + 1,
        vision_feature_select_strategy="default",
        _merge_kwargs=lambda **_: {"images_kwargs": {}},
    )
    for name in ("_get_number_of_features", "_get_unpadded_features"):
        setattr(processor, name, getattr(LlavaNextProcessor, name).__get__(processor))
    heights_first = [(height, width) for width, height in sizes]
    tokens = LlavaNextProcessor._get_num_multimodal_tokens(processor, heights_first)
    found = shapes(rule, sizes, images)
    assert [shape.tokens for shape in found] == tokens["num_image_tokens"]
    for (width, height), shape in zip(sizes, found, strict=True):
        canvas = (shape.canvas_height, shape.canvas_width)
        assert list(canvas) in pinpoints
        image = np.broadcast_to(np.uint8(0), (3, height, width))
        resized = get_patch_output_size(image, canvas, "channels_first")
        assert (shape.resized_height, shape.resized_width) == resized, (width, height)
        assert shape.views == shape.rows * shape.columns + 1


@given(SIZES, st.sampled_from([-1, 0, 1]), st.sampled_from([1, 2]))
@example([(1, 5000), (5000, 1), (672, 672), (336, 336), (337, 336)], 0, 1)
def test_llava_next_counts_as_its_processor_does(sizes, extra, images):
    check_llava_next(LLAVA_NEXT | {"extra_tokens": extra}, sizes, images)


def test_llava_next_over_many_sizes():
    check_llava_next(LLAVA_NEXT, random_sizes(5_000, 5))


@given(SIZES, st.sampled_from(["stretch", "crop", "pad"]), st.sampled_from([336, 224, 37]))
def test_a_fixed_view_has_the_same_tokens_for_every_image(sizes, fit, side):
    rule = {"family": "fixed", "width": side, "height": side, "tokens": 576, "fit": fit}
    for (width, height), shape in zip(sizes, shapes(rule, sizes), strict=True):
        resized = (side, side)
        if fit == "crop":
            image = np.broadcast_to(np.uint8(0), (3, height, width))
            resized = get_resize_output_image_size(image, side, default_to_square=False)
            if math.prod(resized) > 2**28:
                assert shape.tokens is None
                continue
        assert (shape.resized_height, shape.resized_width) == resized, (width, height)
        assert (shape.canvas_width, shape.canvas_height, shape.views) == (side, side, 1)
        assert (shape.tokens, shape.framing_tokens) == (576, 0)


def check_internvl(config, sizes):
    tile = config["size"]["height"]
    rule = rule_from_processor(config) | {"crop": config["crop_to_patches"]}
    for (width, height), shape in zip(sizes, shapes(rule, sizes), strict=True):
        processor = got.GotOcr2ImageProcessor(
            **{
                key: config[key]
                for key in ("size", "crop_to_patches", "min_patches", "max_patches")
            }
        )
        views = processor.get_number_of_image_patches(height, width)
        grid = (1, 1)
        if config["crop_to_patches"]:
            bounds = (config["min_patches"], config["max_patches"])
            grid = got.get_optimal_tiled_canvas((height, width), (tile, tile), *bounds)
        assert (shape.columns, shape.rows) == grid, (width, height)
        assert shape.views == views
        assert shape.tokens == config["image_seq_length"] * views
        assert shape.framing_tokens == 2
        assert (shape.resized_width, shape.resized_height) == (grid[0] * tile, grid[1] * tile)


@settings(max_examples=30)
@given(SIZES, st.integers(1, 6), st.integers(0, 8), st.booleans())
def test_internvl_cuts_as_its_processor_does(sizes, least, more, crop):
    check_internvl(
        INTERNVL | {"min_patches": least, "max_patches": least + more, "crop_to_patches": crop},
        sizes,
    )


def test_internvl_over_many_sizes():
    check_internvl(INTERNVL, random_sizes(1_000, 4))


@pytest.mark.parametrize(
    ("config", "factor"), [(QWEN, 28), (QWEN | {"patch_size": 16}, 32)], ids=["2.5", "3"]
)
def test_the_number_of_tokens_fits_the_real_patches(config, factor):
    """Not only the counting function: the processor itself gives so many patches."""
    import torch

    processor = qwen.Qwen2VLImageProcessor(
        **{key: config[key] for key in ("min_pixels", "max_pixels", "patch_size", "merge_size")}
    )
    for width, height in [(100, 300), (641, 480), (29, 57)]:
        out = processor(torch.zeros(3, height, width, dtype=torch.uint8), return_tensors="pt")
        _, rows, columns = out["image_grid_thw"][0].tolist()
        (shape,) = shapes(rule_from_processor(config), [(width, height)])
        assert (shape.rows, shape.columns) == (rows, columns)
        assert shape.resized_width * shape.resized_height == math.prod([rows, columns]) * (
            config["patch_size"] ** 2
        )
        assert shape.resized_width % factor == 0


@pytest.mark.parametrize(("width", "height"), [(100, 700), (1200, 500), (64, 64)])
def test_the_tiles_are_those_of_the_real_processors(width, height):
    import torch

    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    out = LlavaOnevisionImageProcessor()(picture, return_tensors="pt")
    (shape,) = shapes(rule_from_processor(LLAVA), [(width, height)])
    assert shape.views == out["pixel_values"].shape[1]
    assert shape.canvas_width - shape.resized_width in range(shape.canvas_width)
    processor = got.GotOcr2ImageProcessor(size=INTERNVL["size"], crop_to_patches=True)
    out = processor(picture, return_tensors="pt")
    (shape,) = shapes(rule_from_processor(INTERNVL), [(width, height)])
    assert [shape.views] == list(out["num_patches"])
    assert shape.views == len(out["pixel_values"])


def test_a_rule_that_no_model_has_is_refused():
    column = pa.array([1], pa.uint32())
    for rule in (
        '{"family": "qwen2_vl", "patch": 14}',
        '{"family": "qwen2_vl", "patch": 0, "merge": 2, "min_pixels": 1, "max_pixels": 2}',
        '{"family": "qwen2_vl", "patch": 14, "merge": 2, "min_pixels": 3, "max_pixels": 2}',
        '{"family": "other"}',
        json.dumps(rule_from_processor(LLAVA) | {"canvases": [[384, 385]]}),
        json.dumps(rule_from_processor(LLAVA) | {"canvases": [[384 * 40, 384 * 40]]}),
        json.dumps(rule_from_processor(INTERNVL) | {"max_tiles": 0}),
        json.dumps(rule_from_processor(INTERNVL) | {"framing_tokens": 3}),
        json.dumps(LLAVA_NEXT | {"extra_tokens": -2}),
        json.dumps(LLAVA_NEXT | {"canvases": []}),
        '{"family": "fixed", "width": 9, "height": 9, "tokens": 0, "fit": "crop"}',
        '{"family": "fixed", "width": 9, "height": 9, "tokens": 4, "fit": "middle"}',
        '{"family": "qwen2_vl", "patch": 14, "merge": 2, "min_pixels": 1, "max_pixels": 2, "x": 1}',
        "not JSON",
    ):
        with pytest.raises(InputError, match="image rule"):
            _core.image_tokens(rule, column, column, column)


def test_a_picture_without_pixels_is_refused():
    for config in (QWEN, LLAVA, INTERNVL):
        assert [
            shape.tokens for shape in shapes(rule_from_processor(config), [(0, 5), (5, 0)])
        ] == [
            None,
            None,
        ]
