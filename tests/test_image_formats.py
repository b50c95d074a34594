"""TIFF, AVIF and HEIC: the pixels are Pillow's, and what cannot be decoded is refused by name."""

import io
import struct
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from intake import lines, take_in, write_tar
from mmrlhf_engine._core import hash_images, inspect_located_media
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.sources import foreign
from mmrlhf_engine.sources.pictures import FrameSettings, find_pictures
from mmrlhf_engine.sources.preferences.record import Media
from test_image import (
    LIMIT,
    assert_pixels_and_hash_equal,
    columns,
    encoded,
    hashes,
    photograph,
    reference,
)


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


def probed(content):
    (row,) = pa.array(
        inspect_located_media(*columns([content]), max_pixels=LIMIT, threads=1)
    ).to_pylist()
    return row


COMPRESSIONS = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(121, 87), (64, 3)])
def test_tiff_of_any_mode(mode, compression, size):
    content = encoded(photograph(3).resize(size).convert(mode), "TIFF", compression=compression)
    assert_pixels_and_hash_equal(content)
    row = probed(content)
    assert (row["format"], row["width"], row["height"], row["frames"]) == ("tiff", *size, 1)


@pytest.mark.parametrize("compression", [*COMPRESSIONS, "group4"])
@pytest.mark.parametrize("inverted", [False, True])
def test_tiff_in_black_and_white(compression, inverted):
    image = photograph(2).resize((121, 87)).convert("1")
    options = {"tiffinfo": {262: 0}} if inverted else {}
    assert_pixels_and_hash_equal(encoded(image, "TIFF", compression=compression, **options))


@pytest.mark.parametrize("turn", range(1, 9))
def test_tiff_is_upright(turn):
    image = photograph(1).resize((90, 61))
    content = encoded(image, "TIFF", tiffinfo={274: turn})
    with Image.open(io.BytesIO(content)) as opened:
        size = ImageOps.exif_transpose(opened).size
    row = probed(content)
    assert (row["width"], row["height"]) == size
    assert_pixels_and_hash_equal(content)


def test_tiff_of_sixteen_bits_keeps_the_high_byte():
    values = np.linspace(0, 65535, 90 * 70).astype(np.uint16).reshape(70, 90)
    deep = encoded(Image.fromarray(values), "TIFF")
    shallow = encoded(Image.fromarray((values >> 8).astype(np.uint8)), "TIFF")
    first, second = hashes([deep, shallow])
    assert first == second


def test_the_first_page_of_a_tiff_is_the_picture():
    pages = [photograph(n).resize((64, 48)) for n in range(3)]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert probed(content)["frames"] == 3
    assert hashes([content])[0]["phash"] == reference(pages[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(photograph().resize((64, 64)), "TIFF", compression="jpeg"), "unreadable_media"),
        (encoded(Image.new("1", (64, 64)), "TIFF", compression="group3"), "unreadable_media"),
        (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "unreadable_media"),
        (encoded(photograph().resize((99, 99)), "TIFF")[:9000], "truncated_media"),
        (b"II*\0\x08\0\0\0", "truncated_media"),
    ],
)
def test_a_tiff_that_is_not_read_is_refused_by_name(content, reason):
    row = probed(content)
    assert row["reason"] == reason
    assert "tiff" in row["detail"]


