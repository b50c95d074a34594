"""The custom operator behind ``fused_linear_mm_dpo``: loss and gradients in one forward pass.

Its results are not differentiable: :mod:`mmrlhf_kernels.fused` attaches the gradients to the loss.
Bounds and pairs that lie on the host are read inside it, so that a compiled graph does not break on
them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, logp_of
from mmrlhf_kernels.dispatch import define_operator
from mmrlhf_kernels.mm_dpo_plain import COLUMNS, FIGURES, PairCall
from mmrlhf_kernels.pair import check_values
from mmrlhf_kernels.pair_schedules import Batch, run_pairs
from mmrlhf_kernels.plan import (
    PairPlan,
    default_pair_workspace,
    plan_pair_schedule,
    widest_chunk,
)
from mmrlhf_kernels.precision import gradient_dtype, statistics_dtype
from mmrlhf_kernels.rows import place_answers
from mmrlhf_kernels.schedules import Gradients, Head, Needs, Projection

__all__ = ["FusedRows", "batch_of", "linear_mm_dpo"]

Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""loss, figures and columns as ``pair_objective`` has them, then gradients of hidden, weight and
bias; empty where not needed.
"""


class FusedRows(NamedTuple):
    """The rows of one call, the answers they belong to, the head, and how the call is run.

    A call has these operands and those of a :class:`PairCall`, whose ``logp`` is a stand-in.
    """

    hidden: Tensor
    """[N, H]."""
    head_weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""
    target: Tensor
    """[N] int64."""
    bounds: Tensor | None
    """[S + 1] of the answers, on the host or beside the rows, like ``pair_index``."""
    sequence: Tensor | None
    """[N] answer of each row, where there are no bounds."""
    pair_index: Tensor | None
    """[P, 2] answers of each pair; None: chosen answers first."""
    softcap: float | None
    logit_scale: float
    ignore_index: int
    counted_rows: int | None
    schedule: str | None
    workspace_bytes: int | None
    group: str | None
    """The name of the group of processes that hold other rows of the same answers."""
    needs: list[bool]
    """Which of hidden, weight and bias need a gradient."""


def _split(arguments: tuple[Any, ...]) -> tuple[FusedRows, PairCall]:
    count = len(FusedRows._fields)
    return FusedRows(*arguments[:count]), PairCall(*arguments[count:])


def batch_of(given: FusedRows, call: PairCall) -> Batch:
    """The rows that count and their answers."""
    check_values(call, weight="pair_weight")
    rows, answers = place_answers(
        given.target, given.ignore_index, given.head_weight.shape[0], given.counted_rows,
        given.bounds, given.sequence, given.pair_index, call.pairs,
    )  # fmt: skip
    options = HeadOptions(given.softcap, given.logit_scale)
    head = Head(given.head_weight.contiguous(), given.bias, None, options)
    hidden, target = rows.gather(given.hidden), rows.gather(given.target)
    x = Projection(hidden, target, head, head.weight.shape[0])
    return Batch(x, rows, answers, call, given.group)


def _linear_mm_dpo(*arguments: Any) -> Result:
    """The operator: rows that count, their answers, a plan, and what it gives."""
    given, call = _split(arguments)
    batch, needs = batch_of(given, call), given.needs
    rows = batch.rows
    if batch.height == 0 or call.pairs == 0:
        return (*batch.evaluate(batch.full(batch.height))[:3], *_zeros(given))
    if not any(needs):
        return (*batch.evaluate(logp_of(batch.x.sweep()))[:3], *_zeros(given))
    found, gradients = run_pairs(batch, plan_batch(batch, given), Needs(*needs))
    of_hidden = gradients.hidden
    if of_hidden is not None and needs[0]:
        narrow = of_hidden.to(gradient_dtype(given.hidden.dtype))
        of_hidden = narrow if rows.taken is None else rows.scatter(narrow, given.hidden.shape[0])
    gradients = gradients._replace(hidden=of_hidden if needs[0] else None)
    return (*found[:3], *_rounded(gradients, given))


def _rounded(found: Gradients, given: FusedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the dtype they wait in for the loss scale, empty where they are missing."""
    first, second, third = (
        given.hidden.new_empty(0)
        if part is None or like is None
        else part.to(gradient_dtype(like.dtype))
        for part, like in zip(found[:3], given[:3], strict=True)
    )
    return first, second, third


def _zeros(given: FusedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a batch without rows or pairs, and for tracing."""
    parts = (
        torch.zeros_like(like) if needed and like is not None else None
        for like, needed in zip(given[:3], given.needs, strict=True)
    )
    return _rounded(Gradients(*parts), given)


def plan_batch(batch: Batch, given: FusedRows) -> PairPlan:
    """The plan for this batch.

    Where the host does not know its lengths, the pairs are taken together, as they are where
    other processes hold rows of them: all have to add up their sums at the same time.
    """
    x, vocab, layout = batch.x.hidden, given.head_weight.shape[0], batch.answers.layout
    workspace_bytes = given.workspace_bytes
    if workspace_bytes is None:
        workspace_bytes = default_pair_workspace(x.shape[0], vocab, x.dtype, x.device)
    pairs = batch.call.pairs
    rows_of_pair = [x.shape[0]] + [0] * (pairs - 1) if layout is None else layout.rows_of_pair()
    together = pairs > 1 and (layout is None or batch.group is not None)

    def plan(*, shared: bool) -> PairPlan:
        return plan_pair_schedule(
            rows_of_pair, x.shape[1], vocab, x.dtype, given.needs[1] or given.needs[2],
            workspace_bytes, shared=shared, opposite=batch.call.opposite,
            widest=widest_chunk(x.device), forced=given.schedule,
        )  # fmt: skip

    chosen = plan(shared=together or (layout is not None and layout.shared()))
    if chosen.schedule == "two_sums" and layout is None and given.schedule is None:
        return plan(shared=True)
    return chosen


def _linear_mm_dpo_fake(*arguments: Any) -> Result:
    """Results of the operator as tracing sees them."""
    given, call = _split(arguments)
    like = given.hidden.new_empty((), dtype=statistics_dtype(given.hidden.dtype))
    columns = like.new_empty((len(COLUMNS) + 2, call.pairs))
    return (like, like.new_empty(len(FIGURES)), columns, *_zeros(given))


linear_mm_dpo = define_operator(
    "linear_mm_dpo", _linear_mm_dpo, _linear_mm_dpo_fake, (FusedRows, PairCall), Result,
    capturable=False,
)  # fmt: skip
