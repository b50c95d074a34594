"""The reward model's loss: against the naive loop, and at its edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_kernels import pairwise_reward_loss, reference

REWARD = st.floats(-100, 100, width=32)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(REWARD, REWARD, REWARD, st.floats(0, 4, width=32), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.none() | st.integers(0, 9),
)
def test_it_is_the_naive_loop(rows, more):
    chosen, rejected, margin, weight = (
        torch.tensor([row[place] for row in rows], dtype=torch.float64) for place in range(4)
    )
    options = {
        "tie": torch.tensor([row[4] for row in rows]),
        "tie_weight": 0.7,
        "margin": margin,
        "centring": 0.01,
        "weight": weight,
    }
    if more is not None:
        options |= {"num_ranked": len(rows) + more, "num_ties": more}
    chosen.requires_grad_()
    rejected.requires_grad_()
    out = pairwise_reward_loss(chosen, rejected, **options)
    wanted = reference.pairwise_reward_loss(chosen, rejected, **options)
    assert torch.allclose(out.loss, wanted, rtol=1e-12)
    found = torch.autograd.grad(out.loss, [chosen, rejected])
    exact = torch.autograd.grad(wanted, [chosen, rejected])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, exact, strict=True))


def test_equal_rewards_cost_ln_2_and_a_margin_more():
    zero = torch.zeros(3)
    assert float(pairwise_reward_loss(zero, zero).loss) == pytest.approx(math.log(2))
    lead = pairwise_reward_loss(zero, zero, margin=torch.ones(3))
    assert float(lead.loss) == pytest.approx(math.log1p(math.e))


def test_a_tie_has_no_margin_and_its_own_mean():
    out = pairwise_reward_loss(
        torch.tensor([3.0, 1.0]),
        torch.tensor([1.0, 1.0]),
        tie=torch.tensor([True, False]),
        tie_weight=0.5,
        margin=torch.tensor([100.0, 0.0]),
    )
    assert float(out.tie_loss) == 4.0
    assert float(out.ranked_loss) == pytest.approx(math.log(2))
    assert float(out.loss) == pytest.approx(math.log(2) + 2.0)
    assert out.accuracies.tolist() == [0.5, 0.0]
    assert out.margins.tolist() == [2.0, 0.0]


def test_the_losses_of_parts_add_up_and_a_margin_of_a_tie_is_not_read():
    chosen, rejected = torch.randn(2, 7)
    tie = torch.tensor([False, True, False, False, True, False, True])
    margin = torch.rand(7).masked_fill(tie, float("nan"))
    options = {"tie_weight": 0.3, "centring": 0.1, "num_ranked": 4, "num_ties": torch.tensor(3)}
    whole = pairwise_reward_loss(chosen, rejected, tie=tie, margin=margin, **options)
    counted = pairwise_reward_loss(
        chosen, rejected, tie=tie, margin=margin, tie_weight=0.3, centring=0.1
    )
    parts = [
        pairwise_reward_loss(chosen[s], rejected[s], tie=tie[s], margin=margin[s], **options).loss
        for s in (slice(0, 3), slice(3, 7))
    ]
    assert float(whole.loss) == pytest.approx(float(counted.loss), rel=1e-6)
    assert float(sum(parts)) == pytest.approx(float(whole.loss), rel=1e-6)


def test_only_ties_or_nothing_at_all():
    one = torch.ones(2)
    ties = pairwise_reward_loss(one, -one, tie=torch.tensor([True, True]))
    assert float(ties.ranked_loss) == 0.0
    assert float(ties.loss) == 4.0
    assert float(pairwise_reward_loss(torch.zeros(0), torch.zeros(0)).loss) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_rewards_are_widened(dtype):
    chosen = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    out = pairwise_reward_loss(chosen, torch.zeros(2, dtype=dtype), centring=0.01)
    assert out.loss.dtype == torch.float32
    (found,) = torch.autograd.grad(out.loss, [chosen])
    assert found.dtype == dtype


def test_what_does_not_fit_is_named():
    three = torch.zeros(3)
    with pytest.raises(ValueError, match=r"margin has shape \(1,\); expected \(3,\)"):
        pairwise_reward_loss(three, three, margin=torch.zeros(1))
    with pytest.raises(ValueError, match=r"chosen_reward has shape \(3, 1\)"):
        pairwise_reward_loss(three[:, None], three)
    with pytest.raises(TypeError, match=r"tie is torch\.int64"):
        pairwise_reward_loss(three, three, tie=torch.zeros(3).long())
