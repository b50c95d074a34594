"""MM-DPO and related losses of summed log-probabilities, with one beta for each pair.

The objective over P pairs is

    L = 1/num_pairs sum_j weight_j l_j  +  sft_weight * L_sft

with the pair losses ``l_j``, ties and label smoothing of :mod:`mmrlhf_kernels.reference`, and

    L_sft = -1/num_tokens sum_j S_c,j                   sft="token", the mean over chosen tokens
    L_sft = -1/num_pairs  sum_j S_c,j / max(1, n_j)     sft="sequence"

Neither ``weight`` nor ``tie`` touches the supervised term, which takes sums. ``ipo`` and ``simpo``
are meant for log-probabilities averaged over tokens: :func:`mm_dpo_loss_from_rows` with
``average=True`` gives its pair losses means and the supervised term sums. Means passed to
:func:`mm_dpo_loss` are what that term would take for sums. The gradient is
one number per sequence,

    dL/dS_c,j = weight_j/num_pairs dl_j/dS_c,j - sft_weight / num_tokens
    dL/dS_r,j = weight_j/num_pairs dl_j/dS_r,j

which :func:`pair_gradients` states and the backward pass uses. The columns and options are

================== ================================================================================
ref_chosen_logps   [P] summed log-probabilities of the chosen answers under the reference model
ref_rejected_logps [P] the same of the rejected answers
beta               a number, or [P]; any other shape raises, nothing is broadcast
margin             [P] reward margins: the betas are then :func:`dynamic_beta` of them, with the
                   number ``beta``, ``w`` and ``k``
loss_type          ``sigmoid``, ``ipo``, ``hinge``, ``robust``, ``exo_pair``, ``simpo``,
                   ``bco_pair``, ``kto_pair``, ``apo_zero``, ``apo_down`` or ``sppo_hard``, named
                   and defined as in TRL
label_smoothing    probability that a label is flipped, in [0, 1/2)
tie                [P] bool: the label of such a pair is a fair coin
weight             [P] factor of each pair's loss
sft_weight         factor of the supervised term (the released MM-RLHF script uses 0.25)
chosen_tokens      [P] number n_j of tokens of each chosen answer; the supervised term needs it
sft                ``token`` or ``sequence``
reward_shift       what is subtracted from rewards: the running mean of the rewards for
                   ``bco_pair``, beta times the KL estimate for ``kto_pair``, gamma for ``simpo``;
                   the other losses do not read it
num_pairs          what the means over pairs are taken over: a number or a scalar tensor on the
                   device, which is not read by the host; None: P
num_tokens         the same for the mean over chosen tokens; None: ``sum_j n_j``
================== ================================================================================

``num_pairs`` and ``num_tokens`` are for pairs that are a part of a larger batch: one of the packs
of a step, or those of one rank. With the numbers of the whole batch, the losses of its parts sum up
to the loss of the whole, and so do the gradients; the supervised term by token needs both numbers
for that, all else ``num_pairs``. Where gradients are averaged over ranks instead, pass the numbers
divided by the number of ranks. For a weighted mean of the pair losses, ``num_pairs`` is the sum of
the weights, which under ``sft="sequence"`` divides the supervised term too. A 0 counts as 1, so
that no pairs, or no tokens, cost 0; a plain 0 for pairs without weights raises.

All arithmetic is float32, or float64 for float64 log-probabilities; results stay finite at
saturated margins because every logistic is taken in its stable form. On a GPU a call is one launch,
the kernel of :mod:`mmrlhf_kernels.mm_dpo_kernel`, and reads nothing back. Entries of columns are
therefore checked on the CPU alone: betas above 0, weights and tokens not negative, margins and
references no NaN, two answers to a pair.
"""

from typing import Any, Unpack

import torch
from torch import Tensor

from mmrlhf_kernels import reference
from mmrlhf_kernels.checks import check_integers, check_tensor
from mmrlhf_kernels.mm_dpo_plain import (
    CHOSEN_LOGP,
    REJECTED_LOGP,
    MMDPOOutput,
    Numbers,
    PairCall,
    output_of,
)
from mmrlhf_kernels.pair import (
    Beta,
    Logp,
    LossOptions,
    call_of,
    check_map,
    check_margin,
    check_names,
    check_rule,
    pair_objective,
)

