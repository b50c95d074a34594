"""Rows as public data sets have them, by their cards: read, or refused by name.

Fields and forms are theirs, the contents are made up.
"""

import base64
import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intake import PICTURES, conversation, lines, picture, take_in
from mmrlhf_engine.curate.alarms import unnamed_pictures

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


def array(path, *records):
    """A JSON file of one array."""
    path.write_text(json.dumps(records))
    return path


def test_llavar(tmp_path, take_in):
    name = picture(tmp_path, "images/a.jpg")
    talk = conversation(("Identify any text visible in the image provided.\n<image>", "circle"))
    out = take_in(
        array(tmp_path / "llavar.json", {"id": "x", "image": name, "conversations": talk})
    )
    assert out.prompts == {"llavar:x": "Identify any text visible in the image provided."}
    assert out.samples["modality"].to_list() == ["image"]


def test_allava(tmp_path, take_in):
    name = picture(tmp_path, "allava_laion/images/1.jpeg")
    row = {
        "id": "allava_laion_inst_1",
        "image": name,
        "conversations": conversation(("<image>\nWhat is it?", "A circle.")),
        "url": "https://example.com/1.jpg",
    }
    out = take_in(array(tmp_path / "ALLaVA-Instruct-LAION-4V.json", row))
    assert first(out)["prompt"] == "What is it?"
    # Where the picture came from is no part of the sample.
    assert out.report["unread_fields"] == {}


def test_m3it(tmp_path, take_in):
    row = {
        "instruction": "Describe it.",
        "inputs": "",
        "image_base64_str": [base64.b64encode(BYTES[0]).decode()],
        "outputs": "A circle.",
    }
    sample = first(take_in(lines(tmp_path / "train.jsonl", row)))
    assert (sample["prompt"], sample["answer"]) == ("Describe it.", "A circle.")
    assert sample["modality"] == "image"


def test_docmatix(table):
    texts = [
        {"user": q, "assistant": a, "source": "PDFA"}
        for q, a in [("Why?", "To show."), ("Who?", "I.")]
    ]
    out = table(several=True, texts=texts)
    assert out.samples["answer"].to_list() == ["To show.", "I."]
    assert out.samples["modality"].to_list() == ["multi_image"] * 2


def test_chartqa(table):
    sample = first(table([("image", 0)], query="How many bars?", label=["3"], human_or_machine=0))
    assert (sample["prompt"], sample["answer"]) == ("How many bars?", "3")


def test_a_label_that_is_a_number_is_no_answer(table):
    assert first(table([("image", 0)], text="A bird.", label=2))["answer"] is None


def test_videoinstruct(tmp_path, take_in):
    row = {"q": "What happens in the video?", "a": "A shape moves.", "video_id": "v_k"}
    out = take_in(array(tmp_path / "VideoInstruct100K.json", row))
    assert first(out)["answer"] == "A shape moves."
    assert out.report["unread_fields"]["video_id"]["kind"] == "picture id"


def test_seed_bench(tmp_path, take_in):
    folder = tmp_path / "seed"
    picture(folder, "SEED-Bench-image/1_2.png")
    row = {f"choice_{letter}": f"Number {letter}" for letter in "abcd"}
    row |= {"answer": "A", "data_id": "1_2", "question": "How many?", "question_id": "101"}
    (folder / "SEED-Bench.json").write_text(json.dumps({"questions": [row], "question_type": {}}))
    out = take_in(folder)
    assert len(first(out)["options"]) == 4
    assert out.report["unread_fields"]["data_id"]["kind"] == "picture id"
    assert out.report["unnamed_pictures"] == {"seed": 1}
    (alarm,) = unnamed_pictures(out.report["unnamed_pictures"])
    assert alarm.text.startswith("1 picture in the folder of seed, and no record names one")


def test_gqa(tmp_path, take_in):
    folder = tmp_path / "gqa"
    picture(folder, "images/2.jpg")
    rows = {
        number: {"imageId": "2", "question": "What is it?", "answer": answer, "isBalanced": True}
        for number, answer in (("0712", "circle"), ("0713", "square"))
    }
    (folder / "questions.json").write_text(json.dumps(rows))
    out = take_in(folder)
    assert dict(out.samples.select("source_id", "answer").iter_rows()) == {
        "0712": "circle",
        "0713": "square",
    }
    assert out.report["unread_fields"]["imageId"]["kind"] == "picture id"
    assert out.report["unnamed_pictures"] == {"gqa": 1}


@pytest.mark.parametrize("key", ["image_id", "image"])
def test_visual_genome_names_a_picture_in_each_pair(tmp_path, take_in, key):
    pair = {"question": "What is it?", key: "1.jpg", "qa_id": 5, "answer": "A circle."}
    out = take_in(lines(tmp_path / "x.jsonl", {"id": 1, "qas": [pair]}, {"prompt": "fine"}))
    assert out.reasons == {"x.jsonl:1": "wrong_type"}
    assert f"qas has {key} of its own" in out.rejected["detail"][0]


REFUSED = {
    "SVIT": {"image_id": 1, "conversations": [{"content": conversation(("What?", "This."))}]},
    "MMC4": {"text_list": ["One.", "Two."], "image_info": [{"image_name": "1.png"}]},
    "OBELICS": {"images": ["https://example.com/1.jpg", None], "texts": [None, "A paragraph."]},
    "WildVision": {"conversation_a": [{"role": "user", "content": "What?"}], "winner": "model_a"},
    "PixMo-Points": {
        "image_url": "https://example.com/1.jpg",
        "points": [{"x": 1.0}],
        "label": "x",
    },
    "VisDial": {
        "version": "1.0",
        "data": {"questions": ["is it red"], "dialogs": [{"dialog": []}]},
    },
}


@pytest.mark.parametrize("card", REFUSED)
def test_a_layout_that_holds_no_question_of_its_own_is_refused_by_name(tmp_path, take_in, card):
    out = take_in(lines(tmp_path / "x.jsonl", REFUSED[card], {"prompt": "fine"}))
    assert out.samples["prompt"].to_list() == ["fine"]
    assert out.rejected["reason"][0] in ("no_text", "wrong_type", "missing_media")
    assert any(field in out.rejected["detail"][0] for field in REFUSED[card])
