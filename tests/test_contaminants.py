"""Benchmarks as an index, and a run against it: what is removed, by what, and what is said."""

import io
import json
import os

import easy_vqa
import polars as pl
import pytest
from PIL import Image

from command import engine
from intake import lines
from mmrlhf_engine.curate.contaminants import build_index, check_index, open_indexes
from mmrlhf_engine.curate.ingest import SourceConfig
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.pipeline import CurateConfig, curate
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.stage import Resources

PICTURES = [str(path) for path in easy_vqa.get_test_image_paths().values()][:6]
PROGRAM = (
    "Write a function that takes a list of whole numbers and gives back the longest run of them in "
    "which each is larger than the one before it, or an empty list."
)


def cell(path, **changes):
    """A picture as the column of a Hub dataset has it, saved again as JPEG if asked to."""
    content = io.BytesIO()
    Image.open(path).convert("RGB").save(content, **{"format": "PNG", **changes})
    return {"bytes": content.getvalue(), "path": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An index of four benchmarks in the layouts that lmms-eval reads, and a corpus."""
    folder = tmp_path_factory.mktemp("contaminants")
    mmmu = {
        "id": ["validation_Art_1", "validation_Art_2"],
        "question": ["<image 1> What shape is drawn here?", "Which of <image 1> is larger?"],
        "options": ["['circle', 'square']", "['the first', 'the second']"],
        "answer": ["A", "B"],
        "image_1": [cell(PICTURES[0]), cell(PICTURES[1])],
    }
    mmbench = {
        "index": [241],
        "question": ["Which colour has the figure?"],
        "hint": [None],
        "A": ["red"],
        "B": ["blue"],
        "answer": ["A"],
        "image": [cell(PICTURES[2])],
    }
    pope = {
        "question_id": ["1", "2"],
        "question": ["Is there a dog in the image?", "Is there a cat in the image?"],
        "answer": ["yes", "no"],
        "image": [cell(PICTURES[3]), cell(PICTURES[4])],
    }
    (folder / "MMMU").mkdir()
    pl.DataFrame(mmmu).write_parquet(folder / "MMMU" / "validation-00000-of-00001.parquet")
    pl.DataFrame(pope).write_parquet(folder / "MMMU" / "train-00000-of-00001.parquet")
    pl.DataFrame(mmbench).write_parquet(folder / "mmbench.parquet")
    pl.DataFrame(pope).write_parquet(folder / "pope.parquet")
    lines(folder / "programs.jsonl", {"task_id": "P/7", "prompt": PROGRAM})
    names = ("MMMU", "mmbench.parquet", "pope.parquet", "programs.jsonl")
    sources = [SourceConfig(path=str(folder / name)) for name in names]
    counts = build_index(folder / "index", sources, Resources(threads=1))
    assert counts == {"MMMU": 2, "mmbench": 1, "pope": 2, "programs": 1}

    def picture(number, name, **changes):
        (folder / name).write_bytes(cell(PICTURES[number], **changes)["bytes"])
        return name

    rows = [
        ("same", "Is there a dog in the image?", picture(3, "3.png")),
        ("saved again", "Is there a dog in this picture?", picture(3, "3.jpg", format="JPEG")),
        ("other picture", "Is there a dog in the image?", picture(5, "5.png")),
        ("other question", "How many corners has the figure?", "3.png"),
        ("options", "Which colour has the figure?\nA. red\nB. blue", picture(2, "2.png")),
        ("program", f"You are an expert. {PROGRAM} Answer in Python, and explain it.", None),
        ("about lists", "Write a function that gives back the longest list of a list.", None),
    ]
    corpus = [
        {"id": name, "prompt": prompt, "answer": "Yes, it seems so to me.", "image": image}
        for name, prompt, image in rows
    ]
    lines(folder / "rows.jsonl", *({k: v for k, v in row.items() if v} for row in corpus))
    return folder


def against(place, out, *settings):
    """Curate the corpus up to dedup: what was removed as contaminated, by id, and the report."""
    overrides = [f"dedup.against=[{place / 'index'}]", *settings]
    config = load_config(CurateConfig, overrides=[*overrides, "threads=1"])
    ingest = config.ingest.model_copy(
        update={"sources": [SourceConfig(path=str(place / "rows.jsonl"))]}
    )
    run = curate(config.model_copy(update={"ingest": ingest}), out, last="dedup")
    removed = pl.read_parquet(run.find("duplicates") / "*.parquet")
    removed = removed.filter(pl.col("kind") == "contaminated")
    return {row["id"].partition(":")[2]: row for row in removed.to_dicts()}, run


def test_repeated_questions_are_removed_and_counted_by_benchmark(place, tmp_path):
    removed, run = against(place, tmp_path / "run")
    assert {name: row["kept_id"] for name, row in removed.items()} == {
        "same": "pope:1",
        "saved again": "pope:1",
        "options": "mmbench:0",
        "program": "programs:P/7",
    }
    assert removed["program"]["contained"] == 1
    assert removed["same"]["image_hamming"] == 0
    report = run.report("dedup")
    assert report["dropped"]["contaminated"] == 4
    nothing = {"by_text": 0, "by_picture": 0, "by_both": 0}
    assert report["contaminated"] == {
        "MMMU": {"questions": 2, **nothing},
        "mmbench": {"questions": 1, **nothing, "by_both": 1},
        "pope": {"questions": 2, **nothing, "by_both": 2},
        "programs": {"questions": 1, **nothing, "by_text": 1},
    }
    told = engine("explain", tmp_path / "run", "program").stdout
    assert "100% of its runs of words) a question of the benchmark programs: programs:P/7" in told
    told = engine("explain", tmp_path / "run", "same", "pope:1").stdout
    assert "prompt   Is there a dog in the image?" in told.split("pope:1", 1)[1]
    assert "image Hamming: 0" in told
    told = engine("explain", tmp_path / "run", "other question", "pope:1").stdout
    assert "was not removed for a question of a benchmark" in told
    done = engine("disagree", tmp_path / "run", removed["same"]["id"], "pope:1")
    assert done.returncode == 1
    assert "matches pope:1, a question of the benchmark pope" in done.stderr
    assert "--against-by" in done.stderr


@pytest.mark.parametrize(
    ("by", "more"),
    [
        ("text", {"other picture"}),
        ("picture", {"other question"}),
        ("either", {"other picture", "other question"}),
    ],
)
def test_text_or_pictures_alone_may_be_enough(place, tmp_path, by, more):
    removed, _ = against(place, tmp_path / "run", f"dedup.against_by={by}")
    both = {"same", "saved again", "options", "program"} - (
        {"program"} if by == "picture" else set()
    )
    assert set(removed) == both | more


def test_a_contaminated_sample_stands_for_no_other(place, tmp_path):
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    twice = [rows[0], {**rows[0], "id": "near", "prompt": "Is there a dog in the image, please?"}]
    lines(place / "twice.jsonl", *twice)
    done = engine(
        *("curate", place / "twice.jsonl", "--out", tmp_path / "run", "--to", "dedup"),
        *("--against", place / "index", "--progress", "silent"),
    )
    assert done.returncode == 0, done.stderr
    removed = pl.read_parquet(tmp_path / "run" / "02_dedup" / "duplicates" / "*.parquet")
    assert removed["kind"].to_list() == ["contaminated", "contaminated"]


def test_the_test_split_of_a_folder_is_read(place):
    questions = open_indexes([str(place / "index")]).questions
    texts = dict(questions.select("id", "text").iter_rows())
    assert texts["MMMU:validation_Art_1"].startswith("What shape is drawn here?")


def test_what_is_no_index_is_refused(place, tmp_path):
    with pytest.raises(InputError, match="no index of benchmarks") as error:
        check_index(tmp_path)
    assert "contaminants build" in error.value.hint
    done = engine("curate", place / "rows.jsonl", "--out", tmp_path / "r", "--against", place)
    assert done.returncode == 1
    assert "no index of benchmarks" in done.stderr
    assert not (tmp_path / "r" / "01_ingest").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    done = engine("contaminants", "build", tmp_path / "full", place / "pope.parquet")
    assert done.returncode == 1
    assert "is not empty, and no index" in done.stderr


def test_a_run_is_no_place_for_an_index(place, tmp_path):
    _, run = against(place, tmp_path / "run")
    before = run.manifest("ingest")
    done = engine("contaminants", "build", run.folder, place / "pope.parquet")
    assert done.returncode == 1
    assert "is not empty, and no index" in done.stderr
    assert run.manifest("ingest") == before


def test_the_command_builds_an_index(place, tmp_path):
    done = engine("contaminants", "build", tmp_path / "index", place / "pope.parquet")
    assert (done.returncode, done.stdout) == (0, "pope: 2 questions\n")
    assert check_index(tmp_path / "index") == {"pope": 2}


def test_a_build_that_is_refused_leaves_the_index_as_it_was(place, tmp_path):
    index = tmp_path / "index"
    engine("contaminants", "build", index, place / "pope.parquet")
    done = engine("contaminants", "build", index, place / "absent.jsonl")
    assert done.returncode == 1
    assert check_index(index) == {"pope": 2}
    done = engine("contaminants", "build", index, place / "mmbench.parquet")
    assert f"is an index of {place / 'pope.parquet'}" in done.stderr
    assert "--against may be given several times" in done.stderr
    os.utime(place / "pope.parquet")  # so that it is read again
    done = engine("contaminants", "build", index, place / "pope.parquet", "--memory", "1M")
    assert done.returncode == 2
    assert check_index(index) == {"pope": 2}


def test_an_index_whose_benchmarks_could_not_be_read_is_none(place, tmp_path):
    index, file = tmp_path / "index", tmp_path / "questions.jsonl"
    lines(file, {"prompt": PROGRAM})
    engine("contaminants", "build", index, file)
    assert check_index(index) == {"questions": 1}
    lines(file, {"nothing": 1})
    done = engine("contaminants", "build", index, file)
    assert done.returncode == 1
    with pytest.raises(InputError, match="no index of benchmarks"):
        check_index(index)
    engine("contaminants", "build", index, place / "mmbench.parquet")
    assert check_index(index) == {"mmbench": 1}
