"""Log-probabilities under a head whose vocabulary rows are spread over processes.

Each process sweeps its own rows. Two reductions join the sweeps: the largest of the maxima, then
the sum of (exponentials against it, target logits). In backward each process knows the whole
normaliser and forms the gradient of its own weight rows without communication; the gradients of
the hidden states are added over the group.
"""

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.checks import check_head, under_autocast
from mmrlhf_kernels.context import Context
from mmrlhf_kernels.dispatch import row_backend
from mmrlhf_kernels.plan import chunk_width, default_workspace, widest_chunk
from mmrlhf_kernels.precision import in_full_precision, statistics_dtype
from mmrlhf_kernels.products import gradients
from mmrlhf_kernels.rows import gather_rows, scatter_rows
from mmrlhf_kernels.schedules import Head, Needs, recomputed_gradient

__all__ = ["vocab_parallel_linear_logp"]


class _Options(NamedTuple):
    """What does not carry a gradient."""

    first: int
    softcap: float | None
    logit_scale: float
    ignore_index: int
    group: dist.ProcessGroup | None
    chunk: int


def vocab_parallel_linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    first: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    group: dist.ProcessGroup | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    """Log-probability of each target; hidden states and targets are the same in every process.

    Args:
        hidden: [N, H].
        weight: [V_own, H], this process's rows of the head.
        target: [N] int64 global ids. An id that no process holds is not noticed.
        first: Global id of the first own row; the shards must not overlap.
        bias: [V_own] or None.
        softcap: As in ``fused_linear_logp``.
        logit_scale: As there.
        ignore_index: As there.
        group: The process group, None for the default one.
        workspace_bytes: As there.

    Returns:
        [N] float32, equal in every process. The gradient of ``hidden`` is that of the whole head.
    """
    states, rows, offset = under_autocast(hidden, weight, bias)
    assert states is not None
    assert rows is not None
    check_head(states, rows, target, offset)
    workspace = default_workspace(states.device) if workspace_bytes is None else workspace_bytes
    widest = widest_chunk(states.device)
    chunk = chunk_width(states.shape[0], rows.shape[0], states.dtype.itemsize, workspace, widest)
    options = _Options(first, softcap, logit_scale, ignore_index, group, chunk)
    logp: Tensor = _VocabParallel.apply(states, rows, offset, target, options)
    return logp


@in_full_precision
def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: _Options
) -> tuple[Tensor, Tensor]:
    """(logp, lse) of compacted rows, joined over the group."""
    head = HeadOptions(options.softcap, options.logit_scale)
    sweep = row_backend(hidden).sweep(
        hidden, weight, bias, target, head,
        first=options.first, entropy=False, argmax=False, tile=None,
    )  # fmt: skip
    maximum = sweep.maximum.clone()
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=options.group)
    own = sweep.sum_exp * torch.exp(sweep.maximum - maximum)
    sums = torch.stack([own, sweep.target_logit])
    dist.all_reduce(sums, op=dist.ReduceOp.SUM, group=options.group)
    lse = maximum + sums[0].log()
    return sums[1] - lse, lse


@in_full_precision
def _backward(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    options: _Options,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of compacted hidden (summed over the group), weight and bias."""
    hidden, weight, bias, target, lse = inputs
    head = Head(weight, bias, None, HeadOptions(options.softcap, options.logit_scale))
    shifted = target - options.first
    chunk_gradient = recomputed_gradient(row_backend(hidden), hidden, head, shifted, lse, grad)
    found = gradients(chunk_gradient, hidden, head, Needs(*needs, side=False), options.chunk)
    if found.hidden is not None:
        dist.all_reduce(found.hidden, op=dist.ReduceOp.SUM, group=options.group)
    return found.hidden, found.weight, found.bias


class _VocabParallelContext(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]
    options: _Options


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _VocabParallelContext,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        options: _Options,
    ) -> Tensor:
        counted = target != options.ignore_index
        rows = None if bool(counted.all()) else counted.nonzero().squeeze(1)
        if hidden.shape[0] == 0 or (rows is not None and rows.numel() == 0):
            # Every process sees the same targets, so all of them leave out the reductions.
            logp = lse = hidden.new_zeros(0, dtype=statistics_dtype(hidden.dtype))
        else:
            whole = weight.contiguous()
            logp, lse = _forward(
                gather_rows(hidden, rows), whole, bias, gather_rows(target, rows), options
            )
        ctx.save_for_backward(hidden, weight, bias, target, lse, rows)
        ctx.options = options
        return scatter_rows(logp, rows, hidden.shape[0])

    @staticmethod
    def backward(ctx: _VocabParallelContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, lse, rows = ctx.saved_tensors
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        if lse.numel() == 0:
            nothing = (
                torch.zeros_like(tensor) if need and tensor is not None else None
                for tensor, need in zip((hidden, weight, bias), needs, strict=True)
            )
            return (*nothing, None, None)
        inputs = (
            gather_rows(hidden, rows),
            weight.contiguous(),
            bias,
            gather_rows(target, rows),
            lse,
        )
        of_hidden, of_weight, of_bias = _backward(
            gather_rows(grad, rows).to(lse.dtype), inputs, ctx.options, needs
        )
        if of_hidden is not None:
            of_hidden = scatter_rows(of_hidden.to(hidden.dtype), rows, hidden.shape[0])
        return of_hidden, of_weight, of_bias, None, None
