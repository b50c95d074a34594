"""Pass 1 from tensors to tensors: buffers, launches, and the merge of the parts.

:mod:`mmrlhf_kernels.triton_sweep_kernel` says what the kernels do.
"""

from typing import TypedDict, Unpack

import torch
import triton
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, Sweep
from mmrlhf_kernels.triton_settings import (
    Settings,
    architecture_of,
    choose_splits,
    multiprocessors_of,
    require_runnable,
)
from mmrlhf_kernels.triton_sweep_kernel import Parts, Written, combine_kernel, sweep_kernel
from mmrlhf_kernels.triton_tile import (
    Head,
    Launch,
    head_of,
    on_device,
    settings_of,
    tile_of,
)

__all__ = ["SweepExtras", "combine_launch", "sweep", "sweep_launch"]

COMBINE_ROWS = 128
"""Rows per program of the kernel that merges parts."""


class SweepExtras(TypedDict, total=False):
    """Statistics that a sweep gathers in addition to those of the log-probability."""

    entropy: bool
    """Fill ``sum_z_exp``."""
    argmax: bool
    """Fill ``argmax``."""
    tile: int | None
    """Width of the tiles of ``tile_maximum``, or None for none."""


def _empty(
    shape: tuple[int, ...], device: torch.device, *, entropy: bool, argmax: torch.dtype | None
) -> Parts:
    """Uninitialised statistics of one shape; ``argmax`` in the dtype given, or none."""

    def floats() -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    return Parts(
        maximum=floats(),
        sum_exp=floats(),
        target_logit=floats(),
        sum_z_exp=floats() if entropy else None,
        argmax=None if argmax is None else torch.empty(shape, dtype=argmax, device=device),
        tile_maximum=None,
    )


def _narrowed_to(tile: int | None, settings: Settings) -> Settings:
    """Settings whose columns are no wider than the power of two that holds ``tile``."""
    if tile is None:
        return settings
    return settings._replace(columns=max(16, min(settings.columns, triton.next_power_of_2(tile))))


def _parts(head: Head, count: int, units: int, extras: SweepExtras) -> Parts:
    """Uninitialised statistics of ``count`` parts, and tile maxima where they are requested."""
    parts = _empty(
        (count, head.rows),
        head.hidden.device,
        entropy=extras.get("entropy", False),
        argmax=torch.int32 if extras.get("argmax") else None,
    )
    if extras.get("tile") is None:
        return parts
    maxima = parts.maximum.new_empty(head.rows, units, dtype=torch.bfloat16)
    return parts._replace(tile_maximum=maxima)


def _written(out: Tensor, units: int) -> Written:
    """Where the sweep leaves logits: ``out``, and what it subtracts from them."""
    shift = torch.empty(out.shape[0], units, dtype=torch.float32, device=out.device)
    return Written(out, out.stride(0), shift)


def sweep_launch(
    head: Head,
    settings: Settings,
    multiprocessors: int,
    *,
    out: Tensor | None = None,
    **extras: Unpack[SweepExtras],
) -> Launch:
    """The launch of the sweep with fresh buffers; ``arguments["parts"]`` receives the result.

    Args:
        head: Operands.
        settings: Tiles.
        multiprocessors: Programs that run at once, for the choice of parts.
        out: [N, V] that receives shifted logits as ``arguments["written"]`` describes; not
            together with ``tile``.
        extras: Statistics beyond those of the log-probability.
    """
    settings = _narrowed_to(extras.get("tile"), settings)
    width = extras.get("tile") or settings.columns
    units = triton.cdiv(head.columns, width)
    row_blocks = triton.cdiv(head.rows, settings.rows)
    wanted = settings.splits or choose_splits(row_blocks, units, multiprocessors)
    units_per_part = triton.cdiv(units, min(wanted, units))
    count = triton.cdiv(units, units_per_part)
    parts = _parts(head, count, units, extras)
    arguments = {
        "head": head,
        "parts": parts,
        "written": None if out is None else _written(out, units),
        "units": units,
        "units_per_part": units_per_part,
        "WIDTH": width,
        "TILE": tile_of(settings, head),
    }
    grid = (row_blocks * count,)
    return Launch(sweep_kernel, grid, arguments, settings.warps, settings.stages)


def combine_launch(parts: Parts, first: int) -> Launch:
    """The launch that merges parts; ``arguments["out"]`` receives the result."""
    count, rows = parts.maximum.shape
    best = None if parts.argmax is None else torch.int64
    entropy = parts.sum_z_exp is not None
    out = _empty((rows,), parts.maximum.device, entropy=entropy, argmax=best)
    arguments = {
        "parts": parts._replace(tile_maximum=None),
        "out": out,
        "rows": rows,
        "count": count,
        "first": first,
        "ROWS": COMBINE_ROWS,
    }
    return Launch(combine_kernel, (triton.cdiv(rows, COMBINE_ROWS),), arguments)


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: HeadOptions,
    *,
    first: int = 0,
    settings: Settings | None = None,
    **extras: Unpack[SweepExtras],
) -> Sweep:
    """Pass once over the vocabulary rows ``first .. first + V``; logits stay in registers.

    Arguments are those of :meth:`mmrlhf_kernels.backend.Backend.sweep` in float32, float16 or
    bfloat16, of which :class:`SweepExtras` is optional. ``settings`` replace those of the table.

    Returns:
        The statistics, float32, as :class:`mmrlhf_kernels.backend.Sweep` describes them.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: A dtype the kernels do not take.
        ValueError: Shapes that do not fit together.
    """
    require_runnable(hidden, weight, bias, target)
    head = head_of(hidden, weight, bias, target, options, first)
    device = hidden.device
    settings = settings or settings_of(head, "sweep", architecture_of(device))
    launch = sweep_launch(head, settings, multiprocessors_of(device), **extras)
    with on_device(device):
        launch.run()
        parts = launch.arguments["parts"]
        combined = combine_launch(parts, first)
        combined.run()
    return Sweep._make(combined.arguments["out"]._replace(tile_maximum=parts.tile_maximum))
