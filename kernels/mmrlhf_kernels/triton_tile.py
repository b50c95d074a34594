"""What the Triton kernels share: operands, a tile of logits, functions, rounding, a launch.

Kernels take their operands as named tuples, which Triton passes as separate arguments: a field
that is None costs nothing and is decided at compile time. ``Tile`` is a constant of the kernel. The
number of rows is an argument of its own that Triton does not specialise on, so that a batch of
another size finds its kernels compiled.

Offsets. A tile's base is reached by a 64-bit step from the start of the matrix, because ``V * H``
and ``N * V`` pass 2^31 at real sizes; inside a tile 32 bits suffice and spare registers.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import Block, HeadOptions
from mmrlhf_kernels.triton_settings import INTERPRETED, Settings, Step, jit, settings_for

__all__ = [
    "Head",
    "Launch",
    "Tile",
    "check_output",
    "flat_grid",
    "flat_tile",
    "head_of",
    "hyperbolic_tangent",
    "local_target",
    "logistic",
    "logits_tile",
    "narrowed",
    "on_device",
    "operands_of",
    "place_of",
    "settings_of",
    "softplus",
    "targets_of",
    "tile_of",
]

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The lowest float32: a maximum that minus infinity can be subtracted from."""
SMALLEST = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal float32."""
ROWS, COLUMNS = 4, 1024
"""Entries per program of the kernels without a matrix product: 32 for each of 128 threads."""


class Head(NamedTuple):
    """A :class:`mmrlhf_kernels.backend.Block` as the kernels take it: entries of a row adjacent."""

    hidden: Any
    weight: Any
    bias: Any
    target: Any
    columns: Any
    """V, rows of the weight."""
    inner: Any
    """H."""
    hidden_stride: Any
    """Entries from one row of ``hidden`` to the next, and likewise of ``weight``."""
    weight_stride: Any
    first: Any
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
    loads: str = "pointers"
    """As in ``Settings``."""


class Launch(NamedTuple):
    """A kernel with all it needs, so that it can be run, or compiled where there is no device."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 1

    def run(self) -> None:
        """Launch on the current stream of the current device."""
        tile = self.arguments.get("TILE")
        if tile is not None and tile.loads != "pointers":  # the kernel writes its descriptors down
            triton.set_allocator(_scratch)
        self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)


def _scratch(size: int, _alignment: int, _stream: int | None) -> Tensor:
    """Memory of a kernel that is running; the allocator's blocks are aligned to 512 bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _scales(options: HeadOptions) -> tuple[float | None, float | None]:
    """The last two fields of a head."""
    scale, cap = options.logit_scale, options.softcap
    return None if scale == 1.0 else float(scale), None if cap is None else float(cap)


def head_of(block: Block) -> Head:
    """Check the operands of a head and gather them; a row that is not contiguous is copied."""
    hidden, weight, bias, target, options, first = block
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
    bias = None if bias is None else bias.contiguous()
    sizes = (weight.shape[0], inner, hidden.stride(0), weight.stride(0))
    return Head(hidden, weight, bias, target.contiguous(), *sizes, first, *_scales(options))


def targets_of(
    target: Tensor, options: HeadOptions, first: int = 0, columns: int = 0,
    weight: Tensor | None = None,
) -> Head:  # fmt: skip
    """A head whose product is not formed: targets, options, and the weight where it is read."""
    inner, stride = (0, 0) if weight is None else (weight.shape[1], weight.stride(0))
    operands = (None, weight, None, target.contiguous())
    return Head(*operands, columns, inner, 0, stride, first, *_scales(options))


def check_output(out: Tensor, rows: int, columns: int, dtype: torch.dtype) -> None:
    """Raise unless an output is [N, V], adjacent, in float32 or the dtype of the hidden states."""
    expected = (rows, columns)
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
    """The compile-time half of a launch with ``settings``.

    Descriptors need rows that begin at multiples of 16 bytes; others are read by pointers.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    aligned = all(
        entries * matrix.element_size() % 16 == 0
        for matrix in (head.hidden, head.weight)
        for entries in (matrix.stride(0), matrix.storage_offset())
    )
    return Tile(
        rows=settings.rows,
        columns=settings.columns,
        inner=settings.inner,
        group=settings.group,
        even=head.inner % settings.inner == 0,
        widen=INTERPRETED and head.hidden.dtype == torch.bfloat16,
        precision="ieee" if exact or INTERPRETED else "tf32",
        loads=settings.loads if aligned else "pointers",
    )


