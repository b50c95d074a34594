"""What the Triton kernels share: operands as one tuple, a tile of logits, rounding, a launch.

Kernels take their operands as named tuples, which Triton passes as separate arguments: a field
that is None costs nothing and is decided at compile time. ``Tile`` is a constant of the kernel.

Offsets. A tile's base is reached by a 64-bit step from the start of the matrix, because ``V * H``
and ``N * V`` pass 2^31 at real sizes; inside a tile 32 bits suffice and spare registers.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.triton_settings import INTERPRETED, Settings, Step, jit, settings_for

__all__ = [
    "Head",
    "Launch",
    "Tile",
    "check_output",
    "head_of",
    "hyperbolic_tangent",
    "local_target",
    "logits_tile",
    "narrowed",
    "on_device",
    "settings_of",
    "targets_of",
    "tile_of",
]

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The lowest float32: a maximum that minus infinity can be subtracted from."""
SMALLEST = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal float32."""


class Head(NamedTuple):
    """A language model head and the rows it meets, as the kernels take them."""

    hidden: Any
    """[N, H], entries of a row adjacent."""
    weight: Any
    """[V, H], entries of a row adjacent."""
    bias: Any
    """[V] or None."""
    target: Any
    """[N] int64 global ids."""
    rows: Any
    """N."""
    columns: Any
    """V."""
    inner: Any
    """H."""
    hidden_stride: Any
    """Entries from one row of ``hidden`` to the next."""
    weight_stride: Any
    """Entries from one row of ``weight`` to the next."""
    first: Any
    """Global id of the first vocabulary row."""
    logit_scale: Any
    """Factor of the raw logits, or None for 1."""
    softcap: Any
    """Bound of the logits, or None."""


class Tile(NamedTuple):
    """What a kernel knows at compile time about its tiles."""

    rows: int
    columns: int
    inner: int
    group: int
    even: bool
    """``inner`` divides H: no load needs a mask."""
    widen: bool
    """Widen bfloat16 operands first: the interpreter multiplies their raw bits."""
    precision: str
    """How float32 operands are multiplied: ``ieee`` or ``tf32``."""


class Launch(NamedTuple):
    """A kernel with all it needs, so that it can be run, or compiled where there is no device."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 1

    def run(self) -> None:
        """Launch on the current stream of the current device."""
        self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)


def head_of(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: HeadOptions,
    first: int,
) -> Head:
    """Check the operands of a head and gather them; a row that is not contiguous is copied.

    Raises:
        ValueError: Shapes or dtypes do not fit together.
    """
    rows, inner = hidden.shape
    if weight.shape[1] != inner or weight.dtype != hidden.dtype:
        raise ValueError(
            f"weight {tuple(weight.shape)} {weight.dtype} does not fit "
            f"hidden {tuple(hidden.shape)} {hidden.dtype}"
        )
    if target.shape != (rows,) or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"target {tuple(target.shape)} must be [{rows}] and bias [{weight.shape[0]}]"
        )
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    return Head(
        hidden=hidden,
        weight=weight,
        bias=None if bias is None else bias.contiguous(),
        target=target.contiguous(),
        rows=rows,
        columns=weight.shape[0],
        inner=inner,
        hidden_stride=hidden.stride(0),
        weight_stride=weight.stride(0),
        first=first,
        logit_scale=None if options.logit_scale == 1.0 else float(options.logit_scale),
        softcap=None if options.softcap is None else float(options.softcap),
    )


def targets_of(logits: Tensor, target: Tensor, options: HeadOptions, first: int) -> Head:
    """A head whose product is not formed again: the targets and options of kept logits."""
    rows, columns = logits.shape
    scale, cap = options.logit_scale, options.softcap
    return Head(
        hidden=logits,
        weight=None,
        bias=None,
        target=target.contiguous(),
        rows=rows,
        columns=columns,
        inner=0,
        hidden_stride=logits.stride(0),
        weight_stride=0,
        first=first,
        logit_scale=None if scale == 1.0 else float(scale),
        softcap=None if cap is None else float(cap),
    )


def check_output(out: Tensor, head: Head) -> None:
    """Refuse an output that is not [N, V] in float32 or the dtype of the hidden states, unbroken.

    Raises:
        ValueError: It is not.
    """
    expected, dtype = (head.rows, head.columns), head.hidden.dtype
    if out.shape != expected or out.dtype not in (dtype, torch.float32) or out.stride(1) != 1:
        raise ValueError(
            f"out {tuple(out.shape)} {out.dtype} with strides {out.stride()} must be "
            f"{expected} {dtype} or float32 with adjacent entries"
        )


