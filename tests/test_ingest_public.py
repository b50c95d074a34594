"""Rows as public data sets have them, by their cards: read, or refused by name.

Fields and forms are theirs, the contents are made up.
"""

from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intake import PICTURES, conversation, lines, picture, take_in

BYTES = [file.read_bytes() for file in PICTURES]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


@pytest.fixture(name="table")
def _table(tmp_path, take_in):
    """The only sample of a Parquet file with one row; pictures are given by their numbers."""

    def read(pictures=(), several=False, **row):
        columns = {name: pa.array([value]) for name, value in row.items()}
        cells = {name: {"bytes": BYTES[number], "path": None} for name, number in pictures}
        for name, cell in cells.items():
            columns[name] = pa.array([cell], PICTURE)
        if several:
            columns["images"] = pa.array([[{"bytes": BYTES[n], "path": None} for n in range(2)]])
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        out = take_in(tmp_path / "t.parquet")
        assert out.rejected.is_empty(), out.rejected.rows()
        return out

    return read


def first(out):
    return out.samples.row(0, named=True)


def test_llava_onevision(table):
    out = table(
        [("image", 0)],
        id="vision_1",
        conversations=conversation(("<image>\nWhat is shown?", "A shape."), ("Is it red?", "Yes")),
        data_source="vqa",
    )
    assert out.samples["prompt"].to_list() == ["What is shown?", "Is it red?"]
    assert out.samples["modality"].to_list() == ["image"] * 2
    assert out.samples["needs_history"].to_list() == [False, True]


def test_m4_instruct(tmp_path, take_in):
    names = [picture(tmp_path, f"{n}.png", n) for n in range(2)]
    row = {
        "sample_id": 17,
        "conversations": conversation(("<image><image>\nWhat differs?", "The colour.")),
        "image": names,
        "choice_list": None,
        "metadata": {"dataset": "Spot-the-Diff", "split": "train", "question_type": "open-ended"},
    }
    sample = first(take_in(lines(tmp_path / "m4.jsonl", row)))
    assert (sample["prompt"], sample["modality"]) == ("What differs?", "multi_image")
    assert sample["source_id"] == "17"


def test_sharegpt4v(tmp_path, take_in):
    name = picture(tmp_path, "coco/train2017/000000000009.png")
    talk = conversation(("Describe the picture in detail.\n<image>", "x" * 200))
    rows = [{"id": "000000000009", "image": name, "conversations": talk}] * 2
    out = take_in(lines(tmp_path / "s.jsonl", *rows))
    assert out.samples["id"].to_list() == ["s:000000000009", "s:000000000009#2"]
    assert out.samples["question_type"].to_list() == ["long"] * 2


def test_mmmu(table):
    out = table(
        [("image_1", 0), ("image_2", 1)],
        id="dev_Art_1",
        question="<image 1> Which painting is of the same artist?",
        options="['the left', '<image 2>', \"it's neither\"]",
        explanation="",
        img_type="['Paintings']",
        answer="B",
        question_type="multiple-choice",
    )
    sample = first(out)
    assert sample["options"] == ["the left", "<image 2>", "it's neither"]
    assert (sample["question_type"], len(sample["media"])) == ("mcq", 2)
    assert sample["prompt"].endswith("\nA. the left\nB. <image 2>\nC. it's neither")


def test_scienceqa(table):
    out = table(
        [("image", 0)],
        question="Which is the main idea?",
        choices=["first", "second"],
        answer=1,
        hint="The passage is about plants.",
        task="closed choice",
        lecture="A lecture of some length about the main idea of a text.",
        solution="A solution of some length that follows from the text.",
    )
    sample = first(out)
    assert sample["prompt"] == (
        "The passage is about plants.\nWhich is the main idea?\nA. first\nB. second"
    )
    assert sample["answer"] == "1"
    assert set(out.report["unread_fields"]) == {"lecture", "solution"}


def test_ai2d(table):
    sample = first(table([("image", 0)], question="Which stage?", options=["a", "b"], answer="1"))
    assert sample["prompt"] == "Which stage?\nA. a\nB. b"


def test_a_okvqa(table):
    out = table(
        [("image", 0)],
        question_id="22x",
        question="What is the man by the bags waiting for?",
        choices=["skateboarder", "train", "cab"],
        correct_choice_idx=2,
        direct_answers="['cab', 'cab', 'taxi']",
        rationales=["A train would not be on the street.", "He waits for a cab."],
    )
    sample = first(out)
    assert (sample["answer"], sample["question_type"]) == ("cab", "mcq")
    assert set(out.report["unread_fields"]) == {"rationales"}


