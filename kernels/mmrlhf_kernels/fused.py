"""Hidden states to the MM-DPO loss, with all gradients taken in the forward pass.

:func:`fused_linear_mm_dpo` is for the usual case in which the loss is the only consumer of the
log-probabilities: the products of the backward pass then run as soon as a pair's own logits have
been seen, and the head's weight is needed once. It takes

=================== ===============================================================================
hidden              [N, H] rows of all answers; prompt rows are better left out, at least ignored
weight, target,     as in :mod:`mmrlhf_kernels.linear_logp`; ``ignore_index`` rows cost no product
bias, softcap,
logit_scale,
ignore_index
cu_seqlens          [S + 1] bounds of the S answers within the rows, or
sequence_of_row     [N] int64, the answer of each row; exactly one of the two is given
pair_index          [P, 2] int64, (chosen, rejected) answers of each pair; one answer may belong to
                    several pairs. None: S = 2 P, all chosen answers first, then all rejected ones
                    in the same order
ref_chosen_logps,   [P], as in :mod:`mmrlhf_kernels.preference`, with ``loss_type``,
ref_rejected_logps, ``label_smoothing``, ``tie``, ``sft_weight``, ``sft``, ``reward_shift``,
beta                ``num_pairs``, ``num_tokens`` and ``beta_rule``
pair_weight         [P], called ``weight`` there
schedule            ``keep``, ``recompute``, ``frozen``, ``one_sum`` or ``two_sums``, as listed in
                    :mod:`mmrlhf_kernels.pair_plan`; None: ``plan_pair_schedule``
workspace_bytes     bound of the memory beyond inputs, outputs and gradients; None:
                    ``default_pair_workspace`` there
=================== ===============================================================================

The tokens of each chosen answer, which the supervised term needs, are counted here. In eager mode
the gradients are passed to autograd and not kept: a second backward pass through the same loss
raises, and checkpointing would save nothing, as nothing is stored but gradients. The upstream
scalar multiplies them in place.

Where no gradient is wanted, or ``beta_rule`` is ``released`` (which needs the whole batch before it
knows any beta), the loss is put together from ``fused_linear_logp`` and ``mm_dpo_loss`` instead.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_head, check_shape, under_autocast
from mmrlhf_kernels.context import Context
from mmrlhf_kernels.linear_logp import fused_linear_logp
from mmrlhf_kernels.pair import Objective, evaluate, scalar_of, totals_of
from mmrlhf_kernels.pair_arguments import check_rule, columns_of
from mmrlhf_kernels.pair_operator import linear_mm_dpo
from mmrlhf_kernels.pair_plan import PAIR_SCHEDULES
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.preference import MMDPOOutput, mm_dpo_loss, output_of
from mmrlhf_kernels.rows import sequence_of_row as rows_to_sequences
from mmrlhf_kernels.rows import sequence_sums

__all__ = ["fused_linear_mm_dpo"]


class _Rows(NamedTuple):
    """The rows of one call, the answers they belong to, and the answers of each pair."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    sequence: Tensor
    sequences: int
    chosen: Tensor
    rejected: Tensor

    def needs(self) -> list[bool]:
        """Which of hidden, weight and bias need a gradient."""
        return [
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
            for tensor in self[:3]
        ]


class _Head(NamedTuple):
    """Options of the head, in the order of the operator."""

    softcap: float | None
    logit_scale: float
    ignore_index: int


def fused_linear_mm_dpo(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    sequence_of_row: Tensor | None = None,
    pair_index: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    pair_weight: Tensor | None = None,
    sft_weight: float = 0.0,
    sft: str = "token",
    reward_shift: float = 0.0,
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
    beta_rule: str = "fixed",
    schedule: str | None = None,
    workspace_bytes: int | None = None,
) -> MMDPOOutput:
    """MM-DPO of P pairs from hidden states; arguments as listed in the module docstring.

    Raises:
        IndexError: A target, answer or row lies outside its range.
        TypeError: A dtype does not fit.
        ValueError: A shape, an option or the schedule does not fit.
    """
    layout = cu_seqlens, sequence_of_row, pair_index
    rows = _rows_of(hidden, weight, target, bias, layout, ref_chosen_logps)
    head = _Head(softcap, logit_scale, ignore_index)
    objective = Objective(loss_type, label_smoothing, sft_weight, sft, reward_shift)
    pairs = (ref_chosen_logps, ref_rejected_logps, beta, tie, pair_weight)
    counts = scalar_of("num_pairs", num_pairs, hidden), scalar_of("num_tokens", num_tokens, hidden)
    return _run(rows, head, objective, pairs, counts, beta_rule, schedule, workspace_bytes)


