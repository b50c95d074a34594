"""Where the rows of each answer lie, and the answers of each pair.

Rows reach the objective answer by answer: as they are where bounds were given, else in an order of
their own. Whatever lies on the host is checked and read there; what lies on a device is checked by
it, and the host does not wait.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.rows import Rows, check_bounds, rows_that_count, sequence_of_row, verify

__all__ = ["Answers", "Layout", "numbered_answers", "place_answers"]


class Layout(NamedTuple):
    """What the host knows of the rows without waiting for the device."""

    lengths: list[int]
    """[S] rows of each answer that take part, ignored ones among them where those do."""
    chosen: list[int]
    """[P]."""
    rejected: list[int]
    """[P]."""

    def rows_of_pair(self) -> list[int]:
        """Rows of each pair, chosen and rejected together."""
        sides = zip(self.chosen, self.rejected, strict=True)
        return [self.lengths[one] + self.lengths[other] for one, other in sides]

    def shared(self) -> bool:
        """Whether an answer belongs to several pairs."""
        answers = [*self.chosen, *self.rejected]
        return len(set(answers)) < len(answers)

    def rows(self, answers: list[int]) -> Tensor:
        """Places of the rows of some answers, one answer behind the other."""
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        parts = [torch.arange(ends[a] - self.lengths[a], ends[a]) for a in answers]
        return torch.cat([torch.empty(0, dtype=torch.int64), *parts])


class Answers(NamedTuple):
    """The answers of the rows that take part, on their device."""

    bounds: Tensor
    """[S + 1] bounds of the answers within the rows in ``order``."""
    order: Tensor | None
    """[M] int64, the rows answer by answer; None where they lie that way."""
    chosen: Tensor | None
    """[P], the answer of each pair; None where the first P answers are the chosen ones."""
    rejected: Tensor | None
    layout: Layout | None
    """None where only the device knows."""

    def in_order(self, values: Tensor) -> Tensor:
        """Values of rows [M], answer by answer."""
        return values if self.order is None else values[self.order]


def place_answers(
    target: Tensor,
    ignore_index: int,
    vocab: int,
    counted_rows: int | None,
    cu_seqlens: Tensor | None,
    sequence: Tensor | None,
    pair_index: Tensor | None,
    pairs: int,
) -> tuple[Rows, Answers]:
    """The rows that count and their answers, from bounds or from the answer of each row.

    Raises:
        IndexError: A target, a row's answer or a pair's lies outside its range.
        ValueError: Bounds do not rise from 0 to the number of rows.
    """
    device, count = target.device, target.shape[0]
    if sequence is not None:
        sequence, pair_index, sequences = _numbered(sequence, pair_index, pairs)
    else:
        assert cu_seqlens is not None
        sequences = cu_seqlens.shape[0] - 1
    if pair_index is not None and pair_index.device.type == "cpu":
        _check_ids("pair", pair_index, sequences)
    rows = rows_that_count(
        target, ignore_index, vocab, counted_rows, bounds=_beside(cu_seqlens, target),
        pair_index=_beside(pair_index, target), answers=sequences,
    )  # fmt: skip
    named = None if pair_index is None else pair_index.to(device, non_blocking=True)
    chosen, rejected = (None, None) if named is None else named.unbind(1)
    if cu_seqlens is not None:
        if cu_seqlens.device.type == "cpu":
            check_bounds(cu_seqlens, count)
        bounds, order = cu_seqlens.to(device, non_blocking=True), None
        if rows.taken is not None:
            bounds = torch.searchsorted(rows.taken, bounds.to(torch.int64))
    else:
        assert sequence is not None
        sequence = rows.gather(sequence)
        order = torch.argsort(sequence, stable=True)
        numbers = torch.arange(sequences + 1, device=device)
        bounds = torch.searchsorted(sequence[order], numbers)
    known = bounds if rows.taken is not None or cu_seqlens is None else cu_seqlens
    return rows, Answers(bounds, order, chosen, rejected, _layout(known, pair_index, pairs))


def numbered_answers(
    cu_seqlens: Tensor | None,
    sequence: Tensor | None,
    pair_index: Tensor | None,
    pairs: int,
    target: Tensor,
) -> tuple[Tensor, Tensor | None, int]:
    """(answer of each row, answers of each pair or None, S); checked as in :func:`place_answers`.

    Raises:
        IndexError: An answer lies outside its range.
        ValueError: Bounds do not rise from 0 to the number of rows.
    """
    if sequence is not None:
        return _numbered(sequence, pair_index, pairs)
    assert cu_seqlens is not None
    if pair_index is not None:
        _check_ids("pair", pair_index, cu_seqlens.shape[0] - 1)
    of_row = sequence_of_row(cu_seqlens, target.shape[0], target.device)
    return of_row, pair_index, cu_seqlens.shape[0] - 1


def _beside(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """The tensor where it lies on a device that checks it; the host checks its own."""
    return None if tensor is None or like.device.type == "cpu" or not tensor.is_cuda else tensor


def _layout(bounds: Tensor, pair_index: Tensor | None, pairs: int) -> Layout | None:
    """What the host can know without waiting for the device."""
    if bounds.device.type != "cpu" or (pair_index is not None and pair_index.is_cuda):
        return None
    lengths = bounds.diff().tolist()
    if pair_index is None:
        return Layout(lengths, list(range(pairs)), list(range(pairs, 2 * pairs)))
    return Layout(lengths, *pair_index.t().tolist())


def _check_ids(name: str, ids: Tensor, sequences: int) -> None:
    """Raise, or let the device raise, where an answer does not exist.

    Raises:
        IndexError: On a CPU.
    """
    if ids.device.type != "cpu":
        fits = (ids.clamp(0, max(0, sequences - 1)) == ids).all()
        verify(fits, f"a {name} names a sequence that is not there")
    elif bool(((ids < 0) | (ids >= sequences)).any()):
        worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise IndexError(f"a {name} names sequence {worst}; expected 0 <= sequence < {sequences}")


def _numbered(
    sequence: Tensor, pair_index: Tensor | None, pairs: int
) -> tuple[Tensor, Tensor | None, int]:
    """Answers of rows and pairs under numbers whose count is known.

    Without ``pair_index`` they have 0 .. 2 P. With it they get new ones, those of pairs first:
    rows of answers in no pair share the last of 2 P + 1. Nothing is read from the device.
    """
    if pair_index is None:
        _check_ids("row", sequence, 2 * pairs)
        return sequence, None, 2 * pairs
    for name, ids in (("row", sequence), ("pair", pair_index)):
        if ids.device.type != "cpu":
            verify((ids >= 0).all(), f"a {name} names an answer below 0")
        elif ids.numel() and int(ids.min()) < 0:
            raise IndexError(f"a {name} names answer {int(ids.min())}; expected at least 0")
    named = pair_index.to(sequence.device).flatten().sort().values
    last = named.numel()
    if last == 0:
        return torch.zeros_like(sequence), pair_index, 1
    place = torch.searchsorted(named, sequence).clamp(max=last - 1)
    sequence = place.where(named[place] == sequence, last)
    return sequence, torch.searchsorted(named, pair_index.to(named.device)), last + 1
