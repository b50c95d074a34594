"""Pictures of media rows: the very bytes that were taken in, wherever they lie."""

import io
import random
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intake import PICTURES, lines, picture, take_in, write_tar
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.sources.pictures import FrameSettings, find_pictures
from mmrlhf_engine.sources.preferences.record import Media
from mmrlhf_engine.sources.video import at_positions


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


def contents(batches):
    """(row, bytes) of every picture, read the slow way."""
    for batch in batches:
        columns = (batch.rows.tolist(), *map(pa.Array.to_pylist, columns_of(batch)))
        for row, path, offset, length, inline in zip(*columns, strict=True):
            if inline is not None:
                yield row, inline
                continue
            with Path(path).open("rb") as file:
                file.seek(offset or 0)
                yield row, file.read(-1 if length is None else length)


def columns_of(batch):
    return batch.paths, batch.offsets, batch.lengths, batch.inline


@pytest.fixture
def everywhere(tmp_path, take_in):
    """Eight pictures: two in files, two in a tar, four in a Parquet file of three row groups."""
    whole = [file.read_bytes() for file in PICTURES]
    names = [picture(tmp_path, f"{n}.png", n) for n in (0, 1)]
    files = lines(tmp_path / "a.jsonl", *({"image": n, "prompt": "x"} for n in names))
    members = {f"{n}.{k}": whole[n] if k == "png" else b"x" for n in (2, 3) for k in ("png", "txt")}
    tar = write_tar(tmp_path / "b.tar", members)
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {
        "images": pa.array([whole[4:6], None, whole[6:7], []], pa.list_(pa.binary())),
        "image": pa.array([None, None, None, {"bytes": whole[7], "path": "x"}], cell),
        "prompt": pa.array(["x"] * 4),
    }
    pq.write_table(pa.table(table), tmp_path / "c.parquet", row_group_size=2)
    return take_in(files, tar, tmp_path / "c.parquet").media, whole


def test_every_picture_is_the_one_taken_in(everywhere):
    media, whole = everywhere
    assert media.height == len(whole)
    for size in (1, 3, 100):
        batches = list(picture_batches(media, size))
        assert all(len(batch.rows) <= size for batch in batches)
        assert list(contents(batches)) == list(enumerate(whole))
        types = [pa.large_string(), pa.uint64(), pa.uint64(), pa.large_binary()]
        assert all([c.type for c in columns_of(batch)] == types for batch in batches)
        assert all(batch.rows.dtype == np.int64 for batch in batches)


def test_the_order_of_the_rows_is_free(everywhere):
    media, whole = everywhere
    order = random.Random(0).sample(range(media.height), media.height)
    found = list(contents(picture_batches(media[order], 3)))
    assert found == [(row, whole[number]) for row, number in enumerate(order)]


@pytest.mark.parametrize("change", ["gone", "damaged", "shorter"])
def test_a_table_that_changed_since_ends_nothing(everywhere, tmp_path, change):
    media, whole = everywhere
    table = tmp_path / "c.parquet"
    if change == "gone":
        table.unlink()
    elif change == "damaged":
        table.write_bytes(b"PAR1" * 50)
    else:
        pq.write_table(pa.table({"image": pa.array([b"x"])}), table)
    batches = list(picture_batches(media, 100))
    assert [row for batch in batches for row in batch.rows] == list(range(media.height))
    assert batches[0].inline.null_count == media.height
    batch = next(picture_batches(media.head(4), 100))
    assert list(contents([batch])) == list(enumerate(whole[:4]))


def test_frames_at_their_positions(tmp_path, take_in):
    for number in range(5):
        picture(tmp_path, f"clip/{number}.png", number)
    (tmp_path / "clip/.hidden").write_text("left by the system")
    out = take_in(lines(tmp_path / "x.jsonl", {"video": "clip", "prompt": "x"}))
    assert out.media["frames"].to_list() == [5]
    for positions, numbers in [
        ((0.0,), [0]),
        ((0.0, 0.5, 1.0), [0, 2, 4]),
        ((0.5, 0.5, 0.51), [2]),
        ((1.0, 0.0), [0, 4]),
    ]:
        found = list(contents(picture_batches(out.media, 2, positions)))
        assert found == [(0, PICTURES[n].read_bytes()) for n in numbers]
    gone = out.media.with_columns(path=pl.lit(str(tmp_path / "gone")))
    assert list(picture_batches(gone, 2)) == []


