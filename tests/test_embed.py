"""The stage ``embed``: one correct row per picture, for any threads, chunks and interruptions."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmrlhf_engine.curate import embed, precomputed
from mmrlhf_engine.curate.embed import EmbedConfig, _mean_of_frames
from mmrlhf_engine.curate.tables import KEPT, MEDIA, SAMPLES
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.encoder import load_encoder
from mmrlhf_engine.models.threaded_encoder import _ahead


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """17 pictures of many sizes and formats, one broken file, and a folder of four frames."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)

    def draw(path, width, height):
        blocks = random.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(path)

    for number in range(17):
        kind = ("jpg", "png", "webp")[number % 3]
        draw(folder / f"{number:02d}.{kind}", 40 + 9 * number, 150 - 5 * number)
    (folder / "17.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    frames = folder / "frames"
    frames.mkdir()
    for number in range(4):
        draw(frames / f"{number}.png", 48, 36)
    return folder


def upstream(stage, pictures, firsts):
    """The stages before ``embed``; a sample for each of ``firsts``, a picture's name or None."""
    files = sorted(pictures.iterdir())
    media = pl.DataFrame(
        {
            # Media come in the order of their hashes, which is none of their own.
            "hash": [f"{7 * number % 31:02d}{file.name}" for number, file in enumerate(files)],
            "kind": ["frames" if file.is_dir() else "image" for file in files],
            "path": [str(file) for file in files],
        }
    ).with_columns(
        pl.lit(None, kind).alias(name)
        for name, kind in MEDIA.items()
        if name not in ("hash", "kind", "path")
    )
    hashes = dict(zip([file.name for file in files], media["hash"], strict=True))
    samples = pl.DataFrame(
        {
            "id": [f"a:{number:03d}" for number in range(len(firsts))],
            "media": [[hashes[name]] * 2 if name else [] for name in firsts],
        },
        schema_overrides={"media": pl.List(pl.String)},
    ).with_columns(
        pl.lit(None, kind).alias(name)
        for name, kind in SAMPLES.items()
        if name not in ("id", "media")
    )
    kept = samples.with_row_index("sample").with_columns(phash=pl.lit(None, pl.List(pl.UInt64)))
    stage.upstream("ingest", samples=(SAMPLES, samples), media=(MEDIA, media))
    stage.upstream("dedup", kept=(KEPT, kept.sort("id")))


def embedded(stage, config, **options):
    """Run ``embed``; the stage, its rows, and row by sample id."""
    begun = stage("embed", config, **options)
    embed.run(config, begun)
    ids = pl.read_parquet(begun.folder / "embedding_ids" / "*.parquet")
    return begun, np.load(begun.folder / "embeddings.npy"), dict(ids.drop_nulls().iter_rows())


def outputs(begun):
    return begun.run.manifest("embed")["outputs"]


def naive(encoder, path) -> np.ndarray:
    """One picture through Pillow alone: shorter side to size, the middle cut out, encoded alone."""
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    scale = encoder.size / min(width, height)
    width, height = (
        (encoder.size, int(height * scale))
        if width <= height
        else (int(width * scale), encoder.size)
    )
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - encoder.size) / 2), round((height - encoder.size) / 2)
    picture = picture.crop((left, top, left + encoder.size, top + encoder.size))
    features = encoder.encode(np.array(picture)[None])[0]
    return features / np.linalg.norm(features)


def test_each_picture_has_the_row_of_the_reference_implementation(
    stage, pictures, tiny_encoder, monkeypatch
):
    monkeypatch.setattr(embed, "CHUNK", 5)
    names = [file.name for file in sorted(pictures.iterdir()) if file.is_file()]
    firsts = [*names, None, names[3], None, names[3]]
    upstream(stage, pictures, firsts)
    begun, rows, of_sample = embedded(stage, EmbedConfig(encoder=tiny_encoder, batch=3))

    assert rows.dtype == np.float16
    assert rows.shape == (17, 24)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=2e-3)
    encoder = load_encoder(tiny_encoder)
    for number, name in enumerate(names[:17]):
        row = rows[of_sample[f"a:{number:03d}"]].astype(np.float32)
        np.testing.assert_allclose(row, naive(encoder, pictures / name), atol=2e-3)
    # The broken one and the two texts have none; equal pictures share one.
    assert set(of_sample) == {f"a:{n:03d}" for n in range(len(firsts)) if n not in (17, 18, 20)}
    assert of_sample["a:003"] == of_sample["a:019"] == of_sample["a:021"]
    report = begun.run.report("embed")
    assert (report["rows_in"], report["rows_out"], report["without_embedding"]) == (22, 22, 3)
    assert (report["images"], report["encoder"]) == (17, tiny_encoder)
    assert 0 < report["encoder_busy"] <= 1
    assert report["images_per_second"] > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_output(stage, pictures, tiny_encoder, monkeypatch, threads):
    monkeypatch.setattr(embed, "CHUNK", 7)
    upstream(stage, pictures, [file.name for file in sorted(pictures.iterdir())])
    config = EmbedConfig(encoder=tiny_encoder, batch=4)
    two, _, _ = embedded(stage, config, threads=2)
    expected = outputs(two)
    other, _, _ = embedded(stage, config, threads=threads)
    assert outputs(other) == expected


