"""The oracle itself: finite differences, and values that can be computed by hand."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from kernels_support import head_case
from mmrlhf_kernels import reference


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_linear_logp_against_finite_differences(softcap):
    case = head_case(4, 3, 7, bias=True)
    case.target[1] = -100
    low = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    high = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)

    def call(hidden, weight, bias, low, high):
        return reference.linear_logp(
            hidden, weight, case.target, bias=bias, softcap=softcap, logit_scale=0.5,
            lora=(low, high, 2.0),
        )  # fmt: skip

    assert gradcheck(call, (case.hidden, case.weight, case.bias, low, high))


def test_linear_logp_of_equal_logits_is_minus_log_of_the_vocabulary():
    logp = reference.linear_logp(torch.zeros(2, 3), torch.ones(8, 3), torch.tensor([5, -100]))
    assert logp.tolist() == pytest.approx([-math.log(8), 0.0])


@pytest.mark.parametrize("loss_type", [*reference.PAIR_LOSS_TYPES, "bco_pair"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mm_dpo_loss_against_finite_differences(loss_type, smoothing):
    chosen, rejected, beta, weight = torch.rand(4, 5, dtype=torch.float64)
    chosen.requires_grad_()
    rejected.requires_grad_()
    tie = torch.tensor([False, True, False, False, True])

    def call(chosen, rejected):
        return reference.mm_dpo_loss(
            chosen, rejected, beta + 0.1, loss_type=loss_type, label_smoothing=smoothing, tie=tie,
            weight=weight, reward_shift=0.3,
        )  # fmt: skip

    assert gradcheck(call, (chosen, rejected))


@pytest.mark.parametrize("loss_type", reference.PAIR_LOSS_TYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pair_loss_states_the_derivative_of_its_own_loss(loss_type, smoothing):
    delta = torch.linspace(-30, 30, 41, dtype=torch.float64, requires_grad=True)
    beta = torch.linspace(0.05, 0.5, 41, dtype=torch.float64)
    tie = torch.arange(41) % 3 == 0
    weight = torch.linspace(0.0, 2.0, 41, dtype=torch.float64)
    loss, slope = reference.pair_loss(delta, beta, tie, weight, loss_type, smoothing)
    (wanted,) = torch.autograd.grad(loss.sum(), [delta])
    assert torch.allclose(slope, wanted, atol=1e-14)


@pytest.mark.parametrize("loss_type", reference.PAIR_LOSS_TYPES)
def test_pair_loss_is_the_loss_that_mm_dpo_loss_takes_the_mean_of(loss_type):
    delta = torch.linspace(-9, 9, 13, dtype=torch.float64)
    beta = torch.linspace(0.05, 0.5, 13, dtype=torch.float64)
    tie = torch.arange(13) % 4 == 0
    loss, _ = reference.pair_loss(delta, beta, tie, None, loss_type, 0.1)
    zero = torch.zeros_like(delta)
    mean = reference.mm_dpo_loss(
        delta, zero, beta, loss_type=loss_type, label_smoothing=0.1, tie=tie
    )
    assert float(loss.mean()) == pytest.approx(float(mean), rel=1e-12)


def test_an_unknown_pair_loss_is_named():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="unknown loss_type 'bco_pair'; expected one of sigmoid"):
        reference.pair_loss(one, one, None, None, "bco_pair", 0.0)
    with pytest.raises(ValueError, match="unknown loss_type 'dpo'"):
        reference.mm_dpo_loss(one, one, one, loss_type="dpo")


def test_dynamic_beta_takes_the_values_of_the_paper():
    # w = k = 1/2, beta_ori = 0.1; the map of the paper at these margins, to its four digits.
    margin = torch.tensor([-2.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
    expected = [0.1, 0.1, 0.1111, 0.1197, 0.1316, 0.1432, 0.1491]
    assert reference.dynamic_beta(margin, 0.1).tolist() == pytest.approx(expected, abs=5e-5)


def test_pairwise_reward_loss_against_finite_differences():
    chosen, rejected, margin = torch.rand(3, 5, dtype=torch.float64)
    tie = torch.tensor([False, True, False, False, True])

    def call(chosen, rejected):
        return reference.pairwise_reward_loss(
            chosen, rejected, tie=tie, tie_weight=0.7, margin=margin, centring=0.1
        )

    assert gradcheck(call, (chosen.requires_grad_(), rejected.requires_grad_()))
