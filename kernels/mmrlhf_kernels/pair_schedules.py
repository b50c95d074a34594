"""Hidden states to the gradient of the preference objective in one go, under five schedules.

Rows arrive compacted or masked, with the answers they belong to. Once the log-probabilities of a
pair are known, the objective gives one number per row, and the products follow at once:

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

from mmrlhf_kernels.backend import LossGradient, logp_of, lse_of, raised_units
from mmrlhf_kernels.dispatch import add_over, process_group
from mmrlhf_kernels.mm_dpo_plain import (
    CHOSEN_LOGP,
    COLUMNS,
    REJECTED_LOGP,
    Numbers,
    PairCall,
)
from mmrlhf_kernels.pair import pair_objective
from mmrlhf_kernels.plan import PairPlan, rows_per_block
from mmrlhf_kernels.precision import gradient_dtype, statistics_dtype
from mmrlhf_kernels.rows import Answers, Rows, sequence_of_row, sequence_sums
from mmrlhf_kernels.schedules import ChunkGradient, Gradients, Needs, Projection

__all__ = ["Batch", "Found", "run_pairs"]

CHOSEN_GRADIENT, REJECTED_GRADIENT = len(COLUMNS), len(COLUMNS) + 1
"""Rows of the columns of ``pair_objective``."""


class Found(NamedTuple):
    """The objective of a batch, as ``pair_objective`` has it."""

    loss: Tensor
    figures: Tensor
    columns: Tensor
    gradient: Tensor
    """[M] with respect to the log-probabilities of the rows, 0 in masked ones."""


class Batch(NamedTuple):
    """Compacted rows, the answers and pairs they belong to, and the objective."""

    x: Projection
    """The M rows under the head."""
    rows: Rows
    answers: Answers
    call: PairCall
    """Columns and options; log-probabilities and answers are filled in by :meth:`objective_of`."""
    group: str | None
    """The processes that hold other rows of the same answers, by the name of their group."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics."""
        return statistics_dtype(self.x.hidden.dtype)

    @property
    def height(self) -> int:
        """M."""
        return self.x.hidden.shape[0]

    def room(self, rows: int) -> Tensor:
        """Room for the logits of some rows, [rows * V], uninitialised."""
        return self.x.hidden.new_empty(rows * self.x.head.weight.shape[0])

    def full(self, rows: int, number: float = 0.0) -> Tensor:
        """[rows] of one number, in the dtype of the statistics."""
        return self.x.hidden.new_full((rows,), number, dtype=self.dtype)

    def objective_of(self, row_logp: Tensor) -> PairCall:
        """The objective of the log-probabilities [M] of all rows.

        Where other processes hold rows of the same answers, it is one of the answers' sums.
        """
        answers, mask = self.answers, self.rows.mask
        chosen, rejected = answers.chosen, answers.rejected
        if self.group is None:
            return self.call._replace(
                logp=answers.in_order(row_logp), cu_seqlens=answers.bounds, chosen=chosen,
                counted=None if mask is None else answers.in_order(mask), rejected=rejected,
            )  # fmt: skip
        logp = answers.in_order(self.rows.masked(row_logp))
        sums = sequence_sums(
            logp, self._answer_of_row(), answers.bounds.shape[0] - 1,
            group=process_group(self.group),
        )  # fmt: skip
        return self.with_tokens().call._replace(logp=sums, chosen=chosen, rejected=rejected)

    def _answer_of_row(self) -> Tensor:
        """[M], answer by answer."""
        return sequence_of_row(self.answers.bounds, self.height)

    def evaluate(self, row_logp: Tensor) -> Found:
        """The objective and its gradient, in the order of the rows."""
        loss, figures, columns, gradient = pair_objective(*self.objective_of(row_logp))
        if self.group is not None:
            gradient = gradient[self._answer_of_row()]
        order = self.answers.order
        if order is not None:
            gradient = torch.empty_like(gradient).index_copy_(0, order, gradient)
        if self.group is not None:
            gradient = self.rows.masked(gradient)
        return Found(loss, figures, columns, gradient)

    def with_tokens(self) -> "Batch":
        """The batch with its chosen tokens as a column, and its totals as numbers.

        Schedules that take some of the pairs at a time need them beforehand.
        """
        bounds, mask = self.answers.bounds, self.rows.mask
        lengths = bounds.diff()
        if mask is not None:
            counted = torch.nn.functional.pad(self.answers.in_order(mask).cumsum(0), (1, 0))
            lengths = counted[bounds].diff()
        lengths = add_over(lengths, self.group)
        pairs, named = self.call.pairs, self.answers.chosen
        tokens = (lengths[:pairs] if named is None else lengths[named]).to(self.dtype)
        numbers = Numbers._make(self.call.numbers)
        if self.call.num_pairs is None and numbers.num_pairs < 0:
            numbers = numbers._replace(num_pairs=float(pairs))
        num_tokens = self.call.num_tokens
        if num_tokens is None and numbers.num_tokens < 0:
            num_tokens = tokens.sum()
        return self._replace(call=self.call._replace(
            chosen_tokens=tokens, num_tokens=num_tokens, numbers=list(numbers)
        ))  # fmt: skip

    def of_sides(self, chosen_logp: Tensor, rejected_logp: Tensor, some: slice) -> Found:
        """The objective of some pairs of :meth:`with_tokens` from the sums of both sides."""
        call = self.call.map_columns(lambda column: column[some])
        call = call._replace(logp=chosen_logp, rejected_logp=rejected_logp)
        return Found(*pair_objective(*call))

    def of_parts(self, columns: list[Tensor]) -> Found:
        """The objective of all pairs of :meth:`with_tokens` from the columns of its parts."""
        sums = torch.cat(columns, dim=1)
        return self.of_sides(sums[CHOSEN_LOGP], sums[REJECTED_LOGP], slice(None))

    def select(self, index: Tensor) -> "Batch":
        """The batch with some of its rows, whose answers are left as they are."""
        mask = None if self.rows.mask is None else self.rows.mask[index]
        hidden, target = (part.index_select(0, index) for part in (self.x.hidden, self.x.target))
        x = self.x._replace(hidden=hidden, target=target)
        return self._replace(x=x, rows=Rows(None, mask))

    def take(self, pairs: slice) -> tuple["Batch", Tensor]:
        """Some pairs of :meth:`with_tokens` with their rows, and the places of these rows."""
        layout = self.answers.layout
        assert layout is not None
        answers = [*layout.chosen[pairs], *layout.rejected[pairs]]
        index = self.rows_of(answers)
        lengths = torch.tensor([0, *(layout.lengths[answer] for answer in answers)])
        bounds = lengths.cumsum(0).to(self.x.hidden.device, non_blocking=True)
        call = self.call.map_columns(lambda column: column[pairs])
        part = self.select(index)._replace(
            call=call, answers=Answers(bounds, None, None, None, None)
        )
        return part, index

    def rows_of(self, answers: list[int]) -> Tensor:
        """Places [m] of the rows of some answers."""
        layout, order = self.answers.layout, self.answers.order
        assert layout is not None
        places = layout.rows(answers).to(self.x.hidden.device, non_blocking=True)
        return places if order is None else order[places]


