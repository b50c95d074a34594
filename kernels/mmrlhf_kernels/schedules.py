"""The schedules, written once over the backends: which product is formed when, and what is kept.

With ``p = softmax(z)``, ``E[i, v] = g_i (1[v = y_i] - p[i, v]) dz/draw``, X the hidden states and
W_c a chunk of the weight:

* ``recompute``: forward one sweep. Backward per chunk: E_c again, ``dX += E_c W_c`` and
  ``dW_c = E_c^T X``. Each block of dW is written once, so it needs no float32 accumulator.
* ``keep``: forward writes the exponentials of each chunk; backward takes E_c from them.
* ``frozen``: forward sums ``A = sum_v exp(z_v) W_v`` with online rescaling. The gradient of logp
  with respect to one row of X is then ``U = (1 - p_y) W_y - A' / sum_exp``, A' without the target;
  backward is ``g U``, without a matrix product.

``dX`` is accumulated in statistics precision; a chunk's ``dW_c`` is complete after one product, so
it is written once, in the dtype of the weight. Chunks come in vocabulary order in every run:
results are equal bit by bit.

LoRA on the head needs no case of its own: with ``u = scale * h A^T`` the logits are those of the
hidden states [h, u] under the weight [W, B], whose chunks are put together as they are needed.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import (
    NO_EXTRAS,
    Backend,
    Block,
    Extras,
    HeadOptions,
    KeptBlock,
    LossGradient,
    Sweep,
    raised_units,
)
from mmrlhf_kernels.chunked import merge_sweeps
from mmrlhf_kernels.dispatch import row_backend
from mmrlhf_kernels.precision import (
    accumulate_product,
    operand_dtype,
    product_into,
    statistics_dtype,
)

__all__ = ["ChunkGradient", "Gradients", "Head", "Kept", "Needs", "Projection"]


class Head(NamedTuple):
    """A language model head: weight [V, H], bias [V], LoRA's B [V, r] as ``side``."""

    weight: Tensor
    bias: Tensor | None
    side: Tensor | None
    options: HeadOptions
    first: int = 0
    """Global id of the first vocabulary row, where others lie elsewhere."""

    def rows(self, begin: int, end: int) -> Tensor:
        """[end - begin, H + r]: a view of the weight, or weight and side side by side."""
        if self.side is None:
            return self.weight[begin:end]
        return torch.cat([self.weight[begin:end], self.side[begin:end]], dim=1)


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool
    side: bool = False


