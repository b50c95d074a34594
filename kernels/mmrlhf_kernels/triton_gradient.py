"""Pass 2: the gradient with respect to the logits of one vocabulary chunk, in the model's dtype.

One matrix product whose epilogue turns logits into

    E[n, c] = (grad[n] * (1[target[n] == first + c] - p) - dH[n] p (log p + H[n])) * dz/draw[n, c]
    log p   = z[n, c] - lse[n]
    dz/draw = logit_scale * (1 - (z / softcap)^2)      # the bracket only with a softcap

with the second term only where the entropy H carries a gradient dH,

before they leave the registers; or the same from exponentials that the sweep kept, without a
product. The two products that consume E (``dX += E W_c`` and ``dW_c = E^T X``) are plain ones and
belong to the schedules.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import (
    Block,
    KeptBlock,
    LossGradient,
    Sweep,
    logp_of,
    raised_units,
)
from mmrlhf_kernels.precision import gradient_dtype, operand_dtype
from mmrlhf_kernels.triton_settings import Settings, device_of, jit, jit_for_any, require_runnable
from mmrlhf_kernels.triton_tile import (
    LOWEST,
    SMALLEST,
    Head,
    Launch,
    check_output,
    flat_grid,
    flat_tile,
    head_of,
    hyperbolic_tangent,
    local_target,
    logits_tile,
    narrowed,
    on_device,
    operands_of,
    place_of,
    settings_of,
    targets_of,
    tile_of,
)

__all__ = [
    "finish_unit",
    "finish_unit_launch",
    "gradient_of_kept",
    "kept_gradient_launch",
    "logit_gradient",
    "logit_gradient_launch",
]


@jit
def _normaliser(rows: tl.tuple, row: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The lse of rows; infinite for those without gradient, which may carry any."""
    lse = tl.load(rows.lse + row, mask=inside, other=0.0)
    if rows.unit is None:
        idle = tl.load(rows.grad + row, mask=inside, other=0.0) == 0.0
        if rows.of_entropy is not None:
            idle &= tl.load(rows.of_entropy + row, mask=inside, other=0.0) == 0.0
        lse = tl.where(idle, float("inf"), lse)
    return lse


@jit
def _gradient_of(
    p: tl.tensor, z: tl.tensor, log_p: tl.tensor, rows: tl.tuple, row: tl.tensor,
    inside: tl.tensor, hit: tl.tensor, head: tl.tuple,
) -> tl.tensor:  # fmt: skip
    """The formula of the module for one tile; ``hit`` marks the targets.

    ``z`` is used with a softcap only, ``log_p`` with a gradient of the entropy only.
    """
    if rows.unit is not None:
        gradient = tl.where(hit, 0.0, rows.unit * p)
    elif rows.of_entropy is None:
        grad = tl.load(rows.grad + row, mask=inside, other=0.0)
        gradient = grad[:, None] * (tl.where(hit, 1.0, 0.0) - p)
    else:
        grad = tl.load(rows.grad + row, mask=inside, other=0.0)
        of_entropy = tl.load(rows.of_entropy + row, mask=inside, other=0.0)
        entropy = tl.load(rows.entropy + row, mask=inside, other=0.0)
        # The lowest float32, not minus infinity: that times a probability of 0 is no number.
        distance = tl.maximum(log_p, LOWEST) + entropy[:, None]
        factor = grad[:, None] + of_entropy[:, None] * distance
        gradient = tl.where(hit, grad[:, None], 0.0) - factor * p
    if head.softcap is not None:
        bounded = tl.minimum(tl.maximum(z / head.softcap, -1.0), 1.0)
        gradient *= 1.0 - bounded * bounded
    if head.logit_scale is not None:
        gradient *= head.logit_scale
    return gradient


