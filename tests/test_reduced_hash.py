"""Hashes of JPEG decoded at reduced scale: near those of every pixel, with their own name."""

import io

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from mmrlhf_engine._core import hash_images
from mmrlhf_engine.curate import dedup
from mmrlhf_engine.curate.dedup import DedupConfig
from test_dedup import corpus
from test_image import PHOTOGRAPHS, reference


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def hashed(contents, *, reduced=True):
    """Hashes, colours and reasons of encoded pictures."""
    nothing = pa.nulls(len(contents), pa.uint64())
    given = (pa.nulls(len(contents), pa.large_string()), nothing, nothing)
    inline = pa.array(contents, pa.large_binary())
    made = pa.array(hash_images(*given, inline, max_pixels=10**8, threads=2, reduced=reduced))
    return [made.field(name).to_pylist() for name in ("phash", "colour", "reason")]


@pytest.mark.parametrize("size", [(640, 480), (1280, 960), (1000, 333), (517, 1033)])
@pytest.mark.parametrize("options", [{}, {"quality": 40}, {"progressive": True, "subsampling": 0}])
def test_a_reduced_hash_is_near_that_of_every_pixel(size, options):
    contents = [
        jpeg(Image.open(path).convert("RGB").resize(size), **options) for path in PHOTOGRAPHS
    ]
    reduced, colours, reasons = hashed(contents)
    full, full_colours, _ = hashed(contents, reduced=False)
    assert reasons == [None] * len(contents)
    bits = [(a ^ b).bit_count() for a, b in zip(reduced, full, strict=True)]
    assert max(bits) <= 4
    assert sum(bits) / len(bits) <= 0.8
    assert np.abs(np.array(colours) - np.array(full_colours)).max() <= 12
    assert colours != full_colours


def test_the_scale_keeps_64_pixels_of_the_shorter_side():
    """Of pictures that are too small to be reduced every pixel is decoded, as of other formats."""
    small = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((300, 127))
    buffer = io.BytesIO()
    Image.open(PHOTOGRAPHS[1]).convert("RGB").save(buffer, "PNG")
    contents = [jpeg(small, quality=50), buffer.getvalue()]
    exact = [reference(Image.open(io.BytesIO(content))) for content in contents]
    assert hashed(contents)[0] == exact


def test_a_turned_picture_is_hashed_upright():
    image = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((960, 640))
    exif = Image.Exif()
    exif[0x0112] = 6
    (upright, turned), *_ = hashed([jpeg(image.rotate(-90, expand=True)), jpeg(image, exif=exif)])
    assert (upright ^ turned).bit_count() <= 2


def test_a_broken_picture_is_named():
    content = jpeg(Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((640, 480)))
    for broken in (content[: len(content) // 2], content[:400] + b"\xff\xd9"):
        hashes, _, reasons = hashed([broken, content])
        assert hashes[0] is None
        assert reasons[0] in {"truncated_media", "unreadable_media"}
        assert reasons[1] is None


@pytest.mark.parametrize(("kind", "name"), [("exact", "phash"), ("fast", "phash-reduced-64")])
def test_the_setting_decides_and_the_report_names_it(stage, tmp_path, kind, name):
    contents = {
        f"{n}.jpg": jpeg(Image.open(path).convert("RGB").resize((1280, 960)))
        for n, path in enumerate(PHOTOGRAPHS[:12])
    }
    corpus(
        stage, tmp_path, [(file, f"What is {file}?", None, [file]) for file in contents], contents
    )
    begun = stage("dedup", DedupConfig(hash=kind))
    dedup.run(begun.config, begun)
    kept = pl.read_parquet(begun.folder / "kept" / "*.parquet")
    kept = dict(kept.select("id", "phash").iter_rows())
    expected, *_ = hashed(list(contents.values()), reduced=kind == "fast")
    assert [kept[file] for file in contents] == [[hash] for hash in expected]
    exact = [reference(Image.open(io.BytesIO(content))) for content in contents.values()]
    assert (expected == exact) == (kind == "exact")
    assert begun.run.report("dedup")["hash"] == name
