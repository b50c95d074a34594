"""Pass 1 in Triton's interpreter against the specification in float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_kernels.backend import Extras
from mmrlhf_kernels.triton_settings import (
    CACHE_SHARE,
    Settings,
    choose_splits,
    live_bytes,
    settings_for,
    use_settings,
)
from triton_problem import DTYPES, error, hold_to_plain, nearly_equal, problem
from triton_worker import InterpretedError, interpreted

SMALL = Settings(rows=16, columns=16, inner=16, warps=1, stages=1, group=2, splits=3)
ALL = Extras(entropy=True, argmax=True)
CASES = [
    ((1, 1, 1), torch.float32),
    ((16, 32, 64), torch.float16),
    ((19, 23, 67), torch.bfloat16),
    ((5, 23, 131), torch.float32),
]
"""One entry, whole tiles, ragged ones, more tiles than parts."""


def sweep(block, extras=ALL, settings=None):
    return interpreted("triton_sweep.sweep", block, extras, settings)


def lse_of(found):
    return found.maximum + found.sum_exp.log()


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_logp_is_at_most_twice_as_far_off_as_plain_pytorch(shape, dtype):
    p = problem(*shape, dtype, bias=True, spread=3.0)
    found, exact = sweep(p.block), p.to(torch.float64)
    logp = (found.target_logit - lse_of(found)).where(p.kept, 0.0)
    hold_to_plain(logp, p.logp(p.logits()), exact.logp(exact.logits()))
    plain = torch.logsumexp(p.logits(), 1)
    hold_to_plain(lse_of(found), plain, torch.logsumexp(exact.logits(), 1))


@pytest.mark.parametrize(("cap", "scale"), [(None, 0.25), (5.0, 1.0), (0.5, 3.0)])
def test_scale_and_softcap_come_in_the_order_of_the_specification(cap, scale):
    p = problem(19, 40, 67, torch.float32, bias=True, cap=cap, scale=scale, spread=4.0)
    exact = p.to(torch.float64).logits()
    found = sweep(p.block)
    assert error(lse_of(found), exact.logsumexp(1)) < 4e-6
    picked = exact.gather(1, p.target.where(p.kept, 0)[:, None])[:, 0].where(p.kept, 0.0)
    assert error(found.target_logit, picked) < 4e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_and_argmax_come_from_the_same_pass(dtype):
    p = problem(17, 17, 67, dtype, spread=2.0)
    exact = p.to(torch.float64).logits()
    found = sweep(p.block)
    probability = exact.softmax(1)
    entropy = -(probability * probability.log()).sum(1)
    assert error(lse_of(found) - found.sum_z_exp / found.sum_exp, entropy) < 1e-5
    assert torch.equal(found.argmax, exact.argmax(1))


def test_the_smallest_id_wins_among_equal_maxima():
    p = problem(3, 16, 70, torch.float32)
    p.weight[50] = p.weight[7] = p.weight[66] = 10 * p.hidden[0]
    assert sweep(p.block._replace(first=1000)).argmax[0] == 1007
    assert sweep(p.block, settings=SMALL).argmax[0] == 7


def test_shards_put_together_are_the_whole():
    p = problem(20, 32, 99, torch.float32, bias=True)
    whole, lse, target_logit = sweep(p.block), [], 0
    for begin, end in ((0, 40), (40, 41), (41, 99)):
        part = sweep(p.block.columns(begin, end))
        lse.append(lse_of(part))
        target_logit = target_logit + part.target_logit
    assert error(torch.stack(lse).logsumexp(0), lse_of(whole).double()) < 2e-6
    nearly_equal(target_logit, whole.target_logit)


def test_statistics_that_were_not_asked_for_are_none():
    found = sweep(problem(4, 16, 20, torch.float32).block, Extras())
    assert found[3:6] == (None, None, None)


@pytest.mark.parametrize("height", [60.0, 3000.0])
def test_saturated_logits_stay_finite(height):
    p = problem(6, 16, 40, torch.float32)
    p.hidden[:] = 0.0
    p.hidden[:, 0] = height
    p.weight[:, 0] = torch.linspace(-1.0, 1.0, 40)
    found, exact = sweep(p.block), p.to(torch.float64).logits()
    assert all(column.isfinite().all() for column in found[:5])
    assert error(lse_of(found), exact.logsumexp(1)) <= height * 2e-7


def test_a_padded_vocabulary_of_minus_infinity_is_no_nan():
    p = problem(6, 16, 80, torch.float32, bias=True)
    p.bias[:20] = p.bias[70:] = float("-inf")
    p.target[:] = 33
    found, exact = sweep(p.block), p.to(torch.float64).logits()
    assert error(lse_of(found), exact.logsumexp(1)) < 2e-6
    assert found.sum_z_exp.isfinite().all()


def test_two_runs_are_equal_bit_by_bit_and_rows_do_not_see_each_other():
    p = problem(17, 33, 67, torch.bfloat16)
    one, two = (sweep(p.block) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[:5], two[:5], strict=True))
    alone = sweep(p.block._replace(hidden=p.hidden[7:8], target=p.target[7:8]))
    nearly_equal(alone.sum_exp[0], one.sum_exp[7])


def test_rows_with_gaps_between_them_are_read_in_place():
    wide = problem(12, 64, 40, torch.float32)
    hidden, weight = wide.hidden[:, :32], wide.weight[:, 32:]
    found = sweep(wide.block._replace(hidden=hidden, weight=weight))
    exact = (hidden.double() @ weight.double().T).logsumexp(1)
    assert error(lse_of(found), exact) < 2e-6


@settings(max_examples=8, derandomize=True)
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 20),
    columns=st.integers(1, 70),
    splits=st.integers(1, 6),
    group=st.integers(1, 4),
)
def test_no_shape_and_no_launch_changes_the_result(rows, inner, columns, splits, group):
    p = problem(rows, inner, columns, torch.float32, seed=rows)
    launch = SMALL._replace(splits=splits, group=group)
    found = sweep(p.block, settings=launch)
    exact = p.to(torch.float64).logits()
    assert error(lse_of(found), exact.logsumexp(1)) < 2e-6
    assert torch.equal(found.argmax, exact.argmax(1))


def test_operands_that_do_not_fit_are_named():
    p = problem(4, 16, 20, torch.float32)
    with pytest.raises(InterpretedError, match="does not fit"):
        sweep(p.block._replace(weight=p.weight.half()))
    with pytest.raises(InterpretedError, match="takes every dtype"):
        sweep(p.to(torch.float64).block)


@pytest.mark.parametrize("loads", ["descriptors", "specialized"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((19, 24, 67), torch.bfloat16), ((5, 40, 131), torch.float32), ((3, 23, 20), torch.float16)],
    ids=str,
)
def test_how_operands_are_loaded_changes_no_bit(shape, dtype, loads):
    p = problem(*shape, dtype, bias=True, cap=5.0)
    found = []
    for chosen in ("pointers", loads):
        out = torch.zeros(shape[0], shape[2], dtype=dtype)
        found.append(
            interpreted(
                "triton_sweep.kept_exponentials", p.block, ALL, out=out, returning="out",
                settings=SMALL._replace(loads=chosen),
            )
        )  # fmt: skip
    (one, kept), (other, also) = found
    assert torch.equal(kept, also)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_form_of_loading_is_taken_where_the_table_has_it():
    def loads(inner, dtype=torch.bfloat16, architecture="sm_90"):
        return settings_for("kept", inner, 8192, dtype, architecture, extras=True).loads

    assert loads(3584) == "pointers"
    with use_settings(loads="specialized"):
        assert [loads(3584), loads(3592), loads(3585)] == ["specialized"] * 2 + ["pointers"]
        assert loads(3584, torch.float32) == loads(3584, architecture="sm_80") == "pointers"
        with use_settings(loads="descriptors"):
            assert loads(3584) == "descriptors"
        with ThreadPoolExecutor(1) as backward:
            assert backward.submit(loads, 3584).result() == "specialized"
    assert loads(3584) == "pointers"
    with pytest.raises(ValueError, match="expected one of pointers"), use_settings(loads="tma"):
        pass


def test_parts_keep_operands_in_the_cache_of_the_card():
    tile = Settings(128, 256, 64, 8, 4)
    h100 = {"settings": tile, "row_bytes": 7168, "multiprocessors": 132}
    assert choose_splits(64, 594, **h100, cache=1 << 60) == 2
    assert choose_splits(64, 594, **h100, cache=50 << 20) == 6
    assert live_bytes(2, 64, **h100) > 60e6
    assert live_bytes(6, 64, **h100) < CACHE_SHARE * (50 << 20)


@settings(max_examples=50, derandomize=True)
@given(
    blocks=st.integers(1, 600),
    tiles=st.integers(1, 1200),
    processors=st.integers(1, 150),
    cache=st.integers(0, 1 << 27),
)
def test_parts_leave_no_more_processors_idle_than_they_may(blocks, tiles, processors, cache):
    chosen = choose_splits(blocks, tiles, Settings(128, 256, 64, 8, 4), 7168, processors, cache)

    def cost(parts):
        return -(-blocks * parts // processors) * -(-tiles // parts)

    most = min(tiles, max(1, 8 * processors // blocks))
    assert 1 <= chosen <= most
    assert cost(chosen) <= 1.02 * min(map(cost, range(1, most + 1)))
