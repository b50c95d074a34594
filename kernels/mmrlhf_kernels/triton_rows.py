"""Which rows count, and whether targets, bounds and pairs fit, in one launch.

One program suffices: 65,536 targets are 512 KiB. The host reads nothing; a device assertion on what
is written here raises later.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.mm_dpo_segments import defect_of
from mmrlhf_kernels.triton_settings import jit, require_runnable
from mmrlhf_kernels.triton_tile import Launch, on_device

__all__ = ["check_launch", "checked_rows"]

BLOCK = tl.constexpr(1024)
"""Rows that are read at once."""


class _Layout(NamedTuple):
    """What :func:`mmrlhf_kernels.mm_dpo_segments.defect_of` looks at."""

    bounds: Any
    chosen: Any
    rejected: Any
    chosen_stride: Any
    rejected_stride: Any
    answers: Any
    rows: Any
    count: Any


@jit
def _check_kernel(
    call: tl.tuple, target: tl.tensor, counted: tl.tensor, fits: tl.tensor, ignored: tl.tensor,
    vocab: tl.tensor,
) -> None:  # fmt: skip
    """Write which rows count, and two flags: targets fit, bounds and pairs fit."""
    lane = tl.arange(0, BLOCK)
    wrong = tl.full((BLOCK,), 0, dtype=tl.int32)
    for first in range(0, call.rows, BLOCK):
        row = first + lane
        mask = row < call.rows
        found = tl.load(target + row, mask=mask, other=0)
        counts = found != ignored
        tl.store(counted + row, counts.to(tl.int8), mask=mask)
        outside = (found < 0) | (found >= vocab)
        wrong += (mask & counts & outside).to(tl.int32)
    tl.store(fits, (tl.sum(wrong, axis=0) == 0).to(tl.int8))
    defect = defect_of(call, 128)
    tl.store(fits + 1, (defect == defect).to(tl.int8))


def check_launch(
    target: Tensor,
    ignore_index: int,
    vocab: int,
    bounds: Tensor | None,
    pair_index: Tensor | None,
    answers: int,
) -> Launch:
    """The launch with fresh outputs in its arguments ``counted`` and ``fits``."""
    chosen, rejected = (None, None) if pair_index is None else pair_index.unbind(1)
    layout = _Layout(
        bounds=None if bounds is None else bounds.contiguous(),
        chosen=chosen,
        rejected=rejected,
        chosen_stride=0 if chosen is None else chosen.stride(0),
        rejected_stride=0 if rejected is None else rejected.stride(0),
        answers=answers,
        rows=target.shape[0],
        count=0 if chosen is None else chosen.shape[0],
    )
    arguments = {
        "call": layout,
        "target": target.contiguous(),
        "counted": torch.empty(target.shape, dtype=torch.int8, device=target.device),
        "fits": torch.empty(2, dtype=torch.int8, device=target.device),
        "ignored": ignore_index,
        "vocab": vocab,
    }
    return Launch(_check_kernel, (1,), arguments, warps=8)


def checked_rows(
    target: Tensor,
    ignore_index: int,
    vocab: int,
    bounds: Tensor | None,
    pair_index: Tensor | None,
    answers: int,
) -> tuple[Tensor, Tensor]:
    """([N] bool, which rows are not ignored; [2] bool, whether targets and the layout fit).

    Args:
        target: [N] int64.
        ignore_index: The target of ignored rows.
        vocab: V.
        bounds: [S + 1] bounds of answers within the rows, or None.
        pair_index: [P, 2] answers of pairs among those, or None.
        answers: S.
    """
    require_runnable(target, bounds, pair_index)
    launch = check_launch(target, ignore_index, vocab, bounds, pair_index, answers)
    with on_device(target.device):
        launch.run()
    counted, fits = launch.arguments["counted"], launch.arguments["fits"]
    return counted.view(torch.bool), fits.view(torch.bool)
