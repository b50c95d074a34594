"""A run that grows source by source has the tables of one run over all sources, and less to do."""

import io
import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf_engine import pipeline
from mmrlhf_engine.curate.frequencies import FREQUENCIES
from mmrlhf_engine.curate.ingest import sharing_ids
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run import tables
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.folder import Run
from pack_data import picture, put, write_lines

# Sources by name: two of them may give the same ids, one is changed on the way.
NAMES = ("a", "a:b", "m", "z")
QUESTIONS = (
    "What is the colour of the car in this picture?",
    "what is the color of the car in the picture",
    "How many dogs are on the left of the tree?",
    "How many cats are on the left of the tree?",
    "Describe the scene with the old bridge over the river in detail, please.",
    "Describe the scene with the old bridge over the river in detail.",
    "Where is the relu of it?",
)
SETTINGS = (
    {},
    {"text_rule": "documents"},
    {"text_rule": "documents", "text_threshold": 0.5},
    {"image_radius": 10, "colour_tolerance": None},
    {"policy": "text"},
    {"policy": "image"},
    {"max_per_image": 1},
    {"judge": False, "text_threshold": 0.6},
    {"thumbnails": True},
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of which some are copies."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        put(folder / f"{number}.png", picture(96, 96, seed=number))
    put(folder / "3.jpg", saved_again(picture(96, 96, seed=0)))
    return folder


def saved_again(content):
    """The same picture as a JPEG."""
    again = io.BytesIO()
    Image.open(io.BytesIO(content)).save(again, "JPEG", quality=95)
    return again.getvalue()


def row(draw):
    record = {"prompt": draw(st.sampled_from(QUESTIONS))}
    if draw(st.booleans()):
        record["id"] = draw(st.sampled_from(["1", "b:1", "2"]))
    if draw(st.booleans()):
        record["answer"] = draw(st.sampled_from(["3", "A longer answer to this question."]))
    if draw(st.booleans()):
        record["image"] = draw(st.sampled_from(["0.png", "1.png", "2.png", "3.jpg", "none.png"]))
    return record


@st.composite
def histories(draw):
    """Rows by source, the order in which sources come, and the settings of each step."""
    rows = {name: [row(draw) for _ in range(draw(st.integers(1, 5)))] for name in NAMES}
    for name in NAMES:
        rows[name].append({"prompt": f"A row of {name} that can be used in any case."})
    order = draw(st.permutations(NAMES))
    cuts = draw(st.sets(st.integers(1, 3)))
    steps = [
        order[start:end] for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 4], strict=True)
    ]
    return rows, steps, [draw(st.sampled_from(SETTINGS)) for _ in steps]


def curate(run, sources, changes, *, add=False, last="dedup"):
    overrides = [f"dedup.{key}={json.dumps(value)}" for key, value in changes.items()]
    config = load_config(pipeline.CurateConfig, overrides=["threads=2", *overrides])
    config = pipeline.with_sources(config, sources)
    return pipeline.curate(config, run, add=add, last=last)


def outputs(run):
    return {stage: run.manifest(stage)["outputs"] for stage in ("ingest", "dedup")}


@given(history=histories())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_that_grows_equals_a_fresh_one(history, pictures, tmp_path_factory, monkeypatch):
    rows, steps, changes = history
    monkeypatch.setattr(tables, "ROWS_PER_PART", 3)
    monkeypatch.setattr(tables, "_ROWS_TO_LINK", 2)
    place = tmp_path_factory.mktemp("grows")
    for name in rows:
        write_lines(place / f"{name}.jsonl", rows[name])
    for file in pictures.iterdir():
        os.link(file, place / file.name)
    known = []
    for number, (step, changed) in enumerate(zip(steps, changes, strict=True)):
        new = [place / f"{name}.jsonl" for name in step]
        run = curate(place / "RUN", new, changed, add=number > 0)
        known += new
        report = run.report("ingest")
        assert report["rows_read"] + report["rows_reused"] == report["rows_in"]
        alone = set(report["sources"]) - sharing_ids(report["sources"])
        old = [name for name in alone if place / f"{name}.jsonl" not in new]
        reused = sum(sum(report["sources"][name].values()) for name in old)
        assert report["rows_reused"] == reused
    grown = outputs(run)
    frequencies = place / "RUN" / "02_dedup" / FREQUENCIES
    content = frequencies.read_bytes() if frequencies.is_file() else None
    # At the same place: media that records hold lie in the run folder.
    shutil.rmtree(place / "RUN")
    if content is not None:
        put(frequencies, content)
    assert outputs(curate(place / "RUN", known, changes[-1])) == grown


