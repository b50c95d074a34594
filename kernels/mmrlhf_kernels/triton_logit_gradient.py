"""Pass 2: the gradient with respect to the logits of one vocabulary chunk, in the model's dtype.

One matrix product whose epilogue turns logits into

    E[n, c] = (grad[n] * (1[target[n] == first + c] - p) - dH[n] p (log p + H[n])) * dz/draw[n, c]
    log p   = z[n, c] - lse[n]
    dz/draw = logit_scale * (1 - (z / softcap)^2)      # the bracket only with a softcap

with the second term only where the entropy H carries a gradient dH,

before they leave the registers. The two products that consume E (``dX += E W_c`` and
``dW_c = E^T X``) are plain ones and belong to the schedules.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import Block, LossGradient, Spread
from mmrlhf_kernels.triton_settings import (
    Settings,
    architecture_of,
    jit,
    require_runnable,
)
from mmrlhf_kernels.triton_tile import (
    LOWEST,
    Head,
    Launch,
    check_output,
    head_of,
    local_target,
    logits_tile,
    narrowed,
    on_device,
    settings_of,
    tile_of,
)

__all__ = [
    "RowGradient",
    "gradient_of",
    "logit_gradient",
    "logit_gradient_launch",
    "normaliser",
    "row_gradient",
]


class RowGradient(NamedTuple):
    """What E takes from each row, [N] float32."""

    lse: Any
    grad: Any
    """Of the loss with respect to logp."""
    of_entropy: Any
    """Of the loss with respect to the entropy, or None."""
    entropy: Any
    """The entropy, or None."""
    unit: Any = None
    """A number: write it times p instead of the gradient, and 0 at targets; ``grad`` is None."""


def row_gradient(
    lse: Tensor, grad: Tensor | None, spread: Spread, unit: float | None = None
) -> RowGradient:
    """The columns as the kernels take them."""
    of_entropy, entropy = (None, None) if spread is None else spread
    given = (lse, grad, of_entropy, entropy)
    columns = (None if column is None else column.contiguous() for column in given)
    return RowGradient(*columns)._replace(unit=unit)


@jit
def _tile_of_program(head: tl.tuple, TILE: tl.constexpr) -> tl.tuple:
    """(row block, column block) of this program: groups of row blocks, column after column."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(head.rows, TILE.rows)
    column_blocks = tl.cdiv(head.columns, TILE.columns)
    group = program // (TILE.group * column_blocks)
    first_block = group * TILE.group
    size = tl.minimum(row_blocks - first_block, TILE.group)
    inside = program - group * TILE.group * column_blocks
    return first_block + inside % size, inside // size


@jit
def normaliser(rows: tl.tuple, row: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The lse of rows; infinite for those without gradient, which may carry any."""
    lse = tl.load(rows.lse + row, mask=inside, other=0.0)
    if rows.unit is None:
        idle = tl.load(rows.grad + row, mask=inside, other=0.0) == 0.0
        if rows.of_entropy is not None:
            idle &= tl.load(rows.of_entropy + row, mask=inside, other=0.0) == 0.0
        lse = tl.where(idle, float("inf"), lse)
    return lse


@jit
def gradient_of(
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


@jit
def _logit_gradient_kernel(
    head: tl.tuple, rows: tl.tuple, out: tl.tensor, out_stride: tl.tensor, TILE: tl.constexpr
) -> None:  # fmt: skip
    """E of one tile."""
    row_block, column_block = _tile_of_program(head, TILE)
    first_row = row_block * TILE.rows
    first_column = column_block * TILE.columns
    z = logits_tile(head, first_row, first_column, TILE)
    row = first_row + tl.arange(0, TILE.rows)
    column = first_column + tl.arange(0, TILE.columns)
    inside = row < head.rows
    target = local_target(head, row)
    hit = column[None, :] == target[:, None]
    log_p = z - normaliser(rows, row, inside)[:, None]
    gradient = gradient_of(tl.exp(log_p), z, log_p, rows, row, inside, hit, head)
    gradient = narrowed(gradient, out.dtype.element_ty, TILE)
    place = out + tl.cast(first_row, tl.int64) * out_stride
    offset = (row - first_row)[:, None] * out_stride + column[None, :]
    tl.store(place + offset, gradient, mask=inside[:, None] & (column < head.columns)[None, :])


def logit_gradient_launch(head: Head, rows: RowGradient, out: Tensor, settings: Settings) -> Launch:
    """The launch of the gradient kernel; operands as in :func:`logit_gradient`."""
    tile = tile_of(settings, head)
    blocks = triton.cdiv(head.rows, tile.rows) * triton.cdiv(head.columns, tile.columns)
    arguments = {
        "head": head,
        "rows": rows,
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
    head = head_of(*block)
    check_output(out, head)
    architecture, spreads = architecture_of(out.device), rows.spread is not None
    settings = settings or settings_of(head, "logit_gradient", architecture, extras=spreads)
    with on_device(out.device):
        logit_gradient_launch(head, row_gradient(*rows), out, settings).run()
    return out
