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
import torch.distributed as dist
from torch import Tensor

from mmrlhf_kernels.backend import Sweep
from mmrlhf_kernels.dispatch import row_backend
from mmrlhf_kernels.pair import Columns, Objective, Totals, answer_gradient
from mmrlhf_kernels.plan import PairPlan, rows_per_block
from mmrlhf_kernels.precision import gradient_dtype, statistics_dtype
from mmrlhf_kernels.products import add_gradients, new_gradients
from mmrlhf_kernels.registry import process_group
from mmrlhf_kernels.rows import Rows, sequence_sums
from mmrlhf_kernels.schedules import (
    Gradients,
    Head,
    Needs,
    kept_gradient,
    raised_units,
    recomputed_gradient,
    sweep_head,
    sweep_keeping,
    unit_gradient,
)

__all__ = ["Batch", "Layout", "PairResult", "add_over", "run_pairs"]


class Layout(NamedTuple):
    """What the host knows of the rows without waiting for the device."""

    lengths: list[int]
    """[S] rows of each sequence that take part, ignored ones among them where those do."""
    chosen: list[int]
    """[P]."""
    rejected: list[int]
    """[P]."""

    def rows_of_pair(self) -> list[int]:
        """Rows of each pair, chosen and rejected together."""
        sides = zip(self.chosen, self.rejected, strict=True)
        return [self.lengths[one] + self.lengths[other] for one, other in sides]

    def shared(self) -> bool:
        """Whether an answer belongs to several pairs."""
        answers = [*self.chosen, *self.rejected]
        return len(set(answers)) < len(answers)


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
    rows: Rows
    layout: Layout | None
    """None where only the device knows."""
    group: str | None
    """The processes that hold other rows of the same sequences, by the name of their group."""

    def row_logp(self, sweep: Sweep) -> Tensor:
        """[M] log-probabilities of the targets, 0 in masked rows."""
        return self.rows.masked(sweep.target_logit - _lse(sweep))

    def sums(self, row_logp: Tensor) -> Tensor:
        """[S] summed log-probabilities, over all processes that hold rows."""
        return add_over(sequence_sums(row_logp, self.sequence, self.sequences), self.group)

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

    def spread(self, of_sequence: Tensor) -> Tensor:
        """[M] the number of each row's sequence, 0 in masked rows."""
        return self.rows.masked(of_sequence[self.sequence])


def add_over(values: Tensor, group: str | None) -> Tensor:
    """The sum of ``values`` over the processes of a group, in place; as they are without one."""
    if group is not None:
        dist.all_reduce(values, group=process_group(group))
    return values


class PairResult(NamedTuple):
    """Summed log-probabilities [S] and the gradients of the objective."""

    logp: Tensor
    gradients: Gradients


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


