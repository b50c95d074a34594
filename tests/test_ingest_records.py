"""What a record means: fields, options, context, pictures and marks, in the layouts people use."""

import base64
import json
import re
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intake import PICTURES, conversation, digest, lines, picture, take_in
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.curate.rejections import REJECTIONS
from mmrlhf_engine.errors import InputError
from test_ingest_bad import BAD_LINES

BYTES = [file.read_bytes() for file in PICTURES]
BASE64 = base64.b64encode(BYTES[0]).decode()


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


@pytest.fixture(name="one")
def _one(tmp_path, take_in):
    """The only sample of one record, in a folder with a picture ``0.png`` and ``1.png``."""

    def read(record):
        for number in range(2):
            picture(tmp_path, f"{number}.png", number)
        out = take_in(lines(tmp_path / "x.jsonl", record))
        assert out.rejected.is_empty(), out.rejected.rows()
        return out.samples.row(0, named=True)

    return read


# ---- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "Translate.", "input": "I like tea."}, "Translate.\nI like tea."),
        ({"instruction": "Translate:\ntea.", "input": "tea."}, "Translate:\ntea."),
        (
            {"instruction": "Find the antonym of the given word.", "input": "give"},
            "Find the antonym of the given word.\ngive",
        ),
        ({"instruction": "Sing.", "input": ""}, "Sing."),
        ({"input": "Only this?", "output": "Yes."}, "Only this?"),
        ({"question": "When?", "context": "It began in 1914."}, "It began in 1914.\nWhen?"),
        ({"question": "When?", "passage": ["One.", "Two."]}, "One.\nTwo.\nWhen?"),
        (
            {"question": "When?", "hint": "Look up.", "choices": [1, 2]},
            "Look up.\nWhen?\nA. 1\nB. 2",
        ),
        ({"Question": "When?", "Context": "Then."}, "Then.\nWhen?"),
        ({"question": "It began then. When?", "context": "It began then."}, "It began then. When?"),
        ({"question": "When?", "options": {"temperature": 1, "top_p": 2}}, "When?"),
        ({"query": "Why?", "history": "A text."}, "Why?"),
    ],
)
def test_the_prompt_is_the_complete_question(one, record, prompt):
    assert one(record)["prompt"] == prompt


def test_the_history_of_ms_swift_is_context_and_no_sample(one):
    sample = one({"system": "Be brief.", "query": "Why?", "response": "a", "history": [["Q", "A"]]})
    said = [("system", "Be brief."), ("user", "Q"), ("assistant", "A")]
    assert [(m["role"], m["text"]) for m in sample["history"]] == said
    assert (sample["prompt"], sample["needs_history"]) == ("Why?", True)


def test_each_turn_has_what_was_said_before_it(tmp_path, take_in):
    talk = conversation(("Who?", "A cat."), ("Its colour?", "Red."), ("What is a cat?", "Felis."))
    system = {"from": "system", "value": "Be brief."}
    out = take_in(lines(tmp_path / "x.jsonl", {"conversations": [system, *talk]}))
    texts = [[m["text"] for m in history] for history in out.samples["history"]]
    assert texts == [
        ["Be brief."],
        ["Be brief.", "Who?", "A cat."],
        ["Be brief.", "Who?", "A cat.", "Its colour?", "Red."],
    ]
    assert out.samples["needs_history"].to_list() == [False, True, False]


def test_a_long_history_keeps_its_end(tmp_path, take_in):
    turns = [(f"question {n}?", "x" * 100) for n in range(100)]
    out = take_in(lines(tmp_path / "x.jsonl", {"conversations": conversation(*turns)}))
    history = out.samples["history"][-1]
    assert len(history) == 64
    assert history[-2]["text"] == "question 98?"
    long = conversation(("a?", "y" * 20_000), ("b?", "z"), ("c?", ""))
    out = take_in(lines(tmp_path / "y.jsonl", {"conversations": long}))
    assert [[m["text"] for m in h] for h in out.samples["history"]] == [[], [], ["b?", "z"]]


