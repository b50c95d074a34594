"""Hidden states to log-probabilities of chosen tokens, without logits in memory.

:func:`fused_linear_logp` is the one primitive of every preference loss: in backward such a loss is
one scalar per sequence, so whatever it is, it arrives here as a gradient per row. Its two passes
are custom operators, opaque to ``torch.compile``. Its arguments:

=================== ===============================================================================
hidden              [N, H] or [..., H], float64, float32, bfloat16 or float16
weight              [V, H]; where dtypes differ, all are cast to the widest. A DTensor that is
                    ``Shard(0)`` over one mesh dimension is a head spread over processes, see
                    :func:`vocab_parallel_linear_logp`
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
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels import dispatch, reference
from mmrlhf_kernels.checks import LinearInputs, head_options, linear_inputs, lora_parts
from mmrlhf_kernels.operators import Request, linear_logp_forward, sharded_logp_forward
from mmrlhf_kernels.plan import (
    SCHEDULES,
    WHOLE_TILES,
    check_schedule,
    check_workspace,
    chunk_width,
    default_workspace,
    plan_schedule,
    widest_chunk,
)

__all__ = ["LinearLogp", "fused_linear_logp", "vocab_parallel_linear_logp"]


class LinearLogp(NamedTuple):
    """Log-probabilities with the requested extras."""

    logp: Tensor
    """[N], or as ``target``, float32, differentiable."""
    entropy: Tensor | None
    """[N] float32, entropy of the row's distribution in nats; 0 in ignored rows."""
    argmax: Tensor | None
    """[N] int64, the most probable token; -1 in ignored rows."""


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
        TypeError: An argument is no tensor, or a dtype does not fit.
        ValueError: A shape, device, schedule or option does not fit.
    """
    options = head_options(softcap, logit_scale, temperature)
    extras = (return_entropy, return_argmax)
    if entropy_gradient and not return_entropy:
        raise ValueError("entropy_gradient is set, so return_entropy has to be set too")
    shards = shards_of(weight, bias)
    if shards is not None:
        if lora is not None or extras != (False, False) or schedule is not None:
            raise ValueError(
                "a head that is spread over processes takes no lora, extras or schedule; "
                "hint: gather it with weight.full_tensor()"
            )
        return vocab_parallel_linear_logp(
            hidden, shards.weight, target, shards.first, bias=shards.bias,
            **options._asdict(), ignore_index=ignore_index, counted_rows=counted_rows,
            group=shards.group, workspace_bytes=workspace_bytes,
        )  # fmt: skip
    check_workspace(workspace_bytes)
    low, high, scale = lora_parts(lora)
    inputs = linear_inputs(hidden, weight, target, bias, low, high)
    shape = target.shape
    request = Request(
        *inputs[:4], *_side(inputs, scale), *options, ignore_index, counted_rows, *extras,
        "recompute", 1,
    )  # fmt: skip
    if dispatch.choose(inputs.hidden) == "reference":
        logp, entropy, argmax = _by_reference(request)
    else:
        request = _planned(request, schedule, workspace_bytes, of_entropy=entropy_gradient)
        logp, entropy, argmax, *_ = linear_logp_forward(*request)
    if extras == (False, False):
        return logp.view(shape)
    entropy = entropy if entropy_gradient else entropy.detach()
    return LinearLogp(
        logp.view(shape),
        entropy.view(shape) if return_entropy else None,
        argmax.view(shape) if return_argmax else None,
    )


def _side(inputs: LinearInputs, scale: float) -> tuple[Tensor | None, Tensor | None]:
    """LoRA as further hidden states u [N, r] and the rows B [V, r] they meet."""
    hidden, low, high = inputs.hidden, inputs.low, inputs.high
    if low is None or high is None:
        return None, None
    if dispatch.choose(hidden) == "triton":
        missing = -(hidden.shape[1] + low.shape[0]) % WHOLE_TILES
        low, high = functional.pad(low, (0, 0, 0, missing)), functional.pad(high, (0, missing))
    return (hidden @ low.t()) * scale, high


def _planned(
    request: Request, schedule: str | None, workspace_bytes: int | None, *, of_entropy: bool
) -> Request:
    """The request with its schedule and chunk; a call that needs no gradient is a plain sweep."""
    hidden = request.hidden
    head = _need_grad(request.weight, request.bias, request.side)
    anything = head or _need_grad(hidden, request.side_hidden)
    check_schedule(schedule, SCHEDULES, "weight, bias or LoRA's B", trained=head)
    if schedule == "frozen" and of_entropy:
        raise ValueError("schedule 'frozen' was forced, but it gives no gradient of the entropy")
    workspace = default_workspace(hidden.device) if workspace_bytes is None else workspace_bytes
    (rows, width), vocab = hidden.shape, request.weight.shape[0]
    plan = plan_schedule(
        rows, width, vocab, hidden.dtype,
        head or of_entropy,  # both need E itself in backward
        workspace, widest=widest_chunk(hidden.device),
    )  # fmt: skip
    chosen = schedule or plan.schedule if anything else "recompute"
    return request._replace(schedule=chosen, chunk=plan.chunk)


def _need_grad(*tensors: Tensor | None) -> bool:
    """Whether any of them needs a gradient."""
    given = (tensor for tensor in tensors if tensor is not None)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)


def _by_reference(request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, argmax) from the full logit matrix."""
    hidden, weight, target, bias, side_hidden, side, softcap, logit_scale, ignore_index, *_ = (
        request
    )
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


