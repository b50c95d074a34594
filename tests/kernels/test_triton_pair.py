"""The pair kernels and the segmented sum against their formulas and finite differences."""

import itertools

import pytest
import torch

from mmrlhf_kernels import reference
from triton_problem import error
from triton_worker import InterpretedError, interpreted

LOSS_TYPES = (*reference.PAIR_LOSS_TYPES, "bco_pair")
PAIRS = 133


def pairs(seed=0):
    """Log-ratios, betas, ties and weights of pairs, some of them far out."""
    generator = torch.Generator().manual_seed(seed)
    chosen = 30 * torch.randn(PAIRS, generator=generator)
    rejected = 30 * torch.randn(PAIRS, generator=generator)
    beta = 0.05 + 0.2 * torch.rand(PAIRS, generator=generator)
    tie = torch.rand(PAIRS, generator=generator) < 0.25
    weight = torch.rand(PAIRS, generator=generator)
    chosen[:4] = torch.tensor([0.0, 4000.0, -4000.0, 1e-6])
    return chosen, rejected, beta, tie, weight


def close(found, truth):
    """Within float32 of a float64 truth, relative to its largest entry."""
    assert found.isfinite().all()
    assert error(found, truth) <= 1e-6 * max(1.0, truth.abs().max().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", reference.PAIR_LOSS_TYPES)
def test_loss_and_derivative_are_those_of_the_specification(loss_type, smoothing):
    chosen, rejected, beta, tie, weight = pairs()
    delta = chosen - rejected
    for t, w in ((None, None), (tie, None), (None, weight), (tie, weight)):
        found = interpreted("triton_pair.pair_loss", delta, beta, t, w, loss_type, smoothing)
        wide = None if w is None else w.double()
        truth = reference.pair_loss(delta.double(), beta.double(), t, wide, loss_type, smoothing)
        close(found[0], truth[0])
        close(found[1], truth[1])


def test_a_pair_far_ahead_keeps_its_small_loss():
    delta, one = torch.tensor([20.0, 50.0, 80.0]), torch.ones(3)
    loss, slope = interpreted("triton_pair.pair_loss", delta, one, None, None, "sigmoid", 0.0)
    truth = torch.log1p(torch.exp(-delta.double()))
    assert ((loss - truth).abs() <= 1e-6 * truth).all()
    assert ((slope + truth).abs() <= 1e-6 * truth + truth**2).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_both_sides_match_autograd_of_the_specification(loss_type, smoothing):
    chosen, rejected, beta, tie, weight = pairs()
    sides = [side.double().requires_grad_() for side in (chosen, rejected)]
    chosen[0], rejected[0] = 3.0, 1.0  # hinge has no derivative at its corner
    with torch.no_grad():
        sides[0][0], sides[1][0] = 3.0, 1.0
    options = {"label_smoothing": smoothing, "tie": tie, "reward_shift": 0.3}
    mean = reference.mm_dpo_loss(
        *sides, beta.double(), loss_type=loss_type, weight=weight.double(), **options
    )
    (mean * PAIRS).backward()
    loss, up, down = interpreted(
        "triton_pair.two_sided_pair_loss", chosen, rejected, beta, loss_type=loss_type,
        weight=weight, **options,
    )  # fmt: skip
    close(loss.double().mean(), mean.detach())
    close(up, sides[0].grad)
    close(down, sides[1].grad)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_derivatives_are_finite_differences_of_the_same_kernel(loss_type):
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = torch.randn(2, PAIRS, generator=generator)
    beta, step = torch.full((PAIRS,), 0.5), 2.0**-6

    def run(c, r):
        return interpreted("triton_pair.two_sided_pair_loss", c, r, beta, loss_type=loss_type)

    _, up, down = run(chosen, rejected)
    numeric_up = (run(chosen + step, rejected)[0] - run(chosen - step, rejected)[0]) / (2 * step)
    numeric_down = (run(chosen, rejected + step)[0] - run(chosen, rejected - step)[0]) / (2 * step)
    assert (up - numeric_up).abs().max() < 2e-4
    assert (down - numeric_down).abs().max() < 2e-4


def test_the_fused_kernel_is_margin_to_beta_to_loss_to_rewards():
    chosen, rejected, _, tie, weight = pairs()
    ref_chosen_logps, ref_rejected_logps = chosen - 2.0, rejected + 1.5
    generator = torch.Generator().manual_seed(4)
    margin = torch.cat([torch.randn(PAIRS - 2, generator=generator), torch.tensor([-9.0, 90.0])])
    found = interpreted(
        "triton_pair.dynamic_beta_pair_loss", chosen, rejected, ref_chosen_logps,
        ref_rejected_logps, margin, 0.1, 0.5, 0.8, tie=tie, weight=weight, label_smoothing=0.05,
    )  # fmt: skip
    beta = reference.dynamic_beta(margin.double(), 0.1, 0.5, 0.8)
    left, right = chosen.double() - ref_chosen_logps, rejected.double() - ref_rejected_logps
    loss, slope = reference.pair_loss(left - right, beta, tie, weight.double(), "sigmoid", 0.05)
    close(found.beta, beta)
    assert found.beta.min() >= torch.tensor(0.1)
    assert found.beta.max() <= torch.tensor(0.15)
    close(found.loss, loss)
    close(found.chosen_gradient, slope)
    assert torch.equal(found.rejected_gradient, -found.chosen_gradient)
    assert error(found.delta, left - right) < 1e-3
    assert error(found.chosen_reward, beta * left) < 1e-3
    assert error(found.rejected_reward, beta * right) < 1e-3


@pytest.mark.parametrize(("w", "k"), [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)])
def test_every_margin_has_a_beta(w, k):
    margin = torch.tensor([-torch.inf, -178.0, -25.0, 0.0, 25.0, 178.0, torch.inf])
    zero = torch.zeros_like(margin)
    found = interpreted(
        "triton_pair.dynamic_beta_pair_loss", zero, zero, zero, zero, margin, 0.1, w, k
    )
    close(found.beta, reference.dynamic_beta(margin.double(), 0.1, w, k))


