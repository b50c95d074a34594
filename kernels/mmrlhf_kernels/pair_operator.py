"""The custom operator behind ``fused_linear_mm_dpo``: loss and gradients in one forward pass.

Its results are not differentiable: :mod:`mmrlhf_kernels.fused` attaches the gradients to the loss.
Bounds and pairs that lie on the host are read inside it, so that a compiled graph does not break on
them.
"""

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.mm_dpo_plain import COLUMNS, FIGURES, PairCall
from mmrlhf_kernels.pair_schedules import Batch, run_pairs
from mmrlhf_kernels.plan import (
    PairPlan,
    default_pair_workspace,
    plan_pair_schedule,
    widest_chunk,
)
from mmrlhf_kernels.precision import gradient_dtype, statistics_dtype
from mmrlhf_kernels.registry import define_operator
from mmrlhf_kernels.rows import place_answers
from mmrlhf_kernels.schedules import Gradients, Head, Needs

__all__ = ["linear_mm_dpo"]

Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""loss, figures and columns as ``pair_objective`` has them, then gradients of hidden, weight and
bias; empty where not needed.
"""


def _linear_mm_dpo(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cu_seqlens: Tensor | None,
    sequence: Tensor | None,
    pair_index: Tensor | None,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: Tensor | None,
    tie: Tensor | None,
    pair_weight: Tensor | None,
    num_pairs: Tensor | None,
    num_tokens: Tensor | None,
    loss_type: str,
    sft: str,
    numbers: list[float],
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
    counted_rows: int | None,
    schedule: str | None,
    workspace_bytes: int | None,
    group: str | None,
    needs: list[bool],
) -> Result:
    """``cu_seqlens`` and ``pair_index`` lie on the host or beside the rows."""
    call = PairCall(
        ref_chosen_logps, None, None, None, None, None, ref_chosen_logps, ref_rejected_logps, beta,
        None, tie, pair_weight, None, num_pairs, num_tokens, loss_type, sft, False, numbers,
    )  # fmt: skip
    head = Head(weight.contiguous(), bias, None, HeadOptions(softcap, logit_scale))
    rows, answers = place_answers(
        target, ignore_index, weight.shape[0], counted_rows, cu_seqlens, sequence, pair_index,
        call.pairs,
    )  # fmt: skip
    batch = Batch(rows.gather(hidden), rows.gather(target), rows, answers, call, group)
    if batch.x.shape[0] == 0 or call.pairs == 0:
        found = batch.evaluate(batch.x.new_zeros(batch.x.shape[0], dtype=batch.dtype))
        return (*found[:3], *_zeros((hidden, weight, bias), needs))
    plan = plan_batch(batch, head, schedule, workspace_bytes, head_needs=needs[1] or needs[2])
    found, gradients = run_pairs(batch, head, plan, Needs(needs[0], needs[1], needs[2], side=False))
    of_hidden = gradients.hidden
    if of_hidden is not None and needs[0]:
        narrow = of_hidden.to(gradient_dtype(hidden.dtype))
        of_hidden = narrow if rows.taken is None else rows.scatter(narrow, hidden.shape[0])
    gradients = gradients._replace(hidden=of_hidden if needs[0] else None)
    return (*found[:3], *_rounded(gradients, (hidden, weight, bias)))


def _rounded(
    found: Gradients, inputs: tuple[Tensor, Tensor, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the dtype they wait in for the loss scale, empty where they are missing."""
    first, second, third = (
        inputs[0].new_empty(0)
        if part is None or like is None
        else part.to(gradient_dtype(like.dtype))
        for part, like in zip(found[:3], inputs, strict=True)
    )
    return first, second, third


def _zeros(
    inputs: tuple[Tensor, Tensor, Tensor | None], needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a batch without rows or pairs, and for tracing."""
    first, second, third = (
        torch.zeros_like(like) if needed and like is not None else None
        for like, needed in zip(inputs, needs, strict=True)
    )
    return _rounded(Gradients(first, second, third, None), inputs)


def plan_batch(
    batch: Batch, head: Head, schedule: str | None, workspace_bytes: int | None, *, head_needs: bool
) -> PairPlan:
    """The plan for this batch.

    Where the host does not know its lengths, the pairs are taken together, as they are where
    other processes hold rows of them: all have to add up their sums at the same time.
    """
    x, vocab, layout = batch.x, head.weight.shape[0], batch.answers.layout
    if workspace_bytes is None:
        workspace_bytes = default_pair_workspace(x.shape[0], vocab, x.dtype, x.device)
    pairs = batch.call.pairs
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
            opposite=batch.call.opposite,
            widest=widest_chunk(x.device),
            forced=schedule,
        )

    chosen = plan(shared=together or (layout is not None and layout.shared()))
    if chosen.schedule == "two_sums" and layout is None and schedule is None:
        return plan(shared=True)
    return chosen


def _linear_mm_dpo_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: object
) -> Result:
    """Results of the operator as tracing sees them."""
    references, needs = rest[4], rest[-1]
    assert isinstance(references, Tensor)
    assert isinstance(needs, list | tuple)
    like = hidden.new_empty((), dtype=statistics_dtype(hidden.dtype))
    columns = like.new_empty((len(COLUMNS) + 2, references.shape[0]))
    gradients = _zeros((hidden, weight, bias), list(needs))
    return (like, like.new_empty(len(FIGURES)), columns, *gradients)


linear_mm_dpo = define_operator(
    "linear_mm_dpo", _linear_mm_dpo, _linear_mm_dpo_fake, capturable=False
)
