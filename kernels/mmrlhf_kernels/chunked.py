"""The backend in plain PyTorch: blocks of logits that stay in cache, buffers that are reused.

A chunk of the vocabulary meets all rows, block of rows after block of rows. A block is small enough
that the passes over it (scale, softcap, maximum, exponential, sum) run in cache behind the matrix
product that filled it, and each of them works in place. Every block has the same place in the same
order in each run, so results are equal bit by bit from run to run.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import Backend, HeadOptions, Spread, Sweep, lift_of
from mmrlhf_kernels.precision import product_into, statistics_dtype, widened

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


def _sweep_step(rows: int, device: torch.device) -> int:
    """Vocabulary rows per step: one block of logits, within the bounds of SWEEP_COLUMNS."""
    fewest, most = SWEEP_COLUMNS
    wanted = BLOCK_ELEMENTS.get(device.type, 1 << 26) // max(1, rows)
    return max(fewest, min(most, wanted // fewest * fewest))


def _write_logits(
    out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, options: HeadOptions
) -> Tensor:
    """Fill ``out`` [n, C] (statistics dtype) with z of widened operands."""
    product_into(out, hidden, weight.t())
    if bias is not None:
        out.add_(bias)
    if options.softcap is None:
        return out if options.logit_scale == 1.0 else out.mul_(options.logit_scale)
    return out.mul_(options.logit_scale / options.softcap).tanh_().mul_(options.softcap)


def _column_of_target(target: Tensor, first: int, columns: int) -> tuple[Tensor, Tensor]:
    """(column [n, 1] within the chunk, inside [n] bool); column 0 replaces those outside."""
    column = target - first
    inside = (column >= 0) & (column < columns)
    return column.where(inside, 0).unsqueeze(1), inside


def _reduce_block(
    z: Tensor, target: Tensor, first: int, *, entropy: bool, argmax: bool, scratch: Tensor
) -> Sweep:
    """Statistics of one block of logits; leaves ``exp(z - maximum)`` in ``scratch``.

    ``scratch`` may be ``z`` itself where the entropy is not wanted.
    """
    column, inside = _column_of_target(target, first, z.shape[1])
    target_logit = z.gather(1, column).squeeze(1).where(inside, 0.0)
    best = first + z.argmax(dim=1) if argmax else None
    # A bias of minus infinity marks padded vocabulary rows; a chunk may hold nothing else.
    maximum = z.amax(dim=1).clamp_(min=torch.finfo(z.dtype).min)
    z.sub_(maximum.unsqueeze(1))
    exponential = torch.exp(z, out=scratch)
    sum_exp = exponential.sum(dim=1)
    sum_z_exp = None
    if entropy:
        weighted = z.mul(exponential).nan_to_num_(nan=0.0)
        sum_z_exp = weighted.sum(dim=1).add_(maximum * sum_exp)
    return Sweep(maximum, sum_exp, target_logit, sum_z_exp, best)


class _RowGradient(NamedTuple):
    """What E takes from each row of a block."""

    target: Tensor
    lse: Tensor
    grad: Tensor
    of_entropy: Tensor | None
    entropy: Tensor | None

    @classmethod
    def of(
        cls, rows: slice, target: Tensor, lse: Tensor, grad: Tensor, spread: Spread
    ) -> "_RowGradient":
        """The columns of a block of rows."""
        of_entropy, entropy = (None, None) if spread is None else (c[rows] for c in spread)
        return cls(target[rows], lse[rows], grad[rows], of_entropy, entropy)


def _finish_gradient(
    p: Tensor,
    z: Tensor | None,
    rows: _RowGradient,
    options: HeadOptions,
    first: int,
    *,
    ready: bool = False,
) -> Tensor:
    """Turn probabilities into E in place; ``ready`` says that they are times -grad already.

    ``z`` is needed for the slope of a softcap and for the gradient of the entropy, and used up.
    """
    grad = rows.grad.unsqueeze(1)
    slope = None
    if z is not None and options.softcap is not None:
        slope = (z / options.softcap).clamp_(-1.0, 1.0).square_().neg_().add_(1.0)
    if z is not None and rows.of_entropy is not None and rows.entropy is not None:
        # Minus infinity times a probability of 0 would be no number.
        log_p = z.sub_(rows.lse.unsqueeze(1)).clamp_(min=torch.finfo(z.dtype).min)
        factor = log_p.add_(rows.entropy.unsqueeze(1)).mul_(rows.of_entropy.unsqueeze(1))
        p.mul_(factor.add_(grad).neg_())
    elif not ready:
        p.mul_(-grad)
    column, inside = _column_of_target(rows.target, first, p.shape[1])
    here = p.gather(1, column) + rows.grad.where(inside, 0.0).unsqueeze(1)
    p.scatter_(1, column, here)
    if slope is not None:
        p.mul_(slope)
    return p if options.logit_scale == 1.0 else p.mul_(options.logit_scale)


def _stack(parts: list[Sweep]) -> Sweep:
    """Join the sweeps of consecutive row blocks."""
    if len(parts) == 1:
        return parts[0]
    extras = zip(*(part[3:] for part in parts), strict=True)
    return Sweep(
        torch.cat([part.maximum for part in parts]),
        torch.cat([part.sum_exp for part in parts]),
        torch.cat([part.target_logit for part in parts]),
        *(_concatenated(column) for column in extras),
    )


def _concatenated(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """The parts in order; None where they were not requested."""
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: HeadOptions,
    *,
    first: int,
    entropy: bool,
    argmax: bool,
) -> Sweep:
    """One pass over the vocabulary; see :class:`mmrlhf_kernels.backend.Backend`."""
    step = _sweep_step(hidden.shape[0], hidden.device)
    merged: Sweep | None = None
    for begin in range(0, weight.shape[0], step):
        end = min(weight.shape[0], begin + step)
        part = _sweep_columns(
            hidden,
            weight[begin:end],
            None if bias is None else bias[begin:end],
            target,
            options,
            first=first + begin,
            entropy=entropy,
            argmax=argmax,
        )
        merged = part if merged is None else merge_sweeps(merged, part)
    assert merged is not None
    return merged


def _sweep_columns(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: HeadOptions,
    *,
    first: int,
    entropy: bool,
    argmax: bool,
) -> Sweep:
    """The sweep over one chunk, whose logits are forgotten block by block."""
    wide = widened(weight)
    block: Tensor | None = None
    parts = []
    for rows in _row_blocks(hidden.shape[0], weight.shape[0], hidden.device):
        if block is None:
            shape = (rows.stop - rows.start, weight.shape[0])
            block = hidden.new_empty(shape, dtype=statistics_dtype(hidden.dtype))
        z = block[: rows.stop - rows.start]
        _write_logits(z, widened(hidden[rows]), wide, bias, options)
        scratch = torch.empty_like(z) if entropy else z
        parts.append(
            _reduce_block(z, target[rows], first, entropy=entropy, argmax=argmax, scratch=scratch)
        )
    return _stack(parts)


def kept_exponentials(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: HeadOptions,
    *,
    first: int,
    entropy: bool,
    argmax: bool,
    out: Tensor,
) -> Sweep:
    """Keep the exponentials of one chunk; see :class:`mmrlhf_kernels.backend.Backend`."""
    wide, lift = widened(weight), lift_of(out.dtype)
    parts = []
    for rows in _row_blocks(hidden.shape[0], weight.shape[0], hidden.device):
        z = _workspace_of(out[rows])
        _write_logits(z, widened(hidden[rows]), wide, bias, options)
        kept = torch.empty_like(z) if entropy else z
        part = _reduce_block(z, target[rows], first, entropy=entropy, argmax=argmax, scratch=kept)
        parts.append(part._replace(shift=part.maximum - lift))
        if lift:
            kept.mul_(math.exp(lift))
        if not _same(kept, out[rows]):
            out[rows].copy_(kept)
    return _stack(parts)


def gradient_of_kept(
    kept: Tensor,
    shift: Tensor,
    target: Tensor,
    lse: Tensor,
    grad: Tensor | None,
    options: HeadOptions,
    *,
    first: int,
    out: Tensor,
    spread: Spread = None,
    target_logit: Tensor | None = None,
    unit: float | None = None,
) -> Tensor:
    """E from kept exponentials; see :class:`mmrlhf_kernels.backend.Backend`."""
    own = target
    if grad is None:
        assert unit is not None
        grad, target = torch.full_like(lse, -unit), torch.full_like(target, -1)
    for rows in _row_blocks(kept.shape[0], kept.shape[1], kept.device):
        if _same(kept, out) or out.dtype != shift.dtype:
            p = kept[rows].to(shift.dtype)
        else:
            p = out[rows].copy_(kept[rows])
        z = None
        if options.softcap is not None or spread is not None:
            z = p.log().add_(shift[rows].unsqueeze(1))
        if z is not None and target_logit is not None:
            column, inside = _column_of_target(target[rows], first, z.shape[1])
            known = target_logit[rows].unsqueeze(1).where(inside.unsqueeze(1), z.gather(1, column))
            z.scatter_(1, column, known)
        share = torch.exp(shift[rows] - lse[rows])
        columns = _RowGradient.of(rows, target, lse, grad, spread)
        if columns.of_entropy is None:  # one pass instead of two
            p.mul_((share * columns.grad).unsqueeze(1).neg_())
            _finish_gradient(p, z, columns, options, first, ready=True)
        else:
            p.mul_(share.unsqueeze(1))
            _finish_gradient(p, z, columns, options, first)
        if not _same(p, out[rows]):
            out[rows].copy_(p)
    if unit is not None:
        column, inside = _column_of_target(own, first, out.shape[1])
        out.scatter_(1, column, out.gather(1, column).masked_fill(inside.unsqueeze(1), 0.0))
    return out


def finish_unit(
    total: Tensor,
    sweep: Sweep,
    weight: Tensor,
    target: Tensor,
    grad: Tensor | None,
    options: HeadOptions,
    raised: float,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of frozen heads; see :class:`mmrlhf_kernels.backend.Backend`."""
    cap, slope = options.softcap, options.logit_scale
    share = torch.expm1(sweep.target_logit - sweep.maximum - sweep.sum_exp.log()).neg_()
    share.mul_(slope if cap is None else slope * (1.0 - (sweep.target_logit / cap).square()))
    own = weight.index_select(0, target.clamp(0, weight.shape[0] - 1))
    total.div_(sweep.sum_exp.mul(-raised).unsqueeze(1))
    total.addcmul_(own.to(total.dtype), share.unsqueeze(1))
    return (total if grad is None else total.mul_(grad.unsqueeze(1))).to(dtype)


def logit_gradient(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    lse: Tensor,
    grad: Tensor,
    options: HeadOptions,
    *,
    first: int,
    out: Tensor,
    spread: Spread = None,
) -> Tensor:
    """E of one chunk; see :class:`mmrlhf_kernels.backend.Backend`."""
    wide = widened(weight)
    for rows in _row_blocks(hidden.shape[0], weight.shape[0], hidden.device):
        p = _workspace_of(out[rows])
        _write_logits(p, widened(hidden[rows]), wide, bias, options)
        columns = _RowGradient.of(rows, target, lse, grad, spread)
        z = None if options.softcap is None and spread is None else p.clone()
        p.sub_(columns.lse.unsqueeze(1)).exp_()
        _finish_gradient(p, z, columns, options, first)
        if not _same(p, out[rows]):
            out[rows].copy_(p)
    return out


def _workspace_of(out: Tensor) -> Tensor:
    """``out`` itself if it has statistics precision, else a new block."""
    dtype = statistics_dtype(out.dtype)
    return out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same place in memory."""
    return left.dtype == right.dtype and bool(left.data_ptr() == right.data_ptr())


BACKEND = Backend(
    "chunked", sweep, logit_gradient, kept_exponentials, gradient_of_kept, finish_unit
)