def _rows_of(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    layout: tuple[Tensor | None, Tensor | None, Tensor | None],
    ref_chosen_logps: Tensor,
) -> _Rows:
    """Cast as autocast would, check, and find the answers of rows and pairs."""
    states, head, offset = under_autocast(hidden, weight, bias)
    assert states is not None
    assert head is not None
    check_head(states, head, target, offset)
    if ref_chosen_logps.dim() != 1:
        raise ValueError(
            f"ref_chosen_logps has shape {tuple(ref_chosen_logps.shape)}; expected [P]"
        )
    pairs = ref_chosen_logps.shape[0]
    cu_seqlens, sequence, pair_index = layout
    if cu_seqlens is not None and sequence is None:
        sequences = cu_seqlens.numel() - 1
        sequence = rows_to_sequences(cu_seqlens, states.shape[0])
    elif sequence is not None and cu_seqlens is None:
        check_shape("sequence_of_row", sequence, (states.shape[0],))
        sequences = 2 * pairs if pair_index is None else _answers_of(pair_index, sequence)
    else:
        raise ValueError("expected exactly one of cu_seqlens and sequence_of_row")
    chosen, rejected = _pairs_of(pair_index, pairs, sequences, states.device)
    return _Rows(states, head, offset, target, sequence, sequences, chosen, rejected)


def _answers_of(pair_index: Tensor, sequence: Tensor) -> int:
    """The number of answers that pairs or rows name; 0 where there are neither."""
    named = torch.cat([pair_index.flatten(), sequence])
    return int(named.max()) + 1 if named.numel() else 0


