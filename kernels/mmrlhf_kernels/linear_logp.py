"""Hidden states to log-probabilities of chosen tokens, without logits in memory.

:func:`fused_linear_logp` is the one primitive of every preference loss: in backward such a loss is
one scalar per sequence, so whatever it is, it arrives here as a gradient per row. Its two passes
are custom operators, opaque to ``torch.compile``. Its arguments:

=================== ===============================================================================
hidden              [N, H] float64, float32, bfloat16 or float16
weight              [V, H], dtype of ``hidden``
target              [N] int64, in ``0 .. V`` or ``ignore_index``
bias                [V] or None
softcap             bound c of the logits, ``z = c tanh(s / c)`` of the scaled logits s, or None
logit_scale         factor of the raw logits, applied before the softcap
ignore_index        rows with this target give 0 and no gradient; they cost no product
lora                (A [r, H], B [V, r], scale): the weight is ``W + scale B A``, never formed whole
return_entropy      also return the entropy of every row, from the same pass
return_argmax       also return the most probable token of every row, from the same pass
schedule            ``recompute``, ``keep`` or ``frozen``; None lets ``plan_schedule`` choose
workspace_bytes     bound of the memory beyond inputs, outputs and gradients; None: see ``plan``
filter_eps          leave out blocks of the gradient of ``hidden`` below this share of the largest;
                    None, the default, is exact. Gradients of weight, bias and B are always exact.
                    ``last_filter_report()`` says what was left out.
=================== ===============================================================================

Under ``torch.autocast`` hidden, weight, bias and LoRA are cast as for a linear layer; statistics
stay float32. The weight is read inside the two operators and saved for backward by autograd, and
nothing else holds on to it: one that is gathered just for the call (ZeRO-3, FSDP) may be released
as soon as backward has used it. Schedule ``frozen`` saves a unit gradient instead and reads no
weight in backward. Backward is not differentiable a second time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels import dispatch, reference
from mmrlhf_kernels.checks import check_head, check_shape, under_autocast
from mmrlhf_kernels.operators import linear_logp_forward
from mmrlhf_kernels.plan import SCHEDULES, default_workspace, plan_schedule, widest_chunk

__all__ = ["LinearLogp", "fused_linear_logp"]


class LinearLogp(NamedTuple):
    """Log-probabilities with the requested extras."""

    logp: Tensor
    """[N] float32, differentiable."""
    entropy: Tensor | None
    """[N] float32, entropy of the row's distribution in nats; a figure, without gradient."""
    argmax: Tensor | None
    """[N] int64, the most probable token; -1 in ignored rows."""