class Gradients(NamedTuple):
    """The gradients that were wanted; ``hidden`` is [N, H + r] in statistics precision."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    side: Tensor | None = None


class Kept(NamedTuple):
    """Exponentials of all chunks, each contiguous [N, C], and what they are taken against."""

    exponentials: Tensor
    """[N * V], dtype of the hidden states."""
    shifts: Tensor
    """[chunks, N], statistics dtype."""
    target_logit: Tensor
    """[N], statistics dtype."""


ChunkGradient = Callable[[Block, Callable[[Block], Tensor]], Tensor]
"""(chunk, place) -> E of the chunk; ``place(chunk)`` is room for it."""


class Projection(NamedTuple):
    """Rows under a head, which are taken against a chunk of the vocabulary at a time."""

    hidden: Tensor
    """[N, H + r]."""
    target: Tensor
    """[N] int64 global ids."""
    head: Head
    chunk: int
    """Vocabulary rows per chunk."""

    @property
    def backend(self) -> Backend:
        """What forms the logits of these rows."""
        return row_backend(self.hidden)

    def some(self, rows: slice) -> "Projection":
        """The same of some rows."""
        return self._replace(hidden=self.hidden[rows], target=self.target[rows])

    def chunks(self, width: int | None = None) -> Iterator[Block]:
        """The vocabulary chunk by chunk, in order."""
        weight, bias, _, options, first = self.head
        vocab, width = weight.shape[0], width or self.chunk
        for begin in range(0, vocab, width):
            end = min(vocab, begin + width)
            own = None if bias is None else bias[begin:end]
            rows = self.head.rows(begin, end)
            yield Block(self.hidden, rows, own, self.target, options, first + begin)

    def buffer(self) -> Tensor:
        """[N * C] in the dtype of products, uninitialised; C is that of the widest chunk."""
        entries = self.hidden.shape[0] * min(self.chunk, self.head.weight.shape[0])
        return self.hidden.new_empty(entries, dtype=operand_dtype(self.hidden))

    def sweep(self, extras: Extras = NO_EXTRAS) -> Sweep:
        """One pass over the vocabulary; with LoRA chunk by chunk, otherwise left to the backend."""
        chunks = self.chunks(self.head.weight.shape[0] if self.head.side is None else None)
        return reduce(merge_sweeps, (self.backend.sweep(block, extras) for block in chunks))

    def keep(self, out: Tensor, extras: Extras = NO_EXTRAS) -> tuple[Sweep, Kept]:
        """The sweep of schedule ``keep``, writing exponentials to ``out`` [at least N * V]."""
        parts = []
        for block in self.chunks():
            place = self._room(out, block, block.first - self.head.first)
            parts.append(self.backend.kept_exponentials(block, extras, place))
        shifts = [part.shift for part in parts if part.shift is not None]
        joined = shifts[0].unsqueeze(0) if len(shifts) == 1 else torch.stack(shifts)
        merged = reduce(merge_sweeps, parts)
        return merged, Kept(out, joined, merged.target_logit)

    def _room(self, flat: Tensor, block: Block, behind: int = 0) -> Tensor:
        """[N, C] of a flat buffer, ``behind`` so many columns."""
        rows, width = self.hidden.shape[0], block.weight.shape[0]
        return flat[rows * behind : rows * (behind + width)].view(rows, width)

    def unit_sums(self, extras: Extras = NO_EXTRAS) -> tuple[Sweep, Tensor]:
        """Schedule ``frozen``: the sweep, and what :meth:`finish_unit` needs.

        Exponentials are taken against the largest logit so far,
        ``A = exp(m_old - m_new) A + e W_c``. The target's own column is left out of A: it would
        cancel against ``W_y`` where p_y is near 1.

        Returns:
            (sweep, A times :func:`raised_units` [N, H + r] in statistics precision).
        """
        hidden = self.hidden
        total = hidden.new_empty(hidden.shape, dtype=statistics_dtype(hidden.dtype))
        buffer, dtype = self.buffer(), operand_dtype(hidden)
        raised = raised_units(dtype, self.head.options)
        merged: Sweep | None = None
        for block in self.chunks():
            z = self._room(buffer, block)
            part = self.backend.kept_exponentials(block, extras, z)
            assert part.shift is not None
            joined = part if merged is None else merge_sweeps(merged, part)
            # exp(z - largest) dz/draw, 0 at the target, in place.
            kept = KeptBlock(z, part.shift, self.target, self.head.options, block.first)
            self.backend.gradient_of_kept(kept, LossGradient(joined.maximum, None, unit=raised), z)
            if merged is None:
                product_into(total, z, block.weight.to(dtype))
            else:
                total.mul_(torch.exp(merged.maximum - joined.maximum).unsqueeze(1))
                accumulate_product(total, z, block.weight.to(dtype))
            merged = joined
        assert merged is not None
        return merged, total

    def finish_unit(self, sums: tuple[Sweep, Tensor], grad: Tensor | None) -> Tensor:
        """The gradient of ``grad * logp``, or of logp, with respect to each row's hidden states.

        It is [N, H + r] and waits for a loss scale; ``sums`` are those of :meth:`unit_sums`, used
        up.
        """
        weight, _, side, options, _ = self.head
        target = self.target
        if side is not None:  # the rows of targets alone, one behind the other
            named = target.clamp(0, weight.shape[0] - 1)
            weight = torch.cat([t.index_select(0, named) for t in (weight, side)], dim=1)
            target = torch.arange(target.shape[0], device=target.device)
        block = Block(self.hidden, weight, None, target, options)
        return self.backend.finish_unit(block, *sums, grad)

    def recomputed(self, rows: LossGradient) -> ChunkGradient:
        """E of a chunk from the hidden states and the weight."""
        return lambda block, place: self.backend.logit_gradient(block, rows, place(block))

    def from_kept(self, kept: Kept, rows: LossGradient, *, in_place: bool) -> ChunkGradient:
        """E of a chunk from kept exponentials, over those with ``in_place`` if of E's dtype."""
        in_place = in_place and operand_dtype(kept.exponentials) == kept.exponentials.dtype

        def compute(block: Block, place: Callable[[Block], Tensor]) -> Tensor:
            begin = block.first - self.head.first
            held = self._room(kept.exponentials, block, begin)
            shift = kept.shifts[begin // self.chunk]
            of_block = (self.target, block.options, block.first, kept.target_logit)
            chunk = KeptBlock(held, shift, *of_block)
            return self.backend.gradient_of_kept(chunk, rows, held if in_place else place(block))

        return compute

    def new_gradients(self, needs: Needs, dtype: torch.dtype | None = None) -> Gradients:
        """Allocate the gradients that are needed; ``dtype``: of the head's, None for their own."""

        def allocate(like: Tensor) -> Tensor:
            return torch.empty_like(like, dtype=dtype or like.dtype)

        (weight, bias, side, *_), hidden = self.head, self.hidden
        statistics = statistics_dtype(hidden.dtype)
        return Gradients(
            hidden.new_empty(hidden.shape, dtype=statistics) if needs.hidden else None,
            allocate(weight) if needs.weight else None,
            allocate(bias) if needs.bias and bias is not None else None,
            allocate(side) if needs.side and side is not None else None,
        )

    def add_gradients(
        self, into: Gradients, logit_gradient: ChunkGradient, *, accumulate: bool
    ) -> None:
        """Go through the vocabulary once and fill ``into``, from :meth:`new_gradients`.

        ``accumulate`` adds to the head's gradients instead of filling them; those of the hidden
        states are always filled.
        """
        operand, buffer = self.hidden.to(operand_dtype(self.hidden)), None

        def place(block: Block) -> Tensor:
            nonlocal buffer
            buffer = self.buffer() if buffer is None else buffer
            return self._room(buffer, block)

        for block in self.chunks():
            found = logit_gradient(block, place)
            begin = block.first - self.head.first
            _head_products(into, found, operand, begin, accumulate=accumulate)
            if into.hidden is not None:
                product = accumulate_product if begin else product_into
                product(into.hidden, found, block.weight.to(operand.dtype))


def _head_products(
    into: Gradients, chunk: Tensor, hidden: Tensor, begin: int, *, accumulate: bool
) -> None:
    """Write or add this chunk's rows of the gradients of weight, LoRA's B and bias."""
    rows = slice(begin, begin + chunk.shape[1])
    if into.bias is not None:
        part = chunk.sum(dim=0, dtype=statistics_dtype(chunk.dtype))
        into.bias[rows] = into.bias[rows] + part if accumulate else part
    split = hidden.shape[1] if into.side is None else hidden.shape[1] - into.side.shape[1]
    if into.weight is not None:
        split = into.weight.shape[1]
    product = accumulate_product if accumulate else product_into
    for target, operand in ((into.weight, hidden[:, :split]), (into.side, hidden[:, split:])):
        if target is not None:
            product(target[rows], chunk.t(), operand)
