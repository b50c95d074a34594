"""What a pair costs and how the cost changes, as device functions for the pair kernels.

Formulas, ties and label smoothing are those of :mod:`mmrlhf_kernels.reference`, whose names are
used here; a pair costs

    q l(delta) + (1 - q) l(-delta)        q = 1/2 for ties, else from the label smoothing

and ``bco_pair``, which sees both sides apart, costs ``q softplus(-a) + (1 - q) softplus(a)`` for
each of ``a = beta * chosen_ratio - shift`` and ``a = -(beta * rejected_ratio - shift)``.
"""

import triton.language as tl

from mmrlhf_kernels.triton_settings import jit

__all__ = ["logistic", "pair_cost", "softplus"]


@jit
def softplus(x: tl.tensor) -> tl.tensor:
    """``log(1 + exp(x))`` without overflow, and without losing the far tail.

    ``log(1 + e)`` forgets an e below 6e-8; multiplying by ``e / ((1 + e) - 1)`` puts it back.
    """
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    kept = one_more - 1.0
    scaled = tl.log(one_more) * (small / tl.where(kept == 0.0, 1.0, kept))
    return tl.maximum(x, 0.0) + tl.where(kept == 0.0, small, scaled)


@jit
def logistic(x: tl.tensor) -> tl.tensor:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@jit
def _sure_loss(delta: tl.tensor, beta: tl.tensor, LOSS_TYPE: tl.constexpr) -> tl.tuple:
    """(l(delta), dl/ddelta) where the label is sure; ``robust`` shares the loss of ``sigmoid``."""
    x = beta * delta
    if LOSS_TYPE == "ipo":
        distance = delta - 0.5 / beta
        loss = distance * distance
        slope = 2.0 * distance
    elif LOSS_TYPE == "hinge":
        loss = tl.maximum(1.0 - x, 0.0)
        slope = tl.where(x < 1.0, -beta, 0.0)
    else:
        loss = softplus(-x)
        slope = -beta * logistic(-x)
    return loss, slope


@jit
def _side_cost(argument: tl.tensor, probability: tl.tensor) -> tl.tuple:
    """(cost, d cost / d argument) of one side of ``bco_pair``."""
    cost = probability * softplus(-argument) + (1.0 - probability) * softplus(argument)
    return cost, logistic(argument) - probability


@jit
def pair_cost(
    pairs: tl.tuple, place: tl.tensor, chosen: tl.tensor, rejected: tl.tensor, beta: tl.tensor,
    LOSS_TYPE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(loss, d loss / d chosen, d loss / d rejected) from the two log-ratios."""
    mask = place < pairs.count
    probability = tl.zeros_like(chosen) + pairs.probability
    if pairs.tie is not None:
        tie = tl.load(pairs.tie + place, mask=mask, other=0)
        probability = tl.where(tie != 0, 0.5, probability)
    if LOSS_TYPE == "bco_pair":
        good, good_slope = _side_cost(beta * chosen - pairs.shift, probability)
        bad, bad_slope = _side_cost(pairs.shift - beta * rejected, probability)
        loss = good + bad
        up = beta * good_slope
        down = -beta * bad_slope
    else:
        delta = chosen - rejected
        ahead, ahead_slope = _sure_loss(delta, beta, LOSS_TYPE)
        behind, behind_slope = _sure_loss(-delta, beta, LOSS_TYPE)
        loss = probability * ahead + (1.0 - probability) * behind
        up = probability * ahead_slope - (1.0 - probability) * behind_slope
        down = -up
    if pairs.weight is not None:
        weight = tl.load(pairs.weight + place, mask=mask, other=0.0)
        loss *= weight
        up *= weight
        down *= weight
    return loss, up, down
