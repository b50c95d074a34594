"""Pass 1: one sweep over the vocabulary that leaves row statistics and never a logit.

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
"""

from typing import Any, NamedTuple

import triton.language as tl

from mmrlhf_kernels.triton_settings import jit
from mmrlhf_kernels.triton_tile import (
    LOWEST,
    local_target,
    logits_tile,
    narrowed,
    round_up_to_bfloat16,
)

__all__ = ["Parts", "Written", "combine_kernel", "sweep_kernel"]


class Parts(NamedTuple):
    """Statistics per part of the vocabulary and row, [parts, N]; fields as in ``Sweep``."""

    maximum: Any
    sum_exp: Any
    target_logit: Any
    sum_z_exp: Any
    argmax: Any
    """int32 column within the shard."""
    tile_maximum: Any
    """[N, units] bfloat16: no part of the merge, already final."""


class Written(NamedTuple):
    """Where the sweep leaves logits, for schedules that keep them; one tile is one unit."""

    logits: Any
    """[N, V], dtype of ``hidden``: z minus the largest z of its row and tile."""
    stride: Any
    """Entries from one row of ``logits`` to the next."""
    shift: Any
    """[N, units] float32, what was subtracted."""


@jit
def _place(head: tl.tuple, TILE: tl.constexpr) -> tl.tuple:
    """(row block, part) of this program: groups of row blocks, part after part."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(head.rows, TILE.rows)
    parts = tl.num_programs(0) // row_blocks
    group = program // (TILE.group * parts)
    first_block = group * TILE.group
    size = tl.minimum(row_blocks - first_block, TILE.group)
    inside = program - group * TILE.group * parts
    return first_block + inside % size, inside // size


@jit
def _store_maximum(
    parts: tl.tuple, head: tl.tuple, row: tl.tensor, unit: tl.tensor, highest: tl.tensor,
    units: tl.tensor,
) -> None:  # fmt: skip
    """Write the maxima of a finished unit, one per row."""
    place = row.to(tl.int64) * units + unit
    value = round_up_to_bfloat16(highest)
    tl.store(parts.tile_maximum + place, value, mask=row < head.rows)


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
def _write_shifted(
    written: tl.tuple, head: tl.tuple, first_row: tl.tensor, column: tl.tensor, z: tl.tensor,
    tallest: tl.tensor, unit: tl.tensor, units: tl.tensor, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Write z against the maximum of its row within the tile, and that maximum."""
    row = first_row + tl.arange(0, TILE.rows)
    shift = tl.maximum(tallest, LOWEST)
    tl.store(written.shift + row.to(tl.int64) * units + unit, shift, mask=row < head.rows)
    value = narrowed(z - shift[:, None], written.logits.dtype.element_ty, TILE)
    place = written.logits + tl.cast(first_row, tl.int64) * written.stride
    offset = (row - first_row)[:, None] * written.stride + column[None, :]
    tl.store(place + offset, value, mask=(row < head.rows)[:, None] & (column >= 0)[None, :])


@jit
def sweep_kernel(
    head: tl.tuple, parts: tl.tuple, written: tl.tuple, units: tl.tensor,
    units_per_part: tl.tensor, WIDTH: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """The statistics of one row block over one part; a unit is WIDTH columns, in whole tiles."""
    row_block, part = _place(head, TILE)
    first_row = row_block * TILE.rows
    row = first_row + tl.arange(0, TILE.rows)
    target = local_target(head, row)
    maximum = tl.full((TILE.rows,), LOWEST, dtype=tl.float32)
    highest = maximum
    sum_exp = tl.full((TILE.rows,), 0.0, dtype=tl.float32)
    sum_z_exp = sum_exp
    target_logit = sum_exp
    best = tl.full((TILE.rows,), 0, dtype=tl.int32)
    steps = (WIDTH + TILE.columns - 1) // TILE.columns
    begin = part * units_per_part
    end = tl.minimum(begin + units_per_part, units)
    for position in range(begin * steps, end * steps):
        unit = position // steps
        step = position - unit * steps
        first_column = unit * WIDTH + step * TILE.columns
        column = first_column + tl.arange(0, TILE.columns)
        z = logits_tile(head, first_row, first_column, TILE)
        inside = (column < (unit + 1) * WIDTH) & (column < head.columns)
        z = tl.where(inside[None, :], z, float("-inf"))
        column = tl.where(inside, column, -2)
        tallest = tl.max(z, axis=1)
        target_logit += tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)
        if parts.argmax is not None:
            here = tl.where(z == tallest[:, None], column[None, :], 0x7FFFFFFF)
            best = tl.where(tallest > maximum, tl.min(here, axis=1), best)
        if parts.tile_maximum is not None:
            highest = tl.where(step == 0, tallest, tl.maximum(highest, tallest))
            if step == steps - 1:
                _store_maximum(parts, head, row, unit, highest, units)
        if written is not None:
            _write_shifted(written, head, first_row, column, z, tallest, unit, units, TILE)
        maximum, sum_exp, sum_z_exp = _absorb_sums(parts, z, tallest, maximum, sum_exp, sum_z_exp)
    _store_part(head, parts, part, row, maximum, sum_exp, target_logit, sum_z_exp, best)


@jit
def _store_part(
    head: tl.tuple, parts: tl.tuple, part: tl.tensor, row: tl.tensor, maximum: tl.tensor,
    sum_exp: tl.tensor, target_logit: tl.tensor, sum_z_exp: tl.tensor, best: tl.tensor,
) -> None:  # fmt: skip
    """Write the statistics of one row block over one part."""
    place = part.to(tl.int64) * head.rows + row
    mask = row < head.rows
    tl.store(parts.maximum + place, maximum, mask=mask)
    tl.store(parts.sum_exp + place, sum_exp, mask=mask)
    tl.store(parts.target_logit + place, target_logit, mask=mask)
    if parts.sum_z_exp is not None:
        tl.store(parts.sum_z_exp + place, sum_z_exp, mask=mask)
    if parts.argmax is not None:
        tl.store(parts.argmax + place, best, mask=mask)


@jit
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
    tl.store(out.maximum + row, maximum, mask=mask)
    tl.store(out.sum_exp + row, sum_exp, mask=mask)
    tl.store(out.target_logit + row, target_logit, mask=mask)
    if parts.sum_z_exp is not None:
        tl.store(out.sum_z_exp + row, sum_z_exp, mask=mask)
    if parts.argmax is not None:
        tl.store(out.argmax + row, best.to(tl.int64) + first, mask=mask)
