"""Sums of rows into sequences, in an order that no other sequence can change.

One program adds one segment: lane ``i`` takes entries ``i, i + BLOCK, ...`` from the segment's own
start, and the lanes are added by one tree at the end. So a sequence's sum depends on its entries
alone, not on its place in the batch, on its neighbours or on the device's scheduling: no atomics.
"""

import torch
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.triton_settings import jit, require_runnable
from mmrlhf_kernels.triton_tile import Launch, on_device

__all__ = ["segment_sum", "segment_sum_launch"]

BLOCK = 256
"""Entries added at once."""


@jit
def _segment_sum_kernel(
    values: tl.tensor, boundaries: tl.tensor, out: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """The sum of one segment."""
    segment = tl.program_id(0)
    begin = tl.load(boundaries + segment)
    end = tl.load(boundaries + segment + 1)
    lane = tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        place = start + lane
        total += tl.load(values + place, mask=place < end, other=0.0)
    tl.store(out + segment, tl.sum(total, axis=0))


def segment_sum_launch(values: Tensor, boundaries: Tensor) -> Launch:
    """The launch of the segmented sum with a fresh ``arguments["out"]``."""
    segments = boundaries.numel() - 1
    arguments = {
        "values": values.detach().to(torch.float32).contiguous(),
        "boundaries": boundaries.contiguous(),
        "out": torch.empty(segments, dtype=torch.float32, device=values.device),
        "BLOCK": BLOCK,
    }
    return Launch(_segment_sum_kernel, (segments,), arguments)


def segment_sum(values: Tensor, boundaries: Tensor) -> Tensor:
    """``out[s] = sum of values[boundaries[s] : boundaries[s + 1]]``, in a fixed order.

    Args:
        values: [N] per-row log-probabilities.
        boundaries: [S + 1] int32 or int64, ascending from 0 to N (``cu_seqlens``); an empty
            segment sums to 0.

    Returns:
        [S] float32.

    Raises:
        RuntimeError: No GPU and no interpreter.
        ValueError: Shapes or dtypes that do not fit.
    """
    require_runnable(values, boundaries)
    if values.dim() != 1 or boundaries.dim() != 1 or boundaries.numel() == 0:
        raise ValueError(
            f"values {list(values.shape)} must be [N] and boundaries {list(boundaries.shape)} "
            "[S + 1]"
        )
    if boundaries.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"boundaries must be int32 or int64, not {boundaries.dtype}")
    launch = segment_sum_launch(values, boundaries)
    out: Tensor = launch.arguments["out"]
    if out.numel():
        with on_device(values.device):
            launch.run()
    return out