def run_pairs(batch: Batch, plan: PairPlan, needs: Needs) -> tuple[Found, Gradients]:
    """Run the planned schedule; gradients are those of the objective itself."""
    run = {
        "keep": _keep,
        "recompute": _recompute,
        "frozen": _frozen,
        "one_sum": _one_sum,
        "two_sums": _two_sums,
    }[plan.schedule]
    return run(batch._replace(x=batch.x._replace(chunk=plan.chunk)), plan, needs)


def _raised(x: Projection, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """(grad, what it was multiplied by, a power of two).

    float16 would lose the small entries of E. They are raised while they are in it; sums are
    float32, where they are divided again.
    """
    if x.hidden.dtype != torch.float16:
        return grad, None
    scale = max(1.0, abs(x.head.options.logit_scale))
    largest = grad.abs().amax().clamp(2.0**-40, 2.0**40) * scale
    _, exponent = torch.frexp(largest)
    factor = torch.ldexp(torch.ones_like(largest), 13 - exponent)
    return grad * factor, factor


def _multiply(into: Gradients, factor: Tensor | float) -> None:
    """Multiply all gradients in place."""
    for part in into:
        if part is not None:
            part.mul_(factor)


def _clear(into: Gradients) -> None:
    """Set all gradients to 0."""
    for part in into:
        if part is not None:
            part.zero_()


def _all_at_once(
    x: Projection, chunk_gradient: ChunkGradient, needs: Needs, factor: Tensor | None
) -> Gradients:
    """Gradients of all rows, in a dtype that waits for the loss scale."""
    into = x.new_gradients(needs, gradient_dtype(x.hidden.dtype))
    x.add_gradients(into, chunk_gradient, accumulate=False)
    if factor is not None:
        _multiply(into, 1.0 / factor)
    return into


def _recompute(batch: Batch, _: PairPlan, needs: Needs) -> tuple[Found, Gradients]:
    x, sweep = batch.x, batch.x.sweep()
    found = batch.evaluate(logp_of(sweep))
    grad, factor = _raised(x, found.gradient)
    chunk_gradient = x.recomputed(LossGradient(lse_of(sweep), grad))
    return found, _all_at_once(x, chunk_gradient, needs, factor)


def _frozen(batch: Batch, _: PairPlan, __: Needs) -> tuple[Found, Gradients]:
    sums = batch.x.unit_sums()
    found = batch.evaluate(logp_of(sums[0]))
    return found, Gradients(batch.x.finish_unit(sums, found.gradient), None, None, None)


def _keep(batch: Batch, plan: PairPlan, needs: Needs) -> tuple[Found, Gradients]:
    if len(plan.groups) > 1:
        return _keep_groups(batch.with_tokens(), plan, needs)
    found, chunk_gradient, factor = _keep_group(batch, batch.room(batch.height))
    return found, _all_at_once(batch.x, chunk_gradient, needs, factor)


def _keep_groups(batch: Batch, plan: PairPlan, needs: Needs) -> tuple[Found, Gradients]:
    """Group after group of whole pairs; rows of no pair get no gradient."""
    layout = batch.answers.layout
    assert layout is not None
    into = batch.x.new_gradients(needs, batch.dtype)
    if into.hidden is not None:
        into.hidden.zero_()
    most = max(sum(layout.rows_of_pair()[slice(*group)]) for group in plan.groups)
    buffer = batch.room(most)
    scale: Tensor | None = None
    begun, columns = False, []
    for group in plan.groups:
        part, index = batch.take(slice(*group))
        if index.shape[0] == 0:
            columns.append(part.evaluate(part.full(0)).columns)
            continue
        found, chunk_gradient, factor = _keep_group(part, buffer)
        if factor is not None and scale is not None:
            _multiply(into, factor / scale)
        local = into
        if into.hidden is not None:
            local = into._replace(hidden=torch.empty_like(part.x.hidden, dtype=batch.dtype))
        part.x.add_gradients(local, chunk_gradient, accumulate=begun)
        if into.hidden is not None and local.hidden is not None:
            into.hidden.index_copy_(0, index, local.hidden)
        columns.append(found.columns)
        scale, begun = factor, True
    if not begun:
        _clear(into)
    if scale is not None:
        _multiply(into, 1.0 / scale)
    return batch.of_parts(columns), into


def _keep_group(batch: Batch, buffer: Tensor) -> tuple[Found, ChunkGradient, Tensor | None]:
    """(objective, E of each chunk, what E is multiplied by) of pairs whose logits are kept."""
    x, (sweep, kept) = batch.x, batch.x.keep(buffer)
    found = batch.evaluate(logp_of(sweep))
    grad, factor = _raised(x, found.gradient)
    return found, x.from_kept(kept, LossGradient(lse_of(sweep), grad), in_place=True), factor


def _one_sum(batch: Batch, plan: PairPlan, needs: Needs) -> tuple[Found, Gradients]:
    into = batch.x.new_gradients(needs, batch.dtype)
    row_logp, raised = _add_units(batch, _signs(batch), plan, into)
    found = batch.evaluate(row_logp)
    factor = found.columns[REJECTED_GRADIENT, 0]
    factor = factor if raised == 1.0 else factor / raised
    dtype = gradient_dtype(batch.x.hidden.dtype)
    return found, Gradients(*(None if p is None else _times(p, factor, dtype) for p in into))


def _signs(batch: Batch) -> Tensor:
    """[M] -1 for rows of the chosen answer of a single pair, 1 for rows of the rejected one.

    That is the gradient of the hinge loss of log-probabilities that are all 0.
    """
    zeros = batch.full(batch.height)
    numbers = Numbers(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0)
    hinge = batch.call._replace(
        beta=None, margin=None, tie=None, weight=None, num_pairs=None, num_tokens=None,
        ref_chosen_logps=zeros[:1], ref_rejected_logps=zeros[:1], loss_type="hinge",
        numbers=list(numbers),
    )  # fmt: skip
    return batch._replace(call=hinge, group=None).evaluate(zeros).gradient


def _times(part: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``part * factor``, rounded once to ``dtype``; in place where that is its own."""
    if part.dtype == dtype:
        return part.mul_(factor)
    return torch.mul(part, factor, out=torch.empty_like(part, dtype=dtype))


def _two_sums(batch: Batch, plan: PairPlan, needs: Needs) -> tuple[Found, Gradients]:
    layout = batch.answers.layout
    if layout is None:
        raise ValueError(
            "schedule 'two_sums' needs the lengths of the answers on the host; "
            "hint: pass cu_seqlens (and pair_index) as CPU tensors"
        )
    batch = batch.with_tokens()
    into = batch.x.new_gradients(Needs(needs.hidden, weight=False, bias=False), batch.dtype)
    _clear(into)
    columns = []
    for pair in range(batch.call.pairs):
        sides = [batch.rows_of([side[pair]]) for side in (layout.chosen, layout.rejected)]
        units = [_unit_sums(batch.select(index), plan, needs) for index in sides]
        sums = add_over(torch.stack([row_logp.sum() for row_logp, _, _ in units]), batch.group)
        found = batch.of_sides(sums[:1], sums[1:], slice(pair, pair + 1))
        grads = found.columns[CHOSEN_GRADIENT:, 0]
        for index, (_, unit, raised), grad in zip(sides, units, grads.unbind(), strict=True):
            into = _add_scaled(into, unit, grad / raised, index)
        columns.append(found.columns)
    return batch.of_parts(columns), into


def _unit_sums(part: Batch, plan: PairPlan, needs: Needs) -> tuple[Tensor, Gradients, float]:
    """(logp of these rows, gradients for dL/dlogp = the last of these three)."""
    sums = part.x.new_gradients(needs, part.dtype)
    if part.height == 0:
        _clear(sums)
    ones = part.rows.masked(part.full(part.height, 1.0))
    row_logp, raised = _add_units(part, ones, plan, sums)
    return part.rows.masked(row_logp), sums, raised


def _add_units(batch: Batch, grad: Tensor, plan: PairPlan, into: Gradients) -> tuple[Tensor, float]:
    """Add the gradients for dL/dlogp = ``grad`` times a number, block of rows after block.

    Returns:
        (logp of the rows, the number). The first block writes, the others add.
    """
    x, count = batch.x, batch.height
    block = max(1, rows_per_block(count, plan.rows))
    buffer = batch.room(block)
    raised = raised_units(x.hidden.dtype, x.head.options)
    grad = grad if raised == 1.0 else grad * raised
    found = []
    for begin in range(0, count, block):
        rows = slice(begin, begin + block)
        part = x.some(rows)
        sweep, kept = part.keep(buffer)
        found.append(logp_of(sweep))
        of_rows = LossGradient(lse_of(sweep), grad[rows])
        local = into._replace(hidden=None if into.hidden is None else into.hidden[rows])
        chunk_gradient = part.from_kept(kept, of_rows, in_place=True)
        part.add_gradients(local, chunk_gradient, accumulate=begin > 0)
    return (found[0] if len(found) == 1 else torch.cat([grad[:0], *found])), raised


def _add_scaled(into: Gradients, unit: Gradients, grad: Tensor, rows: Tensor) -> Gradients:
    """Add ``grad`` times the unit gradients of one side; the head's first are taken over."""
    _multiply(unit, grad)
    if into.hidden is not None and unit.hidden is not None:
        into.hidden.index_copy_(0, rows, unit.hidden)
    if into.weight is None and into.bias is None:
        return unit._replace(hidden=into.hidden)
    for total, part in ((into.weight, unit.weight), (into.bias, unit.bias)):
        if total is not None and part is not None:
            total.add_(part)
    return into
