"""Pictures as models take them: equal to the PIL processors of transformers, before normalising."""

import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mmrlhf_engine._core import preprocess_images
from mmrlhf_engine.errors import InputError

# The processors stop at float32 pixels; without these two steps they hand out the bytes before.
RAW = {"do_rescale": False, "do_normalize": False}


def photographs():
    patterns = {"foolbox": "data/imagenet_*.jpg", "sklearn": "**/images/*.jpg"}
    found = []
    for package, pattern in patterns.items():
        found += sorted(Path(find_spec(package).origin).parent.glob(pattern))
    return found


PHOTOGRAPHS = photographs()
CANVASES = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
RULES = {
    "llava_onevision": {
        "family": "llava_onevision",
        "tile": 384,
        "tile_tokens": 729,
        "max_tiles": 9,
        "drop_class_token": False,
        "canvases": CANVASES,
    },
    "qwen2_vl": {
        "family": "qwen2_vl",
        "patch": 14,
        "merge": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 1280,
    },
    "internvl": {
        "family": "internvl",
        "tile_width": 448,
        "tile_height": 448,
        "tile_tokens": 256,
        "min_tiles": 1,
        "max_tiles": 12,
        "crop": True,
    },
    "llava_next": {
        "family": "llava_next",
        "tile": 336,
        "tile_tokens": 576,
        "extra_tokens": 0,
        "canvases": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "gemma3": {"family": "fixed", "width": 896, "height": 896, "tokens": 256, "fit": "stretch"},
    "llava": {"family": "fixed", "width": 336, "height": 336, "tokens": 576, "fit": "crop"},
    "llava_pad": {"family": "fixed", "width": 336, "height": 336, "tokens": 576, "fit": "pad"},
}


def prepared(model, contents, *, images=1, threads=1, **processor):
    """One (row of numbers, blocks) a picture."""
    pixels, shape, table = preprocess_images(
        json.dumps(RULES[model]),
        pa.array(contents, pa.large_binary()),
        processor=json.dumps(processor),
        images=images,
        threads=threads,
    )
    out, at = [], 0
    for row in pa.array(table).to_pylist():
        blocks = 0 if row["detail"] else row["blocks"]
        size = blocks * int(np.prod(shape))
        out.append((row, np.frombuffer(pixels, np.uint8, size, at).reshape(blocks, *shape)))
        at += size
    assert at == len(pixels)
    return out


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def drawn(width, height, seed=0):
    """Smooth shapes with noise on them, so that every filter tap matters."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(across / 7 + k) + np.cos(down / (5 + k)) for k in range(3)], axis=-1)
    noise = random.normal(0, 40, (height, width, 3))
    return Image.fromarray((128 + 60 * waves + noise).clip(0, 255).astype(np.uint8))


def llava(image, *, multiple=False, **options):
    from transformers.models.llava_onevision import image_processing_pil_llava_onevision as module

    processor = module.LlavaOnevisionImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images = [[image, image]] if multiple else [image]
    out = processor(images, return_tensors="np", **(RAW | options))
    return np.asarray(out["pixel_values"][0])


def qwen(image, **options):
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as module

    out = module.Qwen2VLImageProcessorPil()([image], return_tensors="np", **(RAW | options))
    return out["pixel_values"], out["image_grid_thw"]


def internvl(image, **options):
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as module

    side = {"height": 448, "width": 448}
    processor = module.GotOcr2ImageProcessorPil(size=side, crop_to_patches=True)
    return np.stack(processor([image], return_tensors="np", **(RAW | options))["pixel_values"])


def llava_next(image, **options):
    from transformers.models.llava_next import image_processing_pil_llava_next as module

    side = {"height": 336, "width": 336}
    processor = module.LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)
    return processor([image], return_tensors="np", **(RAW | options))["pixel_values"][0]


def gemma3(image, **options):
    from transformers.models.gemma3 import image_processing_pil_gemma3 as module

    processor = module.Gemma3ImageProcessorPil(size={"height": 896, "width": 896})
    return processor([image], return_tensors="np", **(RAW | options))["pixel_values"]


def llava_15(image, *, crop=336, **options):
    from transformers.models.llava import image_processing_pil_llava as module

    processor = module.LlavaImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": crop, "width": crop},
        image_mean=(0.48145466, 0.4578275, 0.40821073),
    )
    return processor([image], return_tensors="np", **(RAW | options))["pixel_values"]


def tokens_of(model, width, height):
    """What the processors of transformers write into a prompt for such a picture."""
    from types import SimpleNamespace

    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.llava_onevision.processing_llava_onevision import (
        LlavaOnevisionProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    if model == "qwen2_vl":
        return Qwen2VLImageProcessorPil().get_number_of_image_patches(height, width) // 4
    if model == "internvl":
        side = {"height": 448, "width": 448}
        processor = GotOcr2ImageProcessorPil(size=side, crop_to_patches=True)
        return processor.get_number_of_image_patches(height, width) * 256
    borrowed = SimpleNamespace(
        image_processor=LlavaOnevisionImageProcessorPil(),
        num_image_tokens=729,
        vision_aspect_ratio="anyres_max_9",
        _get_unpadded_features=lambda *args: LlavaOnevisionProcessor._get_unpadded_features(
            borrowed, *args
        ),
    )
    return LlavaOnevisionProcessor._get_number_of_features(borrowed, height, width, 384, 384)


def assert_equal_to_processors(content, image):
    image = image.convert("RGB")
    row, blocks = prepared("llava_onevision", [content])[0]
    theirs = llava(image)
    assert np.array_equal(blocks, theirs)
    assert row["tokens"] == tokens_of("llava_onevision", *image.size)

    row, blocks = prepared("llava_onevision", [content], images=2)[0]
    theirs = llava(image, multiple=True)[:1]
    assert np.array_equal(blocks, theirs)
    assert row["tokens"] == 730

    row, blocks = prepared("internvl", [content])[0]
    theirs = internvl(image)
    assert np.array_equal(blocks, theirs)
    assert row["tokens"] == tokens_of("internvl", *image.size)

    for count in (1, 2):
        _, blocks = prepared("llava_next", [content], images=count)[0]
        assert np.array_equal(blocks, llava_next(image))

    _, blocks = prepared("gemma3", [content], filter="bilinear")[0]
    assert np.array_equal(blocks, gemma3(image))

    row, blocks = prepared("llava", [content])[0]
    if row["detail"]:
        assert "2^28 pixels before it is cropped" in row["detail"]
        assert max(image.size) * 336**2 > 2**28 * min(image.size)
    else:
        assert np.array_equal(blocks, llava_15(image))

    background = (122, 116, 104)  # int(255 * mean)
    _, blocks = prepared("llava_pad", [content], background=background)[0]
    assert np.array_equal(blocks, llava_15(image, do_pad=True))

    row, blocks = prepared("qwen2_vl", [content])[0]
    if max(image.size) > 200 * min(image.size):
        assert "200 times" in row["detail"]
        return
    theirs, grid = qwen(image)
    assert [[1, row["rows"], row["columns"]]] == grid.tolist()
    assert np.array_equal(blocks, theirs)
    assert row["tokens"] == tokens_of("qwen2_vl", *image.size)


@pytest.mark.parametrize("path", PHOTOGRAPHS[::5], ids=lambda path: path.name)
def test_photographs_equal_the_pil_processors(path):
    assert_equal_to_processors(path.read_bytes(), Image.open(path))


@settings(max_examples=12, derandomize=True)
@given(st.integers(4, 900), st.integers(4, 900), st.integers(0, 99))
def test_any_size_equals_the_pil_processors(width, height, seed):
    image = drawn(width, height, seed)
    assert_equal_to_processors(png(image), image)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 2000), (2000, 2), (1, 300), (300, 1), (5, 1100), (2000, 37), (14, 27)]
)
def test_extreme_shapes_equal_the_pil_processors(size):
    image = drawn(*size)
    assert_equal_to_processors(png(image), image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_is_what_convert_rgb_makes_of_it(mode):
    image = drawn(90, 70).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert_equal_to_processors(buffer.getvalue(), Image.open(buffer))


@pytest.mark.parametrize(
    ("width", "height", "side"), [(12, 9, 9), (9, 14, 9), (7, 7, 9), (13, 8, 4), (9, 9, 9)]
)
def test_a_view_that_is_no_square_is_cut_out_as_by_the_processor(width, height, side):
    """Where the shorter side of the view is that of the resized image, the longer may exceed it."""
    from transformers.models.llava import image_processing_pil_llava as module

    rule = {"family": "fixed", "width": width, "height": height, "tokens": 1, "fit": "crop"}
    processor = module.LlavaImageProcessorPil(
        size={"shortest_edge": min(width, height)},
        crop_size={"height": height, "width": width},
    )
    for size in [(20, 20), (20, 31), (45, 20), (side, side + 1)]:
        image = drawn(*size)
        pixels, shape, _ = preprocess_images(
            json.dumps(rule), pa.array([png(image)], pa.large_binary())
        )
        theirs = processor([image], return_tensors="np", **RAW)["pixel_values"][0]
        assert np.array_equal(np.frombuffer(pixels, np.uint8).reshape(shape), theirs)


def with_transparency(mode):
    """A PNG whose transparent pixels have a colour of their own, of which little is seen."""
    image = drawn(90, 70)
    alpha = Image.linear_gradient("L").resize(image.size)
    buffer = io.BytesIO()
    if mode == "P":
        image.quantize(64).save(buffer, "PNG", transparency=bytes(range(0, 256, 4)))
    else:
        image = image.convert(mode.removesuffix("A"))
        image.putalpha(alpha)
        assert image.mode == mode
        image.save(buffer, "PNG")
    return buffer


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["P", "LA", "RGBA"])
def test_transparent_pixels_have_their_own_colour_as_by_load_image(mode):
    """A processor that is handed the picture as it was opened lays it on white instead."""
    from transformers.image_utils import load_image

    buffer = with_transparency(mode)
    _, blocks = prepared("qwen2_vl", [buffer.getvalue()])[0]
    opened = Image.open(buffer)
    assert np.array_equal(blocks, qwen(load_image(opened))[0])
    as_opened, _ = qwen(opened)
    assert np.abs(blocks.astype(int) - as_opened.astype(int)).max() > 100
    white = Image.new("RGBA", opened.size, (255, 255, 255, 255))
    white.alpha_composite(opened.convert("RGBA"))
    assert np.array_equal(qwen(white.convert("RGB"))[0], as_opened)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_seen_as_its_exif_block_asks(orientation):
    image = drawn(90, 70)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(buffer))
    (_, turned), (_, plain) = (
        prepared("qwen2_vl", [content], upright=flag)[0]
        for content, flag in [(buffer.getvalue(), True), (png(upright), False)]
    )
    assert np.array_equal(turned, plain)
    (_, stored) = prepared("qwen2_vl", [buffer.getvalue()], upright=False)[0]
    assert np.array_equal(stored, plain) == (orientation == 1)


def test_normalised_they_are_what_the_processors_hand_to_the_model():
    path = PHOTOGRAPHS[0]
    theirs = llava(Image.open(path).convert("RGB"), do_rescale=True, do_normalize=True)
    _, blocks = prepared("llava_onevision", [path.read_bytes()])[0]
    ours = (blocks.reshape(theirs.shape) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize("model", ["llava_onevision", "internvl", "qwen2_vl"])
def test_the_default_processors_differ_by_rounding_alone(model):
    """transformers chooses torchvision where it is installed, which keeps 16 bits of a weight."""
    from transformers import (
        GotOcr2ImageProcessor,
        LlavaOnevisionImageProcessor,
        Qwen2VLImageProcessor,
    )

    side = {"height": 448, "width": 448}
    theirs = {
        "llava_onevision": LlavaOnevisionImageProcessor,
        "internvl": lambda: GotOcr2ImageProcessor(size=side, crop_to_patches=True),
        "qwen2_vl": Qwen2VLImageProcessor,
    }[model]()
    for path in PHOTOGRAPHS[:6]:
        image = Image.open(path).convert("RGB")
        _, blocks = prepared(model, [path.read_bytes()])[0]
        other = theirs([image], return_tensors="pt", **RAW)["pixel_values"].numpy()
        difference = np.abs(blocks.astype(int) - other.reshape(blocks.shape).astype(int))
        assert difference.max() <= 8
        assert (difference > 1).mean() < 1e-3


def test_a_broken_picture_says_so_and_the_others_are_there():
    whole = png(drawn(60, 50))
    contents = [whole, whole[:200], b"no picture", whole]
    rows = prepared("qwen2_vl", contents, threads=2)
    assert [bool(row["detail"]) for row, _ in rows] == [False, True, True, False]
    assert np.array_equal(rows[0][1], rows[3][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "a JSON object of settings"),
        ('{"filtre": "bicubic"}', "unknown field `filtre`"),
        ('{"filter": "box"}', "bilinear, bicubic or lanczos"),
        ('{"temporal": 0}', "1 to 16 frames"),
        ('{"background": [1, 2, 300]}', "invalid value: integer `300`"),
    ],
)
def test_wrong_settings_are_one_clear_error(settings, message):
    rule = json.dumps(RULES["qwen2_vl"])
    with pytest.raises(InputError, match=message):
        preprocess_images(rule, pa.array([], pa.large_binary()), processor=settings)


def test_a_null_is_no_picture():
    contents = pa.array([None], pa.large_binary())
    with pytest.raises(InputError, match="1 nulls, expected bytes in every row"):
        preprocess_images(json.dumps(RULES["internvl"]), contents)
