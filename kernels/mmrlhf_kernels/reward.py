"""The loss of a reward model that scores two answers: Bradley-Terry, with ties.

    L = mean over ranked pairs of -log sigmoid(r_c - r_r - margin)
        + tie_weight * mean over ties of (r_c - r_r)^2
        + centring * mean over all pairs of (r_c + r_r)^2

The terms are those of the reward trainer released with MM-RLHF (arXiv 2502.10391), the centring is
that of arXiv 2312.09244. An empty mean is 0. A tie has no margin.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels.checks import check_pairs
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
) -> RewardOutput:
    """Loss of a reward model on P pairs; the formula is in the module docstring.

    Args:
        chosen_reward: [P] floating; half-width rewards are widened to float32.
        rejected_reward: [P].
        tie: [P] bool, or None for no ties.
        tie_weight: Factor of the ties' term.
        margin: [P] by how much the chosen reward should lead, or None for 0.
        centring: Factor of the centring term.

    Raises:
        TypeError: ``tie`` is not bool.
        ValueError: A column is not [P].
    """
    if chosen_reward.dim() != 1:
        raise ValueError(f"chosen_reward has shape {tuple(chosen_reward.shape)}; expected [P]")
    pairs, device = chosen_reward.shape[0], chosen_reward.device
    check_pairs(pairs, device, rejected_reward=rejected_reward, tie=tie, margin=margin)
    if tie is not None and tie.dtype != torch.bool:
        raise TypeError(f"tie is {tie.dtype}; expected torch.bool")
    return _evaluate(chosen_reward, rejected_reward, tie, tie_weight, margin, centring)


def _evaluate(
    chosen: Tensor,
    rejected: Tensor,
    tie: Tensor | None,
    tie_weight: float,
    margin: Tensor | None,
    centring: float,
) -> RewardOutput:
    """The three means, masked rather than indexed, so that no shape depends on data."""
    dtype = statistics_dtype(chosen.dtype)
    chosen, rejected = chosen.to(dtype), rejected.to(dtype)
    difference = chosen - rejected
    ties = torch.zeros_like(difference, dtype=torch.bool) if tie is None else tie
    lead = difference if margin is None else difference - margin.to(dtype)
    tied = ties.sum().clamp(min=1)
    ranked = (~ties).sum().clamp(min=1)
    ranked_loss = -functional.logsigmoid(lead).masked_fill(ties, 0.0).sum() / ranked
    tie_loss = difference.square().masked_fill(~ties, 0.0).sum() / tied
    centring_loss = (chosen + rejected).square().sum() / max(1, difference.numel())
    gap = difference.detach()
    return RewardOutput(
        ranked_loss + tie_weight * tie_loss + centring * centring_loss,
        ranked_loss.detach(),
        tie_loss.detach(),
        centring_loss.detach(),
        gap,
        (gap > 0).to(dtype).masked_fill(ties, 0.5),
    )
