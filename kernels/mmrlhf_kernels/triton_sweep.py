"""Pass 1: one sweep over the vocabulary that leaves row statistics, and exponentials where asked.

Programs form a grid of row blocks x parts of the vocabulary. Each processes the tiles of its part::

    z      = logits of the tile                    # float32, in registers
    m'     = max(m, max z)
    s      = s exp(m - m') + sum exp(z - m')       # and likewise for sum z exp(z - m')
    zt    += z where column == target
    best   = column of the first z == m'           # if m' > m

and writes (m, s, zt, ...) of its part. A second, tiny kernel merges the parts of each row in their
order, which makes the result the same, bit by bit, from run to run.

Row blocks run in groups (``Settings.group``): the rows of a group and the tiles they meet stay in
the L2 cache together. At N = 8192 and H = 3584 all rows at once are 59 MB and would not.

Exponentials that are kept are wanted against the largest logit of their row. The largest of a chunk
is known only when the sweep has passed it, so the sweep writes them against the largest of their
tile, and a further kernel multiplies each tile by what is missing. That rounds twice, which at most
doubles the error of rounding once.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.backend import NO_EXTRAS, Block, Extras, Sweep, lift_of
from mmrlhf_kernels.triton_settings import (
    Device,
    Settings,
    Step,
    choose_splits,
    device_of,
    jit,
    jit_for_any,
    require_runnable,
)
from mmrlhf_kernels.triton_tile import (
    LOWEST,
    SMALLEST,
    Head,
    Launch,
    check_output,
    flat_tile,
    head_of,
    local_target,
    logits_tile,
    narrowed,
    on_device,
    operands_of,
    place_of,
    settings_of,
    tile_of,
)

__all__ = [
    "Written",
    "combine_launch",
    "kept_exponentials",
    "rebase_launch",
    "sweep",
    "sweep_launch",
]

COMBINE_ROWS = 128
"""Rows per program of the kernel that merges parts."""


class Written(NamedTuple):
    """Where the sweep leaves exponentials, for schedules that keep them."""

    kept: Any
    """[N, V]: exp(z - the largest z of its row and tile), times ``raised``."""
    stride: Any
    """Entries from one row of ``kept`` to the next."""
    shift: Any
    """[N, tiles] float32, the largest z of each row and tile."""
    raised: Any
    """exp of :func:`mmrlhf_kernels.backend.lift_of` the dtype of ``kept``."""


@jit
def _absorb_sums(
    parts: tl.tuple, z: tl.tensor, tallest: tl.tensor, maximum: tl.tensor, sum_exp: tl.tensor,
    sum_z_exp: tl.tensor,
) -> tl.tuple:  # fmt: skip
    """The sums after one more tile, and the maximum they refer to."""
    higher = tl.maximum(maximum, tallest)
    shrink = tl.exp(maximum - higher)
    exponential = tl.exp(z - higher[:, None])
    sum_exp = sum_exp * shrink + tl.sum(exponential, axis=1)
    if parts.sum_z_exp is not None:
        weighted = tl.where(exponential > 0, z, 0.0) * exponential
        sum_z_exp = sum_z_exp * shrink + tl.sum(weighted, axis=1)
    return higher, sum_exp, sum_z_exp


@jit
def _write_exponentials(
    written: tl.tuple, rows: tl.tensor, columns: tl.tensor, first_row: tl.tensor, z: tl.tensor,
    tallest: tl.tensor, tile: tl.tensor, tiles: tl.tensor, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Write exponentials against the maximum of their row within the tile, and that maximum."""
    row = first_row + tl.arange(0, TILE.rows)
    column = tile * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < rows
    shift = tl.maximum(tallest, LOWEST)
    tl.store(written.shift + row.to(tl.int64) * tiles + tile, shift, mask=inside)
    exponential = tl.exp(z - shift[:, None]) * written.raised
    value = narrowed(exponential, written.kept.dtype.element_ty, TILE)
    place = written.kept + tl.cast(first_row, tl.int64) * written.stride
    offset = (row - first_row)[:, None] * written.stride + column[None, :]
    tl.store(place + offset, value, mask=inside[:, None] & (column < columns)[None, :])