def test_values_of_a_tiff_that_are_not_there_take_no_memory():
    content = encoded(photograph().resize((16, 16)), "TIFF", tiffinfo={274: 1})
    entry = content.index(struct.pack("<HHI", 274, 3, 1))
    for count in (2**31, 10**6):
        changed = content[: entry + 4] + struct.pack("<I", count) + content[entry + 8 :]
        assert probed(changed)["reason"] in ("unreadable_media", "truncated_media")


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_tiff_or_avif_is_refused_or_decoded(data):
    kind = data.draw(st.sampled_from(["TIFF", "AVIF"]))
    content = bytearray(encoded(Image.new("RGB", (16, 12), "red"), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    (row,) = pa.array(hash_images(*columns([content]), max_pixels=10_000, threads=1)).to_pylist()
    assert (row["phash"] is None) == (row["reason"] is not None)


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def avif(number=0, mode="RGB", size=(64, 48), **options):
    return encoded(photograph(number).resize(size).convert(mode), "AVIF", **options)


def heic(number=0):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    return encoded(photograph(number).resize((96, 64)), "HEIF")


@needs_avif
@pytest.mark.parametrize("size", [(64, 48), (33, 71)])
def test_the_header_of_an_avif(size):
    row = probed(avif(size=size))
    assert (row["kind"], row["format"]) == ("image", "avif")
    assert (row["width"], row["height"]) == size
    assert probed(avif()[:200])["reason"] == "truncated_media"


def test_the_header_of_a_heic():
    row = probed(heic())
    assert (row["kind"], row["format"], row["width"], row["height"]) == ("image", "heic", 96, 64)


@needs_avif
def test_an_avif_is_seen_as_pillow_sees_it(tmp_path, take_in):
    seen_through = photograph(1).resize((64, 48)).convert("RGBA")
    seen_through.putalpha(photograph(3).resize((64, 48)).convert("L"))
    contents = {"a": avif(0), "b": encoded(seen_through, "AVIF"), "c": avif(2)}
    (tmp_path / "c.avif").write_bytes(contents["c"])
    members = {"a.avif": contents["a"], "a.txt": b"What?", "b.avif": contents["b"]}
    write_tar(tmp_path / "w.tar", {**members, "b.txt": b"Which?"})
    lines(tmp_path / "x.jsonl", {"image": "c.avif", "prompt": "Whose?"})
    out = take_in(tmp_path / "w.tar", tmp_path / "x.jsonl")
    assert out.media["format"].to_list() == ["avif"] * 3
    (batch,) = picture_batches(out.media, 9)
    for content, name in zip(batch.inline.to_pylist(), "abc", strict=True):
        with Image.open(io.BytesIO(content)) as made, Image.open(io.BytesIO(contents[name])) as own:
            assert made.format == ("PNG" if name == "b" else "BMP")
            assert made.mode == own.mode
            assert np.array_equal(np.asarray(made), np.asarray(own))


def test_a_heic_is_seen_as_pillow_sees_it(tmp_path, take_in):
    content = heic()
    (tmp_path / "a.heic").write_bytes(content)
    lines(tmp_path / "x.jsonl", {"image": "a.heic", "prompt": "Whose?"})
    (batch,) = picture_batches(take_in(tmp_path / "x.jsonl").media, 9)
    made = Image.open(io.BytesIO(batch.inline[0].as_py()))
    with Image.open(io.BytesIO(content)) as own:
        assert np.array_equal(np.asarray(made), np.asarray(own.convert("RGB")))


@needs_avif
@pytest.mark.parametrize("format", ["avif", "heic"])
def test_a_picture_whose_decoder_is_missing_is_rejected(tmp_path, take_in, monkeypatch, format):
    monkeypatch.setattr(foreign, "_missing", lambda name: f"decoder-of-{name}")
    content = avif()
    if format == "heic":
        content = content.replace(b"avif", b"heic").replace(b"av01", b"hvc1")
    (tmp_path / "album").mkdir()
    (tmp_path / "album/a.avif").write_bytes(content)
    (tmp_path / "album/a.txt").write_text("What?")
    lines(tmp_path / "x.jsonl", {"prompt": "A text alone?"})
    out = take_in(tmp_path / "album", tmp_path / "x.jsonl")
    assert out.samples["prompt"].to_list() == ["A text alone?"]
    assert out.reasons == {"album/a.avif": "unreadable_media"}
    detail = out.rejected["detail"][0]
    assert f"decoder-of-{format}" in detail
    assert "mmrlhf-engine[pictures]" in detail


@needs_avif
def test_a_broken_avif_costs_its_own_sample(tmp_path, take_in):
    content = avif()
    start = content.index(b"mdat") + 4
    broken = content[:start] + b"\xff" * (len(content) - start)
    members = {"a.avif": broken, "a.txt": b"What?", "b.avif": content, "b.txt": b"Which?"}
    write_tar(tmp_path / "w.tar", members)
    (batch,) = picture_batches(take_in(tmp_path / "w.tar").media, 9)
    located = (batch.paths, batch.offsets, batch.lengths, batch.inline)
    first, second = pa.array(hash_images(*located, max_pixels=LIMIT, threads=1)).to_pylist()
    assert (first["reason"], second["reason"]) == ("unreadable_media", None)
    assert "avif" in first["detail"]


@needs_avif
@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
def test_formats_that_shards_do_not_hold_are_packed_as_png(tmp_path, kind):
    content = encoded(photograph().resize((96, 64)), kind)
    (tmp_path / "a").write_bytes(content)
    limits = FrameSettings(frames=1, frames_per_second=1.0, max_pixels=LIMIT, threads=1)
    for media in (Media("image", ("a",)), Media("image", (), content)):
        (found,) = find_pictures([(tmp_path, media)], limits)[tmp_path, media]
        assert (found.width, found.height) == (96, 64)
        with Image.open(io.BytesIO(found.read())) as made, Image.open(io.BytesIO(content)) as own:
            assert made.format == "PNG"
            assert np.array_equal(np.asarray(made), np.asarray(own))