# ---- conversations ---------------------------------------------------------------------------

TALKS = {
    "ShareGPT": {"conversations": conversation(("Q?", "A."))},
    "capitals": {
        "conversations": [{"from": "Human", "value": "Q?"}, {"from": "GPT", "value": "A."}]
    },
    "USER": {
        "messages": [{"role": "USER", "content": "Q?"}, {"role": "ASSISTANT", "content": "A."}]
    },
    "role below conversations": {
        "conversations": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    },
    "JSON text": {"conversations": json.dumps(conversation(("Q?", "A.")))},
    "TRL": {
        "prompt": [{"role": "user", "content": "Q?"}],
        "chosen": [{"role": "assistant", "content": "A."}],
        "rejected": [{"role": "assistant", "content": "B."}],
    },
    "TRL without a prompt": {
        "chosen": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}],
        "rejected": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "B."}],
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: Q?\n\nAssistant: A.",
        "rejected": "\n\nHuman: Q?\n\nAssistant: B.",
    },
    "pairs": {"texts": [{"user": "Q?", "assistant": "A.", "source": "vqa"}]},
    "lists of pairs": {"conversation": [["Q?", "A."]]},
    "columns of a struct": {"questions": {"question": ["Q?"], "answer": ["A."]}},
    "questions and answers": {"questions": ["Q?"], "answers": ["A."]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q?"}]},
            {"role": "assistant", "content": {"parts": ["A."]}},
        ]
    },
    "ShareGPT tools": {
        "conversations": [
            {"from": "human", "value": "Q?"},
            {"from": "function_call", "value": "{}"},
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "A."},
        ]
    },
    "OpenAI tools": {
        "messages": [
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "A."},
        ]
    },
}


@pytest.mark.parametrize("form", TALKS)
def test_conversations_of_every_form(one, form):
    sample = one(TALKS[form])
    assert (sample["prompt"], sample["answer"]) == ("Q?", "A.")


def test_a_speaker_that_nobody_knows_is_named(tmp_path, take_in):
    rows = [{"messages": [{"role": "owl", "content": "x"}]}, {"prompt": "fine"}]
    detail = take_in(lines(tmp_path / "x.jsonl", *rows)).rejected["detail"][0]
    assert detail.startswith('messages[0].role is "owl", expected one of system, user')


def test_pairs_that_end_a_conversation(one):
    talk = conversation(("One?", "1"), ("Two?",))[:3]
    answers = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    record = {"conversations": talk[2:], **answers}
    assert one(record)["answer"] == "chosen"


def test_numbers_that_json_does_not_have_cost_nothing(tmp_path, take_in):
    rows = ['{"prompt": "a", "score": NaN}', '{"prompt": "NaN is \\"NaN\\"", "x": [-Infinity]}']
    out = take_in(lines(tmp_path / "x.jsonl", *rows, '{"prompt": NaN}'))
    assert out.samples["prompt"].to_list() == ["a", 'NaN is "NaN"']
    assert out.reasons == {"x.jsonl:3": "no_text"}


# ---- pictures --------------------------------------------------------------------------------

ONE_PICTURE = {
    "img": {"img": "0.png"},
    "picture": {"picture": "0.png"},
    "image_url": {"image_url": "0.png"},
    "image_url with url": {"image_url": {"url": "0.png"}},
    "image_1": {"image_1": "0.png"},
    "list of objects": {"images": [{"bytes": None, "path": "0.png"}]},
    "list as text": {"images": "['0.png']"},
    "file address": {"image": "file://0.png"},
    "data address": {"image": f"data:image/png;base64,{BASE64}"},
    "bare base64": {"image": BASE64},
    "data address in a list": {"images": [{"bytes": f"data:image/png;base64,{BASE64}"}]},
    "a name nobody knows": {"snapshot": "0.png"},
    "content under a name nobody knows": {"snapshot": f"data:image/png;base64,{BASE64}"},
    "within an object": {"meta": {"snapshot": "0.png"}},
    "under input": {"input": "0.png"},
}


