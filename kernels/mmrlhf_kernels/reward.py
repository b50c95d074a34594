"""The loss of a reward model that scores two answers: Bradley-Terry, with ties.

    L = mean over ranked pairs of -log sigmoid(r_c - r_r - margin)
        + tie_weight * mean over ties of (r_c - r_r)^2
        + centring * mean over all pairs of (r_c + r_r)^2

The terms are those of the reward trainer released with MM-RLHF (arXiv 2502.10391), the centring is
that of arXiv 2312.09244. An empty mean is 0. A tie has no margin. A weight multiplies the terms of
its pair; the means are over pairs, not over weights. ``num_ranked`` and ``num_ties`` are for pairs
that are a part of a larger batch: the means are over that, and the parts' losses add up.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels.checks import check_entries, check_factor, check_pairs, check_tensor
from mmrlhf_kernels.pair import scalar_of
from mmrlhf_kernels.precision import statistics_dtype

__all__ = ["RewardOutput", "pairwise_reward_loss"]


class RewardOutput(NamedTuple):
    """The loss, and what a trainer logs. Only ``loss`` carries a gradient."""

    loss: Tensor
    """Scalar."""
    ranked_loss: Tensor
    """Scalar, the Bradley-Terry mean."""
    tie_loss: Tensor
    """Scalar, the mean squared difference of ties, before ``tie_weight``."""
    centring_loss: Tensor
    """Scalar, before its factor."""
    margins: Tensor
    """[P] r_c - r_r."""
    accuracies: Tensor
    """[P] 1 where r_c > r_r, else 0; 1/2 for ties."""


def pairwise_reward_loss(
    chosen_reward: Tensor,
    rejected_reward: Tensor,
    *,
    tie: Tensor | None = None,
    tie_weight: float = 1.0,
    margin: Tensor | None = None,
    centring: float = 0.0,
    weight: Tensor | None = None,
    num_ranked: float | Tensor | None = None,
    num_ties: float | Tensor | None = None,
) -> RewardOutput:
    """Loss of a reward model on P pairs; the formula is in the module docstring.

    Args:
        chosen_reward: [P] floating; half-width rewards are widened to float32.
        rejected_reward: [P].
        tie: [P] bool, or None for no ties.
        tie_weight: Factor of the ties' term.
        margin: [P] by how much the chosen reward should lead, or None for 0.
        centring: Factor of the centring term.
        weight: [P] floating, or None for 1.
        num_ranked: Pairs of the batch that are no ties: a number or a scalar tensor; None counts
            these pairs.
        num_ties: Ties of the batch, likewise.

    Raises:
        TypeError: A column is no tensor, or ``tie`` is not bool.
        ValueError: A column is not [P], or a number is negative or not finite; on the CPU also: a
            weight is negative, or the margin of a pair that is no tie is NaN.
    """
    check_tensor("chosen_reward", chosen_reward, "[P]")
    if chosen_reward.dim() != 1:
        raise ValueError(f"chosen_reward has shape {tuple(chosen_reward.shape)}; expected [P]")
    pairs, device = chosen_reward.shape[0], chosen_reward.device
    check_pairs(
        pairs, device, rejected_reward=rejected_reward, tie=tie, margin=margin, weight=weight
    )
    if tie is not None and tie.dtype != torch.bool:
        raise TypeError(f"tie is {tie.dtype}; expected torch.bool")
    check_factor("tie_weight", tie_weight)
    check_factor("centring", centring)
    check_entries("weight", weight, lambda x: x >= 0, "a number, at least 0")
    # A margin that is not a number is nobody's where the pair is a tie.
    unread = False if tie is None else tie
    check_entries("margin", margin, lambda m: ~m.isnan() | unread, "a number")
    dtype = statistics_dtype(chosen_reward.dtype)
    chosen, rejected = chosen_reward.to(dtype), rejected_reward.to(dtype)
    ties = torch.zeros_like(chosen, dtype=torch.bool) if tie is None else tie
    ranked = (~ties).to(dtype) if weight is None else (~ties) * weight.to(dtype)
    tied = ties.to(dtype) if weight is None else ties * weight.to(dtype)
    counts = [
        here.sum().to(dtype) if given is None else given
        for here, given in (
            (~ties, scalar_of("num_ranked", num_ranked, chosen)),
            (ties, scalar_of("num_ties", num_ties, chosen)),
        )
    ]
    # Pairs are masked rather than indexed, so that no shape depends on data.
    difference = chosen - rejected
    lead = difference if margin is None else difference - margin.to(difference.dtype)
    lead = lead.masked_fill(ties, 0.0)
    ranked_loss = -(ranked * functional.logsigmoid(lead)).sum() / counts[0].clamp(min=1)
    tie_loss = (tied * difference.square()).sum() / counts[1].clamp(min=1)
    both = (ranked + tied) * (chosen + rejected).square()
    centring_loss = both.sum() / (counts[0] + counts[1]).clamp(min=1)
    gap = difference.detach()
    return RewardOutput(
        ranked_loss + tie_weight * tie_loss + centring * centring_loss,
        ranked_loss.detach(),
        tie_loss.detach(),
        centring_loss.detach(),
        gap,
        (gap > 0).to(gap.dtype).masked_fill(ties, 0.5),
    )
