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
from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import Backend, HeadOptions, Spread, Sweep
from mmrlhf_kernels.chunked import merge_sweeps
from mmrlhf_kernels.precision import (
    accumulate_product,
    as_operand,
    gradient_dtype,
    operand_dtype,
    product_into,
    statistics_dtype,
)

__all__ = [
    "ChunkGradient",
    "Gradients",
    "Head",
    "Kept",
    "Needs",
    "add_gradients",
    "finished_unit",
    "kept_gradient",
    "new_gradients",
    "raised_units",
    "recomputed_gradient",
    "sweep_head",
    "sweep_keeping",
    "unit_sums",
]


class Head(NamedTuple):
    """A language model head: weight [V, H], bias [V], LoRA's B [V, r] as ``side``."""

    weight: Tensor
    bias: Tensor | None
    side: Tensor | None
    options: HeadOptions

    def chunks(self, width: int) -> Iterator[tuple[int, int]]:
        """Bounds of the vocabulary chunks, in order."""
        vocab = self.weight.shape[0]
        for begin in range(0, vocab, width):
            yield begin, min(vocab, begin + width)

    def rows(self, begin: int, end: int) -> Tensor:
        """[end - begin, H + r]: a view of the weight, or weight and side side by side."""
        if self.side is None:
            return self.weight[begin:end]
        return torch.cat([self.weight[begin:end], self.side[begin:end]], dim=1)

    def bias_rows(self, begin: int, end: int) -> Tensor | None:
        """[end - begin] or None."""
        return None if self.bias is None else self.bias[begin:end]


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool
    side: bool