def _pairs_of(
    pair_index: Tensor | None, pairs: int, sequences: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(chosen [P], rejected [P]) as answers.

    Raises:
        ValueError: The number of answers or the shape of ``pair_index`` does not fit.
    """
    if pair_index is not None:
        check_shape("pair_index", pair_index, (pairs, 2))
        return pair_index[:, 0].contiguous(), pair_index[:, 1].contiguous()
    if sequences != 2 * pairs:
        raise ValueError(
            f"{sequences} answers for {pairs} pairs; expected {2 * pairs}, all chosen ones first "
            "(or a pair_index)"
        )
    both = torch.arange(sequences, device=device)
    return both[:pairs].clone(), both[pairs:].clone()


def _run(
    rows: _Rows,
    head: _Head,
    objective: Objective,
    pairs: tuple[Tensor, Tensor, float | Tensor, Tensor | None, Tensor | None],
    counts: tuple[Tensor | None, Tensor | None],
    beta_rule: str,
    schedule: str | None,
    workspace_bytes: int | None,
) -> MMDPOOutput:
    """Loss and gradients by the operator, then the figures of a trainer from the sums."""
    needs = rows.needs()
    objective.check(counted=True)
    check_rule(beta_rule, pairs[2])
    _check_schedule(schedule, needs)
    if not any(needs) or beta_rule == "released" or dispatch.choose(rows.hidden) == "reference":
        return _compose(rows, head, objective, pairs, counts, beta_rule, workspace_bytes)
    like = rows.hidden.new_empty(rows.chosen.shape[0], dtype=statistics_dtype(rows.hidden.dtype))
    columns = columns_of(like, *pairs, chosen_tokens=None)
    numbers = [objective.label_smoothing, objective.sft_weight, objective.reward_shift]
    bias = None if rows.bias is None else rows.bias.detach()
    logp, tokens, *gradients = linear_mm_dpo(
        rows.hidden.detach(), rows.weight.detach(), bias, *rows[3:],
        [c for c in columns if c is not None], [c is not None for c in columns],
        objective.loss_type, objective.sft, numbers, counts[0], counts[1], *head, schedule,
        workspace_bytes, needs,
    )  # fmt: skip
    columns = columns._replace(chosen_tokens=tokens[rows.chosen].to(columns.beta.dtype))
    chosen, rejected = logp[rows.chosen], logp[rows.rejected]
    totals = totals_of(columns, objective, *counts)
    found = evaluate(chosen, rejected, columns, objective, totals)
    total: Tensor = _PrecomputedGradient.apply(*rows[:3], found.loss, *gradients)
    return output_of(total, found.metrics, chosen, rejected)


def _check_schedule(schedule: str | None, needs: list[bool]) -> None:
    """Raise unless the schedule is known and can give the gradients.

    Raises:
        ValueError: It is not, or cannot.
    """
    if schedule is not None and schedule not in PAIR_SCHEDULES:
        names = ", ".join(PAIR_SCHEDULES)
        raise ValueError(f"unknown schedule {schedule!r}; expected one of {names}")
    if schedule == "frozen" and (needs[1] or needs[2]):
        raise ValueError("schedule 'frozen' was forced, but weight or bias needs a gradient")


def _compose(
    rows: _Rows,
    head: _Head,
    objective: Objective,
    pairs: tuple[Tensor, Tensor, float | Tensor, Tensor | None, Tensor | None],
    counts: tuple[Tensor | None, Tensor | None],
    beta_rule: str,
    workspace_bytes: int | None,
) -> MMDPOOutput:
    """The same loss from its parts, for calls whose gradients are not taken in forward."""
    logp = fused_linear_logp(
        rows.hidden, rows.weight, rows.target, bias=rows.bias, workspace_bytes=workspace_bytes,
        **head._asdict(),
    )  # fmt: skip
    assert isinstance(logp, Tensor)
    sums = sequence_sums(logp, rows.sequence, rows.sequences)
    counted = (rows.target != head.ignore_index).to(logp.dtype)
    tokens = sequence_sums(counted, rows.sequence, rows.sequences)[rows.chosen]
    ref_chosen_logps, ref_rejected_logps, beta, tie, weight = pairs
    return mm_dpo_loss(
        sums[rows.chosen], sums[rows.rejected], ref_chosen_logps, ref_rejected_logps, beta,
        tie=tie, weight=weight, chosen_tokens=tokens, num_pairs=counts[0], num_tokens=counts[1],
        beta_rule=beta_rule, **objective._asdict(),
    )  # fmt: skip


class _PrecomputedGradientContext(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]
    compiled: bool
    gradients: list[Tensor]


class _PrecomputedGradient(torch.autograd.Function):
    """A loss with the gradients computed along with it; empty ones mean none."""

    @staticmethod
    def forward(
        ctx: _PrecomputedGradientContext,
        _hidden: Tensor,
        _weight: Tensor,
        _bias: Tensor | None,
        loss: Tensor,
        *gradients: Tensor,
    ) -> Tensor:
        ctx.compiled = torch.compiler.is_compiling()
        if ctx.compiled:
            ctx.save_for_backward(*gradients)
        else:
            # Not saved_tensors: autograd would hold a second reference, and the leaf would copy
            # a gradient as large as the head instead of taking it over.
            ctx.gradients = list(gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: _PrecomputedGradientContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.compiled:
            found = [part * grad for part in ctx.saved_tensors]
        elif ctx.gradients:
            # backward() alone sends 1, and multiplying a gradient as large as the head takes time;
            # on a GPU, reading the number would make the host wait instead.
            is_one = grad.device.type == "cpu" and float(grad) == 1.0
            found = ctx.gradients if is_one else [part.mul_(grad) for part in ctx.gradients]
            ctx.gradients = []
        else:
            raise RuntimeError(
                "the gradients of fused_linear_mm_dpo were used by an earlier backward pass; "
                "for a second one use fused_linear_logp with mm_dpo_loss"
            )
        needs = ctx.needs_input_grad[:3]
        given = (part if need else None for part, need in zip(found, needs, strict=True))
        return (*given, None, None, None, None)