def test_an_interrupted_run_resumes_with_the_missing_chunks(
    stage, pictures, tiny_encoder, monkeypatch
):
    monkeypatch.setattr(embed, "CHUNK", 4)
    upstream(stage, pictures, [file.name for file in sorted(pictures.iterdir())])
    config = EmbedConfig(encoder=tiny_encoder, batch=2)
    begun, _, _ = embedded(stage, config)
    undisturbed = outputs(begun)

    begun = stage("embed", config)
    interrupt_after(begun, 8)
    with pytest.raises(KeyboardInterrupt):
        embed.run(config, begun)
    done = {file.name: file.stat().st_mtime_ns for file in begun.scratch.iterdir()}
    assert set(done) == {"chunk-00000.npz", "chunk-00001.npz"}

    begun = stage("embed", config)
    seen = interrupt_after(begun, 16)
    with pytest.raises(KeyboardInterrupt):
        embed.run(config, begun)
    assert seen[0] == 10
    assert seen == sorted(seen)
    again = {file.name: file.stat().st_mtime_ns for file in begun.scratch.iterdir()}
    assert {name: again[name] for name in done} == done
    assert outputs(embedded(stage, config)[0]) == undisturbed


def interrupt_after(begun, most: int) -> list[int]:
    """Make the stage's progress raise when told more than ``most``; the counts it was told."""
    seen: list[int] = []

    def progress(task, done, total=None):
        seen.append(done)
        if done > most:
            raise KeyboardInterrupt

    begun.progress = progress
    return seen


@pytest.mark.parametrize(("frames", "used"), [(1, [0]), (2, [0, 2]), (4, [0, 1, 2, 3])])
def test_a_video_is_its_first_frame_or_the_mean_of_several(
    stage, pictures, tiny_encoder, frames, used
):
    upstream(stage, pictures, ["frames", "00.jpg"])
    _, rows, of_sample = embedded(stage, EmbedConfig(encoder=tiny_encoder, frames=frames))
    encoder = load_encoder(tiny_encoder)
    mean = sum(naive(encoder, pictures / "frames" / f"{number}.png") for number in used)
    expected = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(rows[of_sample["a:000"]].astype(np.float32), expected, atol=2e-3)
    assert len(rows) == 2


def test_zero_and_non_finite_features_have_no_row():
    features = np.array([[3, 4], [0, 0], [np.inf, 1], [np.nan, 1], [1, 0], [-2, 0]], np.float32)
    numbers = np.array([0, 1, 2, 3, 7, 7])
    found, rows = _mean_of_frames(numbers, features)
    np.testing.assert_array_equal(found, [0])
    np.testing.assert_allclose(rows, np.array([[0.6, 0.8]], np.float16))


def test_a_corpus_of_text_alone_needs_no_encoder(stage, pictures):
    upstream(stage, pictures, [None, None])
    begun, rows, of_sample = embedded(stage, EmbedConfig(encoder="open_clip:no/weights"))
    assert rows.shape == (0, 0)
    assert of_sample == {}
    assert begun.run.report("embed")["without_embedding"] == 2


def test_batches_are_submitted_ahead_up_to_a_limit():
    taken: list[int] = []
    release = threading.Event()

    def batches():
        for number in range(20):
            taken.append(number)
            yield number, np.array([number])

    def work(batch):
        release.wait(30)
        return int(batch[0]) ** 2

    with ThreadPoolExecutor(2) as pool:
        results = _ahead(pool, work, batches(), waiting=4)
        release.set()
        assert next(results) == (0, 0)
        assert taken == [0, 1, 2, 3, 4]
        assert list(results) == [(number, number**2) for number in range(1, 20)]


