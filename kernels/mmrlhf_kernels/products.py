"""The backward pass over the vocabulary: E chunk by chunk, and the matrix products with it.

``dX += E_c W_c`` is accumulated in statistics precision; ``dW_c = E_c^T X`` is complete after one
product, so it is written once, in the dtype of the weight. Chunks come in vocabulary order in every
run: results are equal bit by bit.
"""

import torch
from torch import Tensor

from mmrlhf_kernels.precision import (
    accumulate_product,
    as_operand,
    operand_dtype,
    product_into,
    statistics_dtype,
)
from mmrlhf_kernels.schedules import ChunkGradient, Gradients, Head, Needs

__all__ = ["add_gradients", "new_gradients"]


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
