"""``evaluate vqa``: what counts as equal, letters, balances, blind answers, and pairs of files."""

import json

import numpy as np
import pytest

from command import engine
from mmrlhf_engine.measure.answers import letter_of, normalised, options_in, same_answer
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
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


def test_equality():
    assert same_answer(["red", "crimson"], "Crimson.")
    assert not same_answer(["red"], "red car")
    assert not same_answer(["2"], "two")
    assert not same_answer(["..."], "")


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


def test_letters_without_options():
    assert letter_of("E") == "E"
    assert letter_of("red") is None


def test_options_in_a_question():
    assert options_in("Which?\nA. red\n(B) dark blue \nC) green") == ["red", "dark blue", "green"]
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
        ([row(1, "x", "A", options=["x"] * 9)], "expected at most 8 options"),
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
            "id 4 has another kind, image, answer or options",
        ),
        ([*ROWS[:3], {**ROWS[3], "image": "c.png"}], "id 4 has another kind, image"),
    ],
)
def test_files_of_other_questions(before, message, tmp_path):
    done, card = evaluated(tmp_path, ROWS, before=before)
    assert (done.returncode, message in done.stderr, card) == (1, True, None), done.stderr
