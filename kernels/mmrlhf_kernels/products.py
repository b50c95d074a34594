"""The backward pass over the vocabulary: E chunk by chunk, and the matrix products with it.

``dX += E_c W_c`` is accumulated in statistics precision; ``dW_c = E_c^T X`` is complete after one
product, so it is written once, in the dtype of the weight. Chunks come in vocabulary order in every
run: results are equal bit by bit.
"""

import torch
from torch import Tensor

from mmrlhf_kernels.gradient_filter import GradientFilter
from mmrlhf_kernels.precision import accumulate_product, statistics_dtype
from mmrlhf_kernels.schedules import ChunkGradient, Gradients, Head, Needs

__all__ = ["add_gradients", "gradients", "new_gradients"]


def new_gradients(hidden: Tensor, head: Head, needs: Needs, *, accumulate: bool) -> Gradients:
    """Allocate the gradients that are needed.

    Args:
        hidden: [N, H + r].
        head: The head.
        needs: Which gradients are needed.
        accumulate: Zeros in statistics precision for the head's gradients, to add to; otherwise
            uninitialised in their own dtype, to be written once.
    """
    dtype = statistics_dtype(hidden.dtype)

    def allocate(like: Tensor) -> Tensor:
        return torch.zeros_like(like, dtype=dtype) if accumulate else torch.empty_like(like)

    return Gradients(
        hidden.new_zeros(hidden.shape, dtype=dtype) if needs.hidden else None,
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
    for target, operand in ((into.weight, hidden[:, :split]), (into.side, hidden[:, split:])):
        if target is None:
            continue
        if accumulate:
            accumulate_product(target[begin:end], chunk.t(), operand)
        else:
            torch.mm(chunk.t(), operand, out=target[begin:end])


def add_gradients(
    into: Gradients,
    logit_gradient: ChunkGradient,
    hidden: Tensor,
    head: Head,
    chunk: int,
    *,
    accumulate: bool,
    own_buffer: bool = True,
    gradient_filter: GradientFilter | None = None,
) -> None:
    """Go through the vocabulary once and fill ``into``.

    Args:
        into: From :func:`new_gradients`.
        logit_gradient: E of one chunk.
        hidden: [N, H + r].
        head: The head.
        chunk: Vocabulary rows per chunk.
        accumulate: As in :func:`new_gradients`.
        own_buffer: Whether E needs a buffer; not where it overwrites kept logits.
        gradient_filter: Filter of the gradient of the hidden states, or None.
    """
    rows = hidden.shape[0]
    buffer = hidden.new_empty(rows * min(chunk, head.weight.shape[0]) if own_buffer else 0)
    exact = any(part is not None for part in (into.weight, into.bias, into.side))
    for begin, end in head.chunks(chunk):
        kept = None if gradient_filter is None else gradient_filter.kept_rows(begin // chunk)
        some = rows if kept is None or exact else kept.numel()
        if some == 0:
            continue
        weight = head.rows(begin, end)
        out = buffer[: some * (end - begin)].view(-1, end - begin) if own_buffer else buffer
        block = logit_gradient(begin, end, weight, None if exact else kept, out)
        if exact:
            _head_products(into, block, hidden, begin, end, accumulate=accumulate)
        if into.hidden is not None:
            _hidden_product(
                into.hidden, block, weight, kept, exact=exact, gradient_filter=gradient_filter
            )


def _hidden_product(
    total: Tensor,
    block: Tensor,
    weight: Tensor,
    kept: Tensor | None,
    *,
    exact: bool,
    gradient_filter: GradientFilter | None,
) -> None:
    """``dX += E W``, for the kept rows where there is a filter."""
    if kept is not None and exact:
        block = block.index_select(0, kept)
    if gradient_filter is not None:
        gradient_filter.accumulate(kept, block)
    if kept is None:
        accumulate_product(total, block, weight)
    elif kept.numel():
        part = total.index_select(0, kept)
        accumulate_product(part, block, weight)
        total.index_copy_(0, kept, part)


def gradients(
    logit_gradient: ChunkGradient,
    hidden: Tensor,
    head: Head,
    needs: Needs,
    chunk: int,
    gradient_filter: GradientFilter | None = None,
) -> Gradients:
    """Allocate and fill the gradients; that of ``hidden`` is left in statistics precision."""
    into = new_gradients(hidden, head, needs, accumulate=False)
    add_gradients(
        into, logit_gradient, hidden, head, chunk, accumulate=False, gradient_filter=gradient_filter
    )
    return into