@jit_for_any("count")
def _logit_gradient_kernel(
    head: tl.tuple, count: tl.tensor, rows: tl.tuple, out: tl.tensor, out_stride: tl.tensor,
    TILE: tl.constexpr,
) -> None:  # fmt: skip
    """E of one tile of ``count`` rows."""
    row_block, column_block = place_of(count, TILE)
    first_row = row_block * TILE.rows
    first_column = column_block * TILE.columns
    operands = operands_of(head, count, TILE)
    z = logits_tile(
        head, operands, count, first_row, first_column, TILE, TILE.loads == "specialized"
    )
    row = first_row + tl.arange(0, TILE.rows)
    column = first_column + tl.arange(0, TILE.columns)
    inside = row < count
    hit = column[None, :] == local_target(head, row, inside)[:, None]
    log_p = z - _normaliser(rows, row, inside)[:, None]
    gradient = _gradient_of(tl.exp(log_p), z, log_p, rows, row, inside, hit, head)
    gradient = narrowed(gradient, out.dtype.element_ty, TILE)
    place = out + tl.cast(first_row, tl.int64) * out_stride
    offset = (row - first_row)[:, None] * out_stride + column[None, :]
    tl.store(place + offset, gradient, mask=inside[:, None] & (column < head.columns)[None, :])


@jit_for_any("count")
def _kept_gradient_kernel(
    head: tl.tuple, count: tl.tensor, kept: tl.tensor, kept_stride: tl.tensor, shift: tl.tensor,
    target_logit: tl.tensor, rows: tl.tuple, out: tl.tensor, out_stride: tl.tensor,
    TILE: tl.constexpr,
) -> None:  # fmt: skip
    """E of one block of ``count`` rows from their kept exponentials."""
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < count
    mask = inside[:, None] & (column < head.columns)[None, :]
    far = row.to(tl.int64)[:, None]
    held = tl.load(kept + far * kept_stride + column[None, :], mask=mask, other=0.0)
    held = held.to(tl.float32)
    against = tl.load(shift + row, mask=inside, other=0.0)
    lse = _normaliser(rows, row, inside)
    # Where the exponential is 0 any z will do, but not the logarithm of 0.
    z = tl.log(tl.maximum(held, SMALLEST)) + against[:, None]
    p = held * tl.exp(against - lse)[:, None]
    hit = column[None, :] == local_target(head, row, inside)[:, None]
    if target_logit is not None:
        z = tl.where(hit, tl.load(target_logit + row, mask=inside, other=0.0)[:, None], z)
    gradient = _gradient_of(p, z, z - lse[:, None], rows, row, inside, hit, head)
    value = narrowed(gradient, out.dtype.element_ty, TILE)
    tl.store(out + far * out_stride + column[None, :], value, mask=mask)