@pytest.mark.parametrize("form", ONE_PICTURE)
@pytest.mark.parametrize("mark", ["", "<image>\n", "<image 1>", "<|image|>"])
def test_a_picture_is_found_in_every_form(one, form, mark):
    sample = one({"prompt": f"{mark}What is it?", **ONE_PICTURE[form]})
    assert sample["prompt"] == "What is it?"
    assert (sample["modality"], len(sample["media"])) == ("image", 1)


IN_MESSAGES = {
    "Qwen-VL": "<img>0.png</img>What is it?",
    "part with path": [{"type": "image", "path": "0.png"}, {"type": "text", "text": "What is it?"}],
    "data part": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        {"type": "text", "text": "What is it?"},
    ],
    "Anthropic": [
        {"type": "image", "source": {"type": "base64", "data": BASE64}},
        {"type": "text", "text": "What is it?"},
    ],
}


@pytest.mark.parametrize("form", IN_MESSAGES)
def test_pictures_within_messages(one, form):
    sample = one({"messages": [{"role": "user", "content": IN_MESSAGES[form]}]})
    assert (sample["prompt"], len(sample["media"])) == ("What is it?", 1)


def test_numbered_marks_stay_where_they_say_which_picture(one):
    question = "<image 1> and <image 2>: which is red?"
    sample = one({"question": question, "image_1": "0.png", "image_2": "1.png"})
    assert (sample["prompt"], len(sample["media"])) == (question, 2)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"prompt": "<image>What?"}, "1 of <image>; media of the record: 0 pictures"),
        ({"prompt": "<image><image>What?", "image": "0.png"}, "2 of <image>.* 1 pictures"),
        ({"prompt": "<image>What?", "images": ["0.png", "1.png"]}, "1 of <image>.* 2 pictures"),
        ({"prompt": "<image 3>What?", "images": ["0.png", "1.png"]}, "picture 3.* has 2"),
    ],
)
def test_marks_and_pictures_agree(tmp_path, take_in, record, found):
    for number in range(2):
        picture(tmp_path, f"{number}.png", number)
    out = take_in(lines(tmp_path / "x.jsonl", record, {"prompt": "fine"}))
    assert out.reasons == {"x.jsonl:1": "marks_and_media_differ"}
    assert pl.Series([out.rejected["detail"][0]]).str.contains(found).all()


def test_a_mark_may_be_repeated_in_a_later_turn(tmp_path, take_in):
    picture(tmp_path, "0.png")
    talk = conversation(("<image>\nWhat is it?", "x"), ("<image>\nIs the cat red?", "y"))
    out = take_in(lines(tmp_path / "x.jsonl", {"image": "0.png", "conversations": talk}))
    assert out.samples["prompt"].to_list() == ["What is it?", "Is the cat red?"]


def test_text_about_a_tag_is_text(one):
    assert one({"prompt": "What is the <video> tag?"})["prompt"] == "What is the <video> tag?"


@pytest.mark.parametrize("field", ["image", "snapshot"])
def test_a_mark_that_a_prompt_begins_with_is_one_where_there_is_a_picture(one, field):
    sample = one({"prompt": "<image> tags for this picture, please.", field: "0.png"})
    assert sample["prompt"] == "tags for this picture, please."
    assert len(sample["media"]) == 1


@pytest.mark.parametrize("value", ["gone.png", "https://example.com/gone.jpg?w=3"])
def test_a_picture_of_an_unread_field_that_is_not_there_is_missing(tmp_path, take_in, value):
    out = take_in(lines(tmp_path / "x.jsonl", {"prompt": "x", "snap": value}, {"prompt": "y"}))
    assert out.reasons == {"x.jsonl:1": "missing_media"}