class Gradients(NamedTuple):
    """The gradients that were wanted; ``hidden`` is [N, H + r] in statistics precision."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    side: Tensor | None


class Kept(NamedTuple):
    """Exponentials of all chunks, each contiguous [N, C], and what they are taken against."""

    exponentials: Tensor
    """[N * V], dtype of the hidden states."""
    shifts: Tensor
    """[chunks, N], statistics dtype."""
    target_logit: Tensor
    """[N], statistics dtype."""


ChunkGradient = Callable[[int, int, Tensor, Callable[[int], Tensor]], Tensor]
"""(begin, end, weight rows, buffer) -> E of the chunk; ``buffer(width)`` is a place for it."""


def sweep_head(
    backend: Backend,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    chunk: int,
    *,
    entropy: bool,
    argmax: bool,
) -> Sweep:
    """One pass over the vocabulary; with LoRA chunk by chunk, otherwise left to the backend."""
    vocab = head.weight.shape[0]
    merged: Sweep | None = None
    for begin, end in head.chunks(vocab if head.side is None else chunk):
        part = backend.sweep(
            hidden,
            head.rows(begin, end),
            head.bias_rows(begin, end),
            target,
            head.options,
            first=begin,
            entropy=entropy,
            argmax=argmax,
        )
        merged = part if merged is None else merge_sweeps(merged, part)
    assert merged is not None
    return merged


def sweep_keeping(
    backend: Backend,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    chunk: int,
    out: Tensor,
    *,
    entropy: bool,
    argmax: bool,
) -> tuple[Sweep, Kept]:
    """The sweep of schedule ``keep``, writing exponentials to ``out`` [at least N * V]."""
    rows = hidden.shape[0]
    merged: Sweep | None = None
    shifts = []
    for begin, end in head.chunks(chunk):
        part = backend.kept_exponentials(
            hidden,
            head.rows(begin, end),
            head.bias_rows(begin, end),
            target,
            head.options,
            first=begin,
            entropy=entropy,
            argmax=argmax,
            out=_chunk_of(out, rows, begin, end),
        )
        assert part.shift is not None
        shifts.append(part.shift)
        merged = part if merged is None else merge_sweeps(merged, part)
    assert merged is not None
    joined = shifts[0].unsqueeze(0) if len(shifts) == 1 else torch.stack(shifts)
    return merged, Kept(out, joined, merged.target_logit)


def _chunk_of(flat: Tensor, rows: int, begin: int, end: int) -> Tensor:
    """[rows, end - begin] of a flat buffer in which chunk follows chunk."""
    return flat[rows * begin : rows * end].view(rows, end - begin)


def unit_sums(
    backend: Backend,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    chunk: int,
    *,
    entropy: bool,
    argmax: bool,
) -> tuple[Sweep, Tensor]:
    """Schedule ``frozen``: the sweep, and what :func:`finished_unit` needs.

    Exponentials are taken against the largest logit so far, ``A = exp(m_old - m_new) A + e W_c``.
    The target's own column is left out of A: it would cancel against ``W_y`` where p_y is near 1.

    Returns:
        (sweep, A times :func:`raised_units` [N, H + r] in statistics precision).
    """
    total = hidden.new_empty(hidden.shape, dtype=statistics_dtype(hidden.dtype))
    dtype = operand_dtype(hidden)
    buffer = hidden.new_empty(hidden.shape[0] * min(chunk, head.weight.shape[0]), dtype=dtype)
    raised = raised_units(dtype, head.options)
    merged: Sweep | None = None
    for begin, end in head.chunks(chunk):
        weight = head.rows(begin, end)
        z = _chunk_of(buffer, hidden.shape[0], 0, end - begin)
        part = backend.kept_exponentials(
            hidden, weight, head.bias_rows(begin, end), target, head.options,
            first=begin, entropy=entropy, argmax=argmax, out=z,
        )  # fmt: skip
        assert part.shift is not None
        joined = part if merged is None else merge_sweeps(merged, part)
        # exp(z - largest) dz/draw, 0 at the target, in place.
        backend.gradient_of_kept(
            z, part.shift, target, joined.maximum, None, head.options, first=begin, out=z,
            unit=raised,
        )  # fmt: skip
        if merged is None:
            product_into(total, z, weight.to(dtype))
        else:
            total.mul_(torch.exp(merged.maximum - joined.maximum).unsqueeze(1))
            accumulate_product(total, z, weight.to(dtype))
        merged = joined
    assert merged is not None
    return merged, total


def raised_units(dtype: torch.dtype, options: HeadOptions) -> float:
    """What exponentials up to 1 are multiplied by so that float16 keeps those far below 1."""
    return 2.0**14 / max(1.0, abs(options.logit_scale)) if dtype == torch.float16 else 1.0


def finished_unit(
    backend: Backend,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    sums: tuple[Sweep, Tensor],
    grad: Tensor | None,
) -> Tensor:
    """The gradient of ``grad * logp``, or of logp, with respect to each row's hidden states.

    It is [N, H + r] and waits for a loss scale; ``sums`` are those of :func:`unit_sums`, used up.
    """
    sweep, total = sums
    raised = raised_units(operand_dtype(hidden), head.options)
    weight = head.weight
    if head.side is not None:  # the rows of targets alone, one behind the other
        named = target.clamp(0, weight.shape[0] - 1)
        weight = torch.cat([t.index_select(0, named) for t in (weight, head.side)], dim=1)
        target = torch.arange(target.shape[0], device=target.device)
    dtype = gradient_dtype(hidden.dtype)
    return backend.finish_unit(total, sweep, weight, target, grad, head.options, raised, dtype)


def recomputed_gradient(
    backend: Backend,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    lse: Tensor,
    grad: Tensor,
    spread: Spread = None,
) -> ChunkGradient:
    """E of a chunk from the hidden states and the weight."""

    def compute(begin: int, end: int, weight: Tensor, buffer: Callable[[int], Tensor]) -> Tensor:
        bias = head.bias_rows(begin, end)
        return backend.logit_gradient(
            hidden, weight, bias, target, lse, grad, head.options,
            first=begin, out=buffer(end - begin), spread=spread,
        )  # fmt: skip

    return compute


def kept_gradient(
    backend: Backend,
    kept: Kept,
    options: HeadOptions,
    target: Tensor,
    lse: Tensor,
    grad: Tensor,
    chunk: int,
    *,
    in_place: bool,
    spread: Spread = None,
) -> ChunkGradient:
    """E of a chunk from kept exponentials, overwriting them with ``in_place`` if of E's dtype."""
    in_place = in_place and operand_dtype(kept.exponentials) == kept.exponentials.dtype

    def compute(begin: int, end: int, _: Tensor, buffer: Callable[[int], Tensor]) -> Tensor:
        held = _chunk_of(kept.exponentials, target.shape[0], begin, end)
        return backend.gradient_of_kept(
            held, kept.shifts[begin // chunk], target, lse, grad, options,
            first=begin, out=held if in_place else buffer(end - begin), spread=spread,
            target_logit=kept.target_logit,
        )  # fmt: skip

    return compute


def new_gradients(
    hidden: Tensor, head: Head, needs: Needs, dtype: torch.dtype | None = None
) -> Gradients:
    """Allocate the gradients that are needed, not initialised.

    Args:
        hidden: [N, H + r].
        head: The head.
        needs: Which gradients are needed.
        dtype: Of the head's gradients; None for their own.
    """

    def allocate(like: Tensor) -> Tensor:
        return torch.empty_like(like, dtype=dtype or like.dtype)

    statistics = statistics_dtype(hidden.dtype)
    return Gradients(
        hidden.new_empty(hidden.shape, dtype=statistics) if needs.hidden else None,
        allocate(head.weight) if needs.weight else None,
        allocate(head.bias) if needs.bias and head.bias is not None else None,
        allocate(head.side) if needs.side and head.side is not None else None,
    )


def _head_products(
    into: Gradients, chunk: Tensor, hidden: Tensor, begin: int, end: int, *, accumulate: bool
) -> None:
    """Write or add this chunk's rows of the gradients of weight, LoRA's B and bias."""
    if into.bias is not None:
        part = chunk.sum(dim=0, dtype=statistics_dtype(chunk.dtype))
        into.bias[begin:end] = into.bias[begin:end] + part if accumulate else part
    split = hidden.shape[1] if into.side is None else hidden.shape[1] - into.side.shape[1]
    if into.weight is not None:
        split = into.weight.shape[1]
    product = accumulate_product if accumulate else product_into
    for target, operand in ((into.weight, hidden[:, :split]), (into.side, hidden[:, split:])):
        if target is not None:
            product(target[begin:end], chunk.t(), operand)


def add_gradients(
    into: Gradients,
    logit_gradient: ChunkGradient,
    hidden: Tensor,
    head: Head,
    chunk: int,
    *,
    accumulate: bool,
) -> None:
    """Go through the vocabulary once and fill ``into``.

    Args:
        into: From :func:`new_gradients`.
        logit_gradient: E of one chunk.
        hidden: [N, H + r].
        head: The head.
        chunk: Vocabulary rows per chunk.
        accumulate: Whether to add to the head's gradients instead of filling them.
    """
    rows, operand = hidden.shape[0], as_operand(hidden)
    dtype = operand_dtype(hidden)
    buffer: Tensor | None = None

    def place(width: int) -> Tensor:
        nonlocal buffer
        if buffer is None:
            buffer = hidden.new_empty(rows * min(chunk, head.weight.shape[0]), dtype=dtype)
        return buffer[: rows * width].view(rows, width)

    of_head = any(part is not None for part in (into.weight, into.bias, into.side))
    for begin, end in head.chunks(chunk):
        weight = head.rows(begin, end)
        block = logit_gradient(begin, end, weight, place)
        if of_head:
            _head_products(into, block, operand, begin, end, accumulate=accumulate)
        if into.hidden is not None:
            product = accumulate_product if begin else product_into
            product(into.hidden, block, weight.to(dtype))
