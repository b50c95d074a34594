"""Rows: which of them count, and sums of rows that belong to one sequence."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_integers, check_shape

__all__ = [
    "Answers",
    "Layout",
    "Rows",
    "check_bounds",
    "check_named",
    "place_answers",
    "rows_that_count",
    "sequence_of_row",
    "sequence_sums",
    "verify",
]


class Rows(NamedTuple):
    """The rows that count: gathered by ``taken``, or all of them with the others masked.

    Finding out how many rows count reads the device. On a CPU that is free, and ignored rows are
    left out of every product. Elsewhere the host would wait, so rows are gathered where the caller
    says how many count, and otherwise all rows take part and the ignored ones are set to 0.
    """

    taken: Tensor | None
    """[M] int64 rows, or None for all."""
    mask: Tensor | None
    """[N] bool, which rows count, where all take part; None where none is ignored."""

    def are_none(self, count: int) -> bool:
        """Whether no row is left of ``count``."""
        return count == 0 or (self.taken is not None and self.taken.numel() == 0)

    def gather(self, values: Tensor) -> Tensor:
        """The rows of ``values`` that take part, contiguous."""
        return values.contiguous() if self.taken is None else values.index_select(0, self.taken)

    def masked(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """``values`` [N, ...] with ``fill`` in masked rows."""
        if self.mask is None:
            return values
        return values.where(self.mask.view(-1, *[1] * (values.dim() - 1)), fill)

    def scatter(self, values: Tensor, count: int, fill: float = 0.0) -> Tensor:
        """The inverse of :meth:`gather`: ``count`` rows, ``fill`` in those that do not count."""
        if self.taken is None:
            return self.masked(values, fill)
        full = values.new_full((count, *values.shape[1:]), fill)
        return full.index_copy_(0, self.taken, values)


def verify(holds: Tensor, message: str) -> None:
    """Have the device check a condition without making the host wait for it."""
    torch._assert_async(holds, message)


def rows_that_count(
    target: Tensor,
    ignore_index: int,
    vocab: int,
    counted_rows: int | None = None,
    *,
    bounds: Tensor | None = None,
    pair_index: Tensor | None = None,
    answers: int = 0,
    checked: bool = False,
) -> Rows:
    """The rows that are not ignored.

    Args:
        target: [N] int64.
        ignore_index: The target of ignored rows.
        vocab: V.
        counted_rows: How many rows are not ignored, where the caller knows.
        bounds: Bounds of answers on the device of ``target``, to be checked by it.
        pair_index: Answers of pairs there, likewise.
        answers: How many answers there are.
        checked: Whether all this was checked before.

    Raises:
        IndexError: On a CPU: a target that is not ignored lies outside ``0 .. vocab``. Elsewhere
            the device raises later, as for an index out of range.
        ValueError: On a CPU: another number of rows counts.
    """
    if target.device.type != "cpu":
        if checked:
            counted = target != ignore_index
        else:
            counted = _counted_on_device(target, ignore_index, vocab, bounds, pair_index, answers)
        if counted_rows is None:
            return Rows(None, counted)
        if counted_rows == target.shape[0]:
            return Rows(None, None)
        return Rows(torch.nonzero_static(counted, size=counted_rows).squeeze(1), None)
    ignored = target == ignore_index
    fits = ignored | (target.clamp(0, vocab - 1) == target)
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0])
        raise IndexError(
            f"target[{row}] is {int(target[row])}; expected 0 <= target < {vocab} "
            f"or ignore_index {ignore_index}"
        )
    found = target.shape[0] - int(ignored.sum())
    if counted_rows not in (None, found):
        raise ValueError(f"counted_rows is {counted_rows}; {found} rows are not ignored")
    return Rows(None if found == target.shape[0] else (~ignored).nonzero().squeeze(1), None)


def _counted_on_device(
    target: Tensor, ignore_index: int, vocab: int, bounds: Tensor | None,
    pair_index: Tensor | None, answers: int,
) -> Tensor:  # fmt: skip
    """[N] bool, which rows are not ignored; the device raises later where something is wrong."""
    outside = f"a target lies outside 0 .. {vocab} and is not {ignore_index}"
    kernel = dispatch.triton_module(target, "triton_rows")
    if kernel is not None:
        checked: tuple[Tensor, Tensor] = kernel.checked_rows(
            target, ignore_index, vocab, bounds, pair_index, answers
        )
        counted, fits = checked
        verify(fits[0], outside)
        if bounds is not None or pair_index is not None:
            verify(
                fits[1],
                f"cu_seqlens must rise from 0 to the number of rows {target.shape[0]}, and pairs "
                "must name answers within it",
            )
        return counted
    counted = target != ignore_index
    verify((~counted | (target.clamp(0, vocab - 1) == target)).all(), outside)
    if bounds is not None:
        check_bounds(bounds, target.shape[0])
    if pair_index is not None:
        fits = pair_index.clamp(0, max(0, answers - 1)) == pair_index
        verify(fits.all(), "a pair names an answer that is not there")
    return counted


def sequence_of_row(cu_seqlens: Tensor, rows: int, device: torch.device | None = None) -> Tensor:
    """Sequence ids [N] from the bounds [S + 1] of packed sequences, as varlen attention has them.

    Args:
        cu_seqlens: [S + 1] int32 or int64; on the CPU it is checked at once, elsewhere without
            waiting for it.
        rows: N.
        device: Where the ids are wanted; None for the device of ``cu_seqlens``.

    Raises:
        TypeError: ``cu_seqlens`` is no tensor of int32 or int64.
        ValueError: The bounds do not start at 0, end at ``rows`` and never fall. A compiled graph
            leaves this unchecked: a row past the last bound is then found to be out of range.
    """
    check_integers("cu_seqlens", cu_seqlens, "[S + 1]")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected [S + 1]")
    if not torch.compiler.is_compiling():
        check_bounds(cu_seqlens, rows)
    bounds = cu_seqlens.to(device or cu_seqlens.device, non_blocking=True)
    places = torch.arange(rows, device=bounds.device, dtype=bounds.dtype)
    return torch.searchsorted(bounds[1:].contiguous(), places, right=True)


def check_bounds(cu_seqlens: Tensor, rows: int) -> None:
    """Raise, or let the device raise, unless the bounds rise from 0 to ``rows``."""
    message = f"cu_seqlens must rise from 0 to the number of rows {rows}"
    if cu_seqlens.device.type == "cpu":
        found = cu_seqlens.tolist()
        if found[0] != 0 or found[-1] != rows or found != sorted(found):
            raise ValueError(f"{message}; got {found}")
        return
    rises = (cu_seqlens.diff() >= 0).all() & (cu_seqlens[0] == 0) & (cu_seqlens[-1] == rows)
    verify(rises, message)


def sequence_sums(
    values: Tensor,
    sequence: Tensor,
    sequences: int,
    *,
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """Sum of the rows of each sequence, in row order: equal bit by bit from run to run.

    Differentiable in ``values``; rows of one sequence need not lie together. Float32 rows are added
    in float64 where the device has it: one after the other in float32, 4,096 log-probabilities of
    -12 would end 0.04 off, which is no small part of a preference's margin.

    Args:
        values: [N] float32 or float64.
        sequence: [N] int32 or int64, the sequence of each row, at least 0 and below S.
        sequences: S.
        group: The processes that hold parts of the rows of the same sequences, as in sequence
            parallelism: sums are added over them, and a gradient goes to each process's own rows.
            The loss is then the same in all of them. None: all rows are here.

    Returns:
        [S], dtype of ``values``; 0 for a sequence without rows.

    Raises:
        IndexError: On a CPU: a row names a sequence that is not there.
        TypeError: ``sequence`` is no tensor of int32 or int64.
        ValueError: ``values`` and ``sequence`` are not both [N].
    """
    check_integers("sequence", sequence, "[N]")
    if values.dim() != 1:
        raise ValueError(f"values has shape {tuple(values.shape)}; expected [N]")
    check_shape("sequence", sequence, tuple(values.shape))
    sequence = sequence.to(torch.int64)
    if sequence.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_ids("row", sequence, sequences)
    if sequences == 0:  # which segment_reduce refuses
        return values[:0]
    order = torch.argsort(sequence, stable=True)
    wide = values if values.device.type == "mps" else values.double()
    # Whole numbers, so the order of these additions does not show.
    lengths = torch.zeros(sequences, dtype=torch.int64, device=sequence.device)
    lengths = lengths.scatter_add(0, sequence, torch.ones_like(sequence))
    # "unsafe" leaves out a check of the lengths that the host would wait for; they add up to N.
    sums = torch.segment_reduce(wide[order], "sum", lengths=lengths, initial=0.0, unsafe=True)
    if group is not None:
        sums = _AddedOver.apply(sums, group)
    return sums.to(values.dtype)


class _AddedOver(torch.autograd.Function):
    """The sum over processes; in backward each process gets the gradient of the sum."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor, group: "dist.ProcessGroup") -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


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
        check_named(pair_index[:, 0], pair_index[:, 1], sequences)
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


def check_named(chosen: Tensor, rejected: Tensor, sequences: int) -> None:
    """Raise unless pairs name two answers each, [P] on the CPU, of those that are there."""
    for side in (chosen, rejected):
        _check_ids("pair", side, sequences)
    twice = chosen == rejected
    if bool(twice.any()):
        place = int(twice.nonzero()[0])
        raise ValueError(f"pair_index[{place}] names one answer twice; expected two answers")


def _check_ids(name: str, ids: Tensor, sequences: int) -> None:
    """Raise, or let the device raise, where an answer does not exist."""
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
