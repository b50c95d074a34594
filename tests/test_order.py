"""The core's order of training against its reference implementation, and what it promises."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive_order
from mmrlhf_engine import _core
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.shards.plan import (
    MixtureSettings,
    PlanSettings,
    plan_hash,
    plan_json,
    whole_weights,
)

COSTS = st.lists(
    st.tuples(st.integers(0, 1200), st.integers(0, 900), st.integers(0, 3)),
    min_size=1,
    max_size=150,
)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "tokens": st.integers(1, 4000),
        "text_tokens": st.integers(1, 3000),
        "image_tokens": st.integers(0, 3000),
        "images": st.integers(0, 9),
    },
).filter(bool)
SEEDS = st.integers(0, 2**64 - 1)


def numbers(array):
    return pa.array(array).to_pylist()


def make_order(plan, costs, sources=None, dataset="b3:data"):
    columns = [pa.array(column, pa.uint32()) for column in zip(*costs, strict=True)]
    return _core.Order(json.dumps(plan), *columns, sources=sources, dataset=dataset, manifest=3)


def packs_of(units, offsets):
    units, offsets = numbers(units), numbers(offsets)
    return [units[a:b] for a, b in pairwise(offsets)]


def test_the_hash_of_the_reference_is_blake3():
    # The first test vectors of BLAKE3's own repository: no input, and 65 bytes counting from 0.
    assert naive_order.blake3(b"").hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    assert naive_order.blake3(bytes(range(65))).hex().startswith("de1e5fa0be70df6d2be8fffd0e99ceaa")


@settings(max_examples=60)
@given(st.integers(1, 3000), SEEDS, SEEDS, SEEDS)
def test_a_permutation_is_that_of_the_reference(n, seed, epoch, stream):
    where = {"seed": seed, "epoch": epoch, "stream": stream}
    shuffled = numbers(_core.permute(n, **where, start=0, count=n))
    assert shuffled == naive_order.permutation(n, seed, epoch, stream)
    keyed = _core.permute(n, **where, start=n // 3, count=n - n // 3, keyed=True)
    key = naive_order.Key(seed, epoch, stream, "perm")
    assert numbers(keyed) == [
        naive_order.keyed_permutation(n, key, place) for place in range(n // 3, n)
    ]
    back = _core.invert(pa.array(keyed), n, **where, keyed=True)
    assert numbers(back) == list(range(n // 3, n))
    back = _core.invert(pa.array(shuffled, pa.uint64()), n, **where)
    assert numbers(back) == list(range(n))


def test_a_large_permutation_is_that_of_the_reference():
    n, where = 10**15, {"seed": 3, "epoch": 4, "stream": 5}
    key = naive_order.Key(3, 4, 5, "perm")
    assert numbers(_core.permute(n, **where, start=n - 50, count=50)) == [
        naive_order.keyed_permutation(n, key, place) for place in range(n - 50, n)
    ]
    with pytest.raises(InputError, match="found 51 from 999999999999950"):
        _core.permute(n, **where, start=n - 50, count=51)
    with pytest.raises(InputError, match=f"found {n}"):
        _core.invert(pa.array([n], pa.uint64()), n, **where)


@settings(max_examples=150)
@given(COSTS, LIMITS, st.integers(1, 60), st.sampled_from(["alone", "drop"]), SEEDS)
def test_packs_are_those_of_the_reference(costs, budget, window, too_large, seed):
    plan = {
        "unit": "pair",
        "seed": seed,
        "window": window,
        "budget": budget,
        "packs_per_step": 3,
        "too_large": too_large,
    }
    order = make_order(plan, costs)
    sequence = naive_order.sequence(plan, [len(costs)], 2)
    for number in range(order.windows(2)):
        units, offsets, dropped = order.window(2, number)
        packs, left_out = naive_order.window(plan, sequence, costs, 2, number)
        assert packs_of(units, offsets) == packs
        assert numbers(dropped) == left_out


@st.composite
def queries_of_pairs(draw):
    """Costs of pairs, and how many pairs each query has; those of a query cost much the same."""
    costs, queries = [], []
    for cost in draw(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 300)), min_size=1)):
        queries.append(draw(st.integers(0, 9)))
        costs += [(cost[0] + number, cost[1], 1) for number in range(queries[-1])]
    return costs, queries


@settings(max_examples=120)
@given(queries_of_pairs(), LIMITS, st.integers(1, 90), st.sampled_from(["alone", "drop"]), SEEDS)
def test_packs_of_drawn_queries_are_those_of_the_reference(made, budget, window, too_large, seed):
    costs, queries = made
    plan = {"unit": "pair", "seed": seed, "window": window, "budget": budget, "draw": "query"}
    plan |= {"packs_per_step": 3, "too_large": too_large}
    columns = [pa.array([cost[at] for cost in costs], pa.uint32()) for at in range(3)]
    order = _core.Order(json.dumps(plan), *columns, queries=queries)
    ends = np.cumsum([0, *queries]).tolist()
    units = [list(range(*bounds)) for bounds in pairwise(ends)]
    sequence = naive_order.sequence(plan, [len(queries)], 2)
    seen = []
    for number in range(order.windows(2)):
        *flat, dropped = order.window(2, number)
        packs, left_out = naive_order.window(plan, sequence, costs, 2, number, units)
        assert packs_of(*flat) == packs
        assert numbers(dropped) == left_out
        seen += [unit for pack in packs for unit in pack] + left_out
        for pack in packs:
            for unit in pack[:1]:
                assert order.find(2, unit)[0] == number
    assert sorted(seen) == list(range(len(costs)))
    steps = list(naive_order.steps(plan, [len(queries)], costs, 1, units)) if seen else []
    if too_large == "alone" and seen:
        found = [packs_of(*step[2:4]) for step in order.steps(order.start(), epochs=1)]
        assert found == [packs for packs, _ in steps]


@settings(max_examples=40)
@given(st.integers(1, 2000), SEEDS)
def test_a_block_shuffle_is_that_of_the_reference(n, seed):
    plan = {"unit": "pair", "seed": seed, "budget": {"tokens": 1}, "packs_per_step": 1}
    plan |= {"shuffle": "block", "too_large": "alone"}
    order = make_order(plan | {"window": 1}, [(1, 0, 0)] * n)
    line = naive_order.sequence(plan, [n], 1)
    for place in {0, n // 2, n - 1}:
        assert numbers(order.window(1, place)[0]) == [line[place]]


@st.composite
def mixtures(draw):
    sources = draw(st.lists(st.integers(1, 120), min_size=1, max_size=4))
    weights = st.lists(st.integers(1, 5), min_size=len(sources), max_size=len(sources))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 6), max_size=2)))]
    ends = draw(st.sampled_from(["restart", "stop_first", "stop_all"]))
    mixture = {
        "sources": [f"source {number}" for number in range(len(sources))],
        "stages": [{"from_block": start, "weights": draw(weights)} for start in starts],
        "block": draw(st.integers(20, 60)),
        "ends": ends,
    }
    if ends == "restart" and draw(st.booleans()):
        mixture["units_per_epoch"] = draw(st.integers(1, 400))
    return sources, mixture


@settings(max_examples=80)
@given(mixtures(), SEEDS, st.sampled_from(["full", "block"]))
def test_a_mixture_is_that_of_the_reference(mixture, seed, shuffle):
    sources, mixture = mixture
    plan = {"unit": "pair", "seed": seed, "window": 64, "budget": {"tokens": 9}}
    plan |= {"packs_per_step": 1, "mixture": mixture, "shuffle": shuffle}
    costs = [(1, 0, 0)] * sum(sources)
    order = make_order(plan, costs, sources)
    sequence = naive_order.sequence(plan, sources, 1)
    assert order.windows(1) == -(-len(sequence) // 64)
    for number in range(order.windows(1)):
        packs, _ = naive_order.window(plan, sequence, costs, 1, number)
        assert packs_of(*order.window(1, number)[:2]) == packs


@settings(max_examples=25)
@given(COSTS, st.integers(2, 40), st.integers(1, 7), SEEDS)
def test_steps_and_cursors_are_those_of_the_reference(costs, window, packs_per_step, seed):
    plan = {"unit": "pair", "seed": seed, "window": window, "packs_per_step": packs_per_step}
    plan |= {"budget": {"tokens": 2500}, "too_large": "alone"}
    order = make_order(plan, costs)
    expected = list(naive_order.steps(plan, [len(costs)], costs, 2))
    found = list(order.steps(order.start(), epochs=2))
    assert len(found) == len(expected)
    seen = [0, 0, 0]
    for (number, indices, units, offsets, images, text), (packs, after) in zip(
        found, expected, strict=True
    ):
        assert indices == list(range(packs_per_step))
        assert packs_of(units, offsets) == packs
        of_step = [costs[unit] for pack in packs for unit in pack]
        assert images == any(cost[2] for cost in of_step)
        seen[0] += len(of_step)
        seen[1] += sum(cost[0] for cost in of_step)
        seen[2] += sum(cost[1] for cost in of_step)
        cursor = json.loads(text)
        assert list(cursor) == [
            *("v", "dataset", "manifest", "order", "plan", "seed"),
            *("epoch", "window", "pack", "step", "seen", "settings"),
        ]
        assert (cursor["epoch"], cursor["window"], cursor["pack"], cursor["step"]) == after
        assert cursor["step"] == number + 1
        assert cursor["seen"] == dict(
            zip(("pairs", "text_tokens", "image_tokens"), seen, strict=True)
        )
        assert (cursor["dataset"], cursor["plan"]) == ("b3:data", order.plan_hash)
    middle = len(found) // 2
    rest = [step[5] for step in order.steps(found[middle][5], epochs=2)]
    assert rest == [step[5] for step in found[middle + 1 :]]


def elastic_steps(order, cursor, ranks):
    """The units of each step over all ranks."""
    steps = {}
    for rank in range(ranks):
        share = order.steps(cursor, epochs=1, rank=rank, ranks=ranks, balance=True)
        for number, _, units, _, _, after in share:
            held = steps.setdefault(number, (set(), after))
            assert held[1] == after
            assert not held[0] & set(numbers(units))
            held[0].update(numbers(units))
    return steps


def test_ranks_may_change_at_any_step():
    generator = np.random.default_rng(0)
    costs = list(zip(*generator.integers(1, 900, (2, 500)).tolist(), [1] * 500, strict=True))
    plan = {"unit": "pair", "seed": 1, "window": 64, "budget": {"tokens": 5000}}
    order = make_order(plan | {"packs_per_step": 4}, costs)
    expected = elastic_steps(order, order.start(), 1)
    assert set().union(*(units for units, _ in expected.values())) == set(range(500))
    for ranks in (1, 2, 3, 5, 8):
        assert elastic_steps(order, order.start(), ranks) == expected
        for at in (0, len(expected) // 2, len(expected) - 2):
            rest = {n: step for n, step in expected.items() if n > at}
            for again in (1, 3, 8):
                assert elastic_steps(order, expected[at][1], again) == rest
    with pytest.raises(InputError, match="rank: found 2, expected below 2"):
        order.steps(order.start(), epochs=1, rank=2, ranks=2)


def test_a_cursor_finds_its_place_or_says_why_not():
    plan = {"unit": "pair", "seed": 1, "window": 64, "budget": {"tokens": 50}, "packs_per_step": 4}
    costs = [(10, 0, 0)] * 300
    order = make_order(plan, costs)
    cursors = [step[5] for step in order.steps(order.start(), epochs=1)]
    assert order.seek(order.start(), step=3) == cursors[2]
    assert order.seek(order.start(), units=300) == cursors[-1]
    window, pack = order.find(0, 7)
    assert 7 in packs_of(*order.window(0, window)[:2])[pack]
    rows = pa.array(order.summarise(0)).to_pylist()
    assert sum(row["units"] for row in rows) == sum(row["pairs"] for row in rows) == 300
    other = make_order(plan | {"packs_per_step": 5}, costs)
    with pytest.raises(
        InputError, match="cursor: found packs_per_step 4, expected packs_per_step 5"
    ):
        other.steps(cursors[2], epochs=1)
    left = [unit for step in other.steps(cursors[2], epochs=1, before=order) for unit in step[2:3]]
    held = sum(len(array) for array in left)
    assert held == 300 - json.loads(cursors[2])["seen"]["pairs"]
    with pytest.raises(InputError, match="cursor: found"):
        order.steps("{}", epochs=1)


def test_settings_become_a_plan_with_a_hash():
    settings = PlanSettings(budget={"tokens": 8192}, packs_per_step=16, pairs_per_query=2, seed=5)
    rule = {"family": "qwen2_vl", "patch": 14, "merge": 2, "min_pixels": 9, "max_pixels": 99}
    text = plan_json(settings, rule)
    assert json.loads(text)["pairs_per_query"] == 2
    assert _core.plan_hash(text) == (text, plan_hash(settings, rule))
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    other = plan_json(settings.model_copy(update={"packs_per_step": 8}), rule)
    assert _core.plan_differences(other, text) == ["packs_per_step: found 8, expected 16"]
    with pytest.raises(ConfigError, match="pairs_per_query"):
        plan_json(settings.model_copy(update={"unit": "pair"}))


def test_pairs_that_share_images_are_drawn_by_query():
    settings = PlanSettings(budget={"tokens": 8192}, packs_per_step=16, unit="pair", seed=5)
    rule = {"family": "qwen2_vl", "patch": 14, "merge": 2, "min_pixels": 9, "max_pixels": 99}
    drawn = json.loads(plan_json(settings, rule))
    assert (drawn["draw"], drawn["window"]) == ("query", 1024)
    of_text = json.loads(plan_json(settings))
    assert "draw" not in of_text
    assert of_text["window"] == 4096
    chosen = settings.model_copy(update={"draw": "unit", "window": 512})
    assert "draw" not in json.loads(plan_json(chosen, rule))
    by_units = plan_json(settings.model_copy(update={"draw": "unit"}), rule)
    with pytest.raises(ConfigError, match="draw: found query with unit Response"):
        plan_json(settings.model_copy(update={"unit": "response", "draw": "query"}))
    differences = _core.plan_differences(json.dumps(drawn), by_units)
    assert differences == [
        'draw: found "query", expected "unit"',
        "window: found 1024, expected 4096",
    ]


def test_a_plan_of_units_keeps_its_hash():
    settings = PlanSettings(budget={"tokens": 16384}, packs_per_step=8, unit="pair", seed=17)
    # The hash of `a_plan_keeps_its_hash_through_json` in rust_core/tests/order.rs.
    assert plan_hash(settings).startswith("b3:4c168db1d3685537638a1caee2508cdd")


def test_weights_are_taken_at_their_word():
    assert whole_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_weights([2, 4.0, 0]) == [1, 2, 0]
    for wrong in ([0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(ConfigError, match="weights"):
            whole_weights(wrong)
    mixture = MixtureSettings(
        weights={"a": 0.7, "b": 0.3}, later=[{"from_block": 2, "weights": {}}]
    )
    settings = PlanSettings(budget={"tokens": 1}, packs_per_step=1, mixture=mixture)
    with pytest.raises(ConfigError, match="from block 2"):
        plan_json(settings)
