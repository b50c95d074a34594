"""The backend in plain PyTorch: blocks of logits that stay in cache, buffers that are reused.

A chunk of the vocabulary meets all rows, block of rows after block of rows. A block is small enough
that the passes over it (scale, softcap, maximum, exponential, sum) run in cache behind the matrix
product that filled it, and each of them works in place. Every block has the same place in the same
order in each run, so results are equal bit by bit from run to run.
"""

import math
import operator
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mmrlhf_kernels.backend import (
    Backend,
    Block,
    Extras,
    HeadOptions,
    KeptBlock,
    LossGradient,
    Sweep,
    lift_of,
    raised_units,
)
from mmrlhf_kernels.precision import (
    gradient_dtype,
    operand_dtype,
    product_into,
    statistics_dtype,
    widened,
)

__all__ = ["BACKEND", "merge_sweeps"]

SWEEP_COLUMNS = (1024, 16384)
"""Fewest and most vocabulary rows per step of a sweep."""
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits per block: 1 MiB of float32 fits the second cache of one core; a GPU wants large ones."""
FEWEST_BLOCK_ROWS = 256
"""A product with fewer rows spends its time on packing the weight."""


def merge_sweeps(left: Sweep, right: Sweep) -> Sweep:
    """The sweep over two disjoint vocabulary ranges, ``left`` holding the smaller ids.

    ``sum_exp = sum_left exp(m_left - m) + sum_right exp(m_right - m)`` with ``m`` the larger
    maximum, and likewise for ``sum_z_exp``; shifts are those of each and not merged.
    """
    maximum = torch.maximum(left.maximum, right.maximum)
    from_left = torch.exp(left.maximum - maximum)
    from_right = torch.exp(right.maximum - maximum)
    sum_z_exp = argmax = None
    if left.sum_z_exp is not None and right.sum_z_exp is not None:
        sum_z_exp = left.sum_z_exp * from_left + right.sum_z_exp * from_right
    if left.argmax is not None and right.argmax is not None:
        argmax = torch.where(right.maximum > left.maximum, right.argmax, left.argmax)
    return Sweep(
        maximum,
        left.sum_exp * from_left + right.sum_exp * from_right,
        left.target_logit + right.target_logit,
        sum_z_exp,
        argmax,
    )


def _row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows whose logits against ``columns`` vocabulary rows make one block."""
    step = max(FEWEST_BLOCK_ROWS, BLOCK_ELEMENTS.get(device.type, 1 << 26) // max(1, columns))
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))


class _Logits:
    """Forms the logits of blocks of rows in one buffer, or in ``out`` where its dtype allows.

    Operands are widened here: the weight once, hidden states block by block.
    """

    def __init__(self, block: Block, out: Tensor | None) -> None:
        self.block, self.weight = block, widened(block.weight)
        self.dtype = statistics_dtype(block.hidden.dtype)
        self.out = out if out is not None and out.dtype == self.dtype else None
        self.buffer: Tensor | None = None

    def of(self, rows: slice) -> Tensor:
        """Z [n, C] in statistics precision; the next call may overwrite it."""
        hidden, _, bias, _, options, _ = self.block
        height = rows.stop - rows.start
        if self.out is not None:
            z = self.out[rows]
        else:
            if self.buffer is None:
                self.buffer = hidden.new_empty((height, self.weight.shape[0]), dtype=self.dtype)
            z = self.buffer[:height]
        product_into(z, widened(hidden[rows]), self.weight.t())
        if bias is not None:
            z.add_(bias)
        if options.softcap is not None:
            slope = options.logit_scale / options.softcap
            return z.mul_(slope).tanh_().mul_(options.softcap)
        return z if options.logit_scale == 1.0 else z.mul_(options.logit_scale)


def _column_of_target(target: Tensor, first: int, columns: int) -> tuple[Tensor, Tensor]:
    """(column [n, 1] within the chunk, inside [n] bool); column 0 replaces those outside."""
    column = target - first
    inside = (column >= 0) & (column < columns)
    return column.where(inside, 0).unsqueeze(1), inside


