"""The two passes of ``fused_linear_logp``: rows taken out, a schedule run, rows put back.

Rows that are ignored are taken out first and put back last. What forward keeps for backward has a
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
from mmrlhf_kernels.rows import active_rows, spread, taken
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
    "Asked",
    "BackwardResult",
    "ForwardResult",
    "Request",
    "Saved",
    "backward_pass",
    "forward_pass",
    "gradient_room",
    "result_room",
]

ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""logp [N], entropy, argmax, lse [N], kept, maxima, tile maxima; empty where not asked for."""
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
        """[M, H + r]: the rows that count, with LoRA's part beside them."""
        x = taken(self.hidden, rows)
        if self.side_hidden is None:
            return x
        return torch.cat([x, taken(self.side_hidden, rows)], dim=1)


class Saved(NamedTuple):
    """What forward leaves for backward, as in :data:`ForwardResult`."""

    lse: Tensor
    kept: Tensor
    maxima: Tensor
    tiles: Tensor


class Asked(NamedTuple):
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
    """[M, H + r]: the rows that count, with LoRA's part beside them."""
    x = taken(hidden, rows)
    return x if side is None else torch.cat([x, taken(side, rows)], dim=1)


def _run_schedule(
    x: Tensor,
    head: Head,
    target: Tensor,
    asked: Asked,
    count: int,
) -> Outcome:
    """Forward of one schedule on compacted rows; ``count`` is N, ignored rows included."""
    none = x.new_empty(0, dtype=statistics_dtype(x.dtype))
    entropy, argmax, schedule, chunk, _ = asked
    tile = None if asked.filter_eps is None else chunk
    if schedule == "keep":
        room = x.new_empty(count * head.weight.shape[0])
        sweep, kept = sweep_keeping(
            keeping_backend(x), x, head, target, chunk, room, entropy=entropy, argmax=argmax
        )
        return Outcome(sweep, room, kept.maximum)
    if schedule == "frozen":
        sweep, unit = unit_gradient(
            keeping_backend(x), x, head, target, chunk, entropy=entropy, argmax=argmax
        )
        return Outcome(sweep, unit, none)
    sweep = sweep_head(
        row_backend(x), x, head, target, chunk, entropy=entropy, argmax=argmax, tile=tile
    )
    return Outcome(sweep, x.new_empty(0), none)


def forward_pass(request: Request, asked: Asked) -> ForwardResult:
    """Log-probabilities, extras, and what the schedule keeps."""
    count = request.hidden.shape[0]
    rows = request.rows()
    if count == 0 or (rows is not None and rows.numel() == 0):
        result = result_room(request, asked)
        for tensor in result:
            tensor.fill_(-1 if tensor.dtype == torch.int64 else 0)
        return result
    x, target = request.joined(rows), taken(request.target, rows)
    outcome = _run_schedule(x, request.head, target, asked, count)
    return _spread_outcome(outcome, rows, count, asked.schedule)


def _spread_outcome(
    outcome: Outcome, rows: Tensor | None, count: int, schedule: str
) -> ForwardResult:
    """Put the ignored rows back: logp, entropy and lse 0, argmax -1."""
    sweep, kept, maxima = outcome
    lse = sweep.maximum + sweep.sum_exp.log()
    empty = lse.new_empty(0)
    entropy, argmax, tiles = empty, empty.to(torch.int64), empty.to(torch.bfloat16)
    if sweep.sum_z_exp is not None:
        entropy = spread(lse - sweep.sum_z_exp / sweep.sum_exp, rows, count)
    if sweep.argmax is not None:
        argmax = spread(sweep.argmax, rows, count, fill=-1)
    if sweep.tile_maximum is not None:
        tiles = spread(sweep.tile_maximum, rows, count)
    if schedule == "frozen":
        kept = spread(kept, rows, count)
    if schedule == "keep":
        maxima = spread(maxima, rows, count)
    logp = spread(sweep.target_logit - lse, rows, count)
    return logp, entropy, argmax, spread(lse, rows, count), kept, maxima, tiles


def result_room(request: Request, asked: Asked) -> ForwardResult:
    """Uninitialised results of the forward pass; their shapes follow from the arguments."""
    hidden, vocab = request.hidden, request.weight.shape[0]
    count, width = hidden.shape
    if request.side_hidden is not None:
        width += request.side_hidden.shape[1]
    chunks = (vocab + asked.chunk - 1) // asked.chunk
    dtype = statistics_dtype(hidden.dtype)
    keeps, filters = asked.schedule == "keep", asked.filter_eps is not None
    kept: dict[str, tuple[int, ...]] = {"keep": (count * vocab,), "frozen": (count, width)}
    return (
        hidden.new_empty(count, dtype=dtype),
        hidden.new_empty(count if asked.entropy else 0, dtype=dtype),
        hidden.new_empty(count if asked.argmax else 0, dtype=torch.int64),
        hidden.new_empty(count, dtype=dtype),
        hidden.new_empty(kept.get(asked.schedule, (0,))),
        hidden.new_empty((count, chunks) if keeps else (0,), dtype=dtype),
        hidden.new_empty((count, chunks) if filters else (0,), dtype=torch.bfloat16),
    )


def backward_pass(
    grad: Tensor, request: Request, saved: Saved, asked: Asked, needs: list[bool]
) -> BackwardResult:
    """Gradients of a call whose schedule is not ``frozen``; ``needs`` has the result's order."""
    rows = request.rows()
    count = request.hidden.shape[0]
    if count == 0 or (rows is not None and rows.numel() == 0):
        room = gradient_room(request, needs)
        for tensor in room:
            tensor.zero_()
        return room
    x, target = request.joined(rows), taken(request.target, rows)
    lse, g = taken(saved.lse, rows), taken(grad.to(saved.lse.dtype), rows)
    head, chunk, sieve = request.head, asked.chunk, None
    if asked.filter_eps is not None:
        tiles = taken(saved.tiles, rows)
        sieve = GradientFilter(tiles, lse, g, target, tile=chunk, eps=asked.filter_eps)
    if asked.schedule == "keep":
        kept = Kept(saved.kept, taken(saved.maxima, rows))
        walk = kept_gradient(
            keeping_backend(x), kept, head.options, target, lse, g, chunk, in_place=False
        )
    else:
        walk = recomputed_gradient(row_backend(x), x, head, target, lse, g)
    wanted = Needs(needs[0] or needs[3], needs[1], needs[2], needs[4])
    found = gradients(walk, x, head, wanted, chunk, sieve)
    if sieve is not None:
        sieve.report(request.logit_scale)
    of_hidden = None if found.hidden is None else spread(found.hidden, rows, count)
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


def gradient_room(request: Request, needs: list[bool]) -> BackwardResult:
    """Uninitialised gradients, empty where not needed."""
    inputs = (request.hidden, request.weight, request.bias, request.side_hidden, request.side)
    hidden, weight, bias, side_hidden, side = (
        torch.empty_like(like, memory_format=torch.contiguous_format)
        if needed and like is not None
        else request.hidden.new_empty(0)
        for like, needed in zip(inputs, needs, strict=True)
    )
    return hidden, weight, bias, side_hidden, side
