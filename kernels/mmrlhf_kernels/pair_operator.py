"""The custom operator behind ``fused_linear_mm_dpo``: loss and gradients in one forward pass.

Its results are not differentiable: :mod:`mmrlhf_kernels.fused` attaches the gradients to the loss.
Lengths of answers are read inside it, so that a compiled graph does not break on them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.pair import Columns, Objective, totals_of
from mmrlhf_kernels.pair_plan import PairPlan, default_pair_workspace, plan_pair_schedule
from mmrlhf_kernels.pair_schedules import Batch, run_pairs
from mmrlhf_kernels.plan import widest_chunk
from mmrlhf_kernels.precision import in_full_precision, statistics_dtype
from mmrlhf_kernels.registry import define_operator
from mmrlhf_kernels.rows import active_rows, gather_rows, scatter_rows
from mmrlhf_kernels.schedules import Head, Needs

__all__ = ["linear_mm_dpo"]

Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""logp [S], rows [S], then gradients of hidden, weight and bias; empty where not needed."""


def _linear_mm_dpo(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sequence: Tensor,
    sequences: int,
    chosen: Tensor,
    rejected: Tensor,
    columns: list[Tensor],
    given: list[bool],
    loss_type: str,
    sft: str,
    numbers: list[float],
    num_pairs: Tensor | None,
    num_tokens: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
    schedule: str | None,
    workspace_bytes: int | None,
    needs: list[bool],
) -> Result:
    """Columns are those that are ``given``; numbers are label smoothing, sft weight and shift.

    ``num_pairs`` and ``num_tokens`` are scalars in the columns' dtype, or None for those at hand.
    """
    remaining = iter(columns)
    held = [next(remaining) if there else None for there in given]
    objective = Objective(loss_type, numbers[0], numbers[1], sft, numbers[2])
    layout = _Layout(sequence, sequences, chosen, rejected)
    head = Head(weight.contiguous(), bias, None, HeadOptions(softcap, logit_scale))
    rows = active_rows(target, ignore_index, weight.shape[0])
    layout.check()
    empty = hidden.shape[0] == 0 or (rows is not None and rows.numel() == 0)
    if empty or chosen.shape[0] == 0:
        return _nothing(hidden, weight, bias, sequences, needs)
    batch = _batch_of(hidden, target, rows, layout, held, objective, (num_pairs, num_tokens))
    plan = plan_batch(batch, head, schedule, workspace_bytes, head_needs=needs[1] or needs[2])
    logp, found = run_pairs(batch, head, plan, Needs(needs[0], needs[1], needs[2], side=False))
    of_hidden = None
    if found.hidden is not None and needs[0]:
        of_hidden = scatter_rows(found.hidden.to(hidden.dtype), rows, hidden.shape[0])
    gradients = _rounded((of_hidden, found.weight, found.bias), (hidden, weight, bias))
    return (logp, batch.lengths(), *gradients)


class _Layout(NamedTuple):
    """Which sequence each row belongs to, and which sequences each pair."""

    sequence: Tensor
    sequences: int
    chosen: Tensor
    rejected: Tensor

    def check(self) -> None:
        """Raise where a row or a pair names a sequence that does not exist.

        Raises:
            IndexError: One does.
        """
        for name, ids in (("row", self.sequence), ("pair", self.chosen), ("pair", self.rejected)):
            if bool(((ids < 0) | (ids >= self.sequences)).any()):
                worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise IndexError(
                    f"a {name} names sequence {worst}; expected 0 <= sequence < {self.sequences}"
                )


def _batch_of(
    hidden: Tensor,
    target: Tensor,
    rows: Tensor | None,
    layout: _Layout,
    held: list[Tensor | None],
    objective: Objective,
    numbers: tuple[Tensor | None, Tensor | None],
) -> Batch:
    """The compacted batch, with the chosen tokens of each pair counted.

    ``numbers`` are num_pairs and num_tokens.
    """
    ref_chosen_logps, ref_rejected_logps, beta, tie, weight, _ = held
    assert ref_chosen_logps is not None
    assert ref_rejected_logps is not None
    assert beta is not None
    sequence = gather_rows(layout.sequence, rows)
    lengths = torch.bincount(sequence, minlength=layout.sequences)
    tokens = lengths[layout.chosen].to(beta.dtype)
    columns = Columns(ref_chosen_logps, ref_rejected_logps, beta, tie, weight, tokens)
    return Batch(
        gather_rows(hidden, rows), gather_rows(target, rows), sequence, layout.sequences,
        layout.chosen, layout.rejected, columns, objective, totals_of(columns, objective, *numbers),
    )  # fmt: skip


def _rounded(
    found: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the dtype of their inputs, empty tensors for those that are missing."""
    assert inputs[0] is not None
    first, second, third = (
        inputs[0].new_empty(0) if part is None or like is None else part.to(like.dtype)
        for part, like in zip(found, inputs, strict=True)
    )
    return first, second, third


def _nothing(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, sequences: int, needs: list[bool]
) -> Result:
    """Zeros of the result's shapes, for a batch without rows or pairs, and for tracing."""
    wanted = tuple(
        torch.zeros_like(like) if needed and like is not None else None
        for like, needed in zip((hidden, weight, bias), needs, strict=True)
    )
    logp = hidden.new_zeros(sequences, dtype=statistics_dtype(hidden.dtype))
    lengths = hidden.new_zeros(sequences, dtype=torch.int64)
    return (logp, lengths, *_rounded(wanted, (hidden, weight, bias)))


def plan_batch(
    batch: Batch, head: Head, schedule: str | None, workspace_bytes: int | None, *, head_needs: bool
) -> PairPlan:
    """The plan for this batch: its lengths are read from the device here."""
    x, vocab = batch.x, head.weight.shape[0]
    if workspace_bytes is None:
        workspace_bytes = default_pair_workspace(x.shape[0], vocab, x.dtype, x.device)
    lengths = batch.lengths()
    rows_of_pair = (lengths[batch.chosen] + lengths[batch.rejected]).tolist()
    used = torch.bincount(torch.cat([batch.chosen, batch.rejected]), minlength=batch.sequences)
    return plan_pair_schedule(
        rows_of_pair,
        x.shape[1],
        vocab,
        x.dtype,
        head_needs,
        workspace_bytes,
        shared=bool((used > 1).any()),
        opposite=batch.objective.opposite,
        widest=widest_chunk(x.device),
        forced=schedule,
    )


def _linear_mm_dpo_fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    _target: Tensor,
    _sequence: Tensor,
    sequences: int,
    *rest: object,
) -> Result:
    """Results of the operator as tracing sees them."""
    needs = rest[-1]
    assert isinstance(needs, list | tuple)
    return _nothing(hidden, weight, bias, sequences, list(needs))


linear_mm_dpo = define_operator(
    "linear_mm_dpo", in_full_precision(_linear_mm_dpo), _linear_mm_dpo_fake
)
