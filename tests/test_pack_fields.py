"""No prompt is invented, and nothing of a row that may belong to it is lost in silence."""

import json

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from mmrlhf_engine.pack import pack
from mmrlhf_engine.sources.preferences import FORMATS, detect
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media
from pack_data import picture, put, stored, tokenizer_folder, write_lines

CAT, DOG, COW = (Media("image", (f"{name}.png",)) for name in ("cat", "dog", "cow"))
PAIR = {"chosen": "The cat is black.", "rejected": "The cat is white."}


def read(record, ignored=()):
    return detect([record], "here").read(record, frozenset(ignored))


@pytest.mark.parametrize(
    "extra",
    [
        {"question": "What colour?", "options": ["red", "black"]},
        {"question": "What colour?", "choices": "A. red, B. black"},
        {"question": "What colour?", "context": "There is a cat."},
        {"frage": "Welche Farbe hat sie?"},
        {"user_question": "What colour?"},
        {"prompt": "What colour?", "image_2": "b.png"},
        {"prompt": "What colour?", "image": "a.png", "second_image": "b.png"},
        {"prompt": "What colour?", "file_name": "b.png"},
        {"prompt": "What colour?", "pixel_values": [[0.5]]},
        {"prompt": "What colour?", "shot": {"bytes": b"x", "path": None}},
        {"prompt": "What colour?", "shots": [b"x"]},
        {"prompt": "What colour?", "audio": "a.wav"},
        {"prompt": "What colour?", "functions": [{"name": "look"}]},
        {"prompt": "What colour?", "instruction": "Answer in one word."},
    ],
)
def test_what_may_be_part_of_the_prompt_is_never_passed_over(extra):
    with pytest.raises(BadRecordError, match="--ignore-field") as caught:
        read({**PAIR, **extra})
    assert caught.value.reason == "unread_field"
    assert list(extra)[-1] in caught.value.detail


@pytest.mark.parametrize(
    ("extra", "counted"),
    [
        (
            {"source": "a web site", "idx": 3, "question_id": "q 7", "image_width": 640},
            ["source", "idx", "question_id", "image_width"],
        ),
        (
            {"image": "a.png", "image_path": "b/a.png", "image_id": "a.png"},
            ["image_path", "image_id"],
        ),
        ({"instruction": "What colour is it?"}, []),
        ({"messages": None, "options": [], "context": ""}, []),
        (
            {"category": "a question of colours", "is_image_real": True},
            ["category", "is_image_real"],
        ),
    ],
)
def test_bookkeeping_and_what_stands_in_the_prompt_anyway_is_no_error(extra, counted):
    preference, unread = read({**PAIR, "prompt": "What colour is it? Say so.", **extra})
    assert preference.prompt[0].text == "What colour is it? Say so."
    assert unread == counted


def test_a_field_can_be_left_out_of_rows_and_messages():
    record = {**PAIR, "question": "What colour?", "options": ["red"]}
    preference, unread = read(record, ["options"])
    assert preference.prompt[0].text == "What colour?"
    assert unread == ["options"]
    messages = [{"role": "user", "content": "x", "name": "Ann"}]
    preference, _ = read({**PAIR, "prompt": messages}, ["name"])
    assert preference.prompt[0].extras == ""


@pytest.mark.parametrize(
    "extra",
    [{"images": ["b.png"]}, {"function_call": {"name": "f"}}, {"context": "A cat."}],
)
def test_a_field_of_a_message_is_not_passed_over_either(extra):
    record = {**PAIR, "prompt": [{"role": "user", "content": "x", "weight": 1, **extra}]}
    with pytest.raises(BadRecordError) as caught:
        read(record)
    assert caught.value.reason == "unread_field"
    assert read(record, extra)[0].prompt[0].text == "x"


def test_answers_may_be_single_messages():
    sides = {key: {"role": "assistant", "content": text} for key, text in PAIR.items()}
    preference, _ = read({"prompt": "What colour?", **sides})
    assert preference.prompt[0].text == "What colour?"
    assert [response.messages[0].text for response in preference.responses] == [*PAIR.values()]


def test_conversations_that_part_in_a_question_are_refused():
    def sides(*turns):
        return [{"role": role, "content": text} for role, text in turns]

    asked, other = ("user", "Why?"), ("user", "How?")
    rows = [
        {"chosen": sides(asked, ("assistant", "a")), "rejected": sides(other, ("assistant", "b"))},
        {
            "prompt": "Who?",
            "chosen": sides(asked, ("assistant", "a")),
            "rejected": sides(asked, ("assistant", "b")),
        },
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: a",
            "rejected": "\n\nHuman: How?\n\nAssistant: b",
        },
    ]
    for row in rows:
        with pytest.raises(BadRecordError) as caught:
            read(row)
        assert caught.value.reason == "prompts_differ"


