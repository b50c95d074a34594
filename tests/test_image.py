"""Pictures: equal to Pillow and imagehash bit for bit, and an error for any damaged file."""

import io
import itertools
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from easy_vqa import get_train_image_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf_engine._core import decode_images, hash_images, thumbnail_images

LIMIT = 89_478_485


def photographs():
    patterns = {"foolbox": "data/imagenet_*.jpg", "sklearn": "**/images/*.jpg"}
    found = []
    for package, pattern in patterns.items():
        found += sorted(Path(find_spec(package).origin).parent.glob(pattern))
    assert len(found) > 20
    return found


PHOTOGRAPHS = photographs()


def columns(contents=(), paths=()):
    """The four columns that locate pictures."""
    n = len(contents) or len(paths)
    return (
        pa.array(list(paths) or [None] * n, pa.large_string()),
        pa.array([None] * n, pa.uint64()),
        pa.array([None] * n, pa.uint64()),
        pa.array(list(contents) or [None] * n, pa.large_binary()),
    )


def hashes(contents=(), paths=(), limit=LIMIT):
    made = hash_images(*columns(contents, paths), max_pixels=limit, threads=2)
    return pa.array(made).to_pylist()


def displayed(image):
    """The picture over the background on which `mmrlhf_engine` shows it."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getextrema()[3] == (255, 255):
        return image.convert("RGB")
    white, black = (Image.new("RGB", image.size, colour) for colour in ("white", "black"))
    for background in (white, black):
        background.paste(image, mask=image.getchannel("A"))
    seen, other = (np.asarray(flat.convert("L"), np.float64).std() for flat in (white, black))
    return black if seen < 8 and other > seen else white


def reference(image):
    bits = imagehash.phash(image).hash.flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(index=0):
    return Image.open(PHOTOGRAPHS[index]).convert("RGB")


def test_hashes_of_photographs_equal_imagehash():
    ours = hashes(paths=[str(path) for path in PHOTOGRAPHS])
    assert [row["phash"] for row in ours] == [reference(Image.open(p)) for p in PHOTOGRAPHS]


def test_hashes_of_drawings_equal_imagehash():
    paths = get_train_image_paths()
    paths = [paths[number] for number in sorted(paths)[::13]]
    ours = hashes(paths=paths)
    assert [row["phash"] for row in ours] == [reference(Image.open(path)) for path in paths]


@pytest.mark.parametrize(
    "options",
    [{"quality": quality, "subsampling": sub} for quality in (30, 60, 95) for sub in (0, 1, 2)]
    + [{"progressive": True, "quality": 75}, {"restart_marker_blocks": 3}, {"optimize": True}],
)
@pytest.mark.parametrize("size", [(481, 333), (640, 480), (37, 16)])
def test_jpeg_of_any_kind(options, size):
    content = encoded(photograph().resize(size), "JPEG", **options)
    assert_pixels_and_hash_equal(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_any_mode(mode):
    image = photograph().resize((90, 70)).convert(mode)
    assert_pixels_and_hash_equal(encoded(image, "PNG"))


def test_sixteen_bit_grey_keeps_its_high_byte():
    """Pillow clips 16-bit grey at 255, which turns nearly every such picture white."""
    values = np.linspace(0, 65535, 90 * 70).astype(np.uint16).reshape(70, 90)
    deep = encoded(Image.fromarray(values), "PNG")
    shallow = encoded(Image.fromarray((values >> 8).astype(np.uint8)), "PNG")
    first, second = hashes([deep, shallow])
    assert first == second


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {"quality": 90}),
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("BMP", "P", {}),
        ("GIF", "P", {}),
        ("GIF", "L", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 80}),
        ("WEBP", "RGB", {"quality": 30}),
    ],
)
def test_other_formats(kind, mode, options):
    image = photograph(3).resize((121, 87)).convert(mode)
    assert_pixels_and_hash_equal(encoded(image, kind, **options))


def test_inks_are_inverted_whether_adobe_is_named_or_not():
    content = encoded(photograph().resize((80, 60)).convert("CMYK"), "JPEG", quality=90)
    name = content.index(b"Adobe")
    length = int.from_bytes(content[name - 2 : name], "big")
    assert_pixels_and_hash_equal(content)
    assert_pixels_and_hash_equal(content[: name - 4] + content[name - 2 + length :])
    assert_pixels_and_hash_equal(
        content[: name + 11] + b"\x02" + content[name + 12 :]  # read as YCCK
    )


def test_a_progressive_jpeg_without_its_last_scans_is_smoothed():
    content = encoded(photograph().resize((120, 90)), "JPEG", progressive=True, quality=70)
    scans = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
    for earlier, scan in itertools.pairwise(scans):
        tables = content.rfind(b"\xff\xc4", earlier, scan)
        assert_pixels_and_hash_equal(content[: tables if tables > 0 else scan] + b"\xff\xd9")


def test_stray_bytes_around_a_jpeg_are_skipped():
    content = encoded(photograph().resize((60, 40)), "JPEG")
    assert_pixels_and_hash_equal(content[:20] + b"\x00\x11\x22" + content[20:])
    assert_pixels_and_hash_equal(content[:2] + b"\xff\xff" + content[2:] + b"junk")


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("colours", ["all", "half"])
@pytest.mark.parametrize("transparency", [b"", b"\x00\x80"])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_png_palettes(depth, colours, transparency):
    """Also with indices past the end of the table."""
    rng = np.random.default_rng(depth)
    entries = 2**depth if colours == "all" else 2 ** (depth - 1)
    lines = b"".join(b"\0" + rng.bytes(40 * depth // 8) for _ in range(30))
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, depth, 3, 0, 0, 0))
        + chunk(b"PLTE", rng.bytes(3 * entries))
        + (chunk(b"tRNS", transparency[:entries]) if transparency else b"")
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    assert_pixels_and_hash_equal(content)


@pytest.mark.parametrize("depth", [1, 4, 8, 24, 32])
@pytest.mark.parametrize("top_down", [False, True])
def test_bitmaps_of_any_depth_and_either_direction(depth, top_down):
    rng = np.random.default_rng(depth)
    palette = rng.bytes(4 << depth) if depth <= 8 else b""
    rows = rng.bytes(31 * ((37 * depth + 31) // 32 * 4))
    start = 54 + len(palette)
    size = (37, -31 if top_down else 31)
    content = (
        b"BM"
        + struct.pack("<IHHI", start + len(rows), 0, 0, start)
        + struct.pack("<IiiHHIIiiII", 40, *size, 1, depth, 0, len(rows), 0, 0, 0, 0)
    )
    assert_pixels_and_hash_equal(content + palette + rows)


def colourful(index=3):
    """Of a palette whose first colour is not black, so that a background can be told from none."""
    image = photograph(index).resize((121, 87)).quantize(64)
    image.putpalette([255 - value for value in image.getpalette()])
    return image


@pytest.mark.parametrize("screen", [(150, 130), (50, 60)])
@pytest.mark.parametrize("options", [{}, {"transparency": 5}, {"interlace": 0}])
def test_a_gif_frame_of_another_size_than_the_screen(screen, options):
    content = bytearray(encoded(colourful(), "GIF", **options))
    content[6:10] = struct.pack("<HH", *screen)
    assert_pixels_and_hash_equal(bytes(content))


def test_a_large_gif_is_decoded():
    (row,) = hashes([encoded(Image.new("P", (4000, 3500)), "GIF")])
    assert row["reason"] is None


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("GIF", "RGB", {}),
        ("PNG", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 60}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGBA", {"quality": 60}),
    ],
)
def test_the_first_frame_of_an_animation(kind, mode, options):
    frames = [photograph(3).resize((80, 60)).rotate(angle) for angle in (0, 40, 80)]
    frames = [frame.convert(mode) for frame in frames]
    if mode == "RGBA":
        frames[0].putalpha(frames[1].convert("L"))
    more = {"save_all": True, "append_images": frames[1:], **options}
    assert_pixels_and_hash_equal(encoded(frames[0], kind, **more))


@pytest.mark.parametrize("quality", [40, 90])
def test_transparent_pixels_are_laid_over_white(quality):
    image = photograph(4).resize((71, 53))
    image.putalpha(photograph(5).resize(image.size).convert("L"))
    assert_pixels_and_hash_equal(encoded(image, "WEBP", quality=quality))
    assert_pixels_and_hash_equal(encoded(image, "WEBP", lossless=True))
    assert_pixels_and_hash_equal(encoded(image, "PNG"))
    assert_pixels_and_hash_equal(encoded(image.convert("LA"), "PNG"))


def riff(*chunks):
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_a_webp_whose_metadata_is_announced_but_absent():
    content = encoded(photograph().resize((64, 48)), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    assert_pixels_and_hash_equal(riff(content[12 : content.index(b"EXIF")]))


def test_a_small_canvas_cannot_hide_a_large_picture():
    large = encoded(Image.new("RGB", (9000, 9000)), "WEBP", lossless=True)
    small = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\x0f\0\0\x0f\0\0"
    (row,) = hashes([riff(small, large[12:])], limit=10**6)
    assert row["reason"] == "unreadable_media"
    assert "canvas" in row["detail"]


def assert_pixels_and_hash_equal(content):
    image = Image.open(io.BytesIO(content))
    (ours,) = hashes([content])
    assert ours["reason"] is None, ours["detail"]
    buffer, _ = decode_images(
        *columns([content]), size=64, fit="squash", filter="bicubic", max_pixels=LIMIT, threads=1
    )
    pixels = np.frombuffer(buffer, np.uint8).reshape(64, 64, 3)
    seen = displayed(image)
    expected = np.asarray(seen.resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels, expected)
    # A picture without transparent pixels is hashed as it is stored.
    assert ours["phash"] == reference(image if not image.has_transparency_data else seen)


@settings(max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 80),
    st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    st.integers(0, 2**32 - 1),
)
def test_resize_equals_pillow_to_the_byte(width, height, size, name, seed):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    buffer, errors = decode_images(
        *columns([encoded(image, "BMP")]),
        **{"size": size, "fit": "squash", "filter": name, "max_pixels": LIMIT, "threads": 1},
    )
    assert pa.array(errors).to_pylist()[0]["reason"] is None
    expected = np.asarray(image.resize((size, size), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(np.frombuffer(buffer, np.uint8).reshape(size, size, 3), expected)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (224, 224), (101, 100), (64, 1000)])
def test_crop_equals_the_transforms_encoders_were_trained_with(size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = photograph(5).resize(size)
    content = encoded(image, "PNG")
    transform = Compose([Resize(96, InterpolationMode.BICUBIC), CenterCrop(96)])
    buffer, _ = decode_images(
        *columns([content]), size=96, fit="crop", filter="bicubic", max_pixels=LIMIT, threads=1
    )
    ours = np.frombuffer(buffer, np.uint8).reshape(96, 96, 3)
    np.testing.assert_array_equal(ours, np.asarray(transform(image)))


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2, 3)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_extreme_shapes_need_no_extreme_memory(size, fit):
    content = encoded(Image.new("RGB", size, (90, 120, 200)), "PNG")
    buffer, errors = decode_images(
        *columns([content]), size=224, fit=fit, filter="lanczos", max_pixels=LIMIT, threads=1
    )
    assert pa.array(errors).to_pylist()[0]["reason"] is None
    pixels = np.frombuffer(buffer, np.uint8).reshape(-1, 3)
    assert np.unique(pixels, axis=0).tolist() == [[90, 120, 200]]


def test_colour_layout_is_the_mean_of_each_cell():
    image = photograph(7).resize((80, 40))
    (ours,) = hashes([encoded(image, "PNG")])
    cells = np.asarray(image, dtype=np.float64).reshape(8, 5, 8, 10, 3).mean(axis=(1, 3))
    assert np.abs(np.array(ours["colour"]).reshape(8, 8, 3) - cells).max() <= 0.5


def test_a_flat_picture_has_the_hash_imagehash_gives_it():
    for value in (0, 1, 128, 255):
        image = Image.new("RGB", (99, 50), (value, value, value))
        assert hashes([encoded(image, "PNG")])[0]["phash"] == reference(image)


def symmetric_drawings():
    """Small pictures full of frequencies that are equal in exact arithmetic, so that the hash
    depends on the last bit of floating-point sums."""
    rng = np.random.default_rng(5)
    for _ in range(60):
        noise = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        yield np.maximum(noise, noise.T)
        yield np.maximum(noise, noise[:, ::-1])
        yield np.repeat(noise[:1], 32, axis=0)
        yield np.where(noise > 250, noise, 0).astype(np.uint8)
        grid = np.zeros((32, 32), np.uint8)
        step = rng.integers(1, 32)
        grid[::step] = grid[:, ::step] = rng.integers(1, 256)
        yield grid
        yield np.kron(noise[:8, :8] // 128 * 255, np.ones((4, 4), np.uint8))


def test_hashes_that_depend_on_rounding_equal_imagehash():
    images = [Image.fromarray(values) for values in symmetric_drawings()]
    ours = hashes([encoded(image, "PNG") for image in images])
    assert [row["phash"] for row in ours] == [reference(image) for image in images]


def test_what_cannot_be_read_has_a_reason_and_spoils_nothing(tmp_path):
    good = encoded(photograph(), "JPEG")
    contents = [good, good[: len(good) // 2], b"<html>", b"", good]
    rows = hashes(contents)
    assert [row["reason"] for row in rows] == [
        None,
        "truncated_media",
        "unreadable_media",
        "unreadable_media",
        None,
    ]
    assert rows[0]["phash"] == rows[4]["phash"]
    (row,) = hashes(paths=[str(tmp_path / "absent.jpg")])
    assert row["reason"] == "missing_media"


def test_the_pixel_limit_is_checked_before_decoding():
    content = encoded(Image.new("L", (3000, 2000)), "PNG")
    (row,) = hashes([content], limit=5_999_999)
    assert row["reason"] == "too_many_pixels"
    assert row["detail"] == "3000 x 2000 pixels, the limit is 5999999"
    assert hashes([content], limit=6_000_000)[0]["reason"] is None


def test_a_range_of_a_file_is_read(tmp_path):
    content = encoded(photograph(), "JPEG")
    (tmp_path / "tar").write_bytes(b"x" * 512 + content + b"y" * 100)
    made = hash_images(
        pa.array([str(tmp_path / "tar")] * 2, pa.large_string()),
        pa.array([512, 512], pa.uint64()),
        pa.array([len(content), 10**9], pa.uint64()),
        pa.array([None, None], pa.large_binary()),
        max_pixels=LIMIT,
        threads=1,
    )
    first, second = pa.array(made).to_pylist()
    assert first["phash"] == hashes([content])[0]["phash"]
    assert second["reason"] == "truncated_media"


def test_thumbnails_fit_their_edge():
    contents = [encoded(photograph().resize((400, 100)), "PNG"), b"nothing"]
    made = thumbnail_images(*columns(contents), edge=80, max_pixels=LIMIT, threads=1)
    first, second = pa.array(made).to_pylist()
    assert Image.open(io.BytesIO(first)).size == (80, 20)
    assert second is None


SEEDS = [
    encoded(photograph().resize((60, 45)), kind, **options)
    for kind, options in [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
    ]
]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_files_are_rows_not_panics(content, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for row in hashes([damaged], limit=10**6):
        assert (row["phash"] is None) == (row["reason"] is not None)


@given(st.binary(max_size=200), st.sampled_from([content[:30] for content in SEEDS]))
def test_arbitrary_bytes_are_rows_not_panics(content, start):
    assert len(hashes([content, start + content])) == 2
