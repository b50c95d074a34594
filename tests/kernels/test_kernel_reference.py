"""The oracle itself: finite differences, and values that can be computed by hand."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from kernels_support import head_case
from mmrlhf_kernels import reference
from mmrlhf_kernels.pair import LOSS_TYPES


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


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
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


# At x = log 3, where sigmoid(x) = 3/4, and with both sides' rewards at half of it.
@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("sigmoid", math.log(4 / 3)),
        ("robust", math.log(4 / 3)),
        ("hinge", 0.0),
        ("ipo", (2 * math.log(3) - 1) ** 2),
        ("exo_pair", 0.75 * math.log(0.75 / 0.999) + 0.25 * math.log(0.25 / 0.001)),
        ("simpo", math.log(4 / 3)),
        ("bco_pair", 2 * math.log(1 + 3**-0.5)),
        ("kto_pair", 2 / (1 + 3**0.5)),
        ("apo_zero", 2 / (1 + 3**0.5)),
        ("apo_down", 3**0.5 / (1 + 3**0.5) + 0.25),
        ("sppo_hard", 2 * (math.log(3) - 1) ** 2),
    ],
)
def test_every_loss_takes_the_value_of_its_formula(loss_type, expected):
    side = torch.tensor([math.log(3.0)], dtype=torch.float64)
    beta = torch.full_like(side, 0.5)
    loss = reference.mm_dpo_loss(side, -side, beta, loss_type=loss_type)
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("loss_type", ["bco_pair", "kto_pair", "simpo"])
def test_a_shift_moves_the_rewards(loss_type):
    chosen, rejected = torch.rand(2, 5, dtype=torch.float64)
    beta = torch.full_like(chosen, 0.5)
    shifted = reference.mm_dpo_loss(chosen, rejected, beta, loss_type=loss_type, reward_shift=0.25)
    # For both sides, or for the difference.
    moved = (chosen - 0.5, rejected if loss_type == "simpo" else rejected - 0.5)
    wanted = reference.mm_dpo_loss(*moved, beta, loss_type=loss_type)
    assert float(shifted) == pytest.approx(float(wanted), rel=1e-12)


def test_the_loss_of_rows_against_finite_differences():
    logp, margin = torch.randn(9, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    bounds, index = torch.tensor([0, 2, 5, 9]), torch.tensor([[0, 2], [1, 2]])

    def call(logp):
        return reference.mm_dpo_row_loss(
            logp, bounds, margin, -margin, margin, 0.3, pair_index=index, average=True,
            sft_weight=0.5, sft="sequence",
        )  # fmt: skip

    assert gradcheck(call, (logp.requires_grad_(),))


def test_an_unknown_pair_loss_is_named():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="unknown loss_type 'dpo'; expected one of sigmoid"):
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
