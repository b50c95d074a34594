"""Rows: which of them count, and sums of rows that belong to one sequence."""

import torch
from torch import Tensor

__all__ = ["active_rows", "gather_rows", "scatter_rows", "sequence_of_row", "sequence_sums"]


def active_rows(target: Tensor, ignore_index: int, vocab: int) -> Tensor | None:
    """Indices of the rows that are not ignored, or None if none is ignored.

    Raises:
        IndexError: A target that is not ignored lies outside ``0 .. vocab``.
    """
    counted = target != ignore_index
    outside = counted & ((target < 0) | (target >= vocab))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise IndexError(
            f"target[{row}] is {int(target[row])}; expected 0 <= target < {vocab} "
            f"or ignore_index {ignore_index}"
        )
    return None if bool(counted.all()) else counted.nonzero().squeeze(1)


def gather_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """The rows of ``values``, contiguous; ``values`` itself where ``rows`` is None."""
    return values.contiguous() if rows is None else values.index_select(0, rows)


def scatter_rows(values: Tensor, rows: Tensor | None, count: int, fill: float = 0.0) -> Tensor:
    """The inverse of :func:`gather_rows`: ``count`` rows, ``fill`` where there was no row."""
    if rows is None:
        return values
    full = values.new_full((count, *values.shape[1:]), fill)
    return full.index_copy_(0, rows, values)


def sequence_of_row(cu_seqlens: Tensor, rows: int) -> Tensor:
    """Sequence ids [N] from the bounds [S + 1] of packed sequences, as varlen attention has them.

    Raises:
        ValueError: The bounds do not start at 0, end at ``rows`` and never fall. A compiled graph
            leaves this unchecked: a row past the last bound is then found to be out of range.
    """
    if not torch.compiler.is_compiling():
        falls = bool((cu_seqlens.diff() < 0).any())
        if cu_seqlens.dim() != 1 or falls or cu_seqlens[[0, -1]].tolist() != [0, rows]:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the number of rows {rows}; "
                f"got {cu_seqlens.tolist()}"
            )
    places = torch.arange(rows, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), places, right=True)


def sequence_sums(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Sum of the rows of each sequence, in row order: equal bit by bit from run to run.

    Differentiable in ``values``; rows of one sequence need not lie together. Float32 rows are added
    in float64 where the device has it: one after the other in float32, 4,096 log-probabilities of
    -12 would end 0.04 off, which is no small part of a preference's margin.

    Args:
        values: [N] float32 or float64.
        sequence: [N] int64, the sequence of each row, in ``0 .. sequences``.
        sequences: S.

    Returns:
        [S], dtype of ``values``; 0 for a sequence without rows.
    """
    order = torch.argsort(sequence, stable=True)
    # Whole numbers, so the order of these additions does not show.
    lengths = torch.zeros(sequences, dtype=torch.int64, device=sequence.device)
    lengths = lengths.scatter_add(0, sequence, torch.ones_like(sequence))
    if sequences == 0:  # which segment_reduce refuses
        return values[:0]
    wide = values if values.device.type == "mps" else values.double()
    sums = torch.segment_reduce(wide[order], "sum", lengths=lengths, initial=0.0)
    return sums.to(values.dtype)
