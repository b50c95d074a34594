"""Records that hold a picture as its hash alone, through every stage."""

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from intake import lines, picture, take_in
from mmrlhf_engine._core import hash_images
from mmrlhf_engine.curate import dedup
from mmrlhf_engine.curate.alarms import find_alarms
from mmrlhf_engine.curate.contaminants import build_index
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.explain import explain
from mmrlhf_engine.curate.explain_pair import explain_pair
from mmrlhf_engine.curate.ingest import SourceConfig
from mmrlhf_engine.curate.report import write
from mmrlhf_engine.pipeline import CurateConfig, curate
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.stage import Resources
from run_pipeline import tables

HASH = 0x6A13EB42F2DFF270
COLOUR = bytes(range(192))
SIZE = {"width": 640, "height": 480}


def stored(flips=0, **more):
    """A picture by its hash, the lowest ``flips`` bits of which are turned."""
    return {"phash": f"{HASH ^ ((1 << flips) - 1):016x}", **SIZE, **more}


def asked(name, image, prompt="What is the colour of the car?"):
    return {"id": name, "image": image, "prompt": prompt}


def test_a_hash_alone_is_a_row_of_media(stage, tmp_path):
    content = "AB" * 32
    rows = [
        asked("one", stored()),
        asked("same", stored(), "Another question about it?"),
        asked("two", [stored(), stored(1, colour=COLOUR.hex())]),
        asked("named", stored(2, hash=content, width=None)),
        asked("file", picture(tmp_path, "a.png")),
    ]
    out = take_in(stage, lines(tmp_path / "rows.jsonl", *rows))
    assert out.rejected.is_empty()
    known = out.media.filter(pl.col("phash").is_not_null()).sort("phash")
    assert set(known.select("kind", "width", "height", "phash", "colour").rows()) == {
        ("image", 640, 480, HASH, None),
        ("image", 640, 480, HASH ^ 1, COLOUR),
        ("image", None, 480, HASH ^ 3, None),
    }
    assert known.select("path", "offset", "format", "bytes").null_count().row(0) == (3,) * 4
    assert content[:32].lower() in known["hash"].to_list()
    samples = dict(out.samples.select("source_id", "media").iter_rows())
    assert samples["one"] == samples["same"] == samples["two"][:1]
    assert dict(out.samples.select("source_id", "modality").iter_rows())["two"] == "multi_image"
    assert out.media.filter(pl.col("phash").is_null())["format"].to_list() == ["png"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"phash": "6a13"}, "phash"),
        ({"phash": 7}, "phash"),
        ({"phash": None}, "phash"),
        ({"colour": "00"}, "colour"),
        ({"width": -1}, "width"),
        ({"height": "tall"}, "height"),
        ({"hash": "of it"}, "hash"),
    ],
)
def test_a_malformed_hash_is_rejected_by_name(stage, tmp_path, change, key):
    rows = [asked("good", stored()), asked("bad", {**stored(), **change})]
    out = take_in(stage, lines(tmp_path / "rows.jsonl", *rows))
    assert out.prompts == {"rows:good": rows[0]["prompt"]}
    assert out.reasons == {"rows.jsonl:2": "malformed_hash"}
    assert out.rejected["detail"][0].startswith(f"image.{key} is ")
    assert "malformed_hash" in out.report["reasons"]


NEAR = [
    asked("first", stored(0, colour=COLOUR.hex())),
    asked("equal", stored(0, colour=COLOUR.hex())),
    asked("near", stored(2, colour=COLOUR.hex())),
    asked("without colours", stored(3)),
    asked("other colours", stored(1, colour=COLOUR[::-1].hex())),
    asked("far", stored(20, colour=COLOUR.hex())),
    asked("other question", stored(2, colour=COLOUR.hex()), "How many wheels are seen?"),
]


def deduplicated(stage, folder, rows, **settings):
    """Ids kept, removed ids with kind, and the report."""
    take_in(stage, lines(folder / "rows.jsonl", *rows))
    begun = stage("dedup", DedupConfig(**settings))
    dedup.run(begun.config, begun)
    kept, gone = (
        pl.read_parquet(begun.folder / name / "*.parquet") for name in ("kept", "duplicates")
    )
    name = pl.col("id").str.strip_prefix("rows:")
    removed = dict(gone.select(name, "kind").iter_rows())
    return set(kept.select(name)["id"]), removed, begun.run.report("dedup")


def test_near_hashes_alone_stay_and_are_counted(stage, tmp_path):
    kept, removed, report = deduplicated(stage, tmp_path, NEAR)
    assert removed == {"first": "exact"}
    # Of "without colours" with three others, and of "equal" with "near".
    assert report["unverified_pairs"] == 4
    assert report["unverified_removals"] == 0
    assert "near" in kept


@pytest.mark.parametrize("settings", [{"unverified_images": True}, {"judge": False}])
def test_near_hashes_are_taken_for_copies_if_told(stage, tmp_path, settings):
    kept, removed, report = deduplicated(stage, tmp_path, NEAR, **settings)
    assert removed == {"first": "exact", "near": "near", "without colours": "near"}
    assert report["unverified_removals"] == 2
    assert kept == {row["id"] for row in NEAR} - set(removed)


