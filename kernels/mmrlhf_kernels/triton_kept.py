"""Exponentials that are kept: written by the sweep, turned into gradients without a product.

They are taken against the largest logit of their row. The largest of a chunk is known only when the
sweep has passed it, so the sweep writes exponentials against the largest of their tile, and a
second kernel multiplies each tile by what is missing. That rounds twice, which at most doubles the
error of rounding once.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import (
    Block,
    Extras,
    HeadOptions,
    KeptBlock,
    LossGradient,
    Sweep,
    lift_of,
    logp_of,
    raised_units,
)
from mmrlhf_kernels.precision import gradient_dtype, operand_dtype
from mmrlhf_kernels.triton_logit_gradient import (
    RowGradient,
    gradient_of,
    normaliser,
    row_gradient,
)
from mmrlhf_kernels.triton_settings import (
    INTERPRETED,
    Settings,
    architecture_of,
    jit,
    multiprocessors_of,
    require_runnable,
)
from mmrlhf_kernels.triton_sweep import Written, combine_launch, sweep_launch
from mmrlhf_kernels.triton_tile import (
    SMALLEST,
    Head,
    Launch,
    Tile,
    check_output,
    head_of,
    hyperbolic_tangent,
    local_target,
    narrowed,
    on_device,
    settings_of,
    targets_of,
)

__all__ = [
    "finish_unit",
    "finish_unit_launch",
    "gradient_of_kept",
    "kept_exponentials",
    "kept_gradient_launch",
    "rebase_launch",
]

ROWS, COLUMNS = 4, 1024
"""Entries per program of the kernels without a matrix product: 32 for each of 128 threads."""


@jit
def _rebase_kernel(
    written: tl.tuple, largest: tl.tensor, rows: tl.tensor, columns: tl.tensor, tiles: tl.tensor,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Move kept exponentials from the maximum of their tile to that of their row."""
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < rows
    mask = inside[:, None] & (column < columns)[None, :]
    shift = written.shift + row.to(tl.int64)[:, None] * tiles + (column // WIDTH)[None, :]
    change = tl.load(shift, mask=mask, other=0.0)
    change -= tl.load(largest + row, mask=inside, other=0.0)[:, None]
    place = written.kept + row.to(tl.int64)[:, None] * written.stride + column[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32) * tl.exp(change)
    tl.store(place, narrowed(value, written.kept.dtype.element_ty, TILE), mask=mask)


@jit
def _kept_gradient_kernel(
    head: tl.tuple, kept: tl.tensor, kept_stride: tl.tensor, shift: tl.tensor,
    target_logit: tl.tensor, rows: tl.tuple, out: tl.tensor, out_stride: tl.tensor,
    TILE: tl.constexpr,
) -> None:  # fmt: skip
    """E of one block from its kept exponentials."""
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < head.rows
    mask = inside[:, None] & (column < head.columns)[None, :]
    far = row.to(tl.int64)[:, None]
    held = tl.load(kept + far * kept_stride + column[None, :], mask=mask, other=0.0)
    held = held.to(tl.float32)
    against = tl.load(shift + row, mask=inside, other=0.0)
    lse = normaliser(rows, row, inside)
    # Where the exponential is 0 any z will do, but not the logarithm of 0.
    z = tl.log(tl.maximum(held, SMALLEST)) + against[:, None]
    p = held * tl.exp(against - lse)[:, None]
    hit = column[None, :] == local_target(head, row)[:, None]
    if target_logit is not None:
        z = tl.where(hit, tl.load(target_logit + row, mask=inside, other=0.0)[:, None], z)
    gradient = gradient_of(p, z, z - lse[:, None], rows, row, inside, hit, head)
    value = narrowed(gradient, out.dtype.element_ty, TILE)
    tl.store(out + far * out_stride + column[None, :], value, mask=mask)


class _Statistics(NamedTuple):
    """What the finish of frozen heads takes from a sweep, [N]."""

    sum_exp: Any
    target_logit: Any
    logp: Any


@jit
def _finish_unit_kernel(
    head: tl.tuple, total: tl.tensor, sweep: tl.tuple, grad: tl.tensor, rows: tl.tensor,
    columns: tl.tensor, raised: tl.tensor, out: tl.tensor, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """``grad ((1 - p_y) W_y dz_y/draw - total / (raised * sum_exp))`` of one tile.

    ``head`` has the weight as its logits: a row of it is a token's.
    """
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < rows
    mask = inside[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    logp = tl.load(sweep.logp + row, mask=inside, other=0.0)
    # 1 - exp(logp) without the cancellation near 0.
    share = (tl.exp(logp) + 1.0) * hyperbolic_tangent(-0.5 * logp)
    if head.softcap is not None:
        bounded = tl.load(sweep.target_logit + row, mask=inside, other=0.0) / head.softcap
        share *= 1.0 - bounded * bounded
    if head.logit_scale is not None:
        share *= head.logit_scale
    target = tl.load(head.target + row, mask=inside, other=-1)
    known = (target >= 0) & (target < head.rows)
    token = tl.where(known, target, 0).to(tl.int64)[:, None] * head.hidden_stride + column[None, :]
    own = tl.load(head.hidden + token, mask=mask & known[:, None], other=0.0).to(tl.float32)
    below = -raised * tl.load(sweep.sum_exp + row, mask=inside, other=1.0)
    value = tl.load(total + place, mask=mask, other=0.0) / below[:, None] + own * share[:, None]
    if grad is not None:
        factor = tl.load(grad + row, mask=inside, other=0.0)
        value = tl.where((factor == 0.0)[:, None], 0.0, value * factor[:, None])
    tl.store(out + place, narrowed(value, out.dtype.element_ty, TILE), mask=mask)


def _tile(like: Tensor) -> Tile:
    """The tile of the kernels without a matrix product."""
    widen = INTERPRETED and like.dtype == torch.bfloat16
    return Tile(ROWS, COLUMNS, 16, 1, even=True, widen=widen, precision="ieee")


def _grid(rows: int, columns: int) -> tuple[int, int]:
    """Programs that cover a matrix."""
    return triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)


def rebase_launch(written: Written, largest: Tensor, width: int) -> Launch:
    """The launch that moves kept exponentials to the largest of their rows; a tile is ``width``."""
    rows, columns = written.kept.shape
    arguments = {
        "written": written,
        "largest": largest,
        "rows": rows,
        "columns": columns,
        "tiles": written.shift.shape[1],
        "WIDTH": width,
        "TILE": _tile(written.kept),
    }
    return Launch(_rebase_kernel, _grid(rows, columns), arguments)


def kept_exponentials(
    block: Block, extras: Extras, out: Tensor, settings: Settings | None = None
) -> Sweep:
    """Write ``exp(z - shift)`` of one vocabulary chunk to ``out`` and return the chunk's sweep.

    ``settings`` replace those of the table. Raises what
    :func:`mmrlhf_kernels.triton_logit_gradient.logit_gradient` raises.
    """
    require_runnable(*block[:4], out)
    head = head_of(*block)
    check_output(out, head)
    settings = settings or settings_of(head, "kept", architecture_of(out.device))
    processors = multiprocessors_of(out.device)
    launch = sweep_launch(head, settings, processors, out=out, **extras._asdict())
    with on_device(out.device):
        launch.run()
        combined = combine_launch(launch.arguments["parts"], block.first)
        combined.run()
        sweep = Sweep(**combined.arguments["out"]._asdict())
        written = launch.arguments["written"]
        rebase_launch(written, sweep.maximum, settings.columns).run()
    lift = lift_of(out.dtype)
    return sweep._replace(shift=sweep.maximum - lift if lift else sweep.maximum)


def kept_gradient_launch(
    head: Head,
    kept: Tensor,
    shift: Tensor,
    target_logit: Tensor | None,
    rows: RowGradient,
    out: Tensor,
) -> Launch:
    """The launch of the gradient from kept exponentials; of ``head`` only the targets are read."""
    arguments = {
        "head": head,
        "kept": kept,
        "kept_stride": kept.stride(0),
        "shift": shift.contiguous(),
        "target_logit": None if head.softcap is None else target_logit,
        "rows": rows,
        "out": out,
        "out_stride": out.stride(0),
        "TILE": _tile(out),
    }
    return Launch(_kept_gradient_kernel, _grid(head.rows, head.columns), arguments)


def gradient_of_kept(kept: KeptBlock, rows: LossGradient, out: Tensor) -> Tensor:
    """:func:`mmrlhf_kernels.triton_logit_gradient.logit_gradient` from kept exponentials.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: A dtype the kernels do not take.
        ValueError: Shapes or strides that do not fit together.
    """
    held, shift, target, options, first, target_logit = kept
    require_runnable(held, shift, target, rows.lse, rows.grad, out)
    head = targets_of(held, target, options, first)
    check_output(out, head)
    with on_device(out.device):
        kept_gradient_launch(head, held, shift, target_logit, row_gradient(*rows), out).run()
    return out


def finish_unit_launch(
    total: Tensor,
    sweep: Sweep,
    weight: Tensor,
    target: Tensor,
    grad: Tensor | None,
    options: HeadOptions,
    raised: float,
    dtype: torch.dtype,
) -> Launch:
    """The launch that finishes gradients of frozen heads; ``arguments["out"]`` receives them."""
    assert sweep.logp is not None
    rows, columns = total.shape
    statistics = _Statistics(sweep.sum_exp, sweep.target_logit, sweep.logp)
    out = torch.empty(total.shape, dtype=dtype, device=total.device)
    arguments = {
        "head": targets_of(weight, target, options, 0),
        "rows": rows,
        "total": total,
        "sweep": statistics,
        "grad": grad,
        "columns": columns,
        "raised": raised,
        "out": out,
        "TILE": _tile(out),
    }
    return Launch(_finish_unit_kernel, _grid(rows, columns), arguments)


def finish_unit(block: Block, sweep: Sweep, total: Tensor, grad: Tensor | None) -> Tensor:
    """The gradient of frozen heads; see :class:`mmrlhf_kernels.backend.Backend`.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: A dtype the kernels do not take.
    """
    require_runnable(total, block.weight)
    hidden, weight, _, target, options, _ = block
    raised, dtype = raised_units(operand_dtype(hidden), options), gradient_dtype(hidden.dtype)
    known = sweep._replace(logp=logp_of(sweep))
    launch = finish_unit_launch(total, known, weight, target, grad, options, raised, dtype)
    with on_device(total.device):
        launch.run()
    finished: Tensor = launch.arguments["out"]
    return finished