def _reduce_block(z: Tensor, target: Tensor, first: int, extras: Extras, scratch: Tensor) -> Sweep:
    """Statistics of one block of logits; leaves ``exp(z - maximum)`` in ``scratch``.

    ``scratch`` may be ``z`` itself where the entropy is not wanted.
    """
    column, inside = _column_of_target(target, first, z.shape[1])
    target_logit = z.gather(1, column).squeeze(1).where(inside, 0.0)
    best = first + z.argmax(dim=1) if extras.argmax else None
    # A bias of minus infinity marks padded vocabulary rows; a chunk may hold nothing else.
    maximum = z.amax(dim=1).clamp_(min=torch.finfo(z.dtype).min)
    z.sub_(maximum.unsqueeze(1))
    exponential = torch.exp(z, out=scratch)
    sum_exp = exponential.sum(dim=1)
    sum_z_exp = None
    if extras.entropy:
        weighted = z.mul(exponential).nan_to_num_(nan=0.0)
        sum_z_exp = weighted.sum(dim=1).add_(maximum * sum_exp)
    return Sweep(maximum, sum_exp, target_logit, sum_z_exp, best)


def _stack(parts: list[Sweep]) -> Sweep:
    """Join the sweeps of consecutive row blocks."""
    columns = zip(*parts, strict=True)
    joined: list[Any] = [None if c[0] is None else torch.cat(c) for c in columns]
    return Sweep(*joined)


def _sweep_chunk(block: Block, extras: Extras, out: Tensor | None) -> Sweep:
    """The sweep over one chunk, whose exponentials go to ``out`` or are forgotten."""
    logits, parts = _Logits(block, out), []
    lift = 0.0 if out is None else lift_of(out.dtype)
    for rows in _row_blocks(block.hidden.shape[0], block.weight.shape[0], block.hidden.device):
        z = logits.of(rows)
        kept = torch.empty_like(z) if extras.entropy else z
        part = _reduce_block(z, block.target[rows], block.first, extras, kept)
        if out is not None:
            part = part._replace(shift=part.maximum - lift)
            _store(kept.mul_(math.exp(lift)) if lift else kept, out[rows])
        parts.append(part)
    return parts[0] if len(parts) == 1 else _stack(parts)