__all__ = [
    "LossOptions",
    "MMDPOOutput",
    "dynamic_beta",
    "mm_dpo_loss",
    "mm_dpo_loss_from_rows",
    "pair_gradients",
    "released_beta",
]


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
        TypeError: ``margin`` is no tensor.
        ValueError: ``margin`` is not [P], a margin on the CPU is NaN, or a number is out of its
            range.
    """
    check_tensor("margin", margin, "[P]")
    if margin.dim() != 1:
        raise ValueError(f"margin has shape {tuple(margin.shape)}; expected [P]")
    check_map(beta, w, k)
    check_margin(margin)
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
    margin: Tensor | None = None,
    w: float = 0.5,
    k: float = 0.5,
    **options: Unpack[LossOptions],
) -> tuple[Tensor, Tensor]:
    """Gradient of the whole objective with respect to S_c and S_r, in closed form.

    Arguments as listed in the module docstring.

    Returns:
        (dL/dS_c [P], dL/dS_r [P]), float32 or float64.

    Raises:
        ValueError: A shape or an option does not fit.
    """
    check_names("pair_gradients", options)
    check_tensor("rejected_logp", rejected_logp, "[P]")
    logp, rule = Logp(chosen_logp, rejected_logp), Beta(beta, margin, w, k)
    call = call_of(logp, (ref_chosen_logps, ref_rejected_logps), rule, **options)
    call = call._replace(logp=chosen_logp.detach(), rejected_logp=rejected_logp.detach())
    of_chosen, of_rejected = pair_objective(*call)[3].unbind()
    return of_chosen, of_rejected


def mm_dpo_loss(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    *,
    margin: Tensor | None = None,
    w: float = 0.5,
    k: float = 0.5,
    beta_rule: str = "fixed",
    generator: torch.Generator | None = None,
    **options: Unpack[LossOptions],
) -> MMDPOOutput:
    """MM-DPO from summed log-probabilities S_c and S_r, both [P], differentiable in both.

    Arguments as listed in the module docstring. ``beta_rule="fixed"`` uses ``beta`` as it is
    (``margin``, or :func:`dynamic_beta`, makes the paper's); ``"released"`` takes a number and
    replaces it by :func:`released_beta` of the pairs at hand, at least two, whatever ``num_pairs``
    is, drawn with ``generator``: with torch's global one where it is None.

    Raises:
        TypeError: A column is no tensor, or ``tie`` is not bool.
        ValueError: A shape, an option or an entry does not fit.
    """
    check_names("mm_dpo_loss", options)
    check_tensor("rejected_logp", rejected_logp, "[P]")
    check_rule(beta_rule, beta, margin)
    rule, logp = Beta(beta, margin, w, k), Logp(chosen_logp, rejected_logp)
    call = call_of(logp, (ref_chosen_logps, ref_rejected_logps), rule, **options)
    return differentiable(call, beta_rule, generator)._replace(
        chosen_logp=chosen_logp.detach(), rejected_logp=rejected_logp.detach()
    )


def mm_dpo_loss_from_rows(
    logp: Tensor,
    cu_seqlens: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    *,
    margin: Tensor | None = None,
    w: float = 0.5,
    k: float = 0.5,
    pair_index: Tensor | None = None,
    average: bool = False,
    **options: Unpack[LossOptions],
) -> MMDPOOutput:
    """MM-DPO from the log-probability of each row, differentiable in it; on a GPU in one launch.

    Columns and options as listed in the module docstring. The tokens of each chosen answer are its
    rows unless ``chosen_tokens`` says otherwise: rows whose target was ignored have log-probability
    0 and are counted nevertheless, in the means of ``average`` too. Leave them out of ``logp`` and
    of the bounds.

    Args:
        logp: [N] log-probabilities, as :func:`fused_linear_logp` gives them.
        cu_seqlens: [S + 1] int32 or int64 bounds of the S answers within the rows.
        ref_chosen_logps: [P].
        ref_rejected_logps: [P].
        beta: A number, or [P] without ``margin``.
        margin: [P] reward margins, or None.
        w: See :func:`dynamic_beta`.
        k: See :func:`dynamic_beta`.
        pair_index: [P, 2] int32 or int64, (chosen, rejected) answers of each pair; an answer may
            belong to several pairs or to none. None: S = 2 P, chosen answers first.
        average: Whether the pair losses see the mean over an answer's rows instead of its sum, as
            ``ipo`` and ``simpo`` ask; the reference's columns are then means too.
        options: See :class:`LossOptions`.

    Returns:
        The loss and what is logged; ``chosen_logp`` and ``rejected_logp`` are sums.

    Raises:
        IndexError: ``pair_index`` names an answer that does not exist.
        TypeError: An argument is no tensor, or a dtype does not fit.
        ValueError: A shape, a bound, an option or an entry does not fit. On a GPU neither bounds
            nor answers are read by the host: loss and gradients are NaN where they do not fit.
    """
    check_names("mm_dpo_loss_from_rows", options)
    check_integers("cu_seqlens", cu_seqlens, "[S + 1]")
    found = Logp(logp, None, cu_seqlens, pair_index, average)
    rule = Beta(beta, margin, w, k)
    call = call_of(found, (ref_chosen_logps, ref_rejected_logps), rule, **options)
    return differentiable(call)


def _with_released_beta(call: PairCall, generator: torch.Generator | None) -> PairCall:
    """The call with every beta replaced by the batch's."""
    sums = pair_objective(*call._replace(logp=call.logp.detach()))[2]
    chosen = sums[CHOSEN_LOGP] - call.ref_chosen_logps.to(sums.dtype)
    rejected = sums[REJECTED_LOGP] - call.ref_rejected_logps.to(sums.dtype)
    base = Numbers._make(call.numbers).beta
    beta = released_beta(chosen - rejected, base, generator=generator)
    return call._replace(beta=beta.expand_as(chosen).contiguous())


def differentiable(
    call: PairCall, beta_rule: str = "fixed", generator: torch.Generator | None = None
) -> MMDPOOutput:
    """The loss, attached to the log-probabilities, and what is logged."""
    if beta_rule == "released":
        call = _with_released_beta(call, generator)
    return output_of(*_PairObjective.apply(*call))


class _PairObjective(torch.autograd.Function):
    """The objective with its gradient taken along: backward multiplies it by the scalar."""

    @staticmethod
    def forward(
        ctx: Any, logp: Tensor, rejected_logp: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, figures, columns, gradient = pair_objective(logp, rejected_logp, *rest)
        ctx.save_for_backward(gradient)
        ctx.dtypes = logp.dtype, None if rejected_logp is None else rejected_logp.dtype
        ctx.operands = len(rest)
        ctx.mark_non_differentiable(figures, columns)
        ctx.set_materialize_grads(False)
        return loss, figures, columns

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
        nothing = (None,) * ctx.operands
        if grad is None:
            return (None, None, *nothing)
        scaled = grad * ctx.saved_tensors[0]
        first, second = ctx.dtypes
        if second is None:
            return (scaled.to(first), None, *nothing)
        return (scaled[0].to(first), scaled[1].to(second), *nothing)
