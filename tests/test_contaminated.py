"""Samples that match a question of a benchmark: the search equals its specification."""

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine._core import find_contaminated
from mmrlhf_engine.curate.dedup import DedupConfig
from naive_contaminated import contaminated

WORDS = ("red", "blue", "car", "house", "tree", "seven", "many", "count", "find", "left", "under")
# So many bands that whatever is near is compared.
NEAR = DedupConfig(judge=False, bands=64, rows_per_band=1, text_threshold=0.6).model_dump()
BY = ("both", "text", "picture", "either")


@st.composite
def corpora(draw):
    """Samples and questions that share texts, parts of texts, and near pictures."""
    words = st.sampled_from(WORDS)
    texts = draw(st.lists(st.lists(words, min_size=1, max_size=24), min_size=1, max_size=6))
    shared = draw(st.lists(words, min_size=9, max_size=14))
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))

    def one():
        text = list(draw(st.sampled_from(texts)))
        around = draw(st.lists(words, max_size=12))
        how = draw(st.sampled_from(["as it is", "behind others", "one replaced", "instruction"]))
        if how == "behind others":
            text = around + text
        elif how == "one replaced":
            text[draw(st.integers(0, len(text) - 1))] = draw(words)
        elif how == "instruction":
            text = text + shared
        pictures = []
        for _ in range(draw(st.integers(0, 2))):
            flips = draw(st.sets(st.integers(0, 63), max_size=6))
            pictures.append(draw(st.sampled_from(hashes)) ^ sum(1 << bit for bit in flips))
        return " ".join(text), pictures

    samples = [one() for _ in range(draw(st.integers(0, 8)))]
    questions = [one() for _ in range(draw(st.integers(1, 12)))]
    return samples, questions


def search(samples, questions, by, settings=NEAR, judge=None, threads=1):
    """Rows as of the specification; every picture is a media of its own."""
    hashes = [value for _, pictures in [*samples, *questions] for value in pictures]

    def columns(rows, first):
        lists = []
        for _, pictures in rows:
            lists.append(list(range(first, first + len(pictures))))
            first += len(pictures)
        texts = pa.array([text for text, _ in rows], pa.large_string())
        return {"texts": texts, "media": pa.array(lists, pa.large_list(pa.uint32()))}, first

    own, first = columns(samples, 0)
    asked, _ = columns(questions, first)
    pictures = {
        "media": pa.array(range(len(hashes)), pa.uint32()),
        "phash": pa.array(hashes, pa.uint64()),
        "colour": pa.array([[0] * 192] * len(hashes), pa.large_list(pa.uint8())),
    }
    found = find_contaminated(
        own, asked, pictures, by=by, settings=settings, judge=judge, threads=threads
    )
    table = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(found))))
    rows = []
    for row in table.iter_rows(named=True):
        text = None if row["text_jaccard"] is None else (row["text_jaccard"], row["contained"])
        rows.append((row["row"], row["question"], text, row["image_hamming"]))
    return rows


@given(corpora(), st.sampled_from(BY), st.sampled_from([1, 2]))
def test_the_search_equals_its_specification(corpus, by, threads):
    samples, questions = corpus
    found = search(samples, questions, by, threads=threads)
    expected = contaminated(samples, questions, by, NEAR["text_threshold"])
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for (_, _, text, distance), (_, _, measured, nearest) in zip(found, expected, strict=True):
        assert distance == nearest
        assert (text is None) == (measured is None)
        if text is not None:
            assert text[0] == pytest.approx(measured[0], abs=1e-6)
            assert text[1] == pytest.approx(measured[1], abs=1e-6)


LONG = (
    "You are given a list of two strings, both strings consist of open or close parentheses. Check "
    "if it is possible to concatenate the two strings in some order so that the result is good."
)
JUDGED = DedupConfig().model_dump()


def refuse(first, second):
    """A judge that finds no copies."""
    return [False] * len(first), [False] * len(second)


def test_a_question_is_found_in_another_wording_and_inside_a_longer_text():
    questions = [("How many red cars are there in the picture?", []), (LONG, [])]
    samples = [
        ("Please, how many red cars are there in this image?", []),
        ("How many blue cars are there in the picture?", []),
        (f"Solve this task in Python: {LONG} Write tests too.", []),
        (LONG.replace("strings", "lists").replace("Check", "Find out"), []),
    ]
    found = search(samples, questions, "both", JUDGED, refuse)
    assert [(row, question) for row, question, *_ in found] == [(0, 0), (2, 1)]
    assert found[1][2][1] == pytest.approx(1)


def test_pictures_that_are_no_copies_match_nothing():
    question, sample = ("What is this?", [7]), ("What is this?", [5])
    for by, judged, expected in [
        *(("both", True, 0), ("picture", True, 0), ("text", True, 1), ("either", True, 1)),
        *(("both", False, 1), ("picture", False, 1), ("text", False, 1), ("either", False, 1)),
    ]:
        settings = {**JUDGED, "judge": judged}
        found = search([sample], [question], by, settings, refuse)
        assert len(found) == expected, (by, judged)
        if found:
            assert found[0][3] == (None if judged or by == "text" else 1)
