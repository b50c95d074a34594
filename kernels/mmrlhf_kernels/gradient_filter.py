"""Which blocks of the gradient are too small to matter, decided before any matrix product.

The sweep leaves the largest logit of every (row, vocabulary tile). Once the log-normaliser is
known, ``p_max = exp(tile maximum - lse)`` bounds every probability of the tile, so a block of rows
can skip a tile where ``|g| p_max < eps * max |g|`` for all its rows: a saturated pair drops out
with its rows, a confident row drops most of the vocabulary. The target's tile is always kept,
unless the row has no gradient at all. Nothing is recomputed to find this out.

Only the gradient of the hidden states is filtered. The weight's stays exact: rare tokens live on
exactly the small entries that a filter removes.
"""

import threading
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FilterReport", "GradientFilter", "last_filter_report"]

ROWS_PER_BLOCK = 64
_local = threading.local()


class FilterReport(NamedTuple):
    """What the last filtered backward pass of this thread left out."""

    blocks: int
    """(row block, vocabulary tile) pairs in all."""
    skipped_blocks: int
    """Those that were skipped."""
    mean_skipped_mass: float
    """Mean over rows of ``1 - sum of kept p``; rows without a gradient do not count."""
    max_skipped_mass: float
    """The largest of these."""


def last_filter_report() -> FilterReport | None:
    """The report of this thread's last filtered backward pass, or None if there was none."""
    return getattr(_local, "report", None)


class GradientFilter:
    """The decision for all (row block, tile) pairs, and the sum of what it left out.

    Args:
        tile_maximum: [N, tiles] bfloat16, rounded up.
        lse: [N] float32.
        grad: [N] float32, gradient with respect to ``logp``.
        target: [N] int64.
        tile: Vocabulary rows per tile.
        eps: Relative threshold; 0 skips nothing but rows without a gradient.
    """

    def __init__(
        self,
        tile_maximum: Tensor,
        lse: Tensor,
        grad: Tensor,
        target: Tensor,
        *,
        tile: int,
        eps: float,
    ) -> None:
        rows, tiles = tile_maximum.shape
        size = grad.abs()
        weight = torch.exp(tile_maximum.to(lse.dtype) - lse.unsqueeze(1)) * size.unsqueeze(1)
        # Written as "not below", so that a gradient that is not a number keeps its rows.
        keep = ~(weight < eps * size.max())
        keep.scatter_(1, (target // tile).unsqueeze(1), value=True)
        keep &= (size != 0).unsqueeze(1)
        blocks = -(-rows // ROWS_PER_BLOCK)
        padded = keep.new_zeros(blocks * ROWS_PER_BLOCK, tiles)
        padded[:rows] = keep
        self.keep = padded.view(blocks, ROWS_PER_BLOCK, tiles).any(dim=1).cpu()
        self.rows = rows
        self.grad = grad
        self.signed_mass = torch.zeros_like(grad)

    def kept_rows(self, tile: int) -> Tensor | None:
        """Rows that keep this tile, or None if all do."""
        kept = self.keep[:, tile]
        if bool(kept.all()):
            return None
        rows = kept.repeat_interleave(ROWS_PER_BLOCK)[: self.rows]
        return rows.nonzero().squeeze(1).to(self.grad.device)

    def accumulate(self, rows: Tensor | None, logit_gradient: Tensor) -> None:
        """Add up the kept blocks: per row ``sum_kept E = g (1 - sum of kept p)``."""
        part = logit_gradient.sum(dim=1, dtype=self.grad.dtype)
        if rows is None:
            self.signed_mass += part
        else:
            self.signed_mass[rows] += part

    def report(self, logit_scale: float) -> FilterReport:
        """Make the report, keep it for :func:`last_filter_report`, and return it."""
        alive = self.grad != 0
        mass = (self.signed_mass[alive] / (self.grad[alive] * logit_scale)).clamp_(0.0, 1.0)
        skipped = int((~self.keep).sum())
        mean, most = (float(mass.mean()), float(mass.max())) if mass.numel() else (0.0, 0.0)
        report = FilterReport(self.keep.numel(), skipped, mean, most)
        _local.report = report
        return report