@pytest.fixture
def place(tmp_path):
    """A finished run of two sources with pictures."""
    for number in range(4):
        content = picture(96, 96, seed=number // 2)
        put(tmp_path / f"{number}.png", saved_again(content) if number % 2 else content)
    write_lines(
        tmp_path / "a.jsonl",
        [{"id": str(n), "prompt": "What is shown in it?", "image": f"{n}.png"} for n in range(4)],
    )
    write_lines(tmp_path / "b.jsonl", [{"prompt": f"What is number {n}?"} for n in range(3)])
    write_lines(tmp_path / "c.jsonl", [{"prompt": "What is the number 1?"}])
    curate(tmp_path / "RUN", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], {})
    return tmp_path


def test_sources_are_added_by_their_names_alone(place):
    run = curate(place / "RUN", [place / "c.jsonl"], {}, add=True)
    report = run.report("ingest")
    assert (report["rows_read"], report["rows_reused"]) == (1, 7)
    assert set(report["sources"]) == {"a", "b", "c"}
    # Named again it is no new source; a file that has changed is read again.
    write_lines(place / "b.jsonl", [{"prompt": "Another row, and a question about it?"}])
    report = curate(place / "RUN", [place / "c.jsonl"], {}, add=True).report("ingest")
    assert (report["rows_read"], report["rows_reused"]) == (1, 5)
    with pytest.raises(InputError, match="found none in this folder"):
        curate(place / "NEW", [place / "c.jsonl"], {}, add=True)
    with pytest.raises(InputError, match="--add was given no source"):
        curate(place / "RUN", [], {}, add=True)


def test_a_source_that_could_not_be_added_is_no_source_of_the_run(place):
    write_lines(place / "bad.jsonl", [{"x": 1}])
    put(place / "empty.json", b"[]")
    before = outputs(Run(place / "RUN"))["ingest"]
    with pytest.raises(InputError, match="no record in it"):
        curate(place / "RUN", [place / "empty.json"], {}, add=True)
    assert Run(place / "RUN").manifest("ingest") is None
    report = curate(place / "RUN", [place / "c.jsonl"], {}, add=True).report("ingest")
    assert set(report["sources"]) == {"a", "b", "c"}
    assert report["rows_reused"] == 7
    assert before.keys() == outputs(Run(place / "RUN"))["ingest"].keys()


def test_other_thresholds_read_no_raw_data(place):
    first = Run(place / "RUN").report("dedup")
    assert first["texts_read"] == 7
    assert first["pictures_compared"] == first["pictures_judged"] > 0
    for file in place.glob("*.*"):
        file.unlink()
    config = load_config(pipeline.CurateConfig, overrides=["dedup.image_radius=3", "threads=2"])
    run = pipeline.curate(config, place / "RUN", first="dedup", last="dedup")
    again = run.report("dedup")
    assert again["dropped"] == first["dropped"]
    assert (again["texts_read"], again["pictures_compared"]) == (0, 0)
    assert again["pictures_from_cache"] == again["pictures"] == 4
    assert again["pictures_judged"] == first["pictures_judged"]


@pytest.mark.parametrize("how", ["cut", "changed", "removed"])
def test_what_is_kept_and_damaged_is_made_again(how, place):
    fresh = outputs(Run(place / "RUN"))
    kept = [
        *(place / "RUN" / "01_ingest" / "by_source").rglob("*.parquet"),
        *(place / "RUN" / "02_dedup" / "signatures").glob("[!p]*/*"),
    ]
    assert len(kept) == 6 + 4
    for file in kept:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.unlink()  # the tables are other names of the same files
        if how != "removed":
            file.write_bytes(content[: len(content) // 2] if how == "cut" else content)
    for stage in ("01_ingest", "02_dedup"):
        (place / "RUN" / stage / "manifest.json").unlink()
    run = curate(place / "RUN", [place / "a.jsonl", place / "b.jsonl"], {})
    assert outputs(run) == fresh
    assert run.report("ingest")["rows_reused"] == 0
    assert run.report("dedup")["texts_read"] == 7


def test_ids_of_sources_that_may_meet():
    assert sharing_ids(["a", "a:b", "ab", "a b"]) == {"a", "a:b"}
    assert sharing_ids(["a:b:c", "a", "x:y"]) == {"a:b:c", "a"}
    assert sharing_ids(["a:b", "a:c"]) == set()
