"""Logits that are kept: written by the sweep, turned into gradients without a matrix product.

A logit is kept as its distance from the largest of its row, where half-width floats have their
finest steps just where probabilities are large. The largest of a chunk is known only when the sweep
has passed it, so the sweep writes distances from the largest of their tile, and a second kernel
moves each tile by the difference. That rounds twice, which at most doubles the error of rounding
once: the distance within a tile is never the longer one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, Sweep
from mmrlhf_kernels.triton_logit_gradient import gradient_of
from mmrlhf_kernels.triton_settings import (
    INTERPRETED,
    Settings,
    architecture_of,
    jit,
    multiprocessors_of,
    require_runnable,
)
from mmrlhf_kernels.triton_sweep import combine_launch, sweep_launch
from mmrlhf_kernels.triton_sweep_kernel import Written
from mmrlhf_kernels.triton_tile import (
    Head,
    Launch,
    Tile,
    check_output,
    head_of,
    local_target,
    narrowed,
    on_device,
    settings_of,
    targets_of,
)

__all__ = ["rebase_launch", "shifted_gradient", "shifted_gradient_launch", "shifted_logits"]

ROWS, COLUMNS = 4, 1024
"""Entries per program of the kernels without a matrix product: 32 for each of 128 threads."""


@jit
def _rebase_kernel(
    written: tl.tuple, maximum: tl.tensor, rows: tl.tensor, columns: tl.tensor, units: tl.tensor,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Move kept logits from the maximum of their tile to that of their row."""
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < rows
    mask = inside[:, None] & (column < columns)[None, :]
    shift = written.shift + row.to(tl.int64)[:, None] * units + (column // WIDTH)[None, :]
    change = tl.load(shift, mask=mask, other=0.0)
    change -= tl.load(maximum + row, mask=inside, other=0.0)[:, None]
    place = written.logits + row.to(tl.int64)[:, None] * written.stride + column[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32) + change
    tl.store(place, narrowed(value, written.logits.dtype.element_ty, TILE), mask=mask)


@jit
def _shifted_gradient_kernel(
    head: tl.tuple, shifted: tl.tensor, shifted_stride: tl.tensor, maximum: tl.tensor,
    lse: tl.tensor, grad: tl.tensor, out: tl.tensor, out_stride: tl.tensor, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """E of one block from its kept logits."""
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < head.rows
    mask = inside[:, None] & (column < head.columns)[None, :]
    far = row.to(tl.int64)[:, None]
    z = tl.load(shifted + far * shifted_stride + column[None, :], mask=mask, other=0.0)
    z = z.to(tl.float32) + tl.load(maximum + row, mask=inside, other=0.0)[:, None]
    row_grad = tl.load(grad + row, mask=inside, other=0.0)
    row_lse = tl.load(lse + row, mask=inside, other=0.0)
    hit = column[None, :] == local_target(head, row)[:, None]
    gradient = gradient_of(z, row_lse, row_grad, hit, head)
    value = narrowed(gradient, out.dtype.element_ty, TILE)
    tl.store(out + far * out_stride + column[None, :], value, mask=mask)


def _tile(like: Tensor) -> Tile:
    """The tile of the kernels without a matrix product."""
    widen = INTERPRETED and like.dtype == torch.bfloat16
    return Tile(ROWS, COLUMNS, 16, 1, even=True, widen=widen, precision="ieee")


def _grid(rows: int, columns: int) -> tuple[int, int]:
    """Programs that cover a matrix."""
    return triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)


def rebase_launch(written: Written, maximum: Tensor, width: int) -> Launch:
    """The launch that moves kept logits to the maximum of their rows; a tile is ``width``."""
    rows, columns = written.logits.shape
    arguments = {
        "written": written,
        "maximum": maximum,
        "rows": rows,
        "columns": columns,
        "units": written.shift.shape[1],
        "WIDTH": width,
        "TILE": _tile(written.logits),
    }
    return Launch(_rebase_kernel, _grid(rows, columns), arguments)


def shifted_logits(
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
    settings: Settings | None = None,
) -> Sweep:
    """Write ``z - maximum`` of one vocabulary chunk to ``out`` and return the chunk's sweep.

    Arguments are those of :meth:`mmrlhf_kernels.backend.KeepingBackend.shifted_logits`;
    ``settings`` replace those of the table. Raises what
    :func:`mmrlhf_kernels.triton_logit_gradient.logit_gradient` raises.
    """
    require_runnable(hidden, weight_chunk, bias_chunk, target, out)
    head = head_of(hidden, weight_chunk, bias_chunk, target, options, first)
    check_output(out, head)
    settings = settings or settings_of(head, "sweep", architecture_of(hidden.device))
    processors = multiprocessors_of(hidden.device)
    launch = sweep_launch(head, settings, processors, out=out, entropy=entropy, argmax=argmax)
    with on_device(hidden.device):
        launch.run()
        combined = combine_launch(launch.arguments["parts"], first)
        combined.run()
        sweep = Sweep._make(combined.arguments["out"])
        written, width = launch.arguments["written"], launch.arguments["WIDTH"]
        rebase_launch(written, sweep.maximum, width).run()
    return sweep


def shifted_gradient_launch(
    head: Head, shifted: Tensor, maximum: Tensor, lse: Tensor, grad: Tensor, out: Tensor
) -> Launch:
    """The launch of the gradient from kept logits; of ``head`` only the targets are read."""
    arguments = {
        "head": head,
        "shifted": shifted,
        "shifted_stride": shifted.stride(0),
        "maximum": maximum.contiguous(),
        "lse": lse.contiguous(),
        "grad": grad.contiguous(),
        "out": out,
        "out_stride": out.stride(0),
        "TILE": _tile(out),
    }
    return Launch(_shifted_gradient_kernel, _grid(head.rows, head.columns), arguments)


def shifted_gradient(
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
    """:func:`mmrlhf_kernels.triton_logit_gradient.logit_gradient` from kept logits.

    Arguments are those of :meth:`mmrlhf_kernels.backend.KeepingBackend.shifted_gradient`; ``out``
    may be ``shifted`` itself.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: A dtype the kernels do not take.
        ValueError: Shapes or strides that do not fit together.
    """
    require_runnable(shifted, maximum, target, lse, grad, out)
    head = targets_of(shifted, target, options, first)
    check_output(out, head)
    with on_device(shifted.device):
        shifted_gradient_launch(head, shifted, maximum, lse, grad, out).run()
    return out