def vocab_parallel_linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    first: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    counted_rows: int | None = None,
    group: dist.ProcessGroup | None = None,
    workspace_bytes: int | None = None,
) -> Tensor:
    """Log-probability of each target; hidden states and targets are the same in every process.

    Args:
        hidden: [N, H] or [..., H].
        weight: [V_own, H], this process's rows of the head.
        target: [N] or [...] global ids. An id that no process holds is not noticed.
        first: Global id of the first own row; the shards must not overlap.
        bias: [V_own] or None.
        softcap: As in ``fused_linear_logp``.
        logit_scale: As there.
        ignore_index: As there.
        counted_rows: As there.
        group: The process group, None for the default one.
        workspace_bytes: As there.

    Returns:
        float32 in the shape of ``target``, equal in every process. The gradient of ``hidden`` is
        that of the whole head.
    """
    check_workspace(workspace_bytes)
    inputs = linear_inputs(hidden, weight, target, bias)
    states, rows = inputs.hidden, inputs.weight
    workspace = default_workspace(states.device) if workspace_bytes is None else workspace_bytes
    widest = widest_chunk(states.device)
    chunk = chunk_width(states.shape[0], rows.shape[0], states.dtype.itemsize, workspace, widest)
    whole = group or dist.group.WORLD
    if whole is None:
        raise ValueError("no process group; expected one, or torch.distributed initialised")
    logp: Tensor
    logp, *_ = sharded_logp_forward(
        *inputs[:4], None, None, softcap, logit_scale, ignore_index, counted_rows, False, False,
        "recompute", chunk, first, whole.group_name,
    )  # fmt: skip
    return logp.view(target.shape)


class Shards(NamedTuple):
    """A head as a DTensor: this process's rows, and where they lie."""

    weight: Tensor
    bias: Tensor | None
    first: int
    group: dist.ProcessGroup


def shards_of(weight: Tensor, bias: Tensor | None) -> Shards | None:
    """This process's rows of a head that is a DTensor; None for a plain tensor."""
    if not dist.is_available() or not dist.is_initialized():
        return None  # without process groups there are no DTensors, whose import is slow
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(weight, DTensor):
        if isinstance(bias, DTensor):
            raise ValueError("bias is a DTensor and weight is none; expected both or none")
        return None
    fits = weight.device_mesh.ndim == 1 and weight.placements == (Shard(0),)
    if bias is not None:
        fits &= isinstance(bias, DTensor) and bias.placements == (Shard(0),)
    if not fits:
        raise ValueError(
            f"weight is a DTensor with placements {weight.placements} over a mesh of "
            f"{weight.device_mesh.ndim} dimensions; expected Shard(0) over one, the bias alike; "
            "hint: redistribute it, or call inside the module's forward, where FSDP gathers it, "
            "or pass weight.full_tensor()"
        )
    mesh = weight.device_mesh
    _, offset = compute_local_shape_and_global_offset(weight.shape, mesh, weight.placements)
    own = bias.to_local() if isinstance(bias, DTensor) else None
    return Shards(weight.to_local(), own, offset[0], mesh.get_group())