def test_vqa_v2(table):
    answers = [{"answer": a, "answer_id": n} for n, a in enumerate(["net", "net", "netting"])]
    out = table([("image", 0)], question="What is there?", question_id=9, answers=answers)
    assert first(out)["answer"] == "net"
    out = table([("image", 0)], question="What?", answers=answers, multiple_choice_answer="netting")
    assert first(out)["answer"] == "netting"


def test_textcaps(table):
    out = table(
        [("image", 0)],
        question="Please carefully observe the image and come up with a caption.",
        reference_strs=["A bottle that says ale.", "A bottle on a table."],
        image_classes=["Bottle", "Drink"],
    )
    assert first(out)["modality"] == "image"
    assert "reference_strs" in out.report["unread_fields"]


def test_the_cauldron(table):
    texts = [{"user": "What is it?", "assistant": "A cat.", "source": "vqav2"}] * 2
    out = table(several=True, texts=texts)
    assert out.samples["prompt"].to_list() == ["What is it?"] * 2
    assert out.samples["modality"].to_list() == ["multi_image"] * 2


def test_mathvista(table):
    out = table(
        [("decoded_image", 0)],
        pid="1",
        question="When does it start?",
        image="images/1.jpg",
        choices=["1 s", "2 s"],
        unit=None,
        query="Hint: Please answer with the letter.\nQuestion: When does it start?",
        answer="1 s",
    )
    sample = first(out)
    assert (sample["prompt"], sample["modality"]) == (
        "When does it start?\nA. 1 s\nB. 2 s",
        "image",
    )
    assert set(out.report["unread_fields"]) == {"query"}


def test_cambrian_and_infinity_mm(tmp_path, take_in):
    name = picture(tmp_path, "ocr/1.png")
    talk = conversation(("<image>\nRead the title.", "Red"))
    rows = [
        {"id": "c1", "image": name, "conversations": talk, "source": "ocr.json"},
        {"id": "i1", "image": None, "conversations": conversation(("What is 2 + 2?", "4"))},
        {"id": "i2", "image": None, "conversations": talk},
    ]
    out = take_in(lines(tmp_path / "x.jsonl", *rows))
    assert out.samples["modality"].to_list() == ["image", "text"]
    assert out.reasons == {"x.jsonl:3": "marks_and_media_differ"}


def test_pixmo(tmp_path, take_in, table):
    row = {"image_url": "https://example.com/1.jpg", "question": "What?", "answer": "This."}
    out = take_in(lines(tmp_path / "ask.jsonl", row, {"prompt": "fine"}))
    assert out.reasons == {"ask.jsonl:1": "missing_media"}
    assert "download it first" in out.rejected["detail"][0]
    questions = {"question": ["How many bars?", "Which is red?"], "answer": ["3", "None"]}
    out = table([("image", 0)], image_id="a/1", questions=questions)
    assert out.samples["prompt"].to_list() == questions["question"]
    assert out.samples["history"].list.len().to_list() == [0, 0]


def test_laion_gpt4v(tmp_path, take_in):
    row = {"link": "https://example.com/1.jpg", "caption": "A long description of a scene."}
    out = take_in(lines(tmp_path / "x.jsonl", row, {"prompt": "fine"}))
    assert out.reasons == {"x.jsonl:1": "missing_media"}


def test_nlvr2(tmp_path, take_in):
    names = {f"{side}_image": picture(tmp_path, f"{side}.png") for side in ("left", "right")}
    row = {**names, "question": "Are both red?", "answer": True}
    sample = first(take_in(lines(tmp_path / "x.jsonl", row)))
    assert (len(sample["media"]), sample["answer"]) == (2, "true")


def test_questions_of_vqa_with_pictures_elsewhere_are_refused_by_name(tmp_path, take_in):
    row = {"info": {}, "questions": [{"image_id": 1, "question": "What?", "question_id": 2}]}
    out = take_in(lines(tmp_path / "x.jsonl", row, {"prompt": "fine"}))
    assert out.reasons == {"x.jsonl:1": "wrong_type"}
    assert "image_id" in out.rejected["detail"][0]
