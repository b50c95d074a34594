"""The backend in plain PyTorch: blocks of logits that stay in cache, buffers that are reused.

A chunk of the vocabulary meets all rows, block of rows after block of rows. A block is small enough
that the passes over it (scale, softcap, maximum, exponential, sum) run in cache behind the matrix
product that filled it, and each of them works in place. Every block has the same place in the same
order in each run, so results are equal bit by bit from run to run.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, Sweep
from mmrlhf_kernels.precision import product_into, statistics_dtype, widened

__all__ = ["BACKEND", "ChunkedBackend", "merge_sweeps", "round_up_to_bfloat16"]

SWEEP_COLUMNS = (1024, 16384)
"""Fewest and most vocabulary rows per step of a sweep that is not bound to tiles."""
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits per block: 1 MiB of float32 fits the second cache of one core; a GPU wants large ones."""
FEWEST_BLOCK_ROWS = 256
"""A product with fewer rows spends its time on packing the weight."""


def merge_sweeps(left: Sweep, right: Sweep) -> Sweep:
    """The sweep over two disjoint vocabulary ranges, ``left`` holding the smaller ids.

    ``sum_exp = sum_left exp(m_left - m) + sum_right exp(m_right - m)`` with ``m`` the larger
    maximum, and likewise for ``sum_z_exp``; tile maxima are concatenated.
    """
    maximum = torch.maximum(left.maximum, right.maximum)
    from_left = torch.exp(left.maximum - maximum)
    from_right = torch.exp(right.maximum - maximum)
    sum_z_exp = argmax = tile_maximum = None
    if left.sum_z_exp is not None and right.sum_z_exp is not None:
        sum_z_exp = left.sum_z_exp * from_left + right.sum_z_exp * from_right
    if left.argmax is not None and right.argmax is not None:
        argmax = torch.where(right.maximum > left.maximum, right.argmax, left.argmax)
    if left.tile_maximum is not None and right.tile_maximum is not None:
        tile_maximum = torch.cat([left.tile_maximum, right.tile_maximum], dim=1)
    return Sweep(
        maximum,
        left.sum_exp * from_left + right.sum_exp * from_right,
        left.target_logit + right.target_logit,
        sum_z_exp,
        argmax,
        tile_maximum,
    )


def round_up_to_bfloat16(values: Tensor) -> Tensor:
    """The smallest bfloat16 that is not below each value."""
    nearest = values.to(torch.bfloat16)
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.to(values.dtype) < values, above, nearest)


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
    """Statistics of one block of logits; leaves ``z - maximum`` in ``z``, exponentials in scratch.

    ``scratch`` may be ``z`` itself where the shifted logits are of no further use.
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


def _gradient_in_place(
    z: Tensor,
    target: Tensor,
    lse: Tensor,
    grad: Tensor,
    options: HeadOptions,
    first: int,
) -> Tensor:
    """Turn a block of logits into the gradient with respect to the raw logits."""
    derivative = None
    if options.softcap is not None:
        derivative = z.div(options.softcap).square_().neg_().add_(1.0).mul_(options.logit_scale)
    z.sub_(lse.unsqueeze(1)).exp_().mul_(-grad.unsqueeze(1))
    column, inside = _column_of_target(target, first, z.shape[1])
    here = z.gather(1, column) + grad.where(inside, 0.0).unsqueeze(1)
    z.scatter_(1, column, here)
    if derivative is not None:
        return z.mul_(derivative)
    return z if options.logit_scale == 1.0 else z.mul_(options.logit_scale)


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


class ChunkedBackend:
    """Plain PyTorch on any device; see the protocol for what each method does."""

    name = "chunked"

    def sweep(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        options: HeadOptions,
        *,
        first: int,
        entropy: bool,
        argmax: bool,
        tile: int | None,
    ) -> Sweep:
        """See :meth:`mmrlhf_kernels.backend.Backend.sweep`."""
        step = tile or _sweep_step(hidden.shape[0], hidden.device)
        merged: Sweep | None = None
        for begin in range(0, weight.shape[0], step):
            end = min(weight.shape[0], begin + step)
            part = self._sweep_columns(
                hidden,
                weight[begin:end],
                None if bias is None else bias[begin:end],
                target,
                options,
                first=first + begin,
                entropy=entropy,
                argmax=argmax,
            )
            if tile is not None:
                highest = round_up_to_bfloat16(part.maximum).unsqueeze(1)
                part = part._replace(tile_maximum=highest)
            merged = part if merged is None else merge_sweeps(merged, part)
        assert merged is not None
        return merged

    def _sweep_columns(
        self,
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
                _reduce_block(
                    z, target[rows], first, entropy=entropy, argmax=argmax, scratch=scratch
                )
            )
        return _stack(parts)

    def shifted_logits(
        self,
        hidden: Tensor,
        weight_chunk: Tensor,
        bias_chunk: Tensor | None,
        target: Tensor,
        options: HeadOptions,
        *,
        first: int,
        entropy: bool,
        argmax: bool,
        out: Tensor,
    ) -> Sweep:
        """See :meth:`mmrlhf_kernels.backend.KeepingBackend.shifted_logits`."""
        wide = widened(weight_chunk)
        parts = []
        for rows in _row_blocks(hidden.shape[0], weight_chunk.shape[0], hidden.device):
            z = _workspace_of(out[rows])
            _write_logits(z, widened(hidden[rows]), wide, bias_chunk, options)
            parts.append(
                _reduce_block(
                    z,
                    target[rows],
                    first,
                    entropy=entropy,
                    argmax=argmax,
                    scratch=torch.empty_like(z),
                )
            )
            if not _same(z, out[rows]):
                out[rows].copy_(z)
        return _stack(parts)

    def shifted_gradient(
        self,
        shifted: Tensor,
        maximum: Tensor,
        target: Tensor,
        lse: Tensor,
        grad: Tensor,
        options: HeadOptions,
        *,
        first: int,
        out: Tensor,
    ) -> Tensor:
        """See :meth:`mmrlhf_kernels.backend.KeepingBackend.shifted_gradient`."""
        for rows in _row_blocks(shifted.shape[0], shifted.shape[1], shifted.device):
            z = shifted[rows].to(maximum.dtype, copy=not _same(shifted, out))
            z.add_(maximum[rows].unsqueeze(1))
            _gradient_in_place(z, target[rows], lse[rows], grad[rows], options, first)
            if not _same(z, out[rows]):
                out[rows].copy_(z)
        return out

    def logit_gradient(
        self,
        hidden: Tensor,
        weight_chunk: Tensor,
        bias_chunk: Tensor | None,
        target: Tensor,
        lse: Tensor,
        grad: Tensor,
        options: HeadOptions,
        *,
        first: int,
        out: Tensor,
    ) -> Tensor:
        """See :meth:`mmrlhf_kernels.backend.Backend.logit_gradient`."""
        wide = widened(weight_chunk)
        for rows in _row_blocks(hidden.shape[0], weight_chunk.shape[0], hidden.device):
            z = _workspace_of(out[rows])
            _write_logits(z, widened(hidden[rows]), wide, bias_chunk, options)
            _gradient_in_place(z, target[rows], lse[rows], grad[rows], options, first)
            if not _same(z, out[rows]):
                out[rows].copy_(z)
        return out


def _workspace_of(out: Tensor) -> Tensor:
    """``out`` itself if it has statistics precision, else a new block."""
    dtype = statistics_dtype(out.dtype)
    return out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same place in memory."""
    return left.dtype == right.dtype and bool(left.data_ptr() == right.data_ptr())


BACKEND = ChunkedBackend()
