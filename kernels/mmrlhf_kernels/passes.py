"""The two passes of ``fused_linear_logp``: gather rows, run a schedule, scatter the results.

Ignored rows are removed first and restored last. What forward keeps for backward has a
shape that follows from the arguments alone, so that a compiler can know it: ``kept`` is [N * V] for
schedule ``keep`` (ignored rows leave its tail unused), [N, H + r] for ``frozen`` and else empty.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, Sweep
from mmrlhf_kernels.dispatch import keeping_backend, row_backend
from mmrlhf_kernels.gradient_filter import GradientFilter
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.products import gradients
from mmrlhf_kernels.rows import active_rows, gather_rows, scatter_rows
from mmrlhf_kernels.schedules import (
    Gradients,
    Head,
    Kept,
    Needs,
    kept_gradient,
    recomputed_gradient,
    sweep_head,
    sweep_keeping,
    unit_gradient,
)

__all__ = [
    "BackwardResult",
    "ForwardResult",
    "PassOptions",
    "Request",
    "Saved",
    "backward_pass",
    "empty_gradients",
    "empty_result",
    "forward_pass",
]

ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""logp [N], entropy, argmax, lse [N], kept, maxima, tile maxima; empty where not requested."""
BackwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradients of hidden, weight, bias, side_hidden and side; empty where not needed."""


class Request(NamedTuple):
    """The tensors and the head's options of one call, after their checks."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    bias: Tensor | None
    side_hidden: Tensor | None
    side: Tensor | None
    softcap: float | None
    logit_scale: float
    ignore_index: int

    @property
    def head(self) -> Head:
        """The head, with a weight whose rows lie one behind the other."""
        options = HeadOptions(self.softcap, self.logit_scale)
        return Head(self.weight.contiguous(), self.bias, self.side, options)

    def rows(self) -> Tensor | None:
        """Rows that count, None for all."""
        return active_rows(self.target, self.ignore_index, self.weight.shape[0])

    def joined(self, rows: Tensor | None) -> Tensor:
        """[M, H + r]: the rows that count, with LoRA's part appended."""
        x = gather_rows(self.hidden, rows)
        if self.side_hidden is None:
            return x
        return torch.cat([x, gather_rows(self.side_hidden, rows)], dim=1)


class Saved(NamedTuple):
    """What forward leaves for backward, as in :data:`ForwardResult`."""

    lse: Tensor
    kept: Tensor
    maxima: Tensor
    tiles: Tensor


class PassOptions(NamedTuple):
    """Which extras, and which schedule."""

    entropy: bool
    argmax: bool
    schedule: str
    chunk: int
    filter_eps: float | None


class Outcome(NamedTuple):
    """A sweep over compacted rows and what its schedule keeps for backward."""

    sweep: Sweep
    kept: Tensor
    maxima: Tensor


def _joined(hidden: Tensor, side: Tensor | None, rows: Tensor | None) -> Tensor:
    """[M, H + r]: the rows that count, with LoRA's part appended."""
    x = gather_rows(hidden, rows)
    return x if side is None else torch.cat([x, gather_rows(side, rows)], dim=1)


def _run_schedule(
    x: Tensor,
    head: Head,
    target: Tensor,
    options: PassOptions,
    count: int,
) -> Outcome:
    """Forward of one schedule on compacted rows; ``count`` is N, ignored rows included."""
    none = x.new_empty(0, dtype=statistics_dtype(x.dtype))
    entropy, argmax, schedule, chunk, _ = options
    tile = None if options.filter_eps is None else chunk
    if schedule == "keep":
        logits = x.new_empty(count * head.weight.shape[0])
        sweep, kept = sweep_keeping(
            keeping_backend(x), x, head, target, chunk, logits, entropy=entropy, argmax=argmax
        )
        return Outcome(sweep, logits, kept.maximum)
    if schedule == "frozen":
        sweep, unit = unit_gradient(
            keeping_backend(x), x, head, target, chunk, entropy=entropy, argmax=argmax
        )
        return Outcome(sweep, unit, none)
    sweep = sweep_head(
        row_backend(x), x, head, target, chunk, entropy=entropy, argmax=argmax, tile=tile
    )
    return Outcome(sweep, x.new_empty(0), none)


def forward_pass(request: Request, options: PassOptions) -> ForwardResult:
    """Log-probabilities, extras, and what the schedule keeps."""
    count = request.hidden.shape[0]
    rows = request.rows()
    if count == 0 or (rows is not None and rows.numel() == 0):
        result = empty_result(request, options)
        for tensor in result:
            tensor.fill_(-1 if tensor.dtype == torch.int64 else 0)
        return result
    x, target = request.joined(rows), gather_rows(request.target, rows)
    outcome = _run_schedule(x, request.head, target, options, count)
    return _scatter_outcome(outcome, rows, count, options.schedule)