def settings_of(head: Head, step: Step, architecture: str, *, extras: bool = False) -> Settings:
    """The settings in force for a kernel that meets this head; ``extras``: and its entropy."""
    return settings_for(
        step,
        head.inner,
        head.columns,
        head.hidden.dtype,
        architecture,
        extras=extras or head.softcap is not None or head.bias is not None,
    )


def tile_of(settings: Settings, head: Head) -> Tile:
    """The compile-time half of a launch with ``settings``."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return Tile(
        rows=settings.rows,
        columns=settings.columns,
        inner=settings.inner,
        group=settings.group,
        even=head.inner % settings.inner == 0,
        widen=INTERPRETED and head.hidden.dtype == torch.bfloat16,
        precision="ieee" if exact or INTERPRETED else "tf32",
    )


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` current, where Triton launches; nothing to do for interpreted kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@jit
def hyperbolic_tangent(x: tl.tensor) -> tl.tensor:
    """Tanh with a small relative error everywhere, from one exponential.

    ``(1 - e) / (1 + e)`` with ``e = exp(-2|x|)`` cancels near 0, where the series to ``x^9`` is
    exact to 1e-8 up to ``|x| = 0.25``.
    """
    size = tl.abs(x)
    shrunk = tl.exp(-2.0 * size)
    far = (1.0 - shrunk) / (1.0 + shrunk)
    square = x * x
    series = 17.0 / 315.0 - square * (62.0 / 2835.0)
    series = 2.0 / 15.0 - square * series
    near = size * (1.0 - square * (1.0 / 3.0 - square * series))
    value = tl.where(size < 0.25, near, far)
    return tl.where(x < 0, -value, value)


@jit
def product_tile(
    head: tl.tuple, first_row: tl.tensor, first_column: tl.tensor, TILE: tl.constexpr
) -> tl.tensor:
    """``hidden . weight^T`` of one tile, [rows, columns] float32.

    Rows and columns past the end repeat the last one, so that no load of them needs a mask.
    """
    inner = tl.arange(0, TILE.inner)
    row = tl.minimum(tl.arange(0, TILE.rows), head.rows - 1 - first_row)
    column = tl.minimum(tl.arange(0, TILE.columns), head.columns - 1 - first_column)
    left = head.hidden + tl.cast(first_row, tl.int64) * head.hidden_stride
    right = head.weight + tl.cast(first_column, tl.int64) * head.weight_stride
    left_offset = row[:, None] * head.hidden_stride + inner[None, :]
    right_offset = column[None, :] * head.weight_stride + inner[:, None]
    # tl.zeros is a kernel of its own, and before Triton 3.8 those take no number of a launch tuple.
    total = tl.full((TILE.rows, TILE.columns), 0.0, dtype=tl.float32)
    for begin in range(0, head.inner, TILE.inner):
        if TILE.even:
            a = tl.load(left + left_offset)
            b = tl.load(right + right_offset)
        else:
            remaining = head.inner - begin
            a = tl.load(left + left_offset, mask=inner[None, :] < remaining, other=0.0)
            b = tl.load(right + right_offset, mask=inner[:, None] < remaining, other=0.0)
        if TILE.widen:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=TILE.precision)
        left += TILE.inner
        right += TILE.inner
    return total


@jit
def logits_tile(
    head: tl.tuple, first_row: tl.tensor, first_column: tl.tensor, TILE: tl.constexpr
) -> tl.tensor:
    """Z of one tile, [rows, columns] float32; entries past the end are not marked."""
    z = product_tile(head, first_row, first_column, TILE)
    if head.bias is not None:
        column = first_column + tl.arange(0, TILE.columns)
        bias = tl.load(head.bias + column, mask=column < head.columns, other=0.0)
        z += bias.to(tl.float32)[None, :]
    if head.logit_scale is not None:
        z *= head.logit_scale
    if head.softcap is not None:
        z = head.softcap * hyperbolic_tangent(z / head.softcap)
    return z


@jit
def local_target(head: tl.tuple, row: tl.tensor) -> tl.tensor:
    """Columns of the targets of rows within this shard, int32; -1 for targets outside it."""
    target = tl.load(head.target + row, mask=row < head.rows, other=-1)
    local = target - head.first
    inside = (target >= 0) & (local >= 0) & (local < head.columns)
    return tl.where(inside, local, -1).to(tl.int32)


@jit
def narrowed(x: tl.tensor, dtype: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """float32 in another dtype, to the nearest; the interpreter's own bfloat16 cast truncates."""
    if TILE.widen and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
