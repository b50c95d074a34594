"""Fields by whose name a question is known, where they are not read: named, whatever they hold."""

from functools import partial

import pytest

from intake import conversation, lines, take_in

TALK = conversation(("What is it?", "A cat."), ("And its colour?", "Grey."))


@pytest.fixture(name="unread")
def _unread(tmp_path, stage):
    """Names of the fields of a record that are not read."""
    take = partial(take_in, stage)

    def read(record):
        out = take(lines(tmp_path / "x.jsonl", record))
        assert out.rejected.is_empty(), out.rejected.rows()
        return set(out.report["unread_fields"])

    return read


@pytest.mark.parametrize("name", ["conversations", "dialog", "dialogue", "texts", "messages"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question", "Is it old?"),
        ("query", "Why?"),
        ("options", {"A": "cat", "B": "dog"}),
        ("choices", ["cat", "dog"]),
        ("context", "In 1914."),
        ("input", "tea"),
        ("qa_pairs", [["When?", "Now."]]),
        ("questions", ["When?"]),
    ],
)
def test_a_part_of_a_question_beside_a_conversation_is_named(unread, name, field, value):
    assert unread({name: TALK, field: value}) == {field}


def test_an_instruction_beside_a_question_is_named(unread):
    assert unread({"question": "What is it?", "instruction": "Be brief."}) == {"instruction"}
    assert unread({"question": "What is it?", "caption": "A cat."}) == {"caption"}


def test_what_was_said_anyway_is_not_named(unread):
    assert unread({"conversations": TALK, "question": "What is it?"}) == set()
    assert unread({"conversations": TALK, "question": " "}) == set()
    assert unread({"question": "What is it?", "prompt": "What is it?"}) == set()
    assert unread({"conversations": TALK, "question": None, "options": [], "context": ""}) == set()


def test_an_answer_beside_a_conversation_ends_it(tmp_path, stage):
    rows = [
        {"messages": [{"role": "user", "content": "How many?"}], "solution": "Three."},
        {"conversations": TALK[:3], "answer": "Grey."},
        {"conversations": TALK, "answer": "Black."},
    ]
    out = take_in(stage, lines(tmp_path / "x.jsonl", *rows))
    assert out.samples["answer"].to_list() == ["Three.", *["A cat.", "Grey."] * 2]
