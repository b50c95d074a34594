"""``evaluate vqa``: what counts as equal, letters, balances, blind answers, and pairs of files."""

import json

import numpy as np
import pytest

from command import engine
from mmrlhf_engine.measure.answers import letter_of, options_in, same_answer
from mmrlhf_engine.measure.plain_text import normalised
from pack_data import write_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Red\tCar. ", "red car"),
        ("A dog!", "dog"),
        ('"yes"', "yes"),
        ("vitamin A", "vitamin a"),
        ("another theme", "another theme"),
        ("-5", "-5"),
        ("50 %", "50 %"),
        ("C++", "c++"),
        ("3.5", "3.5"),
        ("\uff11\uff12", "12"),
        ("...", ""),
        ("the", "the"),
        ("(red)", "red"),
        ("red).", "red"),
        ("[0, 1).", "[0, 1)"),
        ("f(x)", "f(x)"),
        ("10\u2075", "10^5"),
        ("10\u207b\u00b9\u00b2", "10^-12"),
        ("5 \u33a1", "5 m^2"),
        ("H\u2082O", "h2o"),
        ("2\u00bd", "2 1/2"),
        ("5!", "5!"),
        ("**5.**", "5"),
        ("a + b", "a + b"),
        ("the 2 dogs", "2 dogs"),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


def test_equality():
    assert same_answer(["red", "crimson"], "Crimson.")
    assert not same_answer(["red"], "red car")
    assert not same_answer(["2"], "two")
    assert not same_answer(["..."], "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("[0, 1)", "(0, 1]"),
            ("[0, 1]", "(0, 1)"),
            ("10\u2075", "105"),
            ("2\u00b9\u2070", "210"),
        ),
        *(("x\u00b2", "x2"), ("5!", "5"), ("n!", "n"), ("6'", '6"'), ("2\u00bd", "21/2")),
        *(("a - 5", "-5"), ("a-b", "-b")),
    ],
)
def test_different_values_are_not_equal(one, other):
    assert not same_answer([one], other)
    assert not same_answer([other], one)


OPTIONS = ["red", "blue", "dark blue", "green"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *(("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), (" c) ", "C")),
        *(("B. blue", "B"), ("(C) dark blue", "C"), ("D: green, as the sky is A", "D")),
        ("The answer is (D).", "D"),
        ("A is wrong, so the answer is: D", "D"),
        ("I first thought (A). Answer: B", "B"),
        ("I would choose option C here", "C"),
        ("It must be (D), clearly", "D"),
        ("A car is shown", None),
        ("A red car", "A"),  # by the text of the option, not by the article
        ("both B and C", None),
        ("E", None),  # beyond the options
        ("Blue", "B"),
        ("It is green.", "D"),
        ("dark blue", "C"),  # equal before part of
        ("the car is dark blue", None),  # "blue" and "dark blue" are both in it
        ("I don't know", None),
        ("", None),
        ("Bluebird", None),
    ],
)
def test_letters(text, letter):
    assert letter_of(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *(("The answer is a dog.", "B"), ("Answer: a dog", "B"), ("I can answer a bit: B", "B")),
        *(("The answer is an animal, a cat", "A"), ("ANSWER IS B", "B"), ("**Answer:** B", "B")),
        *(("The answer is a.", "A"), ("answer: a) cat", "A"), ("the answer is a because", "A")),
        *(("The answer is A, a cat and no dog", "A"), ("My answer B", "B"), ("Answer a", None)),
        *(("The answer is b since it barks", "B"), ("A because it is one", "A")),
        ("It is B, and not E", "B"),
    ],
)
def test_an_article_is_not_a_letter(text, letter):
    assert letter_of(text, ["cat", "dog"]) == letter


def test_up_to_26_options():
    ten = [f"number {n}" for n in range(10)]
    assert letter_of("The answer is (J).", ten) == "J"
    assert letter_of("I think it is H", ten) == "H"
    assert letter_of("I", ten) == "I"
    assert letter_of("number 9", ten) == "J"
    assert letter_of("Z", ["x"] * 26) == "Z"


def test_letters_without_options():
    assert letter_of("E") == "E"
    assert letter_of("The answer is J") == "J"
    assert letter_of("K") is None
    assert letter_of("red") is None


def test_options_in_a_question():
    assert options_in("Which?\nA. red\n(B) dark blue \nC) green") == ["red", "dark blue", "green"]
    assert options_in("Which?\na) red\nb) blue") == ["red", "blue"]
    assert options_in("Which?\na) red\nB) blue") == []
    assert len(options_in("".join(f"\n{letter}. x" for letter in "ABCDEFGHIJ"))) == 10
    assert options_in("Which?\nB. red\nA. blue") == []
    assert options_in("Which?\nA. red") == []
    assert options_in("A dog. B cat.") == []


