"""Hidden states to the gradient of the preference objective in one go, under five schedules.

Rows arrive compacted; row i belongs to sequence ``sequence[i]``. Once the log-probabilities of a
pair are known, the objective gives one number per sequence, and the products follow at once:

* ``keep``: group after group of whole pairs, logits kept for the length of the group, 6NHV;
* ``recompute``: one sweep over all rows, then E chunk by chunk, 8NHV;
* ``frozen``: unit gradients, multiplied by each row's number, 4NHV;
* ``one_sum``: for one pair whose two numbers are ``g`` and ``-g``, ``dW = g A`` with
  ``A = sum over all rows of +-(unit E)^T X``: 6NHV, and A lies where dW will;
* ``two_sums``: for each side of a pair ``A = sum over its rows of (unit E)^T X``, and
  ``dW = g_c A_c + g_r A_r`` once both numbers are known: 6NHV and no bound on the pair's length.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import Sweep
from mmrlhf_kernels.dispatch import keeping_backend, row_backend
from mmrlhf_kernels.pair import Columns, Objective, Totals, answer_gradient
from mmrlhf_kernels.pair_plan import PairPlan, rows_per_block
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.products import add_gradients, new_gradients
from mmrlhf_kernels.rows import sequence_sums
from mmrlhf_kernels.schedules import (
    Gradients,
    Head,
    Needs,
    kept_gradient,
    recomputed_gradient,
    sweep_head,
    sweep_keeping,
    unit_gradient,
)

__all__ = ["Batch", "PairResult", "run_pairs"]


class Batch(NamedTuple):
    """Compacted rows and the pairs they belong to."""

    x: Tensor
    """[M, H]."""
    target: Tensor
    """[M] int64."""
    sequence: Tensor
    """[M] int64."""
    sequences: int
    chosen: Tensor
    """[P] int64, the sequence of each chosen answer."""
    rejected: Tensor
    """[P] int64."""
    columns: Columns
    objective: Objective
    totals: Totals
    """Of the whole batch, also where a schedule takes some of the pairs."""

    def lengths(self) -> Tensor:
        """[S] int64 rows of each sequence."""
        return torch.bincount(self.sequence, minlength=self.sequences)

    def row_gradient(self, logp: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """dL/dlogp [S] per sequence, of the pairs ``begin .. end``.

        Args:
            logp: [S] summed log-probabilities.
            begin: First pair.
            end: Past the last pair, None for all.
        """
        part = slice(begin, end)
        chosen, rejected = self.chosen[part], self.rejected[part]
        columns = self.columns.map(lambda column: column[part])
        return answer_gradient(logp, chosen, rejected, columns, self.objective, self.totals)


class PairResult(NamedTuple):
    """Summed log-probabilities [S] and the gradients of the objective."""

    logp: Tensor
    gradients: Gradients


def _logp(sweep: Sweep) -> Tensor:
    """[M] log-probabilities of the targets."""
    return sweep.target_logit - _lse(sweep)


def _lse(sweep: Sweep) -> Tensor:
    """[M] log-normalisers."""
    return sweep.maximum + sweep.sum_exp.log()


def run_pairs(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    """Run the planned schedule; gradients are those of the objective itself."""
    run = {
        "keep": _keep,
        "recompute": _recompute,
        "frozen": _frozen,
        "one_sum": _one_sum,
        "two_sums": _two_sums,
    }[plan.schedule]
    return run(batch, head, plan, needs)


def _recompute(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    backend = row_backend(batch.x)
    sweep = sweep_head(
        backend, batch.x, head, batch.target, plan.chunk, entropy=False, argmax=False, tile=None
    )
    logp = sequence_sums(_logp(sweep), batch.sequence, batch.sequences)
    grad = batch.row_gradient(logp)[batch.sequence]
    into = new_gradients(batch.x, head, needs, accumulate=False)
    chunk_gradient = recomputed_gradient(backend, batch.x, head, batch.target, _lse(sweep), grad)
    add_gradients(into, chunk_gradient, batch.x, head, plan.chunk, accumulate=False)
    return PairResult(logp, into)


def _frozen(batch: Batch, head: Head, plan: PairPlan, _: Needs) -> PairResult:
    sweep, unit = unit_gradient(
        keeping_backend(batch.x), batch.x, head, batch.target, plan.chunk,
        entropy=False, argmax=False,
    )  # fmt: skip
    logp = sequence_sums(_logp(sweep), batch.sequence, batch.sequences)
    grad = batch.row_gradient(logp)[batch.sequence]
    return PairResult(logp, Gradients(unit * grad.unsqueeze(1), None, None, None))


def _keep(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    several = len(plan.groups) > 1
    into = new_gradients(batch.x, head, needs, accumulate=several)
    logp = batch.x.new_zeros(batch.sequences, dtype=statistics_dtype(batch.x.dtype))
    order, bounds = _rows_of_groups(batch, plan)
    most = max(end - begin for begin, end in bounds)
    buffer = batch.x.new_empty(most * head.weight.shape[0])
    for (begin, end), group in zip(bounds, plan.groups, strict=True):
        if begin < end:
            _keep_group(batch, head, plan, group, order[begin:end], buffer, into, logp)
    return PairResult(logp, into)


def _rows_of_groups(batch: Batch, plan: PairPlan) -> tuple[Tensor, list[tuple[int, int]]]:
    """Rows in the order of their groups, and the bounds of each group among them."""
    device = batch.x.device
    sizes = torch.tensor([end - begin for begin, end in plan.groups], device=device)
    of_pair = torch.arange(sizes.numel(), device=device).repeat_interleave(sizes)
    of_sequence = torch.zeros(batch.sequences, dtype=torch.int64, device=device)
    of_sequence[batch.chosen] = of_pair
    of_sequence[batch.rejected] = of_pair
    of_row = of_sequence[batch.sequence]
    counts = torch.bincount(of_row, minlength=sizes.numel()).tolist()
    ends = torch.tensor(counts).cumsum(0).tolist()
    bounds = [(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return torch.argsort(of_row, stable=True), bounds


def _keep_group(
    batch: Batch,
    head: Head,
    plan: PairPlan,
    group: tuple[int, int],
    rows: Tensor,
    buffer: Tensor,
    into: Gradients,
    logp: Tensor,
) -> None:
    """Sweep one group of pairs, then add its products to ``into`` and its sums to ``logp``."""
    backend = keeping_backend(batch.x)
    x, target, sequence = (t.index_select(0, rows) for t in (batch.x, batch.target, batch.sequence))
    sweep, kept = sweep_keeping(
        backend, x, head, target, plan.chunk, buffer, entropy=False, argmax=False
    )
    logp += sequence_sums(_logp(sweep), sequence, batch.sequences)
    grad = batch.row_gradient(logp, *group)[sequence]
    chunk_gradient = kept_gradient(
        backend, kept, head.options, target, _lse(sweep), grad, plan.chunk, in_place=True
    )
    local = into
    if into.hidden is not None:
        local = into._replace(hidden=torch.zeros_like(x, dtype=into.hidden.dtype))
    add_gradients(
        local,
        chunk_gradient,
        x,
        head,
        plan.chunk,
        accumulate=len(plan.groups) > 1,
        own_buffer=False,
    )
    if into.hidden is not None and local.hidden is not None:
        into.hidden.index_copy_(0, rows, local.hidden)


def _one_sum(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    sign = batch.x.new_zeros(batch.sequences, dtype=statistics_dtype(batch.x.dtype))
    sign[batch.chosen], sign[batch.rejected] = 1.0, -1.0
    into = new_gradients(batch.x, head, needs, accumulate=True)
    found = _add_units(batch.x, head, batch.target, sign[batch.sequence], plan, into)
    logp = sequence_sums(found, batch.sequence, batch.sequences)
    grad = batch.row_gradient(logp)[batch.chosen]
    for part in into:
        if part is not None:
            part.mul_(grad)
    return PairResult(logp, into)


def _two_sums(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    into = new_gradients(batch.x, head, needs, accumulate=True)
    logp = batch.x.new_zeros(batch.sequences, dtype=statistics_dtype(batch.x.dtype))
    for pair in range(batch.chosen.shape[0]):
        sides = [(s, (batch.sequence == s).nonzero().squeeze(1)) for s in (
            batch.chosen[pair], batch.rejected[pair])]  # fmt: skip
        units = [_unit_sums(batch, head, plan, rows, needs) for _, rows in sides]
        for (sequence, _), (row_logp, _) in zip(sides, units, strict=True):
            logp[sequence] = row_logp.sum()
        grad = batch.row_gradient(logp, pair, pair + 1)
        for (sequence, rows), (_, unit) in zip(sides, units, strict=True):
            _add_scaled(into, unit, grad[sequence], rows)
    return PairResult(logp, into)


def _unit_sums(
    batch: Batch, head: Head, plan: PairPlan, rows: Tensor, needs: Needs
) -> tuple[Tensor, Gradients]:
    """(logp of these rows, gradients for dL/dlogp = 1)."""
    x, target = batch.x.index_select(0, rows), batch.target.index_select(0, rows)
    sums = new_gradients(x, head, needs, accumulate=True)
    ones = x.new_ones(x.shape[0], dtype=statistics_dtype(x.dtype))
    return _add_units(x, head, target, ones, plan, sums), sums


def _add_units(
    x: Tensor, head: Head, target: Tensor, grad: Tensor, plan: PairPlan, into: Gradients
) -> Tensor:
    """Add the gradients for dL/dlogp = ``grad``, block of rows after block; logp of these rows."""
    backend = keeping_backend(x)
    block = max(1, rows_per_block(x.shape[0], plan.rows))
    buffer = x.new_empty(block * head.weight.shape[0])
    found = [x.new_empty(0, dtype=statistics_dtype(x.dtype))]
    for begin in range(0, x.shape[0], block):
        some = slice(begin, begin + block)
        sweep, kept = sweep_keeping(
            backend, x[some], head, target[some], plan.chunk, buffer, entropy=False, argmax=False
        )
        found.append(_logp(sweep))
        chunk_gradient = kept_gradient(
            backend, kept, head.options, target[some], _lse(sweep), grad[some], plan.chunk,
            in_place=True,
        )  # fmt: skip
        local = into._replace(hidden=None if into.hidden is None else into.hidden[some])
        add_gradients(
            local, chunk_gradient, x[some], head, plan.chunk, accumulate=True, own_buffer=False
        )
    return torch.cat(found)


def _add_scaled(into: Gradients, unit: Gradients, grad: Tensor, rows: Tensor) -> None:
    """Add ``grad`` times the unit gradients of one side."""
    if into.hidden is not None and unit.hidden is not None:
        into.hidden.index_copy_(0, rows, unit.hidden * grad)
    for total, part in ((into.weight, unit.weight), (into.bias, unit.bias)):
        if total is not None and part is not None:
            total.add_(part.mul_(grad))