def _scatter_outcome(
    outcome: Outcome, rows: Tensor | None, count: int, schedule: str
) -> ForwardResult:
    """Restore the ignored rows: logp, entropy and lse 0, argmax -1."""
    sweep, kept, maxima = outcome
    lse = sweep.maximum + sweep.sum_exp.log()
    empty = lse.new_empty(0)
    entropy, argmax, tiles = empty, empty.to(torch.int64), empty.to(torch.bfloat16)
    if sweep.sum_z_exp is not None:
        entropy = scatter_rows(lse - sweep.sum_z_exp / sweep.sum_exp, rows, count)
    if sweep.argmax is not None:
        argmax = scatter_rows(sweep.argmax, rows, count, fill=-1)
    if sweep.tile_maximum is not None:
        tiles = scatter_rows(sweep.tile_maximum, rows, count)
    if schedule == "frozen":
        kept = scatter_rows(kept, rows, count)
    if schedule == "keep":
        maxima = scatter_rows(maxima, rows, count)
    logp = scatter_rows(sweep.target_logit - lse, rows, count)
    return logp, entropy, argmax, scatter_rows(lse, rows, count), kept, maxima, tiles


def empty_result(request: Request, options: PassOptions) -> ForwardResult:
    """Uninitialised results of the forward pass; their shapes follow from the arguments."""
    hidden, vocab = request.hidden, request.weight.shape[0]
    count, width = hidden.shape
    if request.side_hidden is not None:
        width += request.side_hidden.shape[1]
    chunks = (vocab + options.chunk - 1) // options.chunk
    dtype = statistics_dtype(hidden.dtype)
    keeps, filters = options.schedule == "keep", options.filter_eps is not None
    kept: dict[str, tuple[int, ...]] = {"keep": (count * vocab,), "frozen": (count, width)}
    return (
        hidden.new_empty(count, dtype=dtype),
        hidden.new_empty(count if options.entropy else 0, dtype=dtype),
        hidden.new_empty(count if options.argmax else 0, dtype=torch.int64),
        hidden.new_empty(count, dtype=dtype),
        hidden.new_empty(kept.get(options.schedule, (0,))),
        hidden.new_empty((count, chunks) if keeps else (0,), dtype=dtype),
        hidden.new_empty((count, chunks) if filters else (0,), dtype=torch.bfloat16),
    )


def backward_pass(
    grad: Tensor, request: Request, saved: Saved, options: PassOptions, needs: list[bool]
) -> BackwardResult:
    """Gradients of a call whose schedule is not ``frozen``; ``needs`` has the result's order."""
    rows = request.rows()
    count = request.hidden.shape[0]
    if count == 0 or (rows is not None and rows.numel() == 0):
        zeros = empty_gradients(request, needs)
        for tensor in zeros:
            tensor.zero_()
        return zeros
    x, target = request.joined(rows), gather_rows(request.target, rows)
    lse, g = gather_rows(saved.lse, rows), gather_rows(grad.to(saved.lse.dtype), rows)
    head, chunk, gradient_filter = request.head, options.chunk, None
    if options.filter_eps is not None:
        tiles = gather_rows(saved.tiles, rows)
        gradient_filter = GradientFilter(tiles, lse, g, target, tile=chunk, eps=options.filter_eps)
    if options.schedule == "keep":
        kept = Kept(saved.kept, gather_rows(saved.maxima, rows))
        chunk_gradient = kept_gradient(
            keeping_backend(x), kept, head.options, target, lse, g, chunk, in_place=False
        )
    else:
        chunk_gradient = recomputed_gradient(row_backend(x), x, head, target, lse, g)
    wanted = Needs(needs[0] or needs[3], needs[1], needs[2], needs[4])
    found = gradients(chunk_gradient, x, head, wanted, chunk, gradient_filter)
    if gradient_filter is not None:
        gradient_filter.report(request.logit_scale)
    of_hidden = None if found.hidden is None else scatter_rows(found.hidden, rows, count)
    return _as_result(request, needs, of_hidden, found)


def _as_result(
    request: Request, needs: list[bool], of_hidden: Tensor | None, found: Gradients
) -> BackwardResult:
    """Split the gradient of [h, u], round it, and put empty tensors where nothing was needed."""
    like = request.hidden
    width = like.shape[1]
    hidden = side_hidden = None
    if of_hidden is not None and request.side_hidden is None:
        hidden = of_hidden.to(like.dtype)
    elif of_hidden is not None:
        # Two copies: what an operator returns must not share memory.
        hidden = of_hidden[:, :width].to(like.dtype, copy=True) if needs[0] else None
        side_hidden = of_hidden[:, width:].to(like.dtype, copy=True) if needs[3] else None
    hidden, weight, bias, side_hidden, side = (
        like.new_empty(0) if part is None else part
        for part in (hidden, found.weight, found.bias, side_hidden, found.side)
    )
    return hidden, weight, bias, side_hidden, side


def empty_gradients(request: Request, needs: list[bool]) -> BackwardResult:
    """Uninitialised gradients, empty where not needed."""
    inputs = (request.hidden, request.weight, request.bias, request.side_hidden, request.side)
    hidden, weight, bias, side_hidden, side = (
        torch.empty_like(like, memory_format=torch.contiguous_format)
        if needed and like is not None
        else request.hidden.new_empty(0)
        for like, needed in zip(inputs, needs, strict=True)
    )
    return hidden, weight, bias, side_hidden, side
