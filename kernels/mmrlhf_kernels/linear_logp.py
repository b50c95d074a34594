"""Hidden states to log-probabilities of chosen tokens, without logits in memory.

:func:`fused_linear_logp` is the one primitive of every preference loss: in backward such a loss is
one scalar per sequence, so whatever it is, it arrives here as a gradient per row. Its two passes
are custom operators, opaque to ``torch.compile``. Its arguments:

=================== ===============================================================================
hidden              [N, H] or [..., H], float64, float32, bfloat16 or float16
weight              [V, H]; where dtypes differ, all are cast to the widest. A DTensor that is
                    ``Shard(0)`` over one mesh dimension is a head spread over processes, see
                    :mod:`mmrlhf_kernels.vocab_parallel`
target              [N] or [...] of an integer dtype, in ``0 .. V`` or ``ignore_index``
bias                [V] or None
softcap             bound c of the logits, ``z = c tanh(s / c)`` of the scaled logits s, or None
logit_scale         factor of the raw logits, applied before the softcap
temperature         divisor of the logits, applied after the softcap
ignore_index        rows with this target give 0 and no gradient; on a CPU they cost no product
counted_rows        how many rows are not ignored, where the caller knows: then they cost no product
                    on a GPU either, which otherwise would have to be waited for to tell
lora                (A [r, H], B [V, r], scale): the weight is ``W + scale B A``, never formed whole
return_entropy      also return the entropy of every row, from the same pass
entropy_gradient    whether that entropy carries a gradient; schedule ``frozen`` cannot give it
return_argmax       also return the most probable token of every row, from the same pass
schedule            ``recompute``, ``keep`` or ``frozen``; None lets ``plan_schedule`` choose
workspace_bytes     bound of the memory beyond inputs, outputs and gradients; None: see ``plan``
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
from torch.nn import functional

from mmrlhf_kernels import dispatch, reference
from mmrlhf_kernels.checks import as_linear, check_head, check_shape, flat_rows
from mmrlhf_kernels.operators import linear_logp_forward
from mmrlhf_kernels.plan import (
    SCHEDULES,
    WHOLE_TILES,
    default_workspace,
    plan_schedule,
    widest_chunk,
)
from mmrlhf_kernels.vocab_parallel import linear_logp_of_shards, shards_of

__all__ = ["LinearLogp", "fused_linear_logp"]


class LinearLogp(NamedTuple):
    """Log-probabilities with the requested extras."""

    logp: Tensor
    """[N], or as ``target``, float32, differentiable."""
    entropy: Tensor | None
    """[N] float32, entropy of the row's distribution in nats; 0 in ignored rows."""
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
    temperature: float = 1.0,
    ignore_index: int = -100,
    counted_rows: int | None = None,
    lora: tuple[Tensor, Tensor, float] | None = None,
    return_entropy: bool = False,
    entropy_gradient: bool = False,
    return_argmax: bool = False,
    schedule: str | None = None,
    workspace_bytes: int | None = None,
) -> Tensor | LinearLogp:
    """Log-probability of each target under a language model head, differentiable.

    ``logp = log softmax(z / temperature)[target]`` with
    ``z = softcap * tanh(logit_scale * (h W^T + b) / softcap)``; the arguments are listed in the
    module docstring.

    Returns:
        float32 (float64 for float64 inputs) in the shape of ``target``, or :class:`LinearLogp` if
        extras were requested.

    Raises:
        IndexError: A target is neither in the vocabulary nor ``ignore_index``.
        TypeError: A dtype does not fit.
        ValueError: A shape, device, schedule or option does not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    # (c / t) tanh(s / c) = c' tanh(s' / c') with c' = c / t and s' = s / t.
    softcap = None if softcap is None else softcap / temperature
    head = (softcap, logit_scale / temperature, ignore_index)
    extras = (return_entropy, return_argmax)
    shards = shards_of(weight, bias)
    if shards is not None:
        if lora is not None or extras != (False, False) or schedule is not None:
            raise ValueError(
                "a head that is spread over processes takes no lora, extras or schedule; "
                "hint: gather it with weight.full_tensor()"
            )
        return linear_logp_of_shards(hidden, target, shards, head, counted_rows, workspace_bytes)
    shape = target.shape
    inputs = _prepare(hidden, weight, target, bias, lora)
    if dispatch.choose(inputs.hidden) == "reference":
        logp, entropy, argmax = _by_reference(inputs, head)
    else:
        chosen, chunk = _resolve(inputs, schedule, workspace_bytes, of_entropy=entropy_gradient)
        logp, entropy, argmax, *_ = linear_logp_forward(
            *inputs, *head, counted_rows, *extras, chosen, chunk
        )
    if extras == (False, False):
        return logp.view(shape)
    entropy = entropy if entropy_gradient else entropy.detach()
    return LinearLogp(
        logp.view(shape),
        entropy.view(shape) if return_entropy else None,
        argmax.view(shape) if return_argmax else None,
    )


def _prepare(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor, float] | None,
) -> _Inputs:
    """Flatten, bring to one dtype, check, and turn LoRA into further hidden states."""
    low, high, scale = (None, None, 1.0) if lora is None else lora
    hidden, target = flat_rows(hidden, target)
    states, rows, offset, low, high = as_linear(hidden, weight, bias, low, high)
    assert states is not None
    assert rows is not None
    check_head(states, rows, target, offset)
    if low is None or high is None:
        return _Inputs(states, rows, target, offset, None, None)
    rank = low.shape[0]
    check_shape("lora A", low, (rank, states.shape[1]))
    check_shape("lora B", high, (rows.shape[0], rank))
    if dispatch.choose(states) == "triton":
        missing = -(states.shape[1] + rank) % WHOLE_TILES
        low, high = functional.pad(low, (0, 0, 0, missing)), functional.pad(high, (0, missing))
    return _Inputs(states, rows, target, offset, (states @ low.t()) * scale, high)


def _resolve(
    inputs: _Inputs, schedule: str | None, workspace_bytes: int | None, *, of_entropy: bool
) -> tuple[str, int]:
    """(schedule, chunk); a call that needs no gradient is a plain sweep.

    Raises:
        ValueError: The schedule is unknown, or does not support the options.
    """
    if schedule is not None and schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    anything, head = inputs.needs_grad()
    if schedule == "frozen" and head:
        raise ValueError(
            "schedule 'frozen' was forced, but weight, bias or LoRA's B needs a gradient"
        )
    if schedule == "frozen" and of_entropy:
        raise ValueError("schedule 'frozen' was forced, but it gives no gradient of the entropy")
    hidden, vocab = inputs.hidden, inputs.weight.shape[0]
    workspace = default_workspace(hidden.device) if workspace_bytes is None else workspace_bytes
    rows, width = hidden.shape
    widest = widest_chunk(hidden.device)
    both = head or of_entropy  # both need E itself in backward
    plan = plan_schedule(rows, width, vocab, hidden.dtype, both, workspace, widest=widest)
    return (schedule or plan.schedule if anything else "recompute"), plan.chunk


def _by_reference(
    inputs: _Inputs, options: tuple[float | None, float, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, argmax) from the full logit matrix."""
    softcap, logit_scale, ignore_index = options
    hidden, weight, target, bias, side_hidden, side = inputs
    if side is not None and side_hidden is not None:
        hidden, weight = torch.cat([hidden, side_hidden], 1), torch.cat([weight, side], 1)
    z = reference.logits(hidden, weight, bias=bias, softcap=softcap, logit_scale=logit_scale)
    z = z if z.dtype == torch.float64 else z.float()
    ignored = target == ignore_index
    return (
        reference.select_logp(z, target, ignore_index),
        reference.entropy(z).masked_fill(ignored, 0.0),
        z.detach().argmax(dim=1).masked_fill(ignored, -1),
    )
