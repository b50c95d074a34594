"""MM-DPO on summed log-probabilities: against a naive loop, and by the properties of the losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_dpo_problem import Problem
from mmrlhf_kernels import (
    dynamic_beta,
    mm_dpo_loss,
    mm_dpo_loss_from_rows,
    pair_gradients,
    reference,
    released_beta,
)
from mmrlhf_kernels.pair import LOSS_TYPES

LN2 = math.log(2.0)


def columns(pairs, dtype=torch.float64, seed=0):
    """(S_c, S_r, ref_c, ref_r, beta) of pairs whose margins vary."""
    source = torch.Generator().manual_seed(seed)
    drawn = torch.randn(4, pairs, generator=source, dtype=torch.float64) * 5 - 40
    beta = 0.05 + torch.rand(pairs, generator=source, dtype=torch.float64)
    return [t.to(dtype) for t in (*drawn, beta)]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("sft", ["token", "sequence"])
def test_every_loss_is_the_naive_loop(loss_type, smoothing, sft):
    chosen, rejected, ref_chosen, ref_rejected, beta = columns(6)
    tie = torch.tensor([False, True, False, False, True, False])
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    tokens = torch.tensor([3, 1, 0, 7, 2, 5])
    chosen.requires_grad_()
    rejected.requires_grad_()
    options = {"loss_type": loss_type, "label_smoothing": smoothing, "tie": tie, "weight": weight}
    out = mm_dpo_loss(
        chosen, rejected, ref_chosen, ref_rejected, beta, reward_shift=0.4, sft_weight=0.25,
        chosen_tokens=tokens, sft=sft, **options,
    )  # fmt: skip
    wanted = reference.mm_dpo_loss(
        chosen - ref_chosen, rejected - ref_rejected, beta, reward_shift=0.4, **options
    ) + 0.25 * reference.supervised_loss(chosen, tokens, sft)
    assert float(out.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    found = torch.autograd.grad(3 * out.loss, [chosen, rejected])
    exact = torch.autograd.grad(3 * wanted, [chosen, rejected])
    for ours, other in zip(found, exact, strict=True):
        assert torch.allclose(ours, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_pair_gradients_are_what_backward_gives(loss_type):
    values = columns(5)
    leaves = [values[0].requires_grad_(), values[1].requires_grad_()]
    tokens = torch.tensor([2, 4, 1, 1, 9])
    out = mm_dpo_loss(*values, loss_type=loss_type, sft_weight=0.5, chosen_tokens=tokens)
    by_backward = torch.autograd.grad(out.loss, leaves)
    stated = pair_gradients(*values, loss_type=loss_type, sft_weight=0.5, chosen_tokens=tokens)
    assert all(torch.equal(a, b) for a, b in zip(by_backward, stated, strict=True))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_the_naive_loop(loss_type, shared):
    problem = Problem(pairs=7, shared=shared)
    problem.logp = problem.logp.double()
    wide = {"weight": problem.options["weight"].double()}
    for options in (
        {"label_smoothing": 0.1, "sft_weight": 0.25},
        {"average": True, "sft_weight": 0.5, "sft": "sequence", "num_pairs": 9},
    ):
        loss, gradient = problem.truth(loss_type=loss_type, **options)
        problem.margin = problem.margin.double()
        out, found = problem.found(loss_type=loss_type, **wide, **options)
        assert float(out.loss) == pytest.approx(float(loss), rel=1e-12)
        assert torch.allclose(found, gradient, rtol=1e-10, atol=1e-13)


def test_margins_are_betas_and_rows_are_sums():
    problem = Problem(pairs=5)
    out, _ = problem.found()
    sums, _ = problem.found_from_sums()
    columns = torch.stack([problem.sums[problem.chosen], problem.sums[problem.rejected]]).float()
    betas = mm_dpo_loss(
        *columns, *problem.references(), dynamic_beta(problem.margin, 0.1), **problem.options
    )
    for other in (sums, betas):
        for name, ours, theirs in zip(out._fields, out, other, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), name
    assert int(out.tie_count) == int(problem.options["tie"].sum())
    assert float(out.weight_sum) == pytest.approx(float(problem.options["weight"].sum()))
    assert float(problem.found(weight=None)[0].weight_sum) == 5.0


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"logp": torch.zeros(2, 3)}, ValueError, r"logp has shape \(2, 3\); expected \[N\]"),
        ({"cu_seqlens": torch.tensor([0, 2, 6])}, ValueError, "2 answers for 2 pairs; expected 4"),
        ({"cu_seqlens": torch.tensor([0, 4, 2, 5, 6])}, ValueError, "cu_seqlens must rise"),
        ({"cu_seqlens": torch.tensor([0, 2, 3, 4, 5])}, ValueError, "cu_seqlens must rise"),
        ({"cu_seqlens": torch.zeros(5)}, TypeError, "cu_seqlens is torch.float32; expected"),
        ({"cu_seqlens": torch.zeros(0).int()}, ValueError, r"expected \[S \+ 1\]"),
        ({"pair_index": torch.zeros(2, 2)}, TypeError, "pair_index is torch.float32; expected"),
        ({"pair_index": torch.zeros(2, 3).int()}, ValueError, "pair_index has shape"),
        ({"pair_index": torch.tensor([[0, 4], [1, 2]])}, IndexError, "a pair names sequence 4"),
        ({"margin": torch.zeros(3)}, ValueError, r"margin has shape \(3,\); expected \(2,\)"),
        ({"margin": torch.zeros(2), "beta": torch.ones(2)}, ValueError, "beta is one number"),
        ({"margin": torch.zeros(2), "w": -1.0}, ValueError, "expected beta > 0, w >= 0"),
        ({"loss": "ipo"}, TypeError, "unexpected keyword argument 'loss'"),
    ],
)
def test_what_does_not_fit_rows_is_named(change, problem, message):
    arguments = {
        "logp": torch.zeros(6), "cu_seqlens": torch.tensor([0, 2, 3, 4, 6]),
        "ref_chosen_logps": torch.zeros(2), "ref_rejected_logps": torch.zeros(2), "beta": 0.1,
    }  # fmt: skip
    with pytest.raises(problem, match=message):
        mm_dpo_loss_from_rows(**(arguments | change))


def test_beta_of_each_pair_is_its_own():
    chosen, rejected, ref_chosen, ref_rejected, beta = columns(3)
    together = mm_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    alone = [
        mm_dpo_loss(*(t[j : j + 1] for t in (chosen, rejected, ref_chosen, ref_rejected)), float(b))
        for j, b in enumerate(beta)
    ]
    assert float(together.loss) == pytest.approx(sum(float(out.loss) for out in alone) / 3)
    assert float(together.beta_mean) == pytest.approx(float(beta.mean()))
    assert float(together.beta_min) == float(beta.min())
    assert float(together.beta_max) == float(beta.max())


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1), (1, 3), (6,)])
def test_beta_of_a_wrong_shape_raises(shape):
    with pytest.raises(ValueError, match=r"beta has shape .*; expected \(3,\)"):
        mm_dpo_loss(*columns(3)[:4], torch.full(shape, 0.1))


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"loss_type": "dpo"}, ValueError, "unknown loss_type 'dpo'; expected one of sigmoid, ipo"),
        ({"label_smoothing": 0.5}, ValueError, "label_smoothing is 0.5"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing is -0.1"),
        ({"sft_weight": 0.1}, ValueError, "chosen_tokens"),
        ({"sft_weight": -0.1}, ValueError, "sft_weight is -0.1"),
        ({"sft": "word"}, ValueError, "unknown sft 'word'"),
        ({"tie": torch.zeros(3)}, TypeError, "tie is torch.float32; expected torch.bool"),
        ({"tie": torch.zeros(2).bool()}, ValueError, r"tie has shape \(2,\); expected \(3,\)"),
        ({"weight": torch.ones(3, 1)}, ValueError, "weight has shape"),
        ({"beta_rule": "released", "margin": torch.ones(3)}, ValueError, "expected no margin"),
        ({"beta_rule": "batch"}, ValueError, "unknown beta_rule 'batch'"),
        ({"beta": 0.0}, ValueError, "beta is 0.0; expected a number above 0"),
        ({"beta": torch.ones(3, requires_grad=True)}, ValueError, "beta requires a gradient"),
        ({"beta": torch.ones(3), "beta_rule": "released"}, ValueError, "takes one number"),
        ({"rejected_logp": torch.zeros(2)}, ValueError, "rejected_logp has shape"),
        ({"chosen_logp": torch.zeros(3, 1)}, ValueError, r"chosen_logp has shape \(3, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(change, problem, message):
    names = ("chosen_logp", "rejected_logp", "ref_chosen_logps", "ref_rejected_logps")
    arguments = dict.fromkeys(names, torch.zeros(3)) | {"beta": 0.1}
    with pytest.raises(problem, match=message):
        mm_dpo_loss(**(arguments | change))


LOGP = st.floats(-2000, 0, allow_nan=False, width=32)
BETA = st.floats(2**-10, 2, width=32)


@settings(max_examples=40)
@given(st.lists(st.tuples(LOGP, LOGP, BETA), min_size=1, max_size=6))
def test_equal_policies_cost_ln_2_whatever_the_beta(rows):
    chosen, rejected, beta = (torch.tensor(column) for column in zip(*rows, strict=True))
    for loss_type in ("sigmoid", "robust"):
        out = mm_dpo_loss(chosen, rejected, chosen, rejected, beta, loss_type=loss_type)
        assert float(out.loss) == pytest.approx(LN2, rel=1e-6)
    hinge = mm_dpo_loss(chosen, rejected, chosen, rejected, beta, loss_type="hinge")
    assert float(hinge.loss) == pytest.approx(1.0)
    bco = mm_dpo_loss(chosen, rejected, chosen, rejected, beta, loss_type="bco_pair")
    assert float(bco.loss) == pytest.approx(2 * LN2, rel=1e-6)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP, BETA), min_size=1, max_size=6),
    st.sampled_from(LOSS_TYPES),
    st.booleans(),
)
def test_everything_is_finite_at_any_margin(rows, loss_type, tied):
    values = [torch.tensor(column) for column in zip(*rows, strict=True)]
    tie = torch.full((len(rows),), tied)
    out = mm_dpo_loss(*values, loss_type=loss_type, tie=tie)
    gradients = pair_gradients(*values, loss_type=loss_type, tie=tie)
    assert all(bool(tensor.isfinite().all()) for tensor in [*out, *gradients])


@settings(max_examples=40)
@given(st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP, BETA), min_size=2, max_size=6))
def test_the_order_of_pairs_does_not_matter_and_ties_are_symmetric(rows):
    chosen, rejected, ref_chosen, ref_rejected, beta = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)
    )
    forward = mm_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    turned = mm_dpo_loss(*(t.flip(0) for t in (chosen, rejected, ref_chosen, ref_rejected, beta)))
    assert float(forward.loss) == pytest.approx(float(turned.loss), rel=1e-12)
    tie = torch.ones(len(rows), dtype=torch.bool)
    for loss_type in LOSS_TYPES:
        one = mm_dpo_loss(
            chosen, rejected, ref_chosen, ref_rejected, beta, loss_type=loss_type, tie=tie
        )
        other = mm_dpo_loss(
            rejected, chosen, ref_rejected, ref_chosen, beta, loss_type=loss_type, tie=tie
        )
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-12)


def test_a_tie_is_cross_entropy_against_one_half_and_draws_the_margin_to_zero():
    delta = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(delta)
    tie = torch.tensor([True])
    out = mm_dpo_loss(delta, zero, zero, zero, 0.5, tie=tie)
    # x = 2: -(log sigmoid(2) + log sigmoid(-2)) / 2 = log(1 + e^-2) + 1
    assert float(out.loss.detach()) == pytest.approx(math.log1p(math.exp(-2.0)) + 1.0)
    (slope,) = torch.autograd.grad(out.loss, [delta])
    assert float(slope) == pytest.approx(0.5 * (1 / (1 + math.exp(-2.0)) - 0.5))
    assert float(out.accuracies) == 0.5


def test_rewards_margins_and_accuracies():
    out = mm_dpo_loss(
        torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0]), torch.tensor([-2.0, -2.0]),
        torch.tensor([-2.0, -2.0]), torch.tensor([0.5, 0.1]),
    )  # fmt: skip
    assert out.chosen_rewards.tolist() == pytest.approx([0.5, -0.2])
    assert out.rejected_rewards.tolist() == pytest.approx([-0.5, 0.0])
    assert out.margins.tolist() == pytest.approx([1.0, -0.2])
    assert out.accuracies.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_log_probabilities_are_widened(dtype):
    values = [t.to(dtype) for t in columns(4)]
    values[0].requires_grad_()
    out = mm_dpo_loss(*values)
    wide = mm_dpo_loss(*(t.detach().float() for t in values))
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.loss, wide.loss)
    (found,) = torch.autograd.grad(out.loss, [values[0]])
    assert found.dtype == dtype


@settings(max_examples=60)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    st.floats(0.01, 1),
    st.floats(0, 2),
    st.floats(0, 3),
)
def test_dynamic_beta_stays_in_its_bounds_and_grows_with_the_margin(margins, beta, w, k):
    margin = torch.tensor(sorted(margins), dtype=torch.float64)
    found = dynamic_beta(margin, beta, w, k)
    assert float(found.min()) >= beta * (1 - 1e-12)
    assert float(found.max()) <= beta * (1 + w) * (1 + 1e-12)
    assert bool((found.diff() >= 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_width_margin_is_widened(dtype):
    margin = torch.tensor([-25.0, -1.0, 0.3, 2.0, 40.0]).to(dtype)
    found = dynamic_beta(margin, 0.1)
    assert found.dtype == torch.float32
    assert torch.equal(found, dynamic_beta(margin.float(), 0.1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_margin_has_a_beta(dtype):
    margin = torch.tensor([-math.inf, -6e4, -178.0, -25.0, 0.0, 25.0, 178.0, 6e4, math.inf])
    margin = margin.to(dtype)
    assert dynamic_beta(margin, 0.1, w=0.0).tolist() == pytest.approx([0.1] * 9)
    assert dynamic_beta(margin, 0.1, k=0.0).tolist() == pytest.approx([0.1] * 9)
    assert dynamic_beta(margin, 0.1).tolist() == pytest.approx([0.1] * 5 + [0.15] * 4, rel=1e-5)


def test_dynamic_beta_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"margin has shape \(\); expected \[P\]"):
        dynamic_beta(torch.tensor(1.0), 0.1)
    with pytest.raises(ValueError, match="expected beta > 0"):
        dynamic_beta(torch.ones(1), 0.0)


def test_the_released_rule_is_one_beta_near_its_base():
    values = columns(10)[:4]
    source = torch.Generator().manual_seed(3)
    out = mm_dpo_loss(*values, 0.1, beta_rule="released", generator=source)
    assert float(out.beta_min) == float(out.beta_max)
    delta = (values[0] - values[2]) - (values[1] - values[3])
    again = released_beta(delta, 0.1, generator=torch.Generator().manual_seed(3))
    assert float(out.beta_max) == float(again)
    # Weight 0 switches the rule off, and a floor binds from below.
    assert float(released_beta(delta, 0.1, weight=0.0)) == pytest.approx(0.1)
    assert float(released_beta(delta, 0.1, weight=1e6, floor=5.0)) >= 5.0


def test_the_released_rule_needs_two_pairs():
    with pytest.raises(ValueError, match="M >= 2"):
        mm_dpo_loss(*columns(1)[:4], 0.1, beta_rule="released")