# Precomputed rows.

IDS = [f"a:{number:03d}" for number in range(6)]


def precomputed_config(folder, rows=None, suffix=None, ids=None):
    rows = np.random.default_rng(3).normal(size=(6, 5)) if rows is None else rows
    file = folder / "made.npy"
    np.save(file, rows)
    if suffix:
        content = json.dumps(ids) if suffix.endswith("json") else "\n".join(ids) + "\n"
        file.with_suffix(suffix).write_text(content, encoding="utf-8")
    return EmbedConfig(encoder=f"precomputed:{file}")


@pytest.mark.parametrize("suffix", [None, ".ids", ".ids.txt", ".ids.json"])
def test_precomputed_rows_follow_their_ids(stage, pictures, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(precomputed, "BLOCK", 2)
    upstream(stage, pictures, [None] * 6)
    # Listed ids come in any order, may hold blanks, and may name samples that were not kept.
    listed = ["a:004", "a:001", "not kept", "a:000", "a:005", "a:002"]
    config = precomputed_config(tmp_path, suffix=suffix, ids=listed)
    begun, rows, of_sample = embedded(stage, config)
    given = np.load(tmp_path / "made.npy")
    order = listed if suffix else IDS
    expected = {name: given[number] for number, name in enumerate(order) if name in IDS}
    assert set(of_sample) == set(expected)
    for name, row in of_sample.items():
        unit = expected[name] / np.linalg.norm(expected[name])
        np.testing.assert_allclose(rows[row].astype(np.float64), unit, atol=1e-3)
    assert begun.run.report("embed")["without_embedding"] == (1 if suffix else 0)


@pytest.mark.parametrize("suffix", [".ids", ".ids.txt", ".ids.json"])
def test_a_changed_list_of_ids_is_another_input(tmp_path, suffix):
    config = precomputed_config(tmp_path, suffix=suffix, ids=IDS)
    before = embed.external(config)
    assert embed.external(config) == before
    precomputed_config(tmp_path, suffix=suffix, ids=[*IDS[:-1], "another id"])
    os.utime(tmp_path / "made.npy", ns=(before[0][2], before[0][2]))
    changed = embed.external(config)
    assert changed[0] == before[0]
    assert changed != before


ROWS = np.ones((6, 3))


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (np.ones((5, 3)), None, "found 5 rows, expected 6, one for each of the kept samples"),
        (np.ones((5, 3)), IDS, "one for each of the ids in made.ids"),
        (np.ones(6), None, "found float64 [6], expected an array of numbers [n, d]"),
        (np.full((6, 2), "x"), None, "found <U1 [6, 2]"),
        (ROWS, [*IDS[:5], IDS[0]], "the id a:000 has more than one row"),
        (ROWS, [*IDS[:3], "", *IDS[4:]], "made.ids: line 4 is empty, expected the id of a row"),
        (ROWS, [*IDS, ""], "made.ids: line 7 is empty"),
        (ROWS, [f"b:{n}" for n in range(6)], "none of its 6 ids is a kept sample"),
        (ROWS * np.arange(6)[:, None], None, "row 0 (a:000) is zero or not finite"),
        (np.where(np.eye(6) > 0, np.nan, 1.0), None, "so are 5 more"),
    ],
)
def test_invalid_precomputed_rows_are_refused(stage, pictures, tmp_path, rows, ids, message):
    upstream(stage, pictures, [None] * 6)
    config = precomputed_config(tmp_path, rows, ".ids" if ids else None, ids)
    begun = stage("embed", config)
    with pytest.raises(InputError) as error:
        embed.run(config, begun)
    assert message in str(error.value)
    assert not (begun.folder / "embeddings.npy").exists()


@pytest.mark.parametrize("content", [None, b"", b"not an array", b"PK\x03\x04 not a zip"])
def test_a_missing_or_invalid_precomputed_file_is_refused(stage, pictures, tmp_path, content):
    upstream(stage, pictures, [None])
    file = tmp_path / "made.npy"
    if content is not None:
        file.write_bytes(content)
    config = EmbedConfig(encoder=f"precomputed:{file}")
    with pytest.raises(InputError, match=r"made\.npy"):
        embed.run(config, stage("embed", config))
