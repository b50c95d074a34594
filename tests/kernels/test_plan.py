"""The planners are pure functions of sizes; their answers can be written down."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_kernels import plan_pair_schedule, plan_schedule
from mmrlhf_kernels.plan import (
    NARROWEST_CHUNK,
    WIDEST_CHUNK,
    default_pair_workspace,
    default_workspace,
    rows_per_block,
)

HIDDEN, VOCAB = 3584, 152_064
GIB = 1 << 30


@pytest.mark.parametrize(
    ("rows", "needs", "workspace", "schedule"),
    [
        (1024, True, GIB, "keep"),  # 1024 * 152064 * 2 = 311 MB
        (2048, True, GIB, "keep"),  # 623 MB
        (8192, True, GIB, "recompute"),  # 2.49 GB
        (8192, True, 4 * GIB, "keep"),
        (8192, False, GIB, "frozen"),
        (1, False, 0, "frozen"),
        (1, True, 0, "recompute"),
    ],
)
def test_the_schedule_follows_from_the_sizes(rows, needs, workspace, schedule):
    plan = plan_schedule(rows, HIDDEN, VOCAB, torch.bfloat16, needs, workspace)
    assert plan.schedule == schedule
    assert plan.reason


@settings(max_examples=200)
@given(
    st.integers(0, 1 << 17),
    st.integers(1, 1 << 14),
    st.integers(1, 1 << 19),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.booleans(),
    st.integers(0, 1 << 34),
)
def test_chunks_fit_or_are_as_narrow_as_they_get(rows, hidden, vocab, dtype, needs, workspace):
    plan = plan_schedule(rows, hidden, vocab, dtype, needs, workspace)
    assert 1 <= plan.chunk <= min(vocab, WIDEST_CHUNK)
    assert plan.chunk % NARROWEST_CHUNK == 0 or plan.chunk == vocab
    narrow = plan.chunk <= NARROWEST_CHUNK
    assert narrow or rows * plan.chunk * dtype.itemsize <= workspace // 4
    assert plan == plan_schedule(rows, hidden, vocab, dtype, needs, workspace)


def pair_plan(rows_of_pair, *, dtype=torch.float32, needs=True, workspace=GIB, **options):
    return plan_pair_schedule(rows_of_pair, 896, 151_936, dtype, needs, workspace, **options)


def test_pairs_go_in_groups_that_fit():
    # One float32 row of logits is 608 kB, so 1 GiB holds 1766 rows.
    assert pair_plan([100] * 4).groups == ((0, 4),)
    plan = pair_plan([1000, 700, 700, 1700])
    assert (plan.schedule, plan.groups) == ("keep", ((0, 2), (2, 3), (3, 4)))
    assert pair_plan([2000, 100]).schedule == "recompute", "one pair alone is too long"
    assert pair_plan([1000, 1000], shared=True).schedule == "recompute", "pairs hang together"
    half = pair_plan([2000, 2000], dtype=torch.bfloat16)
    assert half.schedule == "recompute", "several groups would need dW in float32"
    assert pair_plan([2000, 2000], needs=False).schedule == "frozen"
    assert pair_plan([40] * 3, workspace=GIB // 30).schedule == "recompute", "groups are too small"


def test_many_rows_get_a_workspace_for_their_pairs_by_default():
    cpu = torch.device("cpu")
    workspace = default_pair_workspace(8192, 151_936, torch.float32, cpu)
    assert pair_plan([256] * 32, workspace=default_workspace(cpu)).schedule == "recompute"
    assert pair_plan([256] * 32, workspace=workspace).groups == tuple(
        (2 * n, 2 * n + 2) for n in range(16)
    )
    few = default_pair_workspace(2048, 151_936, torch.float32, cpu)
    assert few == default_workspace(cpu), "a 16th of few rows is less"


def test_sums_are_for_one_long_pair():
    # The sum [151936, 896] in float32 is 545 MB. One of the two is dW itself, but in half width.
    plan = pair_plan([8192])
    assert (plan.schedule, plan.rows) == ("two_sums", 870), "(1 GiB - 545 MB) / 608 kB"
    assert pair_plan([8192], workspace=GIB // 2).schedule == "recompute"
    half = {"dtype": torch.bfloat16}
    assert pair_plan([8192], **half).schedule == "recompute"
    assert pair_plan([8192], workspace=2 * GIB, **half).schedule == "two_sums"
    plan = pair_plan([8192], opposite=True)
    assert (plan.schedule, plan.rows) == ("one_sum", 1766), "the sum is dW itself"
    assert pair_plan([8192] * 2, opposite=True).schedule == "recompute"
    assert pair_plan([8192], opposite=True, shared=True).schedule == "recompute"
    assert pair_plan([8192], opposite=True, needs=False).schedule == "frozen"
    assert pair_plan([100, 200], forced="two_sums").schedule == "two_sums"


def test_half_width_weights_need_memory_for_a_sum_in_float32():
    half = {"dtype": torch.bfloat16, "opposite": True}
    # (1 GiB - 545 MB) / 304 kB: 1741 rows in addition to the sum.
    plan = pair_plan([8192], **half)
    assert (plan.schedule, plan.rows) == ("one_sum", 1741)
    assert pair_plan([8192], workspace=GIB // 2, **half).schedule == "recompute"


def test_blocks_that_are_too_short_do_not_pay():
    row = 4 * 151_936
    assert pair_plan([512], workspace=128 * row, opposite=True).schedule == "one_sum"
    assert pair_plan([512], workspace=127 * row, opposite=True).schedule == "recompute"
    assert rows_per_block(512, 170) == 128, "four blocks of one size, not three and a rest"


@settings(max_examples=100)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=30), st.integers(1, 1 << 31))
def test_groups_cover_all_pairs_in_order_and_fit(rows_of_pair, workspace):
    plan = pair_plan(rows_of_pair, workspace=workspace)
    assert [begin for begin, _ in plan.groups] == [0, *(end for _, end in plan.groups[:-1])]
    assert plan.groups[-1][1] == len(rows_of_pair)
    if plan.schedule == "keep":
        assert all(sum(rows_of_pair[begin:end]) <= plan.rows for begin, end in plan.groups)
