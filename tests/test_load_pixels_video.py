"""Pixels of videos against the video processors of transformers, which resize by torchvision."""

import numpy as np
import pytest
from PIL import Image

from load_data import FRAME, RUN, VIDEO, Rows, store
from mmrlhf_engine.shards.loader import PictureSettings, PreferenceLoader
from mmrlhf_engine.shards.plan import PlanSettings, plan_json
from test_load_pixels import PHOTOGRAPHS, RAW, RULES, png

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

QWEN2 = {"min_pixels": 128 * 28 * 28, "max_pixels": 768 * 28 * 28, "over": "frame"}
QWEN3 = {"min_pixels": 4096, "max_pixels": 640 * 640 * 5, "over": "video"}
TILE = {"width": 384, "height": 384, "frame_tokens": 196, "extra_tokens": 1}
VIDEO_RULES = {
    "qwen2_vl": RULES["qwen2_vl"] | {"video": QWEN2 | {"temporal": 2}},
    "qwen3_vl": RULES["qwen2_vl"] | {"patch": 16, "video": QWEN3 | {"temporal": 2}},
    "llava_onevision": RULES["llava_onevision"] | {"video": TILE},
}


def frames(count, width, height):
    """A camera that moves over a photograph."""
    photograph = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((2 * width, 2 * height))
    corners = [(at * width // count, at * height // count) for at in range(count)]
    return [photograph.crop((x, y, x + width, y + height)) for x, y in corners]


def batch_of(folder, family, images):
    """The batch of one pair whose prompt has the video, in runs of two frames."""

    def make_rows(blobs):
        runs = [[RUN, FRAME, 7] for _ in range(0, len(blobs), 2)]
        prompt = [id for run in runs for id in run]
        prompt[0] = VIDEO
        if len(blobs) % 2:
            prompt[-2:] = [7]
        query = {"prompt": prompt, "media": blobs, "weight": 1.0}
        pair = {"chosen": 0, "rejected": 1, "margin": 1.0, "weight": 1.0, "flags": 0}
        responses = [{"q": 0, "tokens": [5 + answer], "media": []} for answer in range(2)]
        return Rows([query], responses, [pair])

    path = store(folder, [png(image) for image in images], make_rows)
    settings = PlanSettings(budget={"images": 10_000}, packs_per_step=1)
    pictures = PictureSettings(image_token=990, video_token=993)
    return next(PreferenceLoader(path, plan_json(settings, VIDEO_RULES[family]), pictures=pictures))


def theirs(family, images):
    """The pixels of transformers, and groups, rows and columns of patches."""
    from transformers import LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor
    from transformers import Qwen3VLVideoProcessor as Qwen3VL

    processors = {
        "qwen2_vl": Qwen2VLVideoProcessor,
        "qwen3_vl": lambda: Qwen3VL(
            size={"shortest_edge": QWEN3["min_pixels"], "longest_edge": QWEN3["max_pixels"]}
        ),
        "llava_onevision": LlavaOnevisionVideoProcessor,
    }
    video = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    out = processors[family]()(
        [video.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt", **RAW
    )
    grid = out["video_grid_thw"][0].tolist() if "video_grid_thw" in out else None
    return out["pixel_values_videos"].numpy(), grid


@pytest.mark.parametrize("size", [(640, 480), (333, 217), (120, 500)])
@pytest.mark.parametrize(
    ("family", "count"),
    # The processor of Qwen3-VL refuses a single frame.
    [
        (family, count)
        for family in VIDEO_RULES
        for count in (1, 4, 5)
        if family[:5] != "qwen3" or count > 1
    ],
)
def test_videos_differ_from_torchvision_by_rounding_alone(tmp_path, family, size, count):
    """torchvision keeps fewer bits of a weight of the filter than Pillow."""
    images = frames(count, *size)
    batch = batch_of(tmp_path / "set", family, images)
    other, grid = theirs(family, images)
    assert batch.unreadable == []
    if grid is not None:
        assert batch.image_grid_thw.tolist() == [grid]
    assert batch.image_frames.tolist() == [count]
    ours = batch.pixel_values.reshape(other.reshape(-1, *batch.pixel_values.shape[1:]).shape)
    difference = np.abs(ours.astype(int) - other.reshape(ours.shape).astype(int))
    assert difference.max() <= 8
    assert (difference > 1).mean() < 1e-3


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_videos_equal_pillow(tmp_path, family):
    """A video of equal frames has the pixels of Pillow's resize of the frame."""
    image = frames(1, 333, 217)[0]
    batch = batch_of(tmp_path / "set", family, [image] * 3)
    (_, rows, columns) = batch.image_grid_thw[0]
    size = (384, 384) if family == "llava_onevision" else (columns * 14, rows * 14)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    if family == "llava_onevision":
        assert np.array_equal(batch.pixel_values, np.stack([resized] * 3))
        return
    patches = batch.pixel_values.reshape(2, rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)
    again = patches.transpose(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(4, 3, size[1], size[0])
    assert np.array_equal(again, np.stack([resized] * 4))
