"""Options of a question: every form in which records have them."""

import pytest

from intake import conversation
from test_ingest_records import _one, _take_in  # noqa: F401  (fixtures)

OPTIONS = {
    "a list": {"choices": ["cat", "dog"]},
    "options": {"options": ["cat", "dog"]},
    "with letters": {"options": ["A. cat", "B. dog"]},
    "by letter": {"options": {"A": "cat", "B": "dog"}},
    "by number": {"choice_list": {"0": "cat", "1": "dog"}},
    "ARC": {"choices": {"text": ["cat", "dog"], "label": ["A", "B"]}},
    "columns": {"A": "cat", "B": "dog"},
    "columns with a stem": {"option_a": "cat", "option_b": "dog"},
    "columns from 0": {"option_0": "cat", "option_1": "dog"},
    "columns from 1": {"choice_1": "cat", "choice_2": "dog"},
    "MedMCQA": {"opa": "cat", "opb": "dog"},
    "JSON text": {"options": '["cat", "dog"]'},
    "Python text": {"options": "['cat', 'dog']"},
    "lettered text": {"options": "(A) cat (B) dog"},
}


@pytest.mark.parametrize("form", OPTIONS)
def test_options_of_every_form_are_a_part_of_the_question(one, form):
    sample = one({"question": "Which is it?", "answer": "A", **OPTIONS[form]})
    assert sample["prompt"] == "Which is it?\nA. cat\nB. dog"
    assert sample["options"] == ["cat", "dog"]
    assert sample["question_type"] == "mcq"


@pytest.mark.parametrize(
    "question", ["Which?\nA. cat\nB. dog", "Which? (A) cat (B) dog", "Which?\ncat\ndog"]
)
def test_options_that_stand_in_the_question_are_not_repeated(one, question):
    sample = one({"question": question, "choices": ["cat", "dog"]})
    assert (sample["prompt"], sample["options"]) == (question, ["cat", "dog"])
    assert sample["question_type"] == "mcq"


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What does abc stand for?", ["a", "b", "c"]),
        ("What is the cat doing?", ["cat", "doing"]),
        ("How many are 10 12-packs?", ["10", "12"]),
        ("Is it a cat or a dog?", ["cat", "dog"]),
    ],
)
def test_words_of_a_question_are_no_options(one, question, options):
    listed = [f"{letter}. {option}" for letter, option in zip("ABC", options, strict=False)]
    assert one({"question": question, "options": options})["prompt"].split("\n") == [
        question,
        *listed,
    ]


@pytest.mark.parametrize(
    ("options", "found", "listed"),
    [
        ({"A": "cat", "B": None, "C": "dog"}, ["cat", "", "dog"], "A. cat\nC. dog"),
        ({"A": "cat", "B": "", "C": "dog"}, ["cat", "", "dog"], "A. cat\nC. dog"),
        ({"option_1": "cat", "option_3": "dog"}, ["cat", "", "dog"], "A. cat\nC. dog"),
        ({"options": {"A": "cat", "B": None, "C": "dog"}}, ["cat", "", "dog"], "A. cat\nC. dog"),
        ({"options": [None, "cat", "dog"]}, ["", "cat", "dog"], "B. cat\nC. dog"),
    ],
)
def test_a_missing_option_keeps_the_letters_of_the_others(one, options, found, listed):
    sample = one({"question": "Which?", "answer": "C", **options})
    assert (sample["options"], sample["prompt"]) == (found, f"Which?\n{listed}")
    assert (sample["answer"], sample["question_type"]) == ("C", "mcq")


@pytest.mark.parametrize(
    ("header", "row", "options", "listed"),
    [
        ("question,A,B,C,D", "Which?,cat,,dog,", ["cat", "", "dog"], "A. cat\nC. dog"),
        ("question,A,B,C", "Which?,,cat,dog", ["", "cat", "dog"], "B. cat\nC. dog"),
        ("prompt,A,B,C", "Which?,,cat,dog", ["", "cat", "dog"], "B. cat\nC. dog"),
        ("question,option_a,option_b,option_c", "Which?,,cat,dog", ["", "cat", "dog"], None),
        ("question,choice1,choice2,choice3", "Which?,,cat,dog", ["", "cat", "dog"], None),
    ],
)
def test_an_empty_option_of_a_csv_file_keeps_the_letters_of_the_others(
    tmp_path, take_in, header, row, options, listed
):
    (tmp_path / "x.csv").write_text(f"{header}\n{row}\n")
    sample = take_in(tmp_path / "x.csv").samples.row(0, named=True)
    listed = listed or "B. cat\nC. dog"
    assert (sample["options"], sample["prompt"]) == (options, f"Which?\n{listed}")


def test_a_table_has_options_up_to_z(tmp_path, take_in):
    letters = [chr(ord("A") + number) for number in range(26)]
    values = [f"option {letter.lower()}" for letter in letters]
    text = f"question,{','.join(letters)}\nWhich?,{','.join(values)}\n"
    (tmp_path / "x.csv").write_text(text)
    out = take_in(tmp_path / "x.csv")
    assert out.samples["options"][0].to_list() == values
    assert out.report["unread_fields"] == {}


@pytest.mark.parametrize(
    "question",
    [
        "Which? (A) cat (B) dog",
        "Which is it?(A) cat (B) dog Answer with the letter.",
        "Is it a (A) cat or (B) dog in the picture?",
        "Which? [A] cat [B] dog",
        "Which? A. cat B. dog Answer with the letter.",
    ],
)
@pytest.mark.parametrize(
    "options", [["cat", "dog"], ["(A) cat", "(B) dog"], "(A) cat (B) dog", {"A": "cat", "B": "dog"}]
)
def test_options_within_a_sentence_are_not_repeated(one, question, options):
    sample = one({"question": question, "options": options})
    assert (sample["prompt"], sample["options"]) == (question, ["cat", "dog"])


def test_options_of_a_text_alone_are_listed(one):
    sample = one({"conversations": conversation(("What?\nA. cat\nB. dog\nAnswer briefly.", "A"))})
    assert sample["options"] == ["cat", "dog"]
    assert one({"question": "What?", "choices": []})["options"] == []


# ---- context, input, history -----------------------------------------------------------------
