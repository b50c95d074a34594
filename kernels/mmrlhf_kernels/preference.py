"""MM-DPO and related losses of summed log-probabilities, with one beta for each pair.

The objective over P pairs is

    L = 1/num_pairs sum_j weight_j l_j  +  sft_weight * L_sft

with the pair losses ``l_j``, ties and label smoothing of :mod:`mmrlhf_kernels.reference`, and

    L_sft = -1/num_tokens sum_j S_c,j                   sft="token", the mean over chosen tokens
    L_sft = -1/num_pairs  sum_j S_c,j / max(1, n_j)     sft="sequence"

Neither ``weight`` nor ``tie`` touches the supervised term. ``ipo`` is meant for log-probabilities
averaged over tokens; pass those if that is wanted. Its gradient is one number per sequence,

    dL/dS_c,j = weight_j/num_pairs dl_j/dS_c,j - sft_weight / num_tokens
    dL/dS_r,j = weight_j/num_pairs dl_j/dS_r,j

which :func:`pair_gradients` states and the backward pass uses. The columns and options are

================== ================================================================================
ref_chosen_logps   [P] summed log-probabilities of the chosen answers under the reference model
ref_rejected_logps [P] the same of the rejected answers
beta               a number, or [P]; any other shape raises, nothing is broadcast
loss_type          ``sigmoid``, ``ipo``, ``hinge``, ``robust`` or ``bco_pair``, as in TRL
label_smoothing    probability that a label is flipped, in [0, 1/2)
tie                [P] bool: the label of such a pair is a fair coin
weight             [P] factor of each pair's loss
sft_weight         factor of the supervised term (the released MM-RLHF script uses 0.25)
chosen_tokens      [P] number n_j of tokens of each chosen answer; the supervised term needs it
sft                ``token`` or ``sequence``
reward_shift       shift of ``bco_pair``, the running mean of the rewards
num_pairs          what the means over pairs are taken over: a number or a scalar tensor on the
                   device, which is not read by the host; None: P
num_tokens         the same for the mean over chosen tokens; None: ``sum_j n_j``
================== ================================================================================

``num_pairs`` and ``num_tokens`` are for pairs that are a part of a larger batch: one of the packs
of a step, or those of one rank. With the numbers of the whole batch, the losses of its parts sum up
to the loss of the whole, and so do the gradients; the supervised term by token needs ``num_tokens``
for that, all else ``num_pairs``. Where gradients are averaged over ranks instead, pass the numbers
divided by the number of ranks. For a weighted mean, ``num_pairs`` is the sum of the weights. Both
are positive; a 0 counts as 1, so that no pairs, or no tokens, cost 0.

All arithmetic is float32, or float64 for float64 log-probabilities; results stay finite at
saturated margins because every logistic is taken in its stable form.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmrlhf_kernels import reference
from mmrlhf_kernels.checks import check_pairs
from mmrlhf_kernels.pair import (
    Columns,
    Evaluation,
    Objective,
    Totals,
    evaluate,
    scalar_of,
    totals_of,
)
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.registry import Context

__all__ = [
    "BETA_RULES",
    "MMDPOOutput",
    "dynamic_beta",
    "mm_dpo_loss",
    "pair_gradients",
    "released_beta",
]

BETA_RULES = ("fixed", "released")


class MMDPOOutput(NamedTuple):
    """The loss, and what a trainer logs. Only ``loss`` carries a gradient."""

    loss: Tensor
    """Scalar, preference part plus ``sft_weight`` times supervised part."""
    preference_loss: Tensor
    """Scalar, the sum of the weighted pair losses divided by ``num_pairs``."""
    sft_loss: Tensor
    """Scalar before its factor; 0 where ``sft_weight`` is 0."""
    chosen_rewards: Tensor
    """[P] ``beta (S_c - ref_c)``."""
    rejected_rewards: Tensor
    """[P] ``beta (S_r - ref_r)``."""
    margins: Tensor
    """[P] chosen minus rejected rewards."""
    accuracies: Tensor
    """[P] 1 where the margin is positive, else 0; 1/2 for ties."""
    chosen_logp: Tensor
    """[P] S_c."""
    rejected_logp: Tensor
    """[P] S_r."""
    beta: Tensor
    """[P] the beta that was used."""
    beta_mean: Tensor
    """Scalar."""
    beta_min: Tensor
    """Scalar."""
    beta_max: Tensor
    """Scalar."""


def dynamic_beta(margin: Tensor, beta: float, w: float = 0.5, k: float = 0.5) -> Tensor:
    """MM-DPO's beta of each pair: ``beta (1 + w (1 - exp(-k margin)))`` in [beta, (1 + w) beta].

    The map of MM-RLHF (arXiv 2502.10391, section 4) with the bounds the paper states for it: a pair
    whose margin is negative keeps ``beta``.

    Args:
        margin: [P] reward of the chosen answer minus reward of the rejected one.
        beta: The paper's beta_ori, above 0.
        w: Largest relative increase, at least 0.
        k: How fast it is reached, at least 0.

    Returns:
        [P] float64 for a float64 margin, float32 for any other.

    Raises:
        ValueError: ``margin`` is not [P], or a number is out of its range.
    """
    if margin.dim() != 1:
        raise ValueError(f"margin has shape {tuple(margin.shape)}; expected [P]")
    if not (beta > 0 and w >= 0 and k >= 0):
        raise ValueError(f"beta {beta}, w {w}, k {k}; expected beta > 0, w >= 0 and k >= 0")
    return reference.dynamic_beta(margin, beta, w, k)


def released_beta(
    delta: Tensor,
    beta: float,
    *,
    weight: float = 0.1,
    share: float = 0.8,
    floor: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One beta for a whole batch, as the code released with MM-RLHF computes it.

    With ``A`` the implicit gaps ``delta`` of the batch (gathered over all ranks there),
    ``p_j = exp(-((A_j - mean A) / (std A + 1e-7))^2 / 2)`` and S a draw of ``int(share * M)`` of
    them from p without replacement: ``max(floor, beta (1 + weight (mean A[S] - mean A)))``. This is
    not the map the paper prints; it is here so that the two can be compared.

    Args:
        delta: [M] gaps, all ranks'; M at least 2.
        beta: The base value.
        weight: ``ls_factor_weight`` of the released script.
        share: Share of the gaps that is drawn.
        floor: Smallest beta.
        generator: Source of the draw, on the device of ``delta``.

    Returns:
        A scalar without gradient.

    Raises:
        ValueError: Fewer than two gaps: their standard deviation does not exist.
    """
    gaps = delta.detach()
    count = int(share * gaps.numel())
    if gaps.dim() != 1 or count < 1:
        raise ValueError(
            f"the released beta rule got gaps of shape {tuple(gaps.shape)}; expected [M], M >= 2"
        )
    distance = (gaps - gaps.mean()) / (gaps.std() + 1e-7)
    drawn = torch.multinomial(torch.exp(-0.5 * distance.square()), count, generator=generator)
    return (beta * (1.0 + weight * (gaps[drawn].mean() - gaps.mean()))).clamp(min=floor)