def _raised(batch: Batch, head: Head, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """(grad, what it was multiplied by, a power of two).

    float16 would lose the small entries of E. They are raised while they are in it; sums are
    float32, where they are divided again.
    """
    if batch.x.dtype != torch.float16:
        return grad, None
    largest = grad.abs().amax().clamp(2.0**-40, 2.0**40) * max(1.0, abs(head.options.logit_scale))
    _, exponent = torch.frexp(largest)
    factor = torch.ldexp(torch.ones_like(largest), 13 - exponent)
    return grad * factor, factor


def _multiply(into: Gradients, factor: Tensor | float) -> None:
    """Multiply all gradients in place."""
    for part in into:
        if part is not None:
            part.mul_(factor)


def _new_gradients(batch: Batch, head: Head, needs: Needs, *, accumulate: bool) -> Gradients:
    """Gradients that wait for the loss scale, in a dtype that can."""
    dtype = gradient_dtype(batch.x.dtype)
    return new_gradients(batch.x, head, needs, accumulate=accumulate, dtype=dtype)


def _recompute(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    backend = row_backend(batch.x)
    sweep = sweep_head(
        backend, batch.x, head, batch.target, plan.chunk, entropy=False, argmax=False
    )
    logp = batch.sums(batch.row_logp(sweep))
    grad, factor = _raised(batch, head, batch.spread(batch.row_gradient(logp)))
    into = _new_gradients(batch, head, needs, accumulate=False)
    chunk_gradient = recomputed_gradient(backend, batch.x, head, batch.target, _lse(sweep), grad)
    add_gradients(into, chunk_gradient, batch.x, head, plan.chunk, accumulate=False)
    if factor is not None:
        _multiply(into, 1.0 / factor)
    return PairResult(logp, into)


def _frozen(batch: Batch, head: Head, plan: PairPlan, _: Needs) -> PairResult:
    sweep, unit = unit_gradient(
        row_backend(batch.x), batch.x, head, batch.target, plan.chunk, entropy=False, argmax=False
    )
    logp = batch.sums(batch.row_logp(sweep))
    grad = batch.spread(batch.row_gradient(logp))
    return PairResult(logp, Gradients(unit.mul_(grad.unsqueeze(1)), None, None, None))


def _keep(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    several = len(plan.groups) > 1
    into = _new_gradients(batch, head, needs, accumulate=several)
    logp = batch.x.new_zeros(batch.sequences, dtype=statistics_dtype(batch.x.dtype))
    order, bounds = _rows_of_groups(batch, plan) if several else (None, [(0, batch.x.shape[0])])
    most = max(end - begin for begin, end in bounds)
    buffer = batch.x.new_empty(most * head.weight.shape[0])
    scale: Tensor | None = None
    for (begin, end), group in zip(bounds, plan.groups, strict=True):
        if begin < end:
            rows = None if order is None else order[begin:end]
            scale = _keep_group(batch, head, plan, group, rows, buffer, into, logp, scale)
    if scale is not None:
        _multiply(into, 1.0 / scale)
    return PairResult(logp, into)


def _rows_of_groups(batch: Batch, plan: PairPlan) -> tuple[Tensor, list[tuple[int, int]]]:
    """Rows in the order of their groups, those of no pair last, and the bounds of each group."""
    layout = batch.layout
    assert layout is not None
    of_sequence, bounds, last = [len(plan.groups)] * batch.sequences, [], 0
    for group, (begin, end) in enumerate(plan.groups):
        for answer in (*layout.chosen[begin:end], *layout.rejected[begin:end]):
            of_sequence[answer] = group
        rows = sum(layout.rows_of_pair()[begin:end])
        bounds.append((last, last + rows))
        last += rows
    numbers = torch.tensor(of_sequence).to(batch.x.device, non_blocking=True)
    return torch.argsort(numbers[batch.sequence], stable=True), bounds


def _keep_group(
    whole: Batch,
    head: Head,
    plan: PairPlan,
    group: tuple[int, int],
    rows: Tensor | None,
    buffer: Tensor,
    into: Gradients,
    logp: Tensor,
    scale: Tensor | None,
) -> Tensor | None:
    """Sweep one group of pairs, then add its products to ``into`` and its sums to ``logp``.

    Returns what ``into`` is multiplied by from now on, which was ``scale`` before.
    """
    batch, backend = _rows_of_batch(whole, rows), row_backend(whole.x)
    sweep, kept = sweep_keeping(
        backend, batch.x, head, batch.target, plan.chunk, buffer, entropy=False, argmax=False
    )
    logp += batch.sums(batch.row_logp(sweep))
    grad, factor = _raised(batch, head, batch.spread(batch.row_gradient(logp, *group)))
    if factor is not None and scale is not None:
        _multiply(into, factor / scale)
    chunk_gradient = kept_gradient(
        backend, kept, head.options, batch.target, _lse(sweep), grad, plan.chunk, in_place=True
    )
    local = into
    if into.hidden is not None and rows is not None:
        local = into._replace(hidden=torch.zeros_like(batch.x, dtype=into.hidden.dtype))
    add_gradients(local, chunk_gradient, batch.x, head, plan.chunk, accumulate=len(plan.groups) > 1)
    if into.hidden is not None and local.hidden is not None and rows is not None:
        into.hidden.index_copy_(0, rows, local.hidden)
    return factor


def _rows_of_batch(batch: Batch, index: Tensor | None) -> Batch:
    """The batch with some of its rows."""
    if index is None:
        return batch
    mask = None if batch.rows.mask is None else batch.rows.mask[index]
    x, target, sequence = (t.index_select(0, index) for t in batch[:3])
    return batch._replace(x=x, target=target, sequence=sequence, rows=Rows(None, mask))


def _one_sum(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    sign = batch.x.new_zeros(batch.sequences, dtype=statistics_dtype(batch.x.dtype))
    sign[batch.chosen], sign[batch.rejected] = 1.0, -1.0
    into = new_gradients(batch.x, head, needs, accumulate=True)
    found, raised = _add_units(batch, head, batch.spread(sign), plan, into)
    logp = batch.sums(found)
    _multiply(into, batch.row_gradient(logp)[batch.chosen] / raised)
    return PairResult(logp, into)


def _two_sums(batch: Batch, head: Head, plan: PairPlan, needs: Needs) -> PairResult:
    if batch.layout is None:
        raise ValueError(
            "schedule 'two_sums' needs the lengths of the answers on the host; "
            "hint: pass cu_seqlens (and pair_index) as CPU tensors"
        )
    into = new_gradients(batch.x, head, needs, accumulate=True)
    logp = batch.x.new_zeros(batch.sequences, dtype=statistics_dtype(batch.x.dtype))
    order = torch.argsort(batch.sequence, stable=True)
    ends = torch.tensor(batch.layout.lengths).cumsum(0).tolist()
    for pair in range(batch.chosen.shape[0]):
        sides = [
            (answer, order[ends[answer] - batch.layout.lengths[answer] : ends[answer]])
            for answer in (batch.layout.chosen[pair], batch.layout.rejected[pair])
        ]
        units = [_unit_sums(batch, head, plan, rows, needs) for _, rows in sides]
        found = torch.zeros_like(logp)
        for (answer, _), (row_logp, _, _) in zip(sides, units, strict=True):
            found[answer] = row_logp.sum()
        logp += add_over(found, batch.group)
        grad = batch.row_gradient(logp, pair, pair + 1)
        for (answer, rows), (_, unit, raised) in zip(sides, units, strict=True):
            _add_scaled(into, unit, grad[answer] / raised, rows)
    return PairResult(logp, into)


def _unit_sums(
    batch: Batch, head: Head, plan: PairPlan, rows: Tensor, needs: Needs
) -> tuple[Tensor, Gradients, float]:
    """(logp of these rows, gradients for dL/dlogp = the last of these three)."""
    part = _rows_of_batch(batch, rows)
    sums = new_gradients(part.x, head, needs, accumulate=True)
    ones = part.x.new_ones(part.x.shape[0], dtype=statistics_dtype(part.x.dtype))
    found, raised = _add_units(part, head, part.rows.masked(ones), plan, sums)
    return found, sums, raised


def _add_units(
    batch: Batch, head: Head, grad: Tensor, plan: PairPlan, into: Gradients
) -> tuple[Tensor, float]:
    """Add the gradients for dL/dlogp = ``grad`` times a number, block of rows after block.

    Returns:
        (logp of the rows, the number).
    """
    x, target, backend = batch.x, batch.target, row_backend(batch.x)
    block = max(1, rows_per_block(x.shape[0], plan.rows))
    buffer = x.new_empty(block * head.weight.shape[0])
    raised = raised_units(x.dtype, head.options)
    found = [x.new_empty(0, dtype=statistics_dtype(x.dtype))]
    for begin in range(0, x.shape[0], block):
        some = slice(begin, begin + block)
        sweep, kept = sweep_keeping(
            backend, x[some], head, target[some], plan.chunk, buffer, entropy=False, argmax=False
        )
        found.append(sweep.target_logit - _lse(sweep))
        chunk_gradient = kept_gradient(
            backend, kept, head.options, target[some], _lse(sweep), grad[some] * raised, plan.chunk,
            in_place=True,
        )  # fmt: skip
        local = into._replace(hidden=None if into.hidden is None else into.hidden[some])
        add_gradients(local, chunk_gradient, x[some], head, plan.chunk, accumulate=True)
    return batch.rows.masked(torch.cat(found)), raised


def _add_scaled(into: Gradients, unit: Gradients, grad: Tensor, rows: Tensor) -> None:
    """Add ``grad`` times the unit gradients of one side."""
    if into.hidden is not None and unit.hidden is not None:
        into.hidden.index_copy_(0, rows, unit.hidden * grad)
    for total, part in ((into.weight, unit.weight), (into.bias, unit.bias)):
        if total is not None and part is not None:
            total.add_(part.mul_(grad))