def test_white_space_does_not_make_another_prompt_of_one_that_is_given():
    def sides(question, other):
        return {
            "chosen": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "a"},
            ],
            "rejected": [{"role": "user", "content": other}, {"role": "assistant", "content": "b"}],
        }

    for question, other in [("Why is it? ", "Why is it?"), ("Why  is\nit?", "Why is it?")]:
        preference, _ = read({"prompt": "Why is it?", **sides(question, other)})
        assert [(turn.role, turn.text) for turn in preference.prompt] == [("user", question)]
        assert [one.messages[0].text for one in preference.responses] == ["a", "b"]
    for row in [
        sides("Why is it? ", "Why is it?"),
        {"prompt": "Why is it?", **sides("Why is it?", "Why isit?")},
        {"prompt": "How is it?", **sides("Why is it?", "Why is it? ")},
    ]:
        with pytest.raises(BadRecordError) as caught:
            read(row)
        assert caught.value.reason == "prompts_differ"
    answers = sides("Why?", "Why?")
    answers["rejected"][1]["content"] = " a"
    preference, _ = read({"prompt": "Why?", **answers})
    assert [one.messages[0].text for one in preference.responses] == ["a", " a"]


@pytest.mark.parametrize("extra", [{"image": "b.png"}, {"question": "Who?"}, {"options": ["a"]}])
def test_a_field_of_a_ranked_answer_is_not_passed_over(extra):
    answers = [{"answer": "a", "rank": 1, **extra}, {"answer": "b", "rank": 2, "model": "m"}]
    with pytest.raises(BadRecordError) as caught:
        read({"prompt": "Why?", "answers": answers})
    assert caught.value.reason == "unread_field"
    _, unread = read({"prompt": "Why?", "answers": answers, "ratings": [1, 2]}, extra)
    assert unread == ["ratings", "answers[].model"]


def test_a_field_of_texts_in_json_is_not_passed_over():
    inner = {**PAIR, "question": "What colour?", "note": "x"}
    assert read({"text": json.dumps(inner)})[1] == ["text.note"]
    with pytest.raises(BadRecordError, match="'text' holds 'options'") as caught:
        read({"text": json.dumps({**inner, "options": ["red"]})})
    assert caught.value.reason == "unread_field"


def test_lists_of_one_object_of_answers_have_one_length():
    record = {"prompt": "Why?", "completions": {"response": ["a", "b"], "score": [1]}}
    with pytest.raises(BadRecordError, match="'response': 2, 'score': 1") as caught:
        FORMATS["ranked"].read(record)
    assert caught.value.reason == "wrong_length"


ASKED = {"from": "human", "value": "<image>Draw it."}


def test_answers_take_the_images_that_the_prompt_has_left():
    def answers(images, chosen, rejected):
        record = {
            "conversations": [ASKED],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
            "images": images,
        }
        preference, _ = read(record)
        assert preference.prompt[0].media == (CAT,)
        return [response.messages[0].media for response in preference.responses]

    names = ["cat.png", "dog.png", "cow.png"]
    assert answers(names, "<image>", "<image>") == [(DOG,), (COW,)]
    assert answers(names[:2], "<image>", "Like <image>") == [(DOG,), (DOG,)]
    assert answers(names[:2], "<image>", "no") == [(DOG,), ()]
    assert answers(names[:2], "no", "<image>") == [(), (DOG,)]
    for images, chosen, rejected in [
        (names, "<image>", "no"),
        (names, "no", "no"),
        (names[:1], "<image>", "no"),
    ]:
        with pytest.raises(BadRecordError) as caught:
            answers(images, chosen, rejected)
        assert caught.value.reason == "media_count"


def test_content_parts_of_answers_hold_images():
    def drawn(name):
        return [{"role": "assistant", "content": [{"type": "image", "image": name}]}]

    record = {
        "prompt": [{"role": "user", "content": "Draw it."}],
        "chosen": drawn("cat.png"),
        "rejected": drawn("dog.png"),
    }
    preference, _ = read(record)
    assert [response.messages[0].media for response in preference.responses] == [(CAT,), (DOG,)]


