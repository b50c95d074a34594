"""Hashes that are kept for later runs: nothing is decoded twice, and nothing is mixed up."""

import polars as pl
import pytest

from command import engine
from mmrlhf_engine.curate import dedup, picture_hashes
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.picture_hashes import HASH_NAMES
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.folder import Run
from pack_data import write_lines
from stages import RunForTests
from test_dedup import corpus, picture

PICTURES = {f"{n}.png": picture(n, 128) for n in range(7)}
ROWS = [(name, f"What is in {name}?", None, [name]) for name in PICTURES]


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of pictures that were decoded, by call."""
    real, calls = picture_hashes.hash_images, []

    def counting(paths, *arguments, **settings):
        calls.append(len(paths))
        return real(paths, *arguments, **settings)

    monkeypatch.setattr(picture_hashes, "hash_images", counting)
    monkeypatch.setattr(picture_hashes, "_MEDIA_PER_CHUNK", 3)
    return calls


def deduplicate(folder, rows=ROWS, pictures=PICTURES, **settings):
    """The hashes of kept rows, and the report, of a run of its own."""
    folder.mkdir()
    stage = RunForTests(Run(folder / "run"))
    corpus(stage, folder, rows, pictures)
    for file in folder.glob("**/*.png"):
        if file.name in settings.get("without", ()):
            file.unlink()
    settings.pop("without", None)
    begun = stage("dedup", DedupConfig(judge=False, **settings))
    dedup.run(begun.config, begun)
    kept = pl.read_parquet(begun.folder / "kept" / "*.parquet")
    return dict(kept.select("id", "phash").iter_rows()), begun.run.report("dedup")


def test_a_second_run_decodes_nothing(tmp_path, decoded):
    cache = str(tmp_path / "cache")
    alone, _ = deduplicate(tmp_path / "alone")
    decoded.clear()
    first, report = deduplicate(tmp_path / "first", cache=cache)
    assert (sum(decoded), report["pictures_from_cache"]) == (7, 0)
    decoded.clear()
    second, report = deduplicate(tmp_path / "second", cache=cache, image_radius=2, without=PICTURES)
    assert (decoded, report["pictures_from_cache"], report["pictures"]) == ([], 7, 7)
    assert alone == first == second
    assert len(list((tmp_path / "cache").glob("*/*"))) == 1


def test_only_new_pictures_are_decoded_and_kept(tmp_path, decoded):
    cache = str(tmp_path / "cache")
    deduplicate(tmp_path / "some", ROWS[:4], dict(list(PICTURES.items())[:4]), cache=cache)
    decoded.clear()
    _, report = deduplicate(tmp_path / "more", cache=cache)
    assert (sum(decoded), report["pictures_from_cache"]) == (3, 4)
    decoded.clear()
    _, report = deduplicate(tmp_path / "all", cache=cache)
    assert (sum(decoded), report["pictures_from_cache"]) == (0, 7)
    kept = pl.read_parquet(tmp_path / "cache" / "*" / "*.parquet")
    assert kept.height == kept["hash"].n_unique() == 7


def test_each_kind_of_hash_is_kept_apart(tmp_path, decoded):
    cache = str(tmp_path / "cache")
    for number, kind in enumerate(("fast", "exact", "fast")):
        decoded.clear()
        _, report = deduplicate(tmp_path / str(number), cache=cache, hash=kind)
        assert (sum(decoded), report["pictures_from_cache"]) == ((7, 0) if number < 2 else (0, 7))
    assert {folder.name for folder in (tmp_path / "cache").iterdir()} == set(
        picture_hashes.HASH_NAMES.values()
    )


def test_a_broken_picture_is_not_kept(tmp_path, decoded):
    cache = str(tmp_path / "cache")
    whole = PICTURES["3.png"]
    pictures = {**PICTURES, "3.png": whole[:60] + bytes(len(whole) - 72) + whole[-12:]}
    for name in ("one", "two"):
        decoded.clear()
        kept, report = deduplicate(tmp_path / name, pictures=pictures, cache=cache)
        assert "3.png" not in kept
        assert sum(report["dropped"].values()) == 1
    assert (sum(decoded), report["pictures_from_cache"]) == (1, 6)


def test_a_killed_run_adds_to_the_cache_when_it_resumes(tmp_path, decoded, monkeypatch):
    cache = str(tmp_path / "cache")
    folder = tmp_path / "killed"
    folder.mkdir()
    stage = RunForTests(Run(folder / "run"))
    corpus(stage, folder, ROWS, PICTURES)
    counting = picture_hashes.hash_images

    def dies_at_third(*arguments, **settings):
        if len(decoded) == 2:
            raise KeyboardInterrupt
        return counting(*arguments, **settings)

    monkeypatch.setattr(picture_hashes, "hash_images", dies_at_third)
    config = DedupConfig(judge=False, cache=cache)
    begun = stage("dedup", config)
    with pytest.raises(KeyboardInterrupt):
        dedup.run(config, begun)
    assert not list((tmp_path / "cache").glob("*/*"))
    monkeypatch.setattr(picture_hashes, "hash_images", counting)
    dedup.run(config, begun)
    assert sum(decoded) == 7
    assert pl.read_parquet(tmp_path / "cache" / "*" / "*.parquet").height == 7


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_foreign_file_in_the_cache_is_refused(tmp_path, content):
    file = tmp_path / "cache" / picture_hashes.HASH_NAMES["fast"] / "x.parquet"
    file.parent.mkdir(parents=True)
    if content is None:
        pl.DataFrame({"other": [1]}).write_parquet(file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet: "):
        deduplicate(tmp_path / "run", cache=str(tmp_path / "cache"))


def test_a_cache_that_is_a_file_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is it?"}\n', encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    run = tmp_path / "run"
    done = engine("curate", tmp_path / "rows.jsonl", "--out", run, "--cache", tmp_path / "file")
    assert done.returncode == 1
    assert "is not a folder" in done.stderr
    assert "another --cache" in done.stderr
    assert not (run / "01_ingest").exists()


def test_a_damaged_cache_is_refused_before_anything_is_read(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"prompt": "What is in it?"}])
    file = tmp_path / "cache" / HASH_NAMES["fast"] / "a.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no table")
    command = ("curate", "a.jsonl", "--out", "run", "--to", "dedup", "--cache", "cache")
    done = engine(*command, cwd=tmp_path)
    assert (done.returncode, f"{file}: cannot be read" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "run").exists()