@jit_for_any("rows", "vocabulary")
def _finish_unit_kernel(
    head: tl.tuple, total: tl.tensor, sweep: tl.tuple, grad: tl.tensor, rows: tl.tensor,
    vocabulary: tl.tensor, raised: tl.tensor, out: tl.tensor, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """``grad ((1 - p_y) W_y dz_y/draw - total / (raised * sum_exp))`` of one tile.

    ``vocabulary`` is apart from the head: with LoRA it is the number of rows.
    """
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < rows
    mask = inside[:, None] & (column < head.inner)[None, :]
    place = row.to(tl.int64)[:, None] * head.inner + column[None, :]
    logp = tl.load(sweep.logp + row, mask=inside, other=0.0)
    # 1 - exp(logp) without the cancellation near 0.
    share = (tl.exp(logp) + 1.0) * hyperbolic_tangent(-0.5 * logp)
    if head.softcap is not None:
        bounded = tl.load(sweep.target_logit + row, mask=inside, other=0.0) / head.softcap
        share *= 1.0 - bounded * bounded
    if head.logit_scale is not None:
        share *= head.logit_scale
    token = tl.load(head.target + row, mask=inside, other=-1)[:, None]
    held = mask & (token >= 0) & (token < vocabulary)
    own = head.weight + token * head.weight_stride + column[None, :]
    own = tl.load(own, mask=held, other=0.0).to(tl.float32)
    below = -raised * tl.load(sweep.sum_exp + row, mask=inside, other=1.0)
    value = tl.load(total + place, mask=mask, other=0.0) / below[:, None] + own * share[:, None]
    if grad is not None:
        factor = tl.load(grad + row, mask=inside, other=0.0)
        value = tl.where((factor == 0.0)[:, None], 0.0, value * factor[:, None])
    tl.store(out + place, narrowed(value, out.dtype.element_ty, TILE), mask=mask)


def logit_gradient_launch(
    head: Head, rows: LossGradient, out: Tensor, settings: Settings
) -> Launch:
    """The launch of the gradient kernel; operands as in :func:`logit_gradient`."""
    tile, count = tile_of(settings, head), head.target.shape[0]
    blocks = triton.cdiv(count, tile.rows) * triton.cdiv(head.columns, tile.columns)
    arguments = {
        "head": head,
        "count": count,
        "rows": rows.map(torch.Tensor.contiguous),
        "out": out,
        "out_stride": out.stride(0),
        "TILE": tile,
    }
    return Launch(_logit_gradient_kernel, (blocks,), arguments, settings.warps, settings.stages)


def logit_gradient(
    block: Block, rows: LossGradient, out: Tensor, settings: Settings | None = None
) -> Tensor:
    """Write E of one vocabulary chunk; see the module for the formula.

    Operands are float32, float16 or bfloat16; ``rows.grad`` is 0 for ignored rows. ``settings``
    replace those of the table.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: A dtype the kernels do not take.
        ValueError: Shapes or strides that do not fit together.
    """
    require_runnable(*block[:4], rows.lse, rows.grad, out)
    head = head_of(block)
    check_output(out, len(block.hidden), head.columns, block.hidden.dtype)
    architecture, asked = device_of(out.device).architecture, rows.of_entropy is not None
    settings = settings or settings_of(head, "logit_gradient", architecture, extras=asked)
    with on_device(out.device):
        logit_gradient_launch(head, rows, out, settings).run()
    return out


def kept_gradient_launch(kept: KeptBlock, rows: LossGradient, out: Tensor) -> Launch:
    """The launch of the gradient from kept exponentials."""
    held, shift, target, options, first, target_logit = kept
    arguments = {
        "head": targets_of(target, options, first, held.shape[1]),
        "count": held.shape[0],
        "kept": held,
        "kept_stride": held.stride(0),
        "shift": shift.contiguous(),
        "target_logit": None if options.softcap is None else target_logit,
        "rows": rows.map(torch.Tensor.contiguous),
        "out": out,
        "out_stride": out.stride(0),
        "TILE": flat_tile(out),
    }
    return Launch(_kept_gradient_kernel, flat_grid(*held.shape), arguments)


def gradient_of_kept(kept: KeptBlock, rows: LossGradient, out: Tensor) -> Tensor:
    """:func:`logit_gradient` from kept exponentials."""
    held = kept.exponentials
    require_runnable(held, kept.shift, kept.target, rows.lse, rows.grad, out)
    check_output(out, held.shape[0], held.shape[1], held.dtype)
    with on_device(out.device):
        kept_gradient_launch(kept, rows, out).run()
    return out


def finish_unit_launch(block: Block, sweep: Sweep, total: Tensor, grad: Tensor | None) -> Launch:
    """The launch that finishes gradients of frozen heads; ``arguments["out"]`` receives them."""
    hidden, weight, _, target, options, _ = block
    out = torch.empty_like(total, dtype=gradient_dtype(hidden.dtype))
    arguments = {
        "head": targets_of(target, options, weight=weight),
        "total": total,
        "sweep": sweep._replace(logp=logp_of(sweep)),
        "grad": grad,
        "rows": total.shape[0],
        "vocabulary": weight.shape[0],
        "raised": raised_units(operand_dtype(hidden), options),
        "out": out,
        "TILE": flat_tile(out),
    }
    return Launch(_finish_unit_kernel, flat_grid(*total.shape), arguments)


def finish_unit(block: Block, sweep: Sweep, total: Tensor, grad: Tensor | None) -> Tensor:
    """The gradient of frozen heads; see :class:`mmrlhf_kernels.backend.Backend`."""
    require_runnable(total, block.weight)
    launch = finish_unit_launch(block, sweep, total, grad)
    with on_device(total.device):
        launch.run()
    finished: Tensor = launch.arguments["out"]
    return finished