# ---- the section -----------------------------------------------------------------------------


def evaluated(folder, rows, *options, before=None):
    file, out = write_lines(folder / "v.jsonl", rows), folder / "out"
    if before is not None:
        options = ("--before", write_lines(folder / "before.jsonl", before), *options)
    done = engine("evaluate", "vqa", file, "--out", out, *options)
    card = out / "scorecard.json"
    return done, json.loads(card.read_text())["vqa"] if card.exists() else None


def row(number, answer, prediction, **more):
    return {"id": number, "question": "?", "answer": answer, "prediction": prediction, **more}


ROWS = [
    row(1, "red", "Red.", kind="color", image="a.png", blind="red"),
    row(2, "red", "the red", kind="color", image="a.png", blind="blue"),
    row(3, "blue", "green", kind="color", image="b.png", blind="blue"),
    row(4, ["2", "two"], "two", kind="count", image="b.png"),
]


def test_a_hand_case(tmp_path):
    done, card = evaluated(tmp_path, ROWS)
    assert done.returncode == 0, done.stderr
    assert card["overall"]["acc"] == 3 / 4
    assert {name: kind["acc"] for name, kind in card["by_kind"].items()} == {
        "color": pytest.approx(2 / 3),
        "count": 1,
    }
    assert card["balanced"]["acc"] == pytest.approx((2 / 3 + 1) / 2)
    assert (card["questions"], card["pictures"]) == (4, 2)
    blind = card["baselines"]["blind"]
    # Of the three with a blind answer: red right, blue wrong, blue right.
    assert blind["overall"]["acc"] == pytest.approx(2 / 3)
    assert blind["over_blind"]["overall"]["acc"] == pytest.approx(0)
    # Red is right in two of three colors; of two answers to the count the first alphabetically.
    assert card["baselines"]["most_frequent"]["overall"]["acc"] == 3 / 4
    # Picture a has 2 of 2, b 1 of 2: resamples have 1, 3/4 or 1/2.
    assert card["overall"]["acc_interval"] == [0.5, 1]
    assert "all: accuracy 0.750 (0.500 to 1.000)" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "most frequent answer" in page
    assert "accuracy minus blind, balanced" in page


def test_multiple_choice_is_by_letter(tmp_path):
    options = ["red", "blue"]
    rows = [
        row(1, "B", "(B) blue", options=options),
        row(2, "blue", "b", options=options),
        {**row(3, "A", "The color is red"), "question": "Which?\nA. red\nB. blue"},
        row(4, "A", "I cannot say", options=options),
        row(5, "C", "The answer is C."),
        row(6, "cat", "Cat"),
    ]
    _, card = evaluated(tmp_path, rows)
    assert card["by_kind"]["multiple_choice"]["acc"] == 4 / 5
    assert card["by_kind"]["exact"]["acc"] == 1
    assert card["no_letter"] == 1
    assert "name no letter, which are wrong: 1." in (tmp_path / "out" / "report.html").read_text()
    assert "blind" not in card["baselines"]


@pytest.mark.parametrize(
    ("question", "answer", "right", "wrong"),
    [
        ("?\na) dog\nb) cat", "b", ["b) cat", "The answer is b.", "cat", "B"], ["a", "dog"]),
        ("?\nA. cat\nB. dog", ["B", "dog"], ["The answer is (B).", "a dog", "b"], ["A", "cat"]),
        ("?\nA. cat\nB. dog", ["B", "hound"], ["B", "dog", "A hound"], ["cat", "pet"]),
        ("?\n" + "\n".join(f"{c}. {c}x" for c in "ABCDEFGHIJ"), "J", ["(J)", "jx"], ["I", "H"]),
        ("Which in the picture?", "J", ["The answer is J", "(j)"], ["I", "A"]),
    ],
)
def test_options_in_the_question(question, answer, right, wrong, tmp_path):
    rows = [
        {**row(n, answer, text), "question": question} for n, text in enumerate([*right, *wrong])
    ]
    _, card = evaluated(tmp_path, rows)
    assert list(card["by_kind"]) == ["multiple_choice"]
    assert card["overall"]["acc"] == pytest.approx(len(right) / len(rows))