def sweep(block: Block, extras: Extras) -> Sweep:
    """One pass over the vocabulary; see :class:`mmrlhf_kernels.backend.Backend`."""
    (fewest, most), rows = SWEEP_COLUMNS, block.hidden.shape[0]
    wanted = BLOCK_ELEMENTS.get(block.hidden.device.type, 1 << 26) // max(1, rows)
    step = max(fewest, min(most, wanted // fewest * fewest))
    chunks = (block.columns(b, b + step) for b in range(0, block.weight.shape[0], step))
    return reduce(merge_sweeps, (_sweep_chunk(chunk, extras, None) for chunk in chunks))


def kept_exponentials(block: Block, extras: Extras, out: Tensor) -> Sweep:
    """Keep the exponentials of one chunk; see :class:`mmrlhf_kernels.backend.Backend`."""
    return _sweep_chunk(block, extras, out)


def _finish_gradient(
    p: Tensor,
    z: Tensor | None,
    target: Tensor,
    rows: LossGradient,
    options: HeadOptions,
    first: int,
    *,
    ready: bool = False,
) -> Tensor:
    """Turn probabilities into E in place; ``ready`` says that they are times -grad already.

    ``z`` is needed for the slope of a softcap and for the gradient of the entropy, and used up.
    """
    assert rows.grad is not None
    grad = rows.grad.unsqueeze(1)
    slope = None
    if z is not None and options.softcap is not None:
        slope = (z / options.softcap).clamp_(-1.0, 1.0).square_().neg_().add_(1.0)
    if z is not None and rows.of_entropy is not None and rows.entropy is not None:
        of_entropy, entropy = rows.of_entropy.unsqueeze(1), rows.entropy.unsqueeze(1)
        # Minus infinity times a probability of 0 would be no number.
        log_p = z.sub_(rows.lse.unsqueeze(1)).clamp_(min=torch.finfo(z.dtype).min)
        p.mul_(log_p.add_(entropy).mul_(of_entropy).add_(grad).neg_())
    elif not ready:
        p.mul_(-grad)
    column, inside = _column_of_target(target, first, p.shape[1])
    here = p.gather(1, column) + rows.grad.where(inside, 0.0).unsqueeze(1)
    p.scatter_(1, column, here)
    if slope is not None:
        p.mul_(slope)
    return p if options.logit_scale == 1.0 else p.mul_(options.logit_scale)


def logit_gradient(block: Block, rows: LossGradient, out: Tensor) -> Tensor:
    """E of one chunk; see :class:`mmrlhf_kernels.backend.Backend`."""
    logits, options = _Logits(block, out), block.options
    for some in _row_blocks(block.hidden.shape[0], block.weight.shape[0], out.device):
        p, part = logits.of(some), rows.map(operator.itemgetter(some))
        z = None if options.softcap is None and rows.of_entropy is None else p.clone()
        p.sub_(part.lse.unsqueeze(1)).exp_()
        _finish_gradient(p, z, block.target[some], part, options, block.first)
        _store(p, out[some])
    return out


def gradient_of_kept(kept: KeptBlock, rows: LossGradient, out: Tensor) -> Tensor:
    """E from kept exponentials; see :class:`mmrlhf_kernels.backend.Backend`."""
    held, shift, target, options, first, _ = kept
    if rows.unit is not None:
        # p times -grad away from the targets; no target is here, its own place is cleared below.
        rows = rows._replace(grad=torch.full_like(rows.lse, -rows.unit))
        target = torch.full_like(target, -1)
    in_place = held.data_ptr() == out.data_ptr() or out.dtype != shift.dtype
    for some in _row_blocks(held.shape[0], held.shape[1], held.device):
        part = rows.map(operator.itemgetter(some))
        p = held[some].to(shift.dtype) if in_place else out[some].copy_(held[some])
        z = None
        if options.softcap is not None or part.of_entropy is not None:
            z = _logits_of_kept(p, kept, some)
        assert part.grad is not None
        factor = torch.exp(shift[some] - part.lse)
        ready = part.of_entropy is None  # one pass instead of two
        p.mul_((factor * -part.grad if ready else factor).unsqueeze(1))
        _finish_gradient(p, z, target[some], part, options, first, ready=ready)
        _store(p, out[some])
    if rows.unit is not None:
        column, inside = _column_of_target(kept.target, first, out.shape[1])
        out.scatter_(1, column, out.gather(1, column).masked_fill(inside.unsqueeze(1), 0.0))
    return out


def _logits_of_kept(p: Tensor, kept: KeptBlock, rows: slice) -> Tensor:
    """Z of kept exponentials, exact at targets where the call has their logits."""
    z = p.log().add_(kept.shift[rows].unsqueeze(1))
    if kept.target_logit is not None:
        column, inside = _column_of_target(kept.target[rows], kept.first, z.shape[1])
        known = kept.target_logit[rows].unsqueeze(1)
        z.scatter_(1, column, known.where(inside.unsqueeze(1), z.gather(1, column)))
    return z


def finish_unit(block: Block, sweep: Sweep, total: Tensor, grad: Tensor | None) -> Tensor:
    """The gradient of frozen heads; see :class:`mmrlhf_kernels.backend.Backend`."""
    (cap, slope), dtype = block.options, block.hidden.dtype
    raised = raised_units(operand_dtype(block.hidden), block.options)
    share = torch.expm1(sweep.target_logit - sweep.maximum - sweep.sum_exp.log()).neg_()
    share.mul_(slope if cap is None else slope * (1.0 - (sweep.target_logit / cap).square()))
    own = block.weight.index_select(0, block.target.clamp(0, block.weight.shape[0] - 1))
    total.div_(sweep.sum_exp.mul(-raised).unsqueeze(1))
    total.addcmul_(own.to(total.dtype), share.unsqueeze(1))
    return (total if grad is None else total.mul_(grad.unsqueeze(1))).to(gradient_dtype(dtype))


def _store(block: Tensor, out: Tensor) -> None:
    """Write a block where it is wanted, unless it was formed there."""
    if block.dtype != out.dtype or block.data_ptr() != out.data_ptr():
        out.copy_(block)


BACKEND = Backend(
    "chunked", sweep, logit_gradient, kept_exponentials, gradient_of_kept, finish_unit
)