def test_where_text_alone_decides_no_hash_has_removed_anything(stage, tmp_path):
    kept, removed, report = deduplicated(stage, tmp_path, NEAR, policy="text", max_per_image=None)
    assert "far" in removed
    assert (len(kept), report["unverified_removals"]) == (2, 0)


def test_a_picture_and_its_hash_alone_are_not_verified(stage, tmp_path):
    name = picture(tmp_path, "a.png")
    content = (tmp_path / name).read_bytes()
    nothing = pa.nulls(1, pa.uint64())
    given = (
        pa.nulls(1, pa.large_string()),
        nothing,
        nothing,
        pa.array([content], pa.large_binary()),
    )
    (made,) = pa.array(hash_images(*given, max_pixels=10**7, threads=1)).to_pylist()
    image = {"phash": f"{made['phash']:016x}", "colour": bytes(made["colour"]).hex()}
    rows = [asked("picture", name), asked("hash", image)]
    _, removed, report = deduplicated(stage, tmp_path, rows)
    assert (removed, report["unverified_pairs"]) == ({}, 1)
    _, removed, report = deduplicated(stage, tmp_path, rows, unverified_images=True)
    assert (removed, report["unverified_removals"]) == ({"hash": "near"}, 1)


def test_matches_of_questions_by_hashes_alone_are_counted_and_told(stage, tmp_path):
    (tmp_path / "bench").mkdir()
    question = {"path": str(lines(tmp_path / "bench" / "q.jsonl", asked("q", stored(0))))}
    index = tmp_path / "index"
    build_index(index, [SourceConfig(**question)], Resources(threads=1))
    given = {"against": [str(index)], "unverified_images": True}
    rows = [asked("near", stored(1)), asked("equal", stored(0)), asked("far", stored(20))]
    kept, removed, report = deduplicated(stage, tmp_path, rows, **given)
    assert removed == {"near": "contaminated", "equal": "contaminated"}
    assert (kept, report["unverified_removals"]) == ({"far"}, 1)
    (alarm,) = (one for one in find_alarms(stage.run) if one.kind == "unverified_removals")
    assert alarm.example == "rows:near was removed for q:q"
    kept, removed, report = deduplicated(stage, tmp_path, rows, against=[str(index)])
    assert (removed, report["unverified_removals"]) == ({"equal": "contaminated"}, 0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tiny_encoder):
    """A finished run of pictures, hashes alone and texts."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(3)
    rows = [asked(f"picture {n}", picture(folder, f"{n}.png", n)) for n in range(6)]
    rows += [asked(f"hash {n}", {**SIZE, "phash": rng.bytes(8).hex()}) for n in range(6)]
    rows += [{"id": "text", "prompt": "Why is the sky blue?"}]
    rows += [asked("near 1", stored(0)), asked("near 2", stored(1))]
    lines(folder / "rows.jsonl", *rows)
    sources = json.dumps([{"path": str(folder / "rows.jsonl")}])
    given = [f"ingest.sources={sources}", f"embed.encoder={tiny_encoder}", "threads=1"]
    given += ["select.count=14", "cluster.clusters=2", "dedup.unverified_images=true"]
    return curate(load_config(CurateConfig, overrides=given), folder / "run")


def test_hashes_alone_pass_through_every_stage_as_texts_do(mixed):
    report = mixed.report("embed")
    assert (report["rows_in"], report["images"], report["without_embedding"]) == (14, 6, 8)
    clusters = pl.concat(
        pl.read_parquet(file) for file in (mixed.stage_folder("cluster") / "clusters").iterdir()
    )
    alone = clusters.filter(pl.col("id").str.contains("hash|near|text"))
    assert set(alone["cluster"]) == {-1}
    assert tables(mixed.stage_folder("select"))
    page = write(mixed, []).read_text()
    assert "hash 1" in page


def test_hashes_alone_are_explained(mixed):
    told = explain(mixed, "rows:hash 1")
    assert "image: 640x480, known by its hash alone" in told
    pair = explain_pair(mixed, "rows:near 1", "rows:near 2")
    assert "media    known by a hash alone (640x480)" in pair


def test_what_keeps_hashes_alone_apart_is_told(stage, tmp_path):
    deduplicated(stage, tmp_path, NEAR)
    told = explain_pair(stage.run, "rows:near", "rows:without colours")
    assert "differ in 1 of 64 bits" in told
    assert "known by a hash alone, so that they cannot be compared" in told


def test_removals_by_hashes_alone_raise_an_alarm(mixed):
    (alarm,) = (alarm for alarm in find_alarms(mixed) if alarm.kind == "unverified_removals")
    assert alarm.count == 1
    assert alarm.example == "rows:near 2 was removed for rows:near 1"
    assert alarm.text in write(mixed, [alarm]).read_text()
