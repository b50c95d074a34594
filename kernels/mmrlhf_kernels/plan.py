"""Which schedule runs, decided by pure functions of sizes.

With N rows, H hidden size, V vocabulary rows (products counted as 2NHV each), the schedules of
``fused_linear_logp``:

=============  ============================  ========  ==========================================
schedule       when it is chosen             products  memory beyond inputs and gradients
=============  ============================  ========  ==========================================
``keep``       N V logits fit the workspace  6NHV      N V from forward to backward
``frozen``     the weight needs no gradient  4NHV      N H from forward to backward
``recompute``  otherwise                     8NHV      N C logits of one chunk, N H float32
=============  ============================  ========  ==========================================

In the fused preference loss, a group of whole pairs knows the gradient of its rows as soon as its
own logits have been seen, so ``keep`` holds the logits of one group at a time and forms its
products at once. A single pair that is too long for that is processed in blocks of rows with unit
gradients, which are multiplied by the pair's number at the end. With S = [V, H] in statistics
precision:

=============  =============================================  ========  ==========================
schedule       when it is chosen                              products  memory beyond the gradients
=============  =============================================  ========  ==========================
``keep``       groups of whole pairs fit the workspace        6NHV      logits of one group
``frozen``     the head needs no gradient                     4NHV      N H
``one_sum``    one pair, dL/dS_r = -dL/dS_c: no supervised    6NHV      logits of one block
               term, a loss of the difference
``two_sums``   one pair, and a second S fits the workspace    6NHV      logits of one block, S
``recompute``  otherwise                                      8NHV      N C logits of one chunk
=============  =============================================  ========  ==========================

Several groups or blocks add to dW once each, which half-width weights pay with S in float32:
there the sums are chosen only where they fit the workspace, and ``keep`` takes one group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

__all__ = [
    "PAIR_SCHEDULES",
    "SCHEDULES",
    "PairPlan",
    "Plan",
    "check_schedule",
    "check_workspace",
    "chunk_width",
    "default_pair_workspace",
    "default_workspace",
    "plan_pair_schedule",
    "plan_schedule",
    "rows_per_block",
    "widest_chunk",
]

SCHEDULES = ("recompute", "keep", "frozen")
PAIR_SCHEDULES = (*SCHEDULES, "one_sum", "two_sums")
NARROWEST_CHUNK = 256
WIDEST_CHUNK = 8192
WIDEST_CHUNK_ON_CPU = 2048
WHOLE_TILES = 64
"""What H + r is padded to: the kernels' tiles of other sizes are smaller, and masked."""
FEWEST_ROWS_PER_BLOCK = 128
"""Below this, adding to dW costs more memory traffic than recomputing logits costs arithmetic."""


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


class PairPlan(NamedTuple):
    """A schedule, its chunk width and its groups."""

    schedule: str
    """One of :data:`PAIR_SCHEDULES`."""
    chunk: int
    """Vocabulary rows per chunk."""
    groups: tuple[tuple[int, int], ...]
    """Bounds of consecutive pairs that are taken together; one group unless ``keep``."""
    rows: int
    """Rows whose logits fit the workspace at once, in addition to the sums if any; at least 1."""
    reason: str
    """Why, in words."""