def test_pictures_in_records_are_read_by_later_stages(tmp_path, take_in):
    rows = [{"prompt": "a?", "image": f"data:image/png;base64,{BASE64}"}, {"prompt": "b?"}]
    for number in (0, 1):
        content = base64.b64encode(BYTES[number]).decode()
        rows.append({"prompt": f"{number}?", "image": content})
    out = take_in(lines(tmp_path / "x.jsonl", *rows))
    assert out.media.height == 2
    (file,) = (out.folder / "embedded").iterdir()
    assert set(out.media["path"]) == {str(file)}
    whole = file.read_bytes()
    spans = out.media.select("offset", "length").rows()
    assert [whole[start : start + length] for start, length in spans] == BYTES[:2]
    (batch,) = picture_batches(out.media, 10)
    assert batch.offsets.to_pylist() == [start for start, _ in spans]
    first = digest(out.folder)
    assert digest(take_in(tmp_path / "x.jsonl", threads=1).folder) == first


def test_parquet_columns_that_nobody_named_are_read_or_told(tmp_path, take_in):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {
        "question": ["<image 1>Which?", "What?"],
        "image_1": pa.array([{"bytes": BYTES[0], "path": "x"}, None], kind),
        "snapshot": pa.array([None, {"bytes": BYTES[1], "path": "x"}], kind),
        "lecture": ["A text of some length that nobody reads."] * 2,
        "embedding": [[0.5, 1.0]] * 2,
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    out = take_in(tmp_path / "t.parquet")
    assert out.samples["modality"].to_list() == ["image", "image"]
    assert out.media["column"].to_list() == ["image_1", "snapshot"]
    assert list(out.report["unread_fields"]) == ["lecture"]


# ---- what is not read ------------------------------------------------------------------------


def test_fields_that_are_not_read_are_counted_by_name(tmp_path, take_in):
    picture(tmp_path, "0.png")
    row = {
        "image": "0.png",
        "prompt": "What?",
        "thumbnail": "small.png",
        "rationale": "Because the light comes from the left.",
        "tags_seen": ["cat", "dog"],
        "log": [{"note": "a sentence of some length here"}],
        "meta": {"comment": "another sentence of some length"},
        "source": "a long name of a source that says nothing",
        "score": 3,
        "short": "one word",
    }
    out = take_in(lines(tmp_path / "x.jsonl", row, row, {"prompt": "fine"}))
    found = {name: (f["rows"], f["kind"]) for name, f in out.report["unread_fields"].items()}
    assert found == {
        "thumbnail": (2, "picture"),
        "rationale": (2, "text"),
        "tags_seen": (2, "list of texts"),
        "log": (2, "messages"),
        "meta.comment": (2, "text"),
    }
    assert out.report["unread_fields"]["rationale"]["example"] == row["rationale"]


def test_the_number_of_a_picture_that_nobody_looks_up_is_told(tmp_path, take_in):
    picture(tmp_path, "0.png")
    rows = [{"question": "What?", "image_id": 17}, {"image": "0.png", "prompt": "x", "image_id": 3}]
    found = take_in(lines(tmp_path / "x.jsonl", *rows)).report["unread_fields"]
    assert found == {"image_id": {"rows": 1, "kind": "picture id", "example": "17"}}


def test_names_of_fields_that_differ_in_each_record_are_put_together(tmp_path, take_in):
    rows = [{"prompt": "x", f"note{n}": "a sentence of some length here"} for n in range(1100)]
    found = take_in(lines(tmp_path / "x.jsonl", *rows)).report["unread_fields"]
    assert len(found) == 1001
    assert sum(field["rows"] for field in found.values()) == 1100


# ---- ids -------------------------------------------------------------------------------------


def test_ids_that_repeat_are_all_kept(tmp_path, take_in):
    talk = [{"id": "7", "conversations": conversation((f"What is {n}?", "x"))} for n in range(3)]
    two = {"id": "7", "conversations": conversation(("one?", "1"), ("two?", "2"))}
    bad = {"id": "7", "image": "gone.png", "prompt": "x"}
    file = lines(tmp_path / "mix.jsonl", *talk[:2], bad, two, talk[2])
    expected = {
        "mix:7": "What is 0?",
        "mix:7#2": "What is 1?",
        "mix:7#3#1": "one?",
        "mix:7#3#2": "two?",
        "mix:7#4": "What is 2?",
    }
    for threads in (1, 2):
        out = take_in(file, threads=threads)
        assert out.prompts == expected
        assert set(out.samples["source_id"]) == {"7"}


# ---- evidence --------------------------------------------------------------------------------


def test_the_rejected_rows_are_there_when_none_is_good(tmp_path, take_in):
    file = lines(tmp_path / "x.jsonl", *["broken"] * 3)
    with pytest.raises(InputError, match="none of 3 rows") as raised:
        take_in(file)
    _check_evidence(str(raised.value), 3)


def test_the_rejected_rows_are_there_when_too_many_are_bad(tmp_path, take_in):
    file = lines(tmp_path / "x.jsonl", "broken", {"prompt": "x"})
    with pytest.raises(InputError, match="more than --max-bad") as raised:
        take_in(file, max_bad="5%")
    _check_evidence(str(raised.value), 1)


def _check_evidence(message, rows):
    place = message.split('pl.read_parquet("')[1].split('"')[0]
    assert pl.read_parquet(place)["reason"].to_list() == ["broken_record"] * rows


@pytest.mark.parametrize("share", [0.05, "0.05", "5%"])
def test_a_share_may_be_a_number(share):
    assert IngestConfig(max_bad=share).max_bad == str(share)
    assert IngestConfig(sources=[SourceConfig(path="x")]).max_bad is None


# ---- nothing is lost -------------------------------------------------------------------------

TEXTS = st.sampled_from(
    ["What is it?", "<image>\nWhat?", "<image 2>", "", "a.png", "0.png", "gone.png"]
)
FIELDS = st.sampled_from(
    [
        *("prompt", "question", "image", "images", "image_1", "snapshot", "choices", "context"),
        *("input", "history", "conversations", "messages", "texts", "chosen", "rejected", "answer"),
    ]
)
MESSAGES = st.lists(
    st.builds(
        lambda who, text: {"role": who, "content": text},
        st.sampled_from(["user", "assistant", "system", "tool", "owl"]),
        TEXTS,
    ),
    max_size=5,
)
RECORDS = st.dictionaries(FIELDS, TEXTS | MESSAGES | st.lists(TEXTS, max_size=3), max_size=6)


@given(st.lists(RECORDS, min_size=1, max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_record_is_a_sample_or_a_rejected_row(tmp_path, stage, records):
    picture(tmp_path, "0.png")
    last = {"id": "last", "prompt": "fine"}
    rows = [{"id": f"r{n}", **record} for n, record in enumerate(records, start=1)]
    out = take_in(stage, lines(tmp_path / "x.jsonl", *rows, last))
    rejected = out.rejected["position"].str.extract(r"x\.jsonl:(\d+)").to_list()
    found = set(out.samples["source_id"].str.split("@").list.first()) | {f"r{n}" for n in rejected}
    assert found == {row["id"] for row in (*rows, last)}


# ---- reasons ---------------------------------------------------------------------------------


def test_every_reason_is_explained():
    """Reasons as the core and the readers write them."""
    root = Path(__file__).parents[1]
    files = [
        *(root / "rust_core/src/ingest").rglob("*.rs"),
        *(root / "rust_core/src/image").rglob("*.rs"),
        *(root / "python/mmrlhf_engine/sources/samples").glob("*.py"),
    ]
    text = "".join(file.read_text() for file in files)
    found = set(re.findall(r'Rejection::new\(\s*"(\w+)"', text))
    found |= set(re.findall(r'Self::\w+(?:\(_\)|\{ \.\. \}| \{ \.\. \})? => "(\w+_\w+)"', text))
    assert "wrong_type" in found
    assert "truncated_media" in found
    assert found <= set(REJECTIONS), found - set(REJECTIONS)
    assert {reason for _, reason in BAD_LINES.values()} <= set(REJECTIONS)


def test_reasons_that_occurred_are_explained_in_the_report(tmp_path, take_in):
    report = take_in(lines(tmp_path / "x.jsonl", "broken", {"prompt": "x"})).report
    assert report["reasons"] == {"broken_record": REJECTIONS["broken_record"]}