def test_ms_swift_rejects_several_texts_or_turns():
    record = {
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "tool_call", "content": '{"name": "look", "arguments": {}}'},
            {"role": "tool_response", "content": "a cat"},
            {"role": "assistant", "content": "A cat."},
        ],
        "rejected_response": ["A dog.", "A cow."],
    }
    preference, _ = read(record)
    assert [message.role for message in preference.prompt] == ["user", "assistant", "tool"]
    texts = [response.messages[0].text for response in preference.responses]
    assert texts == ["A cat.", "A dog.", "A cow."]
    assert [(pair.chosen, pair.rejected) for pair in preference.pairs] == [(0, 1), (0, 2)]
    turns = [{"role": "assistant", "content": "A dog."}]
    preference, _ = read({**record, "rejected_response": turns})
    assert [response.messages[0].text for response in preference.responses] == ["A cat.", "A dog."]
    for nothing in ([], [""], [3]):
        with pytest.raises(BadRecordError) as caught:
            FORMATS["ms_swift"].read({**record, "rejected_response": nothing})
        assert caught.value.reason == "empty_rejected"


CALL = {"name": "add", "arguments": {"a": 2}}
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


def test_llama_factory_calls_tools():
    record = {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "4"},
        ],
        "tools": json.dumps([TOOL]),
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "function_call", "value": json.dumps([CALL, CALL])},
    }
    preference, unread = read(record)
    assert unread == []
    assert [message.role for message in preference.prompt] == ["user", "assistant", "tool"]
    called = [{"type": "function", "function": CALL}]
    assert json.loads(preference.prompt[1].extras) == {"tool_calls": called}
    assert json.loads(preference.responses[1].messages[0].extras) == {"tool_calls": called * 2}
    assert json.loads(preference.tools) == [{"type": "function", "function": TOOL}]
    for broken in ("{", "3", '{"arguments": {}}'):
        with pytest.raises(BadRecordError) as caught:
            read({**record, "rejected": {"from": "function_call", "value": broken}})
        assert caught.value.reason == "wrong_type"


def test_null_fields_of_objects_in_parquet_are_no_fields(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"a": None, "b": 2}}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [one]} for one in (call, other)
    ]
    row = {"prompt": [{"role": "user", "content": "x"}], "chosen": messages[:1]}
    pq.write_table(
        pa.Table.from_pylist([{**row, "rejected": messages[1:]}]), tmp_path / "a.parquet"
    )
    (record,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    preference, _ = read(record)
    arguments = [
        json.loads(response.messages[0].extras)["tool_calls"][0]["function"]["arguments"]
        for response in preference.responses
    ]
    assert arguments == [{"a": 1}, {"b": 2}]


def test_one_answer_is_packed_with_the_chosen_and_the_rejected_picture(tmp_path):
    folder = tokenizer_folder(tmp_path / "tokenizer")
    for name, seed in (("a", 1), ("b", 2)):
        put(tmp_path / f"{name}.png", picture(seed=seed))
    messages = [
        {"role": "user", "content": "<image>What colour is it?"},
        {"role": "assistant", "content": "Black."},
    ]
    row = {"messages": messages, "images": ["a.png"], "rejected_images": ["b.png"]}
    same = {**row, "rejected_images": ["a.png"]}
    source = write_lines(tmp_path / "rows.jsonl", [row, same])
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(folder))
    report = pack.pack_dataset(config, tmp_path / "ds")
    assert report["dropped"] == {"chosen_is_rejected": 1}
    (pair,) = stored(tmp_path / "ds")
    assert pair["chosen"]["tokens"] == pair["rejected"]["tokens"]
    assert pair["query"]["pictures"] == [picture(seed=1)]
    assert [pair[side]["pictures"] for side in ("chosen", "rejected")] == [[], [picture(seed=2)]]


def test_the_report_names_what_was_not_read(tmp_path, capsys):
    folder = tokenizer_folder(tmp_path / "tokenizer")
    put(tmp_path / "a.png", picture())
    good = {**PAIR, "question": "What colour is it?", "image": "a.png", "idx": 3}
    source = write_lines(tmp_path / "rows.jsonl", [good, {**good, "options": ["red", "black"]}])
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(folder))
    report = pack.pack_dataset(config, tmp_path / "ds")
    assert report["dropped"] == {"unread_field": 1}
    assert report["fields_ignored"] == {"idx": 1}
    assert "idx (1)" in pack.describe(report, tmp_path / "ds")
    (record,) = (tmp_path / "ds" / "reports").iterdir()
    (detail,) = pl.read_parquet(record / "rejected" / "*.parquet")["detail"]
    assert "'options' is not read" in detail
    (pair,) = stored(tmp_path / "ds")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "What colour is it?" in tokenizer.decode(pair["query"]["prompt"][5:])
    assert tokenizer.decode(pair["chosen"]["tokens"]).startswith("The cat is black.")