def flat_tile(like: Tensor) -> Tile:
    """The tile of the kernels without a matrix product."""
    widen = INTERPRETED and like.dtype == torch.bfloat16
    return Tile(ROWS, COLUMNS, 16, 1, even=True, widen=widen, precision="ieee")


def flat_grid(rows: int, columns: int) -> tuple[int, int]:
    """Programs of those kernels that cover a matrix."""
    return triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)


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
def softplus(x: tl.tensor) -> tl.tensor:
    """``log(1 + exp(x))`` without overflow, and without losing the far tail.

    ``log(1 + e)`` forgets an e below 6e-8; multiplying by ``e / ((1 + e) - 1)`` puts it back.
    """
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    kept = one_more - 1.0
    scaled = tl.log(one_more) * (small / tl.where(kept == 0.0, 1.0, kept))
    return tl.maximum(x, 0.0) + tl.where(kept == 0.0, small, scaled)


@jit
def logistic(x: tl.tensor) -> tl.tensor:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@jit
def place_of(rows: tl.tensor, TILE: tl.constexpr) -> tl.tuple:
    """(row block, part of the vocabulary) of this program: groups of row blocks, part by part."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, TILE.rows)
    in_group = TILE.group * (tl.num_programs(0) // row_blocks)
    first_block = program // in_group * TILE.group
    size = tl.minimum(row_blocks - first_block, TILE.group)
    inside = program % in_group
    return first_block + inside % size, inside // size


@jit
def operands_of(head: tl.tuple, rows: tl.tensor, TILE: tl.constexpr) -> tl.tuple:
    """Hidden states and weight as :func:`logits_tile` takes them: pointers or descriptors."""
    if TILE.loads == "pointers":
        left = head.hidden
        right = head.weight
    else:
        left = tl.make_tensor_descriptor(
            head.hidden, [rows, head.inner], [head.hidden_stride, 1], [TILE.rows, TILE.inner]
        )
        right = tl.make_tensor_descriptor(
            head.weight, [head.columns, head.inner], [head.weight_stride, 1],
            [TILE.columns, TILE.inner],
        )  # fmt: skip
    return left, right


@jit
def logits_tile(
    head: tl.tuple, operands: tl.tuple, rows: tl.tensor, first_row: tl.tensor,
    first_column: tl.tensor, TILE: tl.constexpr, SPECIALIZE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Z of one tile, [rows, columns] float32; entries past the end are not marked.

    Pointers repeat the last row and column past the end, so that no load of them needs a mask;
    descriptors read zeros there. ``SPECIALIZE``: warps of their own load within this tile.
    """
    # tl.zeros is a kernel of its own, and before Triton 3.8 those take no number of a launch tuple.
    z = tl.full((TILE.rows, TILE.columns), 0.0, dtype=tl.float32)
    left, right = operands
    if TILE.loads == "pointers":
        inner = tl.arange(0, TILE.inner)
        row = tl.minimum(tl.arange(0, TILE.rows), rows - 1 - first_row)
        column = tl.minimum(tl.arange(0, TILE.columns), head.columns - 1 - first_column)
        left += tl.cast(first_row, tl.int64) * head.hidden_stride
        right += tl.cast(first_column, tl.int64) * head.weight_stride
        left_offset = row[:, None] * head.hidden_stride + inner[None, :]
        right_offset = column[None, :] * head.weight_stride + inner[:, None]
    for begin in tl.range(0, head.inner, TILE.inner, warp_specialize=SPECIALIZE):
        if TILE.loads != "pointers":
            a = left.load([first_row, begin])
            b = right.load([first_column, begin]).T
        elif TILE.even:
            a = tl.load(left + left_offset)
            b = tl.load(right + right_offset)
        else:
            remaining = head.inner - begin
            a = tl.load(left + left_offset, mask=inner[None, :] < remaining, other=0.0)
            b = tl.load(right + right_offset, mask=inner[:, None] < remaining, other=0.0)
        if TILE.widen:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        z = tl.dot(a, b, z, input_precision=TILE.precision)
        if TILE.loads == "pointers":
            left += TILE.inner
            right += TILE.inner
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
def local_target(head: tl.tuple, row: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Columns of the targets of rows within this shard, int32; -1 for targets outside it."""
    target = tl.load(head.target + row, mask=inside, other=-1)
    local = target - head.first
    held = (target >= 0) & (local >= 0) & (local < head.columns)
    return tl.where(held, local, -1).to(tl.int32)


@jit
def narrowed(x: tl.tensor, dtype: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """float32 in another dtype, to the nearest; the interpreter's own bfloat16 cast truncates."""
    if TILE.widen and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