def test_ten_options_numbers_and_nulls(tmp_path):
    numbers = list(range(1, 11))
    rows = [
        row(1, "J", "The answer is J.", options=[f"o{n}" for n in numbers]),
        row(2, 10, "(J) 10", options=numbers),
        row(3, 3.0, "3", options=None, kind=None, image=None, blind=None),
        row(4, [2.5, "half"], "2.5"),
    ]
    done, card = evaluated(tmp_path, rows)
    assert done.returncode == 0, done.stderr
    assert {name: kind["questions"] for name, kind in card["by_kind"].items()} == {
        "exact": 2,
        "multiple_choice": 2,
    }
    assert card["overall"]["acc"] == 1


def test_before_and_after_are_paired(tmp_path):
    chance = np.random.default_rng(0)
    rows, before = [], []
    for number in range(300):
        right = chance.random() < 0.5
        changed = chance.random() < 0.04
        rows.append(row(number, "yes", "yes" if right or changed else "no"))
        before.append(row(number, "yes", "yes" if right else "no"))
    done, card = evaluated(tmp_path, rows, before=before[::-1])
    assert done.returncode == 0, done.stderr
    found = card["before"]
    difference = card["overall"]["acc"] - found["overall"]["acc"]
    assert found["difference"]["overall"]["acc"] == pytest.approx(difference)
    assert found["became_right"] - found["became_wrong"] == pytest.approx(300 * difference)
    low, high = found["difference"]["overall"]["acc_interval"]
    assert 0 <= low < difference < high < 0.05
    # The accuracy itself is known to a tenth only.
    assert card["overall"]["acc_interval"][1] - card["overall"]["acc_interval"][0] > 0.1
    assert "difference to before: 0.0" in done.stdout
    assert "after minus before, overall" in (tmp_path / "out" / "report.html").read_text()


def test_questions_about_a_picture_are_drawn_together(tmp_path):
    def rows(**more):
        return [row(n, "yes", "yes" if n % 10 < 5 else "no", **more) for n in range(100)]

    _, alone = evaluated(tmp_path, rows())
    named = [{**one, "image": f"{one['id'] % 10}.png"} for one in rows()]
    _, together = evaluated(tmp_path, named)
    width = [card["overall"]["acc_interval"] for card in (alone, together)]
    assert together["pictures"] == 10
    assert width[1][1] - width[1][0] > 2.5 * (width[0][1] - width[0][0])


def test_resamples_without_a_kind_have_a_mean_over_the_others(tmp_path):
    rows = [row(n, "yes", "yes", kind="a") for n in range(3)] + [row(9, "yes", "no", kind="b")]
    _, card = evaluated(tmp_path, rows, "--resamples", 400, "--seed", 1)
    assert card["balanced"]["acc"] == 0.5
    assert card["balanced"]["acc_interval"] == [0.5, 1]
    assert (card["interval"]["resamples"], card["interval"]["seed"]) == (400, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[0]], "v.jsonl:2: id 1 is in line 1 already"),
        ([{"id": 1, "answer": "x", "prediction": "x"}], "expected question"),
        ([{"id": 1, "question": "?", "prediction": "x"}], "expected answer"),
        ([{"id": 1, "question": "?", "answer": "x"}], "expected prediction"),
        ([row(1, [], "x")], "answer: found [], expected a text or a list of texts"),
        ([row(1, "x", None)], "prediction: found null, expected a text"),
        ([row(1, "E", "A", options=["x", "y"])], "expected a letter of the 2 options"),
        ([row(1, "x", "A", options=["x"] * 27)], "expected at most 26 options"),
        ([row(1, True, "x")], "answer: found true, expected a text"),
        ([row(1, "x", "x", blind=3)], "blind: found 3, expected a text"),
        ([row(1, "x", "x", kind=3)], "kind: found 3, expected a text"),
    ],
)
def test_rows_that_do_not_fit(rows, message, tmp_path):
    done, card = evaluated(tmp_path, rows)
    assert (done.returncode, message in done.stderr, card) == (1, True, None), done.stderr


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (ROWS[:3], "before.jsonl: 1 ids are in one of the two files only: 4"),
        (
            [*ROWS[:3], {**ROWS[3], "answer": "3"}],
            "id 4 has another question, kind, image, answer or options",
        ),
        ([*ROWS[:3], {**ROWS[3], "image": "c.png"}], "id 4 has another question, kind"),
        ([*ROWS[:3], {**ROWS[3], "question": "!"}], "id 4 has another question, kind"),
    ],
)
def test_files_of_other_questions(before, message, tmp_path):
    done, card = evaluated(tmp_path, ROWS, before=before)
    assert (done.returncode, message in done.stderr, card) == (1, True, None), done.stderr