def default_pair_workspace(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes a call may use when the caller names no bound.

    A 16th of the logits of all ``rows`` against ``vocab``, in bytes, where that is more than
    :func:`default_workspace`: who trains on many rows at once has the memory,
    and pairs that fit one by one cost a product (2NHV) less than recomputing.
    """
    share: int = rows * vocab * dtype.itemsize // 16
    return max(default_workspace(device), share)


def rows_per_block(rows: int, most: int) -> int:
    """Rows per block, for the fewest blocks of nearly equal size of at most ``most`` rows each."""
    if most < 1:
        return 0
    blocks = max(1, -(-rows // most))
    return -(-rows // blocks)


def check_schedule(
    schedule: str | None, known: tuple[str, ...], head: str, *, trained: bool
) -> None:
    """Raise unless a forced schedule is known and gives the gradients that ``head`` needs."""
    if schedule not in (None, *known):
        raise ValueError(f"unknown schedule {schedule!r}; expected one of {', '.join(known)}")
    if schedule == "frozen" and trained:
        raise ValueError(f"schedule 'frozen' was forced, but {head} needs a gradient")


def check_workspace(workspace_bytes: int | None) -> None:
    """Raise where the bound of the workspace is negative."""
    if workspace_bytes is not None and workspace_bytes < 0:
        raise ValueError(f"workspace_bytes is {workspace_bytes}; expected at least 0")


def group_pairs(rows_of_pair: Sequence[int], most: int) -> tuple[tuple[int, int], ...] | None:
    """Fewest runs of consecutive pairs of at most ``most`` rows each; None if a pair has more."""
    groups, begin, held = [], 0, 0
    for pair, rows in enumerate(rows_of_pair):
        if rows > most:
            return None
        if held + rows > most:
            groups.append((begin, pair))
            begin, held = pair, 0
        held += rows
    groups.append((begin, len(rows_of_pair)))
    return tuple(groups)


def plan_pair_schedule(
    rows_of_pair: Sequence[int],
    hidden: int,
    vocab: int,
    dtype: torch.dtype,
    weight_needs_grad: bool,
    workspace_bytes: int,
    *,
    shared: bool = False,
    opposite: bool = False,
    widest: int = WIDEST_CHUNK,
    forced: str | None = None,
) -> PairPlan:
    """Choose the schedule of one call of ``fused_linear_mm_dpo``; a pure function.

    ``rows_of_pair`` are the rows of each pair, chosen and rejected together; ``shared`` says that
    an answer belongs to several pairs, which then cannot be taken apart; ``opposite`` that the
    gradients of the two sums of a pair differ by their sign only; ``forced`` names a schedule to
    use instead. The rest as in :func:`plan_schedule`.

    Raises:
        ValueError: A schedule is forced that these pairs do not allow.
    """
    pairs, total = len(rows_of_pair), sum(rows_of_pair)
    most = workspace_bytes // (vocab * dtype.itemsize)
    apart = group_pairs(rows_of_pair, max(1, most)) if not shared or total <= most else None
    limits = _rows_with_sums(hidden, vocab, dtype, workspace_bytes)
    alone = pairs == 1 and not shared
    if forced is not None:
        _check_forced(forced, pairs, shared=shared, opposite=opposite)
        name, reason = forced, "forced"
    elif not weight_needs_grad:
        name, reason = "frozen", "the head needs no gradient"
    else:
        sums = {"one_sum": alone and opposite, "two_sums": alone}
        enough = {n: rows_per_block(total, limits[n]) >= FEWEST_ROWS_PER_BLOCK for n in sums}
        name, reason = _choose(total, apart, dtype, [n for n in sums if sums[n] and enough[n]])
    chunk = chunk_width(total, vocab, dtype.itemsize, workspace_bytes, widest)
    groups = (name == "keep" and apart) or ((0, pairs),)
    return PairPlan(name, chunk, groups, max(1, limits.get(name, most)), reason)


def _check_forced(schedule: str, pairs: int, *, shared: bool, opposite: bool) -> None:
    """Raise where a forced schedule cannot give the gradients of these pairs."""
    if schedule == "two_sums" and shared:
        raise ValueError("schedule 'two_sums' needs each answer to belong to one pair")
    if schedule == "one_sum" and (shared or pairs != 1 or not opposite):
        raise ValueError(
            "schedule 'one_sum' needs a single pair of two answers, no supervised term and a loss "
            "of the difference of both sides alone"
        )


def _rows_with_sums(
    hidden: int, vocab: int, dtype: torch.dtype, workspace_bytes: int
) -> dict[str, int]:
    """Rows whose logits fit next to the sums of a schedule; below 1 where the sums alone do not."""
    size = vocab * hidden * max(4, dtype.itemsize)
    return {
        name: (workspace_bytes - count * size) // (vocab * dtype.itemsize)
        for name, count in sums_held(dtype).items()
    }


def sums_held(dtype: torch.dtype) -> dict[str, int]:
    """Sums [V, H] in statistics precision beside the gradient, by schedule; a sum of the dtype of
    the gradient is its place."""  # noqa: D205, D209
    half = dtype.itemsize < 4
    return {"one_sum": 1 if half else 0, "two_sums": 2 if half else 1}


def _choose(
    total: int,
    groups: tuple[tuple[int, int], ...] | None,
    dtype: torch.dtype,
    sums: list[str],
) -> tuple[str, str]:
    """(schedule, reason) where the head needs a gradient and nothing is forced."""
    if groups is not None and len(groups) == 1:
        return "keep", "the logits of all pairs fit the workspace"
    large = groups is not None and total >= FEWEST_ROWS_PER_BLOCK * len(groups)
    if groups is not None and large and dtype.itemsize >= 4:
        return "keep", f"{len(groups)} groups of pairs fit one by one"
    if sums:
        return sums[0], "one pair that is too long to keep, and blocks that are long enough"
    return "recompute", "the logits do not fit the workspace"