def test_no_media_no_batch(everywhere):
    assert list(picture_batches(everywhere[0].clear(), 4)) == []


@given(st.integers(1, 10_000), st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_frame_numbers_are_ascending_and_there(count, positions):
    numbers = at_positions(count, positions)
    assert numbers == sorted(set(numbers))
    assert 0 <= numbers[0] <= numbers[-1] < count


@pytest.mark.skipif(find_spec("av") is not None, reason="PyAV is installed")
def test_a_video_file_without_pyav_gives_no_picture(tmp_path, take_in):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 100)
    picture(tmp_path, "b.png")
    out = take_in(
        lines(
            tmp_path / "x.jsonl",
            {"video": "a.mp4", "prompt": "x"},
            {"image": "b.png", "prompt": "y"},
        )
    )
    assert out.media["kind"].to_list() == ["video", "image"]
    assert out.media["format"].to_list() == ["mp4", "png"]
    assert [row for row, _ in contents(picture_batches(out.media, 9))] == [1]


COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250)]


def write_video(path):
    """A video of one frame in each of COLOURS, one a second."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 66, 34, "yuv420p"
        for colour in COLOURS:
            pixels = np.full((34, 66, 3), colour, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (path.parent / "broken.mp4").write_bytes(path.read_bytes()[:500])


def test_frames_of_a_video_file(tmp_path, take_in):
    write_video(tmp_path / "a.mp4")
    out = take_in(
        lines(
            tmp_path / "x.jsonl",
            *({"video": name, "prompt": "x"} for name in ("a.mp4", "broken.mp4")),
        )
    )
    (batch,) = picture_batches(out.media, 9, (0.0, 0.5, 1.0))
    assert batch.rows.tolist() == [0, 0, 0]
    from mmrlhf_engine._core import decode_images

    pixels, errors = decode_images(
        *columns_of(batch), size=8, fit="squash", filter="bilinear", max_pixels=10**6, threads=1
    )
    assert pa.array(errors).field("reason").null_count == 3
    means = np.frombuffer(pixels, np.uint8).reshape(3, -1, 3).mean(axis=1)
    assert np.abs(means - np.array(COLOURS)).max() < 25


@pytest.mark.parametrize(("frames", "numbers"), [(1, [0]), (2, [0, 2]), (9, [0, 1, 2])])
def test_preferences_see_the_same_frames_of_a_video_file(tmp_path, take_in, frames, numbers):
    write_video(tmp_path / "a.mp4")
    media = {name: Media("video", (name,)) for name in ("a.mp4", "broken.mp4")}
    settings = FrameSettings(frames=frames, frames_per_second=1.0, max_pixels=10**6, threads=1)
    found = find_pictures([(tmp_path, item) for item in media.values()], settings)
    pictures = found[tmp_path, media["a.mp4"]]
    assert [frame.seconds for frame in pictures] == numbers
    assert found[tmp_path, media["broken.mp4"]].reason == "unreadable_media"
    out = take_in(lines(tmp_path / "x.jsonl", {"video": "a.mp4", "prompt": "x"}))
    (batch,) = picture_batches(out.media, 9, (0.0, 0.5, 1.0))
    bitmaps = batch.inline.to_pylist()
    for number, shown in zip(numbers, pictures, strict=True):
        with (
            Image.open(io.BytesIO(shown.content)) as seen,
            Image.open(io.BytesIO(bitmaps[number])) as same,
        ):
            assert (shown.width, shown.height) == seen.size == (66, 34)
            assert np.array_equal(np.asarray(seen), np.asarray(same.convert("RGB")))