def test_no_pairs_are_no_launch():
    none = torch.empty(0)
    loss, slope = interpreted("triton_pair.pair_loss", none, none, None, None, "ipo", 0.0)
    assert loss.shape == slope.shape == (0,)


def test_what_would_broadcast_or_mean_nothing_is_refused():
    delta = torch.zeros(3)
    for beta in (torch.ones(1), torch.ones(3, 1), torch.ones(())):
        with pytest.raises(InterpretedError, match="beta"):
            interpreted("triton_pair.pair_loss", delta, beta, None, None, "sigmoid", 0.0)
    with pytest.raises(InterpretedError, match="two_sided_pair_loss"):
        interpreted("triton_pair.pair_loss", delta, delta, None, None, "bco_pair", 0.0)
    with pytest.raises(InterpretedError, match="expected one of"):
        interpreted("triton_pair.pair_loss", delta, delta, None, None, "dpo", 0.0)
    with pytest.raises(InterpretedError, match="label_smoothing"):
        interpreted("triton_pair.pair_loss", delta, delta, None, None, "sigmoid", 0.5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_segments_are_summed_alone_and_in_their_own_order(dtype):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(1500, generator=generator) * 5
    boundaries = torch.tensor([0, 0, 1, 300, 557, 557, 1500], dtype=dtype)
    found = interpreted("triton_segments.segment_sum", values, boundaries)
    spans = list(itertools.pairwise(boundaries))
    truth = torch.stack([values[a:b].double().sum() for a, b in spans])
    assert error(found, truth) < 1e-4
    for index, (begin, end) in enumerate(spans):
        own = torch.tensor([0, end - begin])
        alone = interpreted("triton_segments.segment_sum", values[begin:end], own)
        assert torch.equal(alone[0], found[index])


def test_boundaries_that_are_no_boundaries_are_refused():
    for boundaries in (torch.tensor([0.0, 3.0]), torch.empty(0, dtype=torch.int32)):
        with pytest.raises(InterpretedError, match="boundaries"):
            interpreted("triton_segments.segment_sum", torch.zeros(3), boundaries)