def pair_gradients(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    *,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    weight: Tensor | None = None,
    sft_weight: float = 0.0,
    chosen_tokens: Tensor | None = None,
    sft: str = "token",
    reward_shift: float = 0.0,
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the whole objective with respect to S_c and S_r, in closed form.

    Arguments as listed in the module docstring.

    Returns:
        (dL/dS_c [P], dL/dS_r [P]), float32 or float64.

    Raises:
        ValueError: A shape or an option does not fit.
    """
    objective = Objective(loss_type, label_smoothing, sft_weight, sft, reward_shift)
    columns = columns_of(
        chosen_logp, ref_chosen_logps, ref_rejected_logps, beta, tie, weight, chosen_tokens
    )
    totals = _totals_of(columns, objective, num_pairs, num_tokens)
    found = evaluate(chosen_logp, rejected_logp, columns, objective, totals)
    return found.chosen_gradient, found.rejected_gradient


def mm_dpo_loss(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    *,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    weight: Tensor | None = None,
    sft_weight: float = 0.0,
    chosen_tokens: Tensor | None = None,
    sft: str = "token",
    reward_shift: float = 0.0,
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
    beta_rule: str = "fixed",
    generator: torch.Generator | None = None,
) -> MMDPOOutput:
    """MM-DPO from summed log-probabilities S_c and S_r, both [P], differentiable in both.

    Arguments as listed in the module docstring. ``beta_rule="fixed"`` uses ``beta`` as it is
    (:func:`dynamic_beta` makes the paper's); ``"released"`` takes a number and replaces it by
    :func:`released_beta` of the pairs at hand, drawn with ``generator``.

    Raises:
        ValueError: A shape or an option does not fit.
    """
    objective = Objective(loss_type, label_smoothing, sft_weight, sft, reward_shift)
    columns = columns_of(
        chosen_logp, ref_chosen_logps, ref_rejected_logps, beta, tie, weight, chosen_tokens
    )
    check_rule(beta_rule, beta)
    if beta_rule == "released":
        columns = _with_released_beta(chosen_logp, rejected_logp, columns, beta, generator)
    totals = _totals_of(columns, objective, num_pairs, num_tokens)
    found = evaluate(chosen_logp, rejected_logp, columns, objective, totals)
    total: Tensor = _PrecomputedGradient.apply(
        chosen_logp, rejected_logp, found.loss, found.chosen_gradient, found.rejected_gradient
    )
    return output_of(total, chosen_logp, rejected_logp, columns, found)


def _totals_of(
    columns: Columns,
    objective: Objective,
    num_pairs: float | Tensor | None,
    num_tokens: float | Tensor | None,
) -> Totals:
    """The divisors of the means, from the arguments of a user."""
    like = columns.beta
    counts = scalar_of("num_pairs", num_pairs, like), scalar_of("num_tokens", num_tokens, like)
    return totals_of(columns, objective, *counts)


def _with_released_beta(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    columns: Columns,
    beta: float | Tensor,
    generator: torch.Generator | None,
) -> Columns:
    """The columns with every beta replaced by the batch's; ``beta`` is one number."""
    chosen, rejected = columns.ratios(chosen_logp, rejected_logp)
    batch = released_beta(chosen - rejected, float(beta), generator=generator)
    return columns._replace(beta=batch.expand_as(columns.beta).contiguous())


class _PrecomputedGradientContext(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    dtypes: tuple[torch.dtype, torch.dtype]


class _PrecomputedGradient(torch.autograd.Function):
    """A loss whose gradient is known: backward multiplies it by the incoming scalar."""

    @staticmethod
    def forward(
        ctx: _PrecomputedGradientContext,
        chosen: Tensor,
        rejected: Tensor,
        loss: Tensor,
        of_chosen: Tensor,
        of_other: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(of_chosen, of_other)
        ctx.dtypes = chosen.dtype, rejected.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx: _PrecomputedGradientContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        chosen, rejected = ctx.saved_tensors
        first, second = ctx.dtypes
        return (grad * chosen).to(first), (grad * rejected).to(second), None, None, None


def check_rule(beta_rule: str, beta: float | Tensor) -> None:
    """Raise unless the rule is known and beta fits it.

    Raises:
        ValueError: The rule is unknown, or it is ``released`` and beta is not one number.
    """
    if beta_rule not in BETA_RULES:
        raise ValueError(
            f"unknown beta_rule {beta_rule!r}; expected one of {', '.join(BETA_RULES)}"
        )
    if beta_rule == "released" and isinstance(beta, Tensor):
        raise ValueError(
            f"beta_rule 'released' takes one number as beta; got shape {tuple(beta.shape)}"
        )


def columns_of(
    like: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    tie: Tensor | None,
    weight: Tensor | None,
    chosen_tokens: Tensor | None,
) -> Columns:
    """Check the columns against ``like`` [P] and bring them to its precision.

    Raises:
        TypeError: ``tie`` is not bool.
        ValueError: A column is not [P], or beta wants a gradient or is not above 0.
    """
    if like.dim() != 1:
        raise ValueError(f"chosen_logp has shape {tuple(like.shape)}; expected [P]")
    dtype = statistics_dtype(like.dtype)
    if not isinstance(beta, Tensor):
        if not beta > 0:
            raise ValueError(f"beta is {beta}; expected a number above 0")
        beta = torch.full((like.shape[0],), float(beta), dtype=dtype, device=like.device)
    if beta.requires_grad:
        raise ValueError("beta requires a gradient; it is data here, pass beta.detach()")
    columns = Columns(ref_chosen_logps, ref_rejected_logps, beta, tie, weight, chosen_tokens)
    check_pairs(like.shape[0], like.device, **dict(zip(Columns._fields, columns, strict=True)))
    if tie is not None and tie.dtype != torch.bool:
        raise TypeError(f"tie is {tie.dtype}; expected torch.bool")
    return columns.map(lambda c: c if c is tie else c.detach().to(dtype))


def output_of(
    total: Tensor, chosen_logp: Tensor, rejected_logp: Tensor, columns: Columns, found: Evaluation
) -> MMDPOOutput:
    """The loss with rewards, margins and the other logged values."""
    beta = columns.beta
    chosen, rejected = columns.ratios(chosen_logp, rejected_logp)
    margins = beta * chosen - beta * rejected
    accuracies = (margins > 0).to(margins.dtype)
    if columns.tie is not None:
        accuracies = accuracies.masked_fill(columns.tie, 0.5)
    spread = [beta.mean(), beta.amin(), beta.amax()] if beta.numel() else [total.detach() * 0] * 3
    return MMDPOOutput(
        total, found.preference_loss, found.sft_loss, beta * chosen, beta * rejected, margins,
        accuracies, chosen_logp.detach(), rejected_logp.detach(), beta, *spread,
    )  # fmt: skip
