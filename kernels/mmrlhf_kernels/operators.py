"""The custom operators behind ``fused_linear_logp``: opaque to the compiler, known to autograd.

Both take tensors and plain values and hand them to :mod:`mmrlhf_kernels.passes`. How many rows are
ignored is seen inside them only, so a compiled graph does not break on it.
"""

from typing import Protocol

import torch
from torch import Tensor

from mmrlhf_kernels.context import Context
from mmrlhf_kernels.passes import (
    BackwardResult,
    ForwardResult,
    PassOptions,
    Request,
    Saved,
    backward_pass,
    empty_gradients,
    empty_result,
    forward_pass,
)
from mmrlhf_kernels.precision import in_full_precision
from mmrlhf_kernels.registry import define_operator

__all__ = ["linear_logp_backward", "linear_logp_forward"]


def _forward(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    side_hidden: Tensor | None,
    side: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
    entropy: bool,
    argmax: bool,
    schedule: str,
    chunk: int,
    filter_eps: float | None,
) -> ForwardResult:
    """The forward pass; arguments are checked by the caller."""
    request = Request(
        hidden, weight, target, bias, side_hidden, side, softcap, logit_scale, ignore_index
    )
    return forward_pass(request, PassOptions(entropy, argmax, schedule, chunk, filter_eps))


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    side_hidden: Tensor | None,
    side: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
    entropy: bool,
    argmax: bool,
    schedule: str,
    chunk: int,
    filter_eps: float | None,
) -> ForwardResult:
    """Results of :func:`_forward`, uninitialised."""
    request = Request(
        hidden, weight, target, bias, side_hidden, side, softcap, logit_scale, ignore_index
    )
    return empty_result(request, PassOptions(entropy, argmax, schedule, chunk, filter_eps))


def _backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    side_hidden: Tensor | None,
    side: Tensor | None,
    lse: Tensor,
    kept: Tensor,
    maxima: Tensor,
    tiles: Tensor,
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
    schedule: str,
    chunk: int,
    filter_eps: float | None,
    needs: list[bool],
) -> BackwardResult:
    """The backward pass of every schedule but ``frozen``, which needs no product."""
    request = Request(
        hidden, weight, target, bias, side_hidden, side, softcap, logit_scale, ignore_index
    )
    options = PassOptions(False, False, schedule, chunk, filter_eps)
    return backward_pass(grad, request, Saved(lse, kept, maxima, tiles), options, needs)


def _backward_fake(
    _grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    side_hidden: Tensor | None,
    side: Tensor | None,
    *rest: object,
) -> BackwardResult:
    """Results of :func:`_backward`, uninitialised, from the same arguments."""
    needs = rest[-1]
    assert isinstance(needs, list | tuple)
    request = Request(hidden, weight, target, bias, side_hidden, side, None, 1.0, 0)
    return empty_gradients(request, list(needs))


class _LogpContext(Context, Protocol):
    saved_tensors: tuple[
        Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None,
        Tensor, Tensor, Tensor, Tensor,
    ]  # fmt: skip
    """The forward operator's tensors, then lse, kept, maxima and tiles; ``frozen``: kept alone."""
    options: tuple[float | None, float, int, str, int, float | None]
    """softcap, logit_scale, ignore_index, schedule, chunk and filter_eps."""
    width: int
    dtype: torch.dtype


_Inputs = tuple[
    Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None,
    float | None, float, int, bool, bool, str, int, float | None,
]  # fmt: skip
"""Arguments of the forward operator."""


def _save(ctx: _LogpContext, inputs: _Inputs, output: ForwardResult) -> None:
    """Keep the inputs and what the schedule kept; ``frozen`` keeps its unit gradient alone."""
    softcap, logit_scale, ignore_index, _, _, schedule, chunk, filter_eps = inputs[6:]
    tensors = inputs[:6]
    _, _, _, lse, kept, maxima, tiles = output
    ctx.set_materialize_grads(False)
    ctx.options = (softcap, logit_scale, ignore_index, schedule, chunk, filter_eps)
    ctx.width, ctx.dtype = tensors[0].shape[1], tensors[0].dtype
    if schedule == "frozen":
        ctx.save_for_backward(kept)
    else:
        ctx.save_for_backward(*tensors, lse, kept, maxima, tiles)


def _differentiate(
    ctx: _LogpContext, grad: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the forward operator's arguments."""
    nothing = (None,) * 14
    if grad is None:
        return nothing
    needed = ctx.needs_input_grad
    needs = [needed[0], needed[1], needed[3], needed[4], needed[5]]
    if ctx.options[3] == "frozen":
        if needs[1] or needs[2] or needs[4]:
            raise RuntimeError("schedule 'frozen' was run, but the head needs a gradient")
        unit = ctx.saved_tensors[0]
        both = (unit * grad.unsqueeze(1)).to(ctx.dtype)
        hidden = both[:, : ctx.width] if needs[0] else None
        side_hidden = both[:, ctx.width :] if needs[3] else None
        return (hidden, None, None, None, side_hidden, *nothing[5:])
    found = linear_logp_backward(grad, *ctx.saved_tensors, *ctx.options, needs)
    hidden, weight, bias, side_hidden, side = (
        part if need else None for part, need in zip(found, needs, strict=True)
    )
    return (hidden, weight, None, bias, side_hidden, side, *nothing[6:])


linear_logp_forward = define_operator("linear_logp", in_full_precision(_forward), _forward_fake)
linear_logp_backward = define_operator(
    "linear_logp_backward", in_full_precision(_backward), _backward_fake
)
torch.library.register_autograd("mmrlhf_kernels::linear_logp", _differentiate, setup_context=_save)
