"""The custom operator behind ``fused_linear_mm_dpo``: loss and gradients in one forward pass.

Its results are not differentiable: :mod:`mmrlhf_kernels.fused` attaches the gradients to the loss.
Lengths of answers that lie on the host are read inside it, so that a compiled graph does not break
on them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.pair import Columns, Objective, totals_of
from mmrlhf_kernels.pair_schedules import Batch, Layout, add_over, run_pairs
from mmrlhf_kernels.plan import (
    PairPlan,
    default_pair_workspace,
    plan_pair_schedule,
    widest_chunk,
)
from mmrlhf_kernels.precision import gradient_dtype, in_full_precision, statistics_dtype
from mmrlhf_kernels.registry import define_operator
from mmrlhf_kernels.rows import Rows, row_lengths, rows_that_count, verify
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
    bounds: Tensor | None,
    pair_index: Tensor | None,
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
    counted_rows: int | None,
    schedule: str | None,
    workspace_bytes: int | None,
    group: str | None,
    needs: list[bool],
) -> Result:
    """Columns are those that are ``given``; numbers are label smoothing, sft weight and shift.

    ``num_pairs`` and ``num_tokens`` are scalars in the columns' dtype, or None for those at hand;
    ``bounds`` [S + 1] and ``pair_index`` [P, 2] repeat the layout on the host, or are None.
    """
    remaining = iter(columns)
    held = [next(remaining) if there else None for there in given]
    objective = Objective(loss_type, numbers[0], numbers[1], sft, numbers[2])
    layout = _Answers(sequence, sequences, chosen, rejected)
    head = Head(weight.contiguous(), bias, None, HeadOptions(softcap, logit_scale))
    rows = rows_that_count(target, ignore_index, weight.shape[0], counted_rows)
    layout.check()
    lengths = add_over(layout.lengths(rows), group)
    if rows.are_none(hidden.shape[0]) or chosen.shape[0] == 0:
        logp, _, *zeros = _nothing(hidden, weight, bias, sequences, needs)
        return (add_over(logp, group), lengths, zeros[0], zeros[1], zeros[2])
    host = _layout_on_host(layout, rows, bounds, pair_index)
    columns_held = _columns_of(held, lengths[chosen])
    totals = totals_of(columns_held, objective, num_pairs, num_tokens)
    batch = Batch(
        rows.gather(hidden), rows.gather(target), rows.gather(sequence), sequences, chosen,
        rejected, columns_held, objective, totals, rows, host, group,
    )  # fmt: skip
    plan = plan_batch(batch, head, schedule, workspace_bytes, head_needs=needs[1] or needs[2])
    logp, found = run_pairs(batch, head, plan, Needs(needs[0], needs[1], needs[2], side=False))
    of_hidden = None
    if found.hidden is not None and needs[0]:
        narrow = found.hidden.to(gradient_dtype(hidden.dtype))
        of_hidden = rows.scatter(narrow, hidden.shape[0])
    gradients = _rounded((of_hidden, found.weight, found.bias), (hidden, weight, bias))
    return (logp, lengths, *gradients)


class _Answers(NamedTuple):
    """Which sequence each row belongs to, and which sequences each pair."""

    sequence: Tensor
    sequences: int
    chosen: Tensor
    rejected: Tensor

    def check(self) -> None:
        """Raise where a row or a pair names a sequence that does not exist.

        Raises:
            IndexError: One does, on a CPU; elsewhere the device raises later.
        """
        expected = f"expected 0 <= sequence < {self.sequences}"
        named = (("row", self.sequence), ("pair", self.chosen), ("pair", self.rejected))
        if self.sequence.device.type != "cpu":
            ids = torch.cat([ids for _, ids in named])
            if ids.numel():
                fits = ids.clamp(0, max(0, self.sequences - 1)) == ids
                verify(
                    fits.all(), f"a row or a pair names a sequence that is not there; {expected}"
                )
            return
        for name, ids in named:
            if bool(((ids < 0) | (ids >= self.sequences)).any()):
                worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise IndexError(f"a {name} names sequence {worst}; {expected}")

    def lengths(self, rows: Rows) -> Tensor:
        """[S] int64 rows of each sequence that count."""
        if rows.mask is None:
            return row_lengths(rows.gather(self.sequence), self.sequences)
        counted = torch.zeros(self.sequences, dtype=torch.int64, device=self.sequence.device)
        return counted.scatter_add(0, self.sequence, rows.mask.to(torch.int64))


def _layout_on_host(
    answers: _Answers, rows: Rows, bounds: Tensor | None, pair_index: Tensor | None
) -> Layout | None:
    """What the host can know without waiting for the device."""
    if answers.sequence.device.type == "cpu":
        lengths = row_lengths(rows.gather(answers.sequence), answers.sequences)
        return Layout(lengths.tolist(), answers.chosen.tolist(), answers.rejected.tolist())
    if bounds is None or pair_index is None or rows.taken is not None:
        return None
    return Layout(bounds.diff().tolist(), *pair_index.t().tolist())


def _columns_of(held: list[Tensor | None], tokens: Tensor) -> Columns:
    """The columns with the chosen tokens of each pair, which are counted here."""
    ref_chosen_logps, ref_rejected_logps, beta, tie, weight, _ = held
    assert ref_chosen_logps is not None
    assert ref_rejected_logps is not None
    assert beta is not None
    return Columns(ref_chosen_logps, ref_rejected_logps, beta, tie, weight, tokens.to(beta.dtype))


def _rounded(
    found: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the dtype they wait in for the loss scale, empty where they are missing."""
    assert inputs[0] is not None
    first, second, third = (
        inputs[0].new_empty(0)
        if part is None or like is None
        else part.to(gradient_dtype(like.dtype))
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
    """The plan for this batch.

    Where the host does not know its lengths, the pairs are taken together, as they are where
    other processes hold rows of them: all have to add up their sums at the same time.
    """
    x, vocab, layout = batch.x, head.weight.shape[0], batch.layout
    if workspace_bytes is None:
        workspace_bytes = default_pair_workspace(x.shape[0], vocab, x.dtype, x.device)
    pairs = batch.chosen.shape[0]
    rows_of_pair = [x.shape[0]] + [0] * (pairs - 1) if layout is None else layout.rows_of_pair()
    together = pairs > 1 and (layout is None or batch.group is not None)

    def plan(*, shared: bool) -> PairPlan:
        return plan_pair_schedule(
            rows_of_pair,
            x.shape[1],
            vocab,
            x.dtype,
            head_needs,
            workspace_bytes,
            shared=shared,
            opposite=batch.objective.opposite,
            widest=widest_chunk(x.device),
            forced=schedule,
        )

    chosen = plan(shared=together or (layout is not None and layout.shared()))
    if chosen.schedule == "two_sums" and layout is None and schedule is None:
        return plan(shared=True)
    return chosen


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
    "linear_mm_dpo", in_full_precision(_linear_mm_dpo), _linear_mm_dpo_fake, capturable=False
)
