"""What videos become, against the video processors of transformers, and plans that name it."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.plan import PlanSettings, plan_hash, plan_json

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import torch
from transformers.models.qwen2_vl import video_processing_qwen2_vl as qwen2
from transformers.models.qwen3_vl import video_processing_qwen3_vl as qwen3
from transformers.video_processing_utils import BaseVideoProcessor

IMAGE = {
    "family": "qwen2_vl",
    "patch": 14,
    "merge": 2,
    "min_pixels": 3136,
    "max_pixels": 12845056,
}
QWEN2 = IMAGE | {
    "video": {
        "min_pixels": 128 * 28 * 28,
        "max_pixels": 768 * 28 * 28,
        "over": "frame",
        "temporal": 2,
    }
}
QWEN3 = IMAGE | {
    "patch": 16,
    "video": {
        "min_pixels": 4096,
        "max_pixels": 25165824,
        "over": "video",
        "temporal": 2,
        "tokens_per_second": None,
    },
}
TILES = {
    "family": "llava_onevision",
    "tile": 384,
    "tile_tokens": 729,
    "max_tiles": 9,
    "drop_class_token": False,
    "canvases": [[384, 384]],
    "video": {"width": 384, "height": 384, "frame_tokens": 196, "extra_tokens": 1},
}
SIDES = st.integers(1, 300) | st.integers(1, 3000)
FRAMES = st.integers(1, 9) | st.integers(1, 800)
VIDEOS = st.lists(st.tuples(SIDES, SIDES, FRAMES), min_size=1, max_size=60)


def shapes(rule, videos):
    columns = (pa.array(numbers, pa.uint32()) for numbers in zip(*videos, strict=True))
    rows = pa.array(_core.video_shapes(json.dumps(rule), *columns)).to_pylist()
    return [SimpleNamespace(**row) for row in rows]


@pytest.fixture(scope="module", autouse=True)
def sizes_instead_of_pixels():
    """Processors say the size that they would resize to, where they are given a size alone."""
    with pytest.MonkeyPatch.context() as patch:
        real = BaseVideoProcessor.resize

        def resize(self, image, size, resample):
            if isinstance(image, SimpleNamespace):
                return size.height, size.width
            return real(self, image=image, size=size, resample=resample)

        patch.setattr(BaseVideoProcessor, "resize", resize)
        yield


def check(rule, processor, videos, **options):
    video = rule["video"]
    options |= {"factor": rule["patch"] * rule["merge"], "temporal_factor": video["temporal"]}
    bounds = SimpleNamespace(shortest_edge=video["min_pixels"], longest_edge=video["max_pixels"])
    for (width, height, frames), shape in zip(videos, shapes(rule, videos), strict=True):
        pixels = SimpleNamespace(shape=(1, frames, 3, height, width))
        try:
            size = processor.resize(pixels, size=bounds, resample=None, **options)
        except ValueError:
            assert shape.tokens is None, (width, height, frames)
            continue
        assert (shape.resized_height, shape.resized_width) == size, (width, height, frames)
        assert (shape.rows, shape.columns) == tuple(side // rule["patch"] for side in size)
        assert shape.groups == -(-frames // video["temporal"])
        patches = shape.groups * shape.rows * shape.columns
        assert shape.tokens == patches // rule["merge"] ** 2


@given(VIDEOS, st.sampled_from([(100352, 602112), (3136, 12845056), (784, 784)]))
@example([(200, 1, 1), (201, 1, 3), (28, 42, 2), (14, 14, 5)], (784, 784))
def test_frames_are_resized_as_qwen2_vl_does(videos, pixels):
    bounds = {"min_pixels": pixels[0], "max_pixels": pixels[1]}
    rule = QWEN2 | {"video": QWEN2["video"] | bounds}
    check(rule, qwen2.Qwen2VLVideoProcessor(), videos)


@given(VIDEOS)
@example([(1920, 1080, frames) for frames in (1, 2, 3, 230, 299, 300, 768)])
def test_pixels_of_a_long_video_are_capped_as_qwen2_vl_does(videos):
    most = int(128_000 * 28 * 28 * 0.9)
    rule = QWEN2 | {"video": QWEN2["video"] | {"max_video_pixels": most}}
    check(rule, qwen2.Qwen2VLVideoProcessor(), videos, cap_pixels_per_frame=True)


@given(VIDEOS, st.sampled_from([(4096, 25165824), (131072, 786432), (1024, 2048)]))
@example([(1, 1, 2), (31, 33, 4), (31, 6300, 4), (5, 1000, 1), (48, 80, 3)], (4096, 25165824))
def test_videos_are_resized_as_qwen3_vl_does(videos, pixels):
    bounds = {"min_pixels": pixels[0], "max_pixels": pixels[1]}
    rule = QWEN3 | {"video": QWEN3["video"] | bounds}
    check(rule, qwen3.Qwen3VLVideoProcessor(), videos)


@pytest.mark.parametrize(
    ("rule", "processor"),
    [(QWEN2, qwen2.Qwen2VLVideoProcessor), (QWEN3, qwen3.Qwen3VLVideoProcessor)],
    ids=["2", "3"],
)
def test_the_number_of_patches_is_that_of_the_real_processor(rule, processor):
    video = rule["video"]
    size = {"shortest_edge": video["min_pixels"], "longest_edge": video["max_pixels"]}
    for width, height, frames in [(100, 300, 2), (64, 48, 5), (29, 57, 4)]:
        pixels = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
        out = processor()([pixels], size=size, do_sample_frames=False, return_tensors="pt")
        (shape,) = shapes(rule, [(width, height, frames)])
        assert out["video_grid_thw"].tolist() == [[shape.groups, shape.rows, shape.columns]]
        assert shape.tokens == len(out["pixel_values_videos"]) // 4


def test_a_frame_of_a_model_of_tiles_is_one_tile():
    (shape,) = shapes(TILES, [(1000, 30, 8)])
    assert vars(shape) == {
        "tokens": 8 * 196 + 1,
        "resized_width": 384,
        "resized_height": 384,
        "columns": 1,
        "rows": 1,
        "groups": 8,
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (QWEN2 | {"video": QWEN2["video"] | {"temporal": 0}}, "temporal 1 to 16"),
        (QWEN2 | {"video": QWEN2["video"] | {"tokens_per_second": 0}}, "tokens_per_second to"),
        (QWEN2 | {"video": QWEN2["video"] | {"max_pixels": 5}}, "max_pixels from min_pixels"),
        (QWEN3 | {"video": QWEN3["video"] | {"max_video_pixels": 5}}, "over a frame"),
        (QWEN3 | {"video": QWEN3["video"] | {"over": "group"}}, "unknown variant `group`"),
        (TILES | {"video": TILES["video"] | {"width": 383}}, "the tile's 384 x 384 pixels"),
        (TILES | {"video": TILES["video"] | {"frame_tokens": 0}}, "video.frame_tokens: found 0"),
        (IMAGE, "image rule: found no `video`"),
    ],
)
def test_a_video_that_no_model_has_is_refused(rule, message):
    with pytest.raises(InputError, match=message):
        shapes(rule, [(20, 20, 2)])


def test_a_plan_without_videos_is_what_it_was():
    """Fields that say nothing new are not written, so that cursors of older plans stay valid."""
    settings = PlanSettings(budget={"tokens": 400}, packs_per_step=2)
    internvl = {
        "family": "internvl",
        "tile_width": 448,
        "tile_height": 448,
        "tile_tokens": 256,
        "min_tiles": 1,
        "max_tiles": 12,
        "crop": True,
    }
    for rule in (internvl, IMAGE, {k: v for k, v in TILES.items() if k != "video"}):
        assert json.loads(plan_json(settings, rule))["image_rule"] == rule
        assert plan_hash(settings, rule | {"video": None}) == plan_hash(settings, rule)
    assert plan_hash(settings, internvl | {"framing_tokens": 2}) == plan_hash(settings, internvl)
    assert plan_hash(settings, internvl | {"framing_tokens": 0}) != plan_hash(settings, internvl)
    for rule in (QWEN2, QWEN3, TILES):
        written = json.loads(plan_json(settings, rule))["image_rule"]["video"]
        assert written == {key: value for key, value in rule["video"].items() if value is not None}
