"""Short answers: which contradict each other, against a plain reference."""
# ruff: noqa: RUF001

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive_answers as naive
from mmrlhf_engine._core import answers_contradict

PARTS = [
    *("a", "b", "the", "an", "no", "none", "yes", "nothing", "one", "two", "three", "twenty"),
    *("0", "1", "2", "3", "3.0", ".5", "0.50", "1,200", "1200", "1,20", "-3", "−3", "+3", "007"),
    *("$5", "5", "5%", "50", "percent", "%", "5cm", "cm", "mm", "5°C", "°", "dollar", "€3"),
    *("cat", "cats", "dog", "city", "cities", "box", "boxes", "temple", "temples", "glasses"),
    *("colour", "color", "men", "man", "left", "right", "A", "B", "(b)", "B.", "c)", "d:", "not"),
    *("3-4", "3:30", "1/2", "e.g.", "...", "naïve", "猫", "x", "I"),
]


@st.composite
def answers(draw):
    words = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))
    before, after = (
        draw(st.sampled_from(["", "(", '"', "*", "."])),
        draw(st.sampled_from(["", ".", ")", "!", "."])),
    )
    text = before + " ".join(words) + after
    return draw(st.sampled_from([text, text.upper(), text.title()]))


@settings(max_examples=1500)
@given(one=answers(), other=answers())
def test_answers_contradict_as_the_reference_says(one, other):
    assert answers_contradict(one, other) == naive.contradict(one, other), (
        naive.stated(one),
        naive.stated(other),
    )
    assert answers_contradict(other, one) == answers_contradict(one, other)
    assert not answers_contradict(one, one)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("3", "3.0", False),
        ("temple", "temples", False),
        ("1", "B", False),
        ("three cats", "3", False),
        ("B. a cat", "b", False),
        ("3", "4", True),
        ("temple", "church", True),
        ("A", "B", True),
        ("5 cm", "5 mm", True),
        ("none", "2", True),
        ("It is one of the cats there.", "no", False),
    ],
)
def test_what_is_a_contradiction(one, other, differ):
    assert answers_contradict(one, other) == naive.contradict(one, other) == differ
