"""Hidden states to the MM-DPO loss, with all gradients taken in the forward pass.

:func:`fused_linear_mm_dpo` is for the usual case in which the loss is the only consumer of the
log-probabilities: the products of the backward pass then run as soon as a pair's own logits have
been seen, and the head's weight is needed once. It takes

=================== ===============================================================================
hidden              [N, H] rows of all answers, or [S, T, H], row by row an answer; prompt rows are
                    better left out, at least ignored
weight, target,     as in :mod:`mmrlhf_kernels.linear_logp`
bias, softcap,
logit_scale,
temperature,
ignore_index,
counted_rows
cu_seqlens          [S + 1] bounds of the S answers within the rows; on the CPU, the planner knows
                    their lengths without waiting for a GPU. Or
sequence_of_row     [N] int64, the answer of each row; exactly one of the two is given, none for
                    hidden states [S, T, H]
pair_index          [P, 2] int64, (chosen, rejected) answers of each pair; one answer may belong to
                    several pairs. None: S = 2 P, all chosen answers first, then all rejected ones
                    in the same order
ref_chosen_logps,   [P], as in :mod:`mmrlhf_kernels.preference`, with ``loss_type``,
ref_rejected_logps, ``label_smoothing``, ``tie``, ``sft_weight``, ``sft``, ``reward_shift``,
beta                ``num_pairs``, ``num_tokens`` and ``beta_rule``
pair_weight         [P], called ``weight`` there
group               the processes that hold other rows of the same answers (sequence parallelism),
                    with the same pairs in each: sums and tokens are added over them, the loss is
                    the same in all, and each gets the gradient of its own rows. Gradients of the
                    head are those of the rows here; add them over the group
schedule            ``keep``, ``recompute``, ``frozen``, ``one_sum`` or ``two_sums``, as listed in
                    :mod:`mmrlhf_kernels.plan`; None: ``plan_pair_schedule``
workspace_bytes     bound of the memory beyond inputs, outputs and gradients; None:
                    ``default_pair_workspace`` there
=================== ===============================================================================

The tokens of each chosen answer, which the supervised term needs, are counted here. In eager mode
the gradients are passed to autograd and not kept: a second backward pass through the same loss
raises, and checkpointing would save nothing, as nothing is stored but gradients. The upstream
scalar multiplies them in place. Those of float16 inputs wait for it in float32: a loss scale that
came after rounding would come too late for the small ones.

Where no gradient is wanted, or ``beta_rule`` is ``released`` (which needs the whole batch before it
knows any beta), the loss is put together from ``fused_linear_logp`` and ``mm_dpo_loss`` instead.
"""

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import as_linear, check_head, check_shape, flat_rows
from mmrlhf_kernels.linear_logp import fused_linear_logp
from mmrlhf_kernels.pair import Objective, evaluate, scalar_of, totals_of
from mmrlhf_kernels.pair_arguments import check_rule, columns_of
from mmrlhf_kernels.pair_operator import linear_mm_dpo
from mmrlhf_kernels.plan import PAIR_SCHEDULES
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.preference import MMDPOOutput, mm_dpo_loss, output_of
from mmrlhf_kernels.registry import Context
from mmrlhf_kernels.rows import sequence_of_row as rows_to_sequences
from mmrlhf_kernels.rows import sequence_sums, verify

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
    bounds: Tensor | None
    """[S + 1] on the CPU, where they were given there."""
    pair_index: Tensor | None
    """[P, 2], likewise."""

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
    counted_rows: int | None


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
    temperature: float = 1.0,
    ignore_index: int = -100,
    counted_rows: int | None = None,
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
    group: "dist.ProcessGroup | None" = None,
    schedule: str | None = None,
    workspace_bytes: int | None = None,
) -> MMDPOOutput:
    """MM-DPO of P pairs from hidden states; arguments as listed in the module docstring.

    Raises:
        IndexError: A target, answer or row lies outside its range.
        TypeError: A dtype does not fit.
        ValueError: A shape, an option or the schedule does not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    layout = cu_seqlens, sequence_of_row, pair_index
    rows = _rows_of(hidden, weight, target, bias, layout, ref_chosen_logps)
    cap = None if softcap is None else softcap / temperature
    head = _Head(cap, logit_scale / temperature, ignore_index, counted_rows)
    objective = Objective(loss_type, label_smoothing, sft_weight, sft, reward_shift)
    pairs = (ref_chosen_logps, ref_rejected_logps, beta, tie, pair_weight)
    like = rows.hidden
    counts = scalar_of("num_pairs", num_pairs, like), scalar_of("num_tokens", num_tokens, like)
    run = _Run(beta_rule, group, schedule, workspace_bytes)
    return _run(rows, head, objective, pairs, counts, run)


class _Run(NamedTuple):
    """How a call is run."""

    beta_rule: str
    group: "dist.ProcessGroup | None"
    schedule: str | None
    workspace_bytes: int | None


def _rows_of(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    layout: tuple[Tensor | None, Tensor | None, Tensor | None],
    ref_chosen_logps: Tensor,
) -> _Rows:
    """Flatten, bring to one dtype, check, and find the answers of rows and pairs."""
    shape = hidden.shape
    hidden, target = flat_rows(hidden, target)
    states, head, offset = as_linear(hidden, weight, bias)
    assert states is not None
    assert head is not None
    check_head(states, head, target, offset)
    if ref_chosen_logps.dim() != 1:
        raise ValueError(
            f"ref_chosen_logps has shape {tuple(ref_chosen_logps.shape)}; expected [P]"
        )
    cu_seqlens, sequence, pair_index = layout
    if cu_seqlens is None and sequence is None and len(shape) == 3:
        cu_seqlens = torch.arange(shape[0] + 1) * shape[1]
    pairs, device = ref_chosen_logps.shape[0], states.device
    if pair_index is not None:
        check_shape("pair_index", pair_index, (pairs, 2))
    if cu_seqlens is not None and sequence is None:
        sequences = cu_seqlens.numel() - 1
        sequence = rows_to_sequences(cu_seqlens, states.shape[0], device)
    elif sequence is not None and cu_seqlens is None:
        check_shape("sequence_of_row", sequence, (states.shape[0],))
        sequences = 2 * pairs
        if pair_index is not None:
            sequence, pair_index, sequences = _renumbered(sequence, pair_index)
    else:
        raise ValueError("expected exactly one of cu_seqlens and sequence_of_row")
    index = _pairs_of(pair_index, pairs, sequences)
    chosen, rejected = index.to(device, non_blocking=True).t().contiguous().unbind()
    bounds, named = (
        tensor if tensor is not None and tensor.device.type == "cpu" else None
        for tensor in (cu_seqlens, index)
    )
    return _Rows(
        states, head, offset, target, sequence, sequences, chosen.clone(), rejected.clone(), bounds,
        named,
    )  # fmt: skip


def _renumbered(sequence: Tensor, pair_index: Tensor) -> tuple[Tensor, Tensor, int]:
    """Answers under new numbers, those of pairs first, so that their count is known: 2 P + 1.

    Rows of answers in no pair share the last number. Nothing is read from the device.
    """
    for name, ids in (("row", sequence), ("pair", pair_index)):
        if ids.device.type != "cpu":
            verify((ids >= 0).all(), f"a {name} names an answer below 0")
        elif ids.numel() and int(ids.min()) < 0:
            raise IndexError(f"a {name} names answer {int(ids.min())}; expected at least 0")
    named = pair_index.to(sequence.device).flatten().sort().values
    last = named.numel()
    if last == 0:
        return torch.zeros_like(sequence), pair_index, 1
    place = torch.searchsorted(named, sequence).clamp(max=last - 1)
    sequence = place.where(named[place] == sequence, last)
    return sequence, torch.searchsorted(named, pair_index.to(named.device)), last + 1


def _pairs_of(pair_index: Tensor | None, pairs: int, sequences: int) -> Tensor:
    """[P, 2] int64 (chosen, rejected) answers.

    Raises:
        ValueError: The number of answers does not fit.
    """
    if pair_index is not None:
        return pair_index
    if sequences != 2 * pairs:
        raise ValueError(
            f"{sequences} answers for {pairs} pairs; expected {2 * pairs}, all chosen ones first "
            "(or a pair_index)"
        )
    return torch.arange(sequences).view(2, pairs).t()


def _run(
    rows: _Rows,
    head: _Head,
    objective: Objective,
    pairs: tuple[Tensor, Tensor, float | Tensor, Tensor | None, Tensor | None],
    counts: tuple[Tensor | None, Tensor | None],
    run: _Run,
) -> MMDPOOutput:
    """Loss and gradients by the operator, then the figures of a trainer from the sums."""
    needs = rows.needs()
    objective.check(counted=True)
    check_rule(run.beta_rule, pairs[2])
    _check_schedule(run.schedule, needs)
    implementation = dispatch.choose(rows.hidden)
    if not any(needs) or run.beta_rule == "released" or implementation == "reference":
        return _compose(rows, head, objective, pairs, counts, run)
    like = rows.hidden.new_empty(rows.chosen.shape[0], dtype=statistics_dtype(rows.hidden.dtype))
    columns = columns_of(like, *pairs, chosen_tokens=None)
    numbers = [objective.label_smoothing, objective.sft_weight, objective.reward_shift]
    bias = None if rows.bias is None else rows.bias.detach()
    logp, tokens, *gradients = linear_mm_dpo(
        rows.hidden.detach(), rows.weight.detach(), bias, *rows[3:],
        [c for c in columns if c is not None], [c is not None for c in columns],
        objective.loss_type, objective.sft, numbers, counts[0], counts[1], *head, run.schedule,
        run.workspace_bytes, None if run.group is None else run.group.group_name, needs,
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
    run: _Run,
) -> MMDPOOutput:
    """The same loss from its parts, for calls whose gradients are not taken in forward."""
    logp = fused_linear_logp(
        rows.hidden, rows.weight, rows.target, bias=rows.bias,
        workspace_bytes=run.workspace_bytes, **head._asdict(),
    )  # fmt: skip
    assert isinstance(logp, Tensor)
    answers = rows.sequence, rows.sequences
    sums = sequence_sums(logp, *answers, group=run.group)
    counted = (rows.target != head.ignore_index).to(logp.dtype)
    tokens = sequence_sums(counted, *answers, group=run.group)[rows.chosen]
    ref_chosen_logps, ref_rejected_logps, beta, tie, weight = pairs
    return mm_dpo_loss(
        sums[rows.chosen], sums[rows.rejected], ref_chosen_logps, ref_rejected_logps, beta,
        tie=tie, weight=weight, chosen_tokens=tokens, num_pairs=counts[0], num_tokens=counts[1],
        beta_rule=run.beta_rule, **objective._asdict(),
    )  # fmt: skip


class _PrecomputedGradientContext(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]
    compiled: bool
    gradients: list[Tensor]
    dtypes: tuple[torch.dtype, ...]


class _PrecomputedGradient(torch.autograd.Function):
    """A loss with the gradients computed along with it; empty ones mean none."""

    @staticmethod
    def forward(
        ctx: _PrecomputedGradientContext,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Tensor,
        *gradients: Tensor,
    ) -> Tensor:
        ctx.compiled = torch.compiler.is_compiling()
        ctx.dtypes = (hidden.dtype, weight.dtype, hidden.dtype if bias is None else bias.dtype)
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
        given = (
            part.to(dtype) if need else None
            for part, dtype, need in zip(found, ctx.dtypes, needs, strict=True)
        )
        return (*given, None, None, None, None)