@jit_for_any("rows", "tiles_per_part")
def sweep_kernel(
    head: tl.tuple, rows: tl.tensor, parts: tl.tuple, written: tl.tuple, tiles: tl.tensor,
    tiles_per_part: tl.tensor, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """The statistics of one row block over one part."""
    row_block, part = place_of(rows, TILE)
    first_row = row_block * TILE.rows
    row = first_row + tl.arange(0, TILE.rows)
    target = local_target(head, row, row < rows)
    operands = operands_of(head, rows, TILE)
    maximum = tl.full((TILE.rows,), LOWEST, dtype=tl.float32)
    sum_exp = tl.full((TILE.rows,), 0.0, dtype=tl.float32)
    sum_z_exp = sum_exp
    target_logit = sum_exp
    best = tl.full((TILE.rows,), 0, dtype=tl.int32)
    begin = part * tiles_per_part
    end = tl.minimum(begin + tiles_per_part, tiles)
    for tile in tl.range(begin, end, warp_specialize=TILE.loads == "specialized"):
        first_column = tile * TILE.columns
        column = first_column + tl.arange(0, TILE.columns)
        z = logits_tile(head, operands, rows, first_row, first_column, TILE, False)
        z = tl.where((column < head.columns)[None, :], z, float("-inf"))
        tallest = tl.max(z, axis=1)
        if written is not None:
            _write_exponentials(
                written, rows, head.columns, first_row, z, tallest, tile, tiles, TILE
            )
        target_logit += tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)
        if parts.argmax is not None:
            here = tl.where(z == tallest[:, None], column[None, :], 0x7FFFFFFF)
            best = tl.where(tallest > maximum, tl.min(here, axis=1), best)
        maximum, sum_exp, sum_z_exp = _absorb_sums(parts, z, tallest, maximum, sum_exp, sum_z_exp)
    place = part.to(tl.int64) * rows + row
    _store(parts, place, row < rows, maximum, sum_exp, target_logit, sum_z_exp, best)


@jit
def _store(
    out: tl.tuple, place: tl.tensor, mask: tl.tensor, maximum: tl.tensor, sum_exp: tl.tensor,
    target_logit: tl.tensor, sum_z_exp: tl.tensor, best: tl.tensor,
) -> None:  # fmt: skip
    """Write the statistics of some rows."""
    tl.store(out.maximum + place, maximum, mask=mask)
    tl.store(out.sum_exp + place, sum_exp, mask=mask)
    tl.store(out.target_logit + place, target_logit, mask=mask)
    if out.sum_z_exp is not None:
        tl.store(out.sum_z_exp + place, sum_z_exp, mask=mask)
    if out.argmax is not None:
        tl.store(out.argmax + place, best, mask=mask)


