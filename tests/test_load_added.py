"""Packs leave room for tokens that are added to responses after loading."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_data import PICTURES, assert_same, plan, write
from mmrlhf_engine import PreferenceDataset, open_dataset
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.arguments import added_tokens_of
from mmrlhf_engine.shards.loader import PreferenceLoader
from naive_loader import NaiveLoader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("added") / "set", queries=40)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write(tmp_path_factory.mktemp("added") / "set", queries=40, text_only=True)


def loaders(path, family, added, chosen, **options):
    """Ours and the reference implementation."""
    _, hashed = added_tokens_of(added)
    text = plan(family, added_tokens=hashed, **chosen)
    options |= {"pictures": PICTURES[family]}
    ours = PreferenceLoader(path, text, added_tokens=added, threads=1, balance=False, **options)
    return ours, NaiveLoader(path, text, added=added, **options)


@pytest.mark.parametrize("family", ["none", "qwen2_vl"])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    most=st.sampled_from([0, 3, 60, 500]),
    unit=st.sampled_from(["pair", "response", "query"]),
)
def test_packs_are_those_of_costs_with_the_added_tokens(dataset, texts, family, seed, most, unit):
    path = texts if family == "none" else dataset
    responses = open_dataset(path).rows("responses")
    added = np.random.default_rng(seed).integers(0, most + 1, responses).astype(np.uint32)
    ours, theirs = loaders(path, family, added, {"unit": unit, "too_large": "alone"})
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("unit", ["pair", "query"])
def test_no_pack_is_above_the_budget_with_them(texts, unit):
    responses = open_dataset(texts).rows("responses")
    added = np.random.default_rng(1).integers(0, 40, responses)
    data = PreferenceDataset(texts, 500, unit=unit, added_tokens=added, too_large="drop", threads=1)
    sizes = [
        len(batch.input_ids)
        + int(added[batch.sequence_response[batch.sequence_response >= 0]].sum())
        for batch in data
    ]
    assert max(sizes) <= 500
    assert max(sizes) > 400


def test_none_and_no_tokens_give_the_same_packs(texts):
    responses = open_dataset(texts).rows("responses")
    rows = [
        [batch.pair_row.tolist() for batch in PreferenceDataset(texts, 500, threads=1, **given)]
        for given in ({}, {"added_tokens": np.zeros(responses, np.uint32)})
    ]
    assert rows[0] == rows[1]


def test_a_cursor_goes_on_with_the_same_numbers_alone(texts):
    added = np.full(open_dataset(texts).rows("responses"), 5, np.uint32)
    data = PreferenceDataset(texts, 300, added_tokens=added, threads=1)
    whole = [batch.pair_row.tolist() for batch in data]
    again = PreferenceDataset(texts, 300, added_tokens=added, threads=1)
    batches = iter(again)
    first = [next(batches) for _ in range(2)]
    state = json.loads(first[-1].cursor)
    rest = PreferenceDataset(texts, 300, added_tokens=added, threads=1, state=state)
    assert [*(b.pair_row.tolist() for b in first), *(b.pair_row.tolist() for b in rest)] == whole
    with pytest.raises(InputError, match=r"found added_tokens .b3:"):
        PreferenceDataset(texts, 300, added_tokens=added + 1, threads=1, state=state)
    with pytest.raises(InputError, match="added_tokens"):
        PreferenceDataset(texts, 300, threads=1, state=state)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2], "2 numbers.*expected"),
        ([1.5], "expected whole numbers"),
        ([[1]], "expected whole numbers"),
        ([-1], "expected whole numbers"),
        ([2**32], "expected whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(texts, counts, message):
    with pytest.raises(InputError, match=message):
        PreferenceDataset(texts, 300, added_tokens=counts)


def test_a_plan_and_its_numbers_belong_together(texts):
    added, hashed = added_tokens_of(np.ones(open_dataset(texts).rows("responses"), np.uint32))
    with pytest.raises(InputError, match=r"added_tokens: found none, expected b3:"):
        PreferenceLoader(texts, plan("none", added_tokens=hashed))
    with pytest.raises(InputError, match=r"added_tokens: found b3:.*expected none"):
        PreferenceLoader(texts, plan("none"), added_tokens=added)
