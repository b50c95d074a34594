"""Which schedule runs, decided by a pure function of sizes.

With N rows, H hidden size, V vocabulary rows (products counted as 2NHV each):

=============  ============================  ========  ==========================================
schedule       when it is chosen             products  memory beyond inputs and gradients
=============  ============================  ========  ==========================================
``keep``       N V logits fit the workspace  6NHV      N V from forward to backward
``frozen``     the weight needs no gradient  4NHV      N H from forward to backward
``recompute``  otherwise                     8NHV      N C logits of one chunk, N H float32
=============  ============================  ========  ==========================================

The fused preference loss has two more, ``one_sum`` and ``two_sums``:
:mod:`mmrlhf_kernels.pair_plan`.
"""

from typing import NamedTuple

import torch

__all__ = ["SCHEDULES", "Plan", "default_workspace", "plan_schedule", "widest_chunk"]

SCHEDULES = ("recompute", "keep", "frozen")
NARROWEST_CHUNK = 256
WIDEST_CHUNK = 8192
WIDEST_CHUNK_ON_CPU = 2048


class Plan(NamedTuple):
    """A schedule and the vocabulary rows it takes at a time."""

    schedule: str
    """One of :data:`SCHEDULES`."""
    chunk: int
    """Vocabulary rows per chunk."""
    workspace_bytes: int
    """What the schedule will hold beyond inputs, outputs and gradients, as an estimate."""
    reason: str
    """Why this schedule, in words."""


def default_workspace(device: torch.device) -> int:
    """Bytes a call may use when the caller names no bound: 1 GiB on a GPU, 128 MiB elsewhere."""
    return 1 << 30 if device.type == "cuda" else 1 << 27


def widest_chunk(device: torch.device) -> int:
    """Vocabulary rows beyond which a chunk gains nothing: on the CPU its logits leave the cache."""
    return WIDEST_CHUNK_ON_CPU if device.type == "cpu" else WIDEST_CHUNK


def chunk_width(
    rows: int, vocab: int, bytes_per_logit: int, workspace_bytes: int, widest: int = WIDEST_CHUNK
) -> int:
    """Vocabulary rows whose logits against all rows take at most a quarter of the workspace.

    The width is a multiple of :data:`NARROWEST_CHUNK` and never below it: below, matrix products
    are too thin to be fast. It stops at ``widest``, where nothing more is gained.
    """
    fitting = workspace_bytes // 4 // (max(1, rows) * bytes_per_logit)
    wanted = max(NARROWEST_CHUNK, min(widest, fitting // NARROWEST_CHUNK * NARROWEST_CHUNK))
    return max(1, min(wanted, vocab))


def plan_schedule(
    rows: int,
    hidden: int,
    vocab: int,
    dtype: torch.dtype,
    weight_needs_grad: bool,
    workspace_bytes: int,
    *,
    widest: int = WIDEST_CHUNK,
) -> Plan:
    """Choose the schedule of one call of ``fused_linear_logp``; a pure function.

    Args:
        rows: N, ignored rows included: how many are ignored is known on the device only.
        hidden: H.
        vocab: V.
        dtype: Of the hidden states.
        weight_needs_grad: Whether the weight (or bias, or LoRA's B) needs a gradient.
        workspace_bytes: Bound of the memory beyond inputs, outputs and gradients.
        widest: Bound of the chunk, :func:`widest_chunk` of the device.

    Returns:
        The plan.
    """
    chunk = chunk_width(rows, vocab, dtype.itemsize, workspace_bytes, widest)
    kept = rows * vocab * dtype.itemsize
    unit = rows * hidden * dtype.itemsize
    if not weight_needs_grad:
        needed = unit + rows * chunk * dtype.itemsize
        return Plan("frozen", chunk, needed, "the weight needs no gradient")
    if kept <= workspace_bytes:
        return Plan("keep", chunk, kept, f"{kept} bytes of logits fit in {workspace_bytes}")
    reason = f"{kept} bytes of logits do not fit in {workspace_bytes}"
    needed = rows * (chunk * dtype.itemsize + hidden * max(4, dtype.itemsize))
    return Plan("recompute", chunk, needed, reason)