@jit_for_any("rows", "count")
def combine_kernel(
    parts: tl.tuple, out: tl.tuple, rows: tl.tensor, count: tl.tensor, first: tl.tensor,
    ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Merge the parts of each row, in their order."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < rows
    maximum = tl.full((ROWS,), LOWEST, dtype=tl.float32)
    sum_exp = tl.full((ROWS,), 0.0, dtype=tl.float32)
    target_logit = sum_exp
    sum_z_exp = sum_exp
    best = tl.full((ROWS,), 0, dtype=tl.int32)
    place = row.to(tl.int64)
    for _ in range(count):
        part_maximum = tl.load(parts.maximum + place, mask=mask, other=0.0)
        higher = tl.maximum(maximum, part_maximum)
        shrink = tl.exp(maximum - higher)
        part_shrink = tl.exp(part_maximum - higher)
        part_sum = tl.load(parts.sum_exp + place, mask=mask, other=0.0)
        sum_exp = sum_exp * shrink + part_sum * part_shrink
        target_logit += tl.load(parts.target_logit + place, mask=mask, other=0.0)
        if parts.sum_z_exp is not None:
            part_sum = tl.load(parts.sum_z_exp + place, mask=mask, other=0.0)
            sum_z_exp = sum_z_exp * shrink + part_sum * part_shrink
        if parts.argmax is not None:
            part_best = tl.load(parts.argmax + place, mask=mask, other=0)
            best = tl.where(part_maximum > maximum, part_best, best)
        maximum = higher
        place += rows
    # A sum is 0 past the last row, and where all logits are minus infinity.
    lse = maximum + tl.log(tl.maximum(sum_exp, SMALLEST))
    tl.store(out.lse + row, lse, mask=mask)
    tl.store(out.logp + row, target_logit - lse, mask=mask)
    best = best.to(tl.int64) + first
    _store(out, row, mask, maximum, sum_exp, target_logit, sum_z_exp, best)


@jit_for_any("rows")
def _rebase_kernel(
    written: tl.tuple, largest: tl.tensor, rows: tl.tensor, columns: tl.tensor, TILE: tl.constexpr
) -> None:  # fmt: skip
    """Move kept exponentials from the maximum of their tile to that of their row."""
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    tile = tl.program_id(1)
    column = tile * TILE.columns + tl.arange(0, TILE.columns)
    inside = row < rows
    mask = inside[:, None] & (column < columns)[None, :]
    far = row.to(tl.int64)
    change = tl.load(written.shift + far * tl.num_programs(1) + tile, mask=inside, other=0.0)
    change -= tl.load(largest + row, mask=inside, other=0.0)
    place = written.kept + far[:, None] * written.stride + column[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32) * tl.exp(change)[:, None]
    tl.store(place, narrowed(value, written.kept.dtype.element_ty, TILE), mask=mask)


def _empty(
    shape: tuple[int, ...], device: torch.device, *, entropy: bool, argmax: torch.dtype | None
) -> Sweep:
    """Uninitialised statistics of one shape; ``argmax`` in the dtype given, or none."""

    def floats() -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    best = None if argmax is None else torch.empty(shape, dtype=argmax, device=device)
    return Sweep(floats(), floats(), floats(), floats() if entropy else None, best)


def sweep_launch(
    head: Head,
    settings: Settings,
    device: Device,
    *,
    out: Tensor | None = None,
    entropy: bool = False,
    argmax: bool = False,
) -> Launch:
    """The launch of the sweep with fresh buffers; ``arguments["parts"]`` receives the result.

    That is a :class:`Sweep` of [parts, N], with int32 columns within the shard as ``argmax``. Parts
    are chosen for ``device``; ``out`` [N, V] receives what ``arguments["written"]`` describes.
    """
    rows = head.target.shape[0]
    tiles = triton.cdiv(head.columns, settings.columns)
    row_blocks = triton.cdiv(rows, settings.rows)
    row_bytes = head.inner * head.hidden.element_size()
    wanted = settings.splits or choose_splits(
        row_blocks, tiles, settings, row_bytes, device.multiprocessors, device.cache
    )
    tiles_per_part = triton.cdiv(tiles, min(wanted, tiles))
    count = triton.cdiv(tiles, tiles_per_part)
    parts = _empty(
        (count, rows),
        head.hidden.device,
        entropy=entropy,
        argmax=torch.int32 if argmax else None,
    )
    written = None
    if out is not None:
        shift = torch.empty(rows, tiles, dtype=torch.float32, device=out.device)
        written = Written(out, out.stride(0), shift, math.exp(lift_of(out.dtype)))
    arguments = {
        "head": head,
        "rows": rows,
        "parts": parts,
        "written": written,
        "tiles": tiles,
        "tiles_per_part": tiles_per_part,
        "TILE": tile_of(settings, head),
    }
    grid = (row_blocks * count,)
    return Launch(sweep_kernel, grid, arguments, settings.warps, settings.stages)


def combine_launch(parts: Sweep, first: int) -> Launch:
    """The launch that merges parts; ``arguments["out"]`` receives the result."""
    (count, rows), device = parts.maximum.shape, parts.maximum.device
    best = None if parts.argmax is None else torch.int64
    out = _empty((rows,), device, entropy=parts.sum_z_exp is not None, argmax=best)
    lse, logp = (torch.empty_like(out.maximum) for _ in range(2))
    arguments = {
        "parts": parts,
        "out": out._replace(lse=lse, logp=logp),
        "rows": rows,
        "count": count,
        "first": first,
        "ROWS": COMBINE_ROWS,
    }
    return Launch(combine_kernel, (triton.cdiv(rows, COMBINE_ROWS),), arguments)


def rebase_launch(written: Written, largest: Tensor, width: int) -> Launch:
    """The launch that moves kept exponentials to the largest of their rows; a tile is ``width``."""
    rows, columns = written.kept.shape
    flat = flat_tile(written.kept)
    tile = flat._replace(rows=flat.rows * flat.columns // width, columns=width)
    arguments = {
        "written": written,
        "largest": largest,
        "rows": rows,
        "columns": columns,
        "TILE": tile,
    }
    grid = (triton.cdiv(rows, tile.rows), written.shift.shape[1])
    return Launch(_rebase_kernel, grid, arguments)


def sweep(
    block: Block,
    extras: Extras = NO_EXTRAS,
    settings: Settings | None = None,
    *,
    out: Tensor | None = None,
) -> Sweep:
    """Pass once over the vocabulary rows of a block; logits stay in registers.

    Operands are float32, float16 or bfloat16. With ``out`` [N, V] it is
    :func:`kept_exponentials`. ``settings`` replace those of the table.

    Returns:
        The statistics, float32, as :class:`mmrlhf_kernels.backend.Sweep` describes them.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: A dtype the kernels do not take.
        ValueError: Shapes or strides that do not fit together.
    """
    require_runnable(*block[:4], out)
    head = head_of(block)
    if out is not None:
        check_output(out, len(block.hidden), head.columns, block.hidden.dtype)
    device, asked = device_of(block.hidden.device), any(extras)
    step: Step = "sweep" if out is None else "kept"
    settings = settings or settings_of(head, step, device.architecture, extras=asked)
    launch = sweep_launch(head, settings, device, out=out, **extras._asdict())
    with on_device(block.hidden.device):
        launch.run()
        combined = combine_launch(launch.arguments["parts"], block.first)
        combined.run()
        found: Sweep = combined.arguments["out"]
        if out is not None:
            rebase_launch(launch.arguments["written"], found.maximum, settings.columns).run()
            lift = lift_of(out.dtype)
            found = found._replace(shift=found.maximum - lift if lift else found.maximum)
    return found


def kept_exponentials(
    block: Block, extras: Extras, out: Tensor, settings: Settings | None = None
) -> Sweep:
    """The sweep that writes ``exp(z - shift)`` to ``out``; see :func:`sweep`."""
    return sweep(block, extras, settings, out=out)
