"""Pictures are hashed, embedded and shown as a person sees them: upright, over a background."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageOps

from mmrlhf_engine._core import decode_images, thumbnail_images
from test_image import LIMIT, columns, displayed, encoded, hashes, photograph, reference


def glyph(index, colour, background=(0, 0, 0, 0)):
    image = Image.new("RGBA", (96, 96), background)
    corners = [(10 + 8 * index, 10), (80, 20 + 6 * index), (20, 85)]
    ImageDraw.Draw(image).polygon(corners, fill=colour)
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("grey", [0, 128, 238, 255])
def test_glyphs_drawn_in_alpha_alone_stay_distinct(kind, grey):
    transparent = (grey, grey, grey, 0)
    images = [glyph(i, (grey, grey, grey, 255), transparent) for i in range(10)]
    contents = [encoded(image, kind, lossless=True) for image in images]
    rows = hashes(contents)
    assert len({(row["phash"], tuple(row["colour"])) for row in rows}) == 10
    if kind == "PNG":
        assert [row["phash"] for row in rows] == [reference(displayed(i)) for i in images]


def test_opaque_alpha_changes_nothing():
    image = photograph().resize((90, 70))
    opaque = image.convert("RGBA")
    grey = image.convert("L")
    contents = [encoded(picture, "PNG") for picture in (image, opaque, grey, grey.convert("LA"))]
    plain, with_alpha, plain_grey, grey_with_alpha = hashes(contents)
    assert plain == with_alpha
    assert plain_grey == grey_with_alpha


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100})]
)
def test_a_picture_is_seen_as_its_orientation_says(kind, options, orientation):
    upright = photograph().resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(TURNS[orientation])
    tagged = encoded(stored, kind, exif=exif, **options)
    seen = ImageOps.exif_transpose(Image.open(io.BytesIO(tagged))).convert("RGB")
    if kind != "JPEG":
        assert np.array_equal(seen, upright)
    first, second = hashes([encoded(seen, "PNG"), tagged])
    assert first == second
    arguments = {"size": 48, "fit": "squash", "filter": "bicubic", "max_pixels": LIMIT}
    buffer, _ = decode_images(*columns([encoded(seen, "PNG"), tagged]), **arguments, threads=1)
    plain, turned = np.frombuffer(buffer, np.uint8).reshape(2, 48, 48, 3)
    np.testing.assert_array_equal(plain, turned)
    made = thumbnail_images(*columns([tagged]), edge=48, max_pixels=LIMIT, threads=1)
    thumbnail = Image.open(io.BytesIO(pa.array(made)[0].as_py()))
    assert thumbnail.size == (48, 32)