class _Inputs(NamedTuple):
    """The call after autocast and checks, LoRA split into hidden states u [N, r] and B [V, r]."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    bias: Tensor | None
    side_hidden: Tensor | None
    side: Tensor | None

    def needs_grad(self) -> tuple[bool, bool]:
        """(anything, the head) needs a gradient."""
        head = [self.weight, self.bias, self.side]
        states = [self.hidden, self.side_hidden]
        of_head, of_states = (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in group)
            for group in (head, states)
        )
        return of_head or of_states, of_head


def fused_linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    lora: tuple[Tensor, Tensor, float] | None = None,
    return_entropy: bool = False,
    return_argmax: bool = False,
    schedule: str | None = None,
    workspace_bytes: int | None = None,
    filter_eps: float | None = None,
) -> Tensor | LinearLogp:
    """Log-probability of each target under a language model head, differentiable.

    ``logp = log softmax(z)[target]``, ``z = softcap * tanh(logit_scale * (h W^T + b) / softcap)``;
    the arguments are listed in the module docstring.

    Returns:
        [N] float32 (float64 for float64 inputs), or :class:`LinearLogp` if extras were requested.

    Raises:
        IndexError: A target is neither in the vocabulary nor ``ignore_index``.
        TypeError: A dtype does not fit.
        ValueError: A shape, device, schedule or option does not fit.
    """
    inputs = _prepare(hidden, weight, target, bias, lora)
    options = (softcap, logit_scale, ignore_index)
    extras = (return_entropy, return_argmax)
    if dispatch.choose(inputs.hidden) == "reference":
        return _by_reference(inputs, options, extras)
    schedule, chunk, filter_eps = _resolve(inputs, schedule, workspace_bytes, filter_eps)
    logp, entropy, argmax, *_ = linear_logp_forward(
        *inputs, *options, *extras, schedule, chunk, filter_eps
    )
    return _pack(logp, entropy, argmax, extras)


def _prepare(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor, float] | None,
) -> _Inputs:
    """Cast as autocast would, check, and turn LoRA into further hidden states."""
    low, high, scale = (None, None, 1.0) if lora is None else lora
    states, rows, offset, low, high = under_autocast(hidden, weight, bias, low, high)
    assert states is not None
    assert rows is not None
    check_head(states, rows, target, offset)
    if low is None or high is None:
        return _Inputs(states, rows, target, offset, None, None)
    rank = low.shape[0]
    check_shape("lora A", low, (rank, states.shape[1]))
    check_shape("lora B", high, (rows.shape[0], rank))
    low, high = low.to(states.dtype), high.to(states.dtype)
    return _Inputs(states, rows, target, offset, (states @ low.t()) * scale, high)


def _resolve(
    inputs: _Inputs, schedule: str | None, workspace_bytes: int | None, filter_eps: float | None
) -> tuple[str, int, float | None]:
    """(schedule, chunk, filter_eps); a call that needs no gradient is a plain sweep.

    Raises:
        ValueError: The schedule is unknown, or does not support the options.
    """
    if schedule is not None and schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if filter_eps is not None and filter_eps < 0:
        raise ValueError(f"filter_eps is {filter_eps}; expected at least 0, or None")
    anything, head = inputs.needs_grad()
    if schedule == "frozen" and head:
        raise ValueError(
            "schedule 'frozen' was forced, but weight, bias or LoRA's B needs a gradient"
        )
    if filter_eps is not None and schedule not in (None, "recompute"):
        raise ValueError(f"filter_eps saves nothing under schedule {schedule!r}; use 'recompute'")
    hidden, vocab = inputs.hidden, inputs.weight.shape[0]
    workspace = default_workspace(hidden.device) if workspace_bytes is None else workspace_bytes
    rows, width = hidden.shape
    widest = widest_chunk(hidden.device)
    plan = plan_schedule(rows, width, vocab, hidden.dtype, head, workspace, widest=widest)
    if not anything:
        return "recompute", plan.chunk, None
    if filter_eps is not None:
        return "recompute", plan.chunk, filter_eps
    return schedule or plan.schedule, plan.chunk, None


def _pack(
    logp: Tensor, entropy: Tensor, argmax: Tensor, extras: tuple[bool, bool]
) -> Tensor | LinearLogp:
    """The log-probabilities alone, or with the requested extras."""
    if extras == (False, False):
        return logp
    return LinearLogp(logp, entropy.detach() if extras[0] else None, argmax if extras[1] else None)


def _by_reference(
    inputs: _Inputs, options: tuple[float | None, float, int], extras: tuple[bool, bool]
) -> Tensor | LinearLogp:
    """The same answer from the full logit matrix."""
    softcap, logit_scale, ignore_index = options
    hidden, weight, target, bias, side_hidden, side = inputs
    if side is not None and side_hidden is not None:
        hidden, weight = torch.cat([hidden, side_hidden], 1), torch.cat([weight, side], 1)
    z = reference.logits(hidden, weight, bias=bias, softcap=softcap, logit_scale=logit_scale)
    z = z if z.dtype == torch.float64 else z.float()
    logp = reference.select_logp(z, target, ignore_index)
    ignored = target == ignore_index
    with torch.no_grad():
        log_probability = z - z.logsumexp(dim=1, keepdim=True)
        # Minus infinity times a probability of 0 would be no number.
        finite = log_probability.clamp(min=torch.finfo(z.dtype).min)
        entropy = -(finite * log_probability.softmax(dim=1)).sum(dim=1)
        entropy = entropy.masked_fill(ignored, 0.0)
        argmax = z.argmax(dim=1).masked_fill(ignored, -1)
    return _pack(logp, entropy, argmax, extras)
