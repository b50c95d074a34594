"""The order of a part of a dataset is that of its units alone, as if there were no others."""

import json
from itertools import accumulate, pairwise

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import naive_order
from mmrlhf_engine import _core
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.shards.plan import HoldOut, PlanSettings, plan_hash, plan_json
from test_order import SEEDS, mixtures, numbers, packs_of, queries_of_pairs

HOLD_OUT = {"share": 0.25, "part": "train"}


def make_order(plan, costs, **options):
    columns = [pa.array([cost[at] for cost in costs], pa.uint32()) for at in range(3)]
    return _core.Order(json.dumps(plan), *columns, **options)


def some_of(draw, count):
    """At least one of so many numbers, ascending."""
    chosen = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    numbers = [number for number, is_chosen in enumerate(chosen) if is_chosen]
    assume(numbers)
    return numbers


@settings(max_examples=120)
@given(st.data(), queries_of_pairs(), st.sampled_from(["unit", "query"]), st.integers(1, 90), SEEDS)
def test_packs_of_a_part_are_those_of_its_units_alone(data, made, draw, window, seed):
    costs, queries = made
    ends = [0, *accumulate(queries)]
    units = [list(range(*bounds)) for bounds in pairwise(ends)]
    part = some_of(data.draw, len(queries))
    rows = [unit for query in part for unit in units[query]]
    assume(rows)
    plan = {"unit": "pair", "seed": seed, "window": window, "budget": {"tokens": 2500}}
    plan |= {"packs_per_step": 3, "too_large": "drop", "draw": draw, "hold_out": HOLD_OUT}
    order = make_order(plan, costs, queries=queries, part=part)

    # The same, of a dataset that has nothing else.
    numbered = {row: number for number, row in enumerate(rows)}
    of_query = [[numbered[row] for row in units[query]] for query in part]
    alone = [costs[row] for row in rows]
    drawn = of_query if draw == "query" else rows
    sequence = naive_order.sequence(plan, [len(drawn)], 1)
    seen = []
    for number in range(order.windows(1)):
        *flat, dropped = order.window(1, number)
        packs, left_out = naive_order.window(plan, sequence, alone, 1, number, of_query)
        assert packs_of(*flat) == [[rows[unit] for unit in pack] for pack in packs]
        assert numbers(dropped) == [rows[unit] for unit in left_out]
        for pack in packs:
            for unit in pack[:1]:
                assert order.find(1, rows[unit])[0] == number
        seen += [row for pack in packs_of(*flat) for row in pack] + numbers(dropped)
    assert sorted(seen) == rows
    for row in set(range(len(costs))) - set(rows):
        assert order.find(1, row) is None


@settings(max_examples=60)
@given(st.data(), mixtures(), SEEDS)
def test_shares_of_a_mixture_are_of_the_part(data, mixture, seed):
    sources, mixture = mixture
    part = some_of(data.draw, sum(sources))
    ends = [0, *accumulate(sources)]
    left = [sum(start <= row < end for row in part) for start, end in pairwise(ends)]
    plan = {"unit": "pair", "seed": seed, "window": 64, "budget": {"tokens": 9}}
    plan |= {"packs_per_step": 1, "mixture": mixture, "hold_out": HOLD_OUT}
    order = make_order(plan, [(1, 0, 0)] * sum(sources), sources=sources, part=part)
    if 0 in left:
        with pytest.raises(InputError, match=r"mixture: source .*: found no units"):
            order.windows(1)
        return
    sequence = naive_order.sequence(plan, left, 1)
    assert order.windows(1) == -(-len(sequence) // 64)
    for number in range(order.windows(1)):
        packs, _ = naive_order.window(plan, sequence, [(1, 0, 0)] * len(part), 1, number)
        found = packs_of(*order.window(1, number)[:2])
        assert found == [[part[unit] for unit in pack] for pack in packs]


def test_a_plan_says_which_part_it_is_of():
    whole = PlanSettings(budget={"tokens": 16384}, packs_per_step=8, unit="pair", seed=17)
    assert "hold_out" not in json.loads(plan_json(whole))
    train = whole.model_copy(update={"hold_out": HoldOut(share=0.02)})
    recorded = {"part": "train", "seed": 0, "share": 0.02}
    assert json.loads(plan_json(train))["hold_out"] == recorded
    held = whole.model_copy(update={"hold_out": HoldOut(share=0.02, part="held_out")})
    assert len({plan_hash(plan) for plan in (whole, train, held)}) == 3
    differences = _core.plan_differences(plan_json(held), plan_json(train))
    assert differences == ['hold_out.part: found "held_out", expected "train"']
    (difference,) = _core.plan_differences(plan_json(whole), plan_json(train))
    assert difference.startswith("hold_out: found null, expected {")
    for share in (1.0, 1e400, float("nan")):
        wrong = HoldOut.model_construct(share=share, part="train", seed=0)
        with pytest.raises(ConfigError):
            plan_json(whole.model_copy(update={"hold_out": wrong}))


def test_a_part_is_of_a_plan_that_holds_some_out():
    plan = {"unit": "pair", "seed": 0, "budget": {"tokens": 9}, "packs_per_step": 1, "window": 3}
    costs = [(1, 0, 0)] * 10
    with pytest.raises(InputError, match="hold_out: found all queries, expected a part"):
        make_order(plan | {"hold_out": HOLD_OUT}, costs)
    with pytest.raises(InputError, match="hold_out: found a part of the queries, expected all"):
        make_order(plan, costs, part=[1, 2])
    with pytest.raises(InputError, match="hold_out: found no pair in the 2 queries of this part"):
        make_order(plan | {"hold_out": HOLD_OUT}, costs, queries=[5, 0, 0, 5], part=[1, 2])
    train = make_order(plan | {"hold_out": HOLD_OUT}, costs, part=[1, 2, 4, 5, 6, 7, 8, 9])
    held = make_order(plan | {"hold_out": HOLD_OUT | {"part": "held_out"}}, costs, part=[0, 3])
    *_, cursor = next(train.steps(train.start(), epochs=1))
    with pytest.raises(InputError, match=r"hold_out\.part: found \"held_out\", expected \"train\""):
        held.steps(cursor, epochs=1, before=train)
