"""What one pair costs and how the cost changes, as device functions of the MM-DPO kernel.

Names and formulas are those of :mod:`mmrlhf_kernels.reference`: a pair whose label holds with
probability q costs ``q l(chosen, rejected) + (1 - q) l(rejected, chosen)``, except under
``exo_pair``, whose target is the label's probability itself.
"""

import triton.language as tl

from mmrlhf_kernels.triton_settings import jit

__all__ = ["pair_cost"]


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
def _of_difference(
    delta: tl.tensor, beta: tl.tensor, shift: tl.tensor, FORM: tl.constexpr
) -> tl.tuple:
    """(l, dl/ddelta) of the losses that see a pair through its difference alone."""
    x = beta * delta
    if FORM.loss_type == "ipo":
        distance = delta - 0.5 / beta
        loss = distance * distance
        slope = 2.0 * distance
    elif FORM.loss_type == "hinge":
        loss = tl.maximum(1.0 - x, 0.0)
        slope = tl.where(x < 1.0, -beta, 0.0)
    else:
        if FORM.loss_type == "simpo":
            x -= shift
        loss = softplus(-x)
        slope = -beta * logistic(-x)
    return loss, slope


@jit
def _of_both_sides(
    chosen: tl.tensor, rejected: tl.tensor, beta: tl.tensor, shift: tl.tensor,
    FORM: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(l, dl/dchosen, dl/drejected) of the other losses."""
    if FORM.loss_type == "sppo_hard":
        good = chosen - 0.5 / beta
        bad = rejected + 0.5 / beta
        loss = good * good + bad * bad
        up = 2.0 * good
        down = 2.0 * bad
    elif FORM.loss_type == "bco_pair":
        good = beta * chosen - shift
        bad = beta * rejected - shift
        loss = softplus(-good) + softplus(bad)
        up = -beta * logistic(-good)
        down = beta * logistic(bad)
    elif FORM.loss_type == "apo_down":
        good = beta * chosen
        lead = beta * (chosen - rejected)
        loss = logistic(good) + logistic(-lead)
        down = beta * logistic(lead) * logistic(-lead)
        up = beta * logistic(good) * logistic(-good) - down
    else:
        good = beta * chosen
        bad = beta * rejected
        if FORM.loss_type == "kto_pair":
            good -= shift
            bad -= shift
        loss = logistic(-good) + logistic(bad)
        up = -beta * logistic(good) * logistic(-good)
        down = beta * logistic(bad) * logistic(-bad)
    return loss, up, down


@jit
def pair_cost(
    chosen: tl.tensor, rejected: tl.tensor, beta: tl.tensor, shift: tl.tensor, holds: tl.tensor,
    fails: tl.tensor, FORM: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(loss, d loss / d chosen, d loss / d rejected) of pairs from their two log-ratios.

    ``FORM`` is that of :mod:`mmrlhf_kernels.mm_dpo_kernel`. ``holds`` and ``fails`` are q and
    1 - q: a small 1 - q is lost in float32 once q is formed.
    """
    if FORM.two_sided:
        ahead, up, down = _of_both_sides(chosen, rejected, beta, shift, FORM)
        behind, turned_down, turned_up = _of_both_sides(rejected, chosen, beta, shift, FORM)
        loss = holds * ahead + fails * behind
        up = holds * up + fails * turned_up
        down = holds * down + fails * turned_down
    elif FORM.loss_type == "exo_pair":
        x = beta * (chosen - rejected)
        wins = logistic(x)
        loses = logistic(-x)
        log_holds = tl.log(holds)
        log_fails = tl.log(fails)
        loss = wins * (-softplus(-x) - log_holds) + loses * (-softplus(x) - log_fails)
        up = beta * wins * loses * (x - log_holds + log_fails)
        down = -up
    else:
        delta = chosen - rejected
        ahead, slope_ahead = _of_difference(delta, beta, shift, FORM)
        behind, slope_behind = _of_difference(-delta, beta, shift, FORM)
        loss = holds * ahead + fails * behind
        up = holds * slope_ahead - fails * slope_behind
        down = -up
    return loss, up, down
