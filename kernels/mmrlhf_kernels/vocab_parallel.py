"""Log-probabilities under a head whose vocabulary rows are spread over processes.

Each process sweeps its own rows. Two reductions join the sweeps: the largest of the maxima, then
the sum of (exponentials against it, target logits). In backward each process knows the whole
normaliser and forms the gradient of its own weight rows without communication; the gradients of
the hidden states are added over the group. Both passes are custom operators, which name the group.
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.checks import as_linear, check_head, flat_rows
from mmrlhf_kernels.dispatch import row_backend
from mmrlhf_kernels.plan import chunk_width, default_workspace, widest_chunk
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.registry import Context, define_operator, process_group
from mmrlhf_kernels.rows import Rows, rows_that_count
from mmrlhf_kernels.schedules import Head, Needs, add_gradients, new_gradients, recomputed_gradient

__all__ = ["Shards", "linear_logp_of_shards", "shards_of", "vocab_parallel_linear_logp"]

SHARD = (
    "Tensor hidden, Tensor weight, Tensor target, Tensor? bias, int first, float? softcap, "
    "float logit_scale, int ignore_index, int? counted_rows, str group, SymInt chunk"
)
"""The arguments of one call in torch's notation; :class:`_Shard` in the same order."""
LARGEST_ID = torch.iinfo(torch.int64).max


class _Shard(NamedTuple):
    """One call after its checks."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    bias: Tensor | None
    first: int
    softcap: float | None
    logit_scale: float
    ignore_index: int
    counted_rows: int | None
    group: str
    chunk: int

    @property
    def options(self) -> HeadOptions:
        """Scale and softcap."""
        return HeadOptions(self.softcap, self.logit_scale)

    def rows(self) -> Rows:
        """The rows that count; which ids exist is not known here."""
        return rows_that_count(self.target, self.ignore_index, LARGEST_ID, self.counted_rows)


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
    shape = target.shape
    hidden, target = flat_rows(hidden, target)
    states, rows, offset = as_linear(hidden, weight, bias)
    assert states is not None
    assert rows is not None
    check_head(states, rows, target, offset)
    workspace = default_workspace(states.device) if workspace_bytes is None else workspace_bytes
    widest = widest_chunk(states.device)
    chunk = chunk_width(states.shape[0], rows.shape[0], states.dtype.itemsize, workspace, widest)
    whole = group or dist.group.WORLD
    if whole is None:
        raise ValueError("no process group; expected one, or torch.distributed initialised")
    logp, _ = vocab_parallel_forward(
        states, rows, target, offset, first, softcap, logit_scale, ignore_index, counted_rows,
        whole.group_name, chunk,
    )  # fmt: skip
    of_target: Tensor = logp.view(shape)
    return of_target


class Shards(NamedTuple):
    """A head as a DTensor: this process's rows, and where they lie."""

    weight: Tensor
    bias: Tensor | None
    first: int
    group: dist.ProcessGroup


def shards_of(weight: Tensor, bias: Tensor | None) -> Shards | None:
    """This process's rows of a head that is a DTensor; None for a plain tensor.

    Raises:
        ValueError: Its placement is not ``Shard(0)`` over one mesh dimension.
    """
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


def linear_logp_of_shards(
    hidden: Tensor,
    target: Tensor,
    shards: Shards,
    head: tuple[float | None, float, int],
    counted_rows: int | None,
    workspace_bytes: int | None,
) -> Tensor:
    """:func:`vocab_parallel_linear_logp` of a DTensor; head is softcap, scale and ignore_index."""
    return vocab_parallel_linear_logp(
        hidden, shards.weight, target, shards.first, bias=shards.bias, softcap=head[0],
        logit_scale=head[1], ignore_index=head[2], counted_rows=counted_rows, group=shards.group,
        workspace_bytes=workspace_bytes,
    )  # fmt: skip


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(logp [N], lse [N]), joined over the group; 0 in ignored rows."""
    shard = _Shard(*arguments)
    rows, count = shard.rows(), shard.hidden.shape[0]
    if rows.are_none(count):
        # Every process sees the same targets, so all of them leave out the reductions.
        zeros = shard.hidden.new_zeros(count, dtype=statistics_dtype(shard.hidden.dtype))
        return zeros, zeros.clone()
    group = process_group(shard.group)
    hidden, target = rows.gather(shard.hidden), rows.gather(shard.target)
    sweep = row_backend(hidden).sweep(
        hidden, shard.weight.contiguous(), shard.bias, target, shard.options,
        first=shard.first, entropy=False, argmax=False,
    )  # fmt: skip
    maximum = sweep.maximum.clone()
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=group)
    own = sweep.sum_exp * torch.exp(sweep.maximum - maximum)
    sums = torch.stack([own, sweep.target_logit])
    dist.all_reduce(sums, op=dist.ReduceOp.SUM, group=group)
    lse = maximum + sums[0].log()
    return rows.scatter(sums[1] - lse, count), rows.scatter(lse, count)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Results of :func:`_forward`, uninitialised."""
    hidden = arguments[0]
    dtype = statistics_dtype(hidden.dtype)
    return hidden.new_empty(hidden.shape[0], dtype=dtype), hidden.new_empty(
        hidden.shape[0], dtype=dtype
    )


def _backward(
    grad: Tensor, lse: Tensor, needs: list[bool], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden (summed over the group), weight and bias; empty where not needed."""
    shard = _Shard(*arguments)
    rows, count = shard.rows(), shard.hidden.shape[0]
    if rows.are_none(count):
        zeros = _backward_fake(grad, lse, needs, *arguments)
        for tensor in zeros:
            tensor.zero_()
        return zeros
    hidden, head = (
        rows.gather(shard.hidden),
        Head(shard.weight.contiguous(), shard.bias, None, shard.options),
    )
    chunk_gradient = recomputed_gradient(
        row_backend(hidden), hidden, head, rows.gather(shard.target) - shard.first,
        rows.gather(lse), rows.gather(rows.masked(grad.to(lse.dtype))),
    )  # fmt: skip
    wanted = Needs(needs[0], needs[1], needs[2], side=False)
    found = new_gradients(hidden, head, wanted)
    add_gradients(found, chunk_gradient, hidden, head, shard.chunk, accumulate=False)
    of_hidden = shard.hidden.new_empty(0)
    if found.hidden is not None:
        dist.all_reduce(found.hidden, group=process_group(shard.group))
        of_hidden = rows.scatter(found.hidden.to(shard.hidden.dtype), count)
    of_weight, of_bias = (
        shard.hidden.new_empty(0) if part is None else part for part in (found.weight, found.bias)
    )
    return of_hidden, of_weight, of_bias


def _backward_fake(
    _grad: Tensor, _lse: Tensor, needs: list[bool], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of :func:`_backward`, uninitialised."""
    shard = _Shard(*arguments)
    hidden, weight, bias = (
        torch.empty_like(like, memory_format=torch.contiguous_format)
        if needed and like is not None
        else shard.hidden.new_empty(0)
        for like, needed in zip((shard.hidden, shard.weight, shard.bias), needs, strict=True)
    )
    return hidden, weight, bias


class _ShardContext(Context, Protocol):
    saved_tensors: tuple[Tensor | None, ...]
    options: tuple[Any, ...]


def _save(ctx: _ShardContext, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the inputs and the normalisers."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *inputs[:4])
    ctx.options = inputs[4:]


def _differentiate(ctx: _ShardContext, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    """Gradients in the order of the forward operator's arguments."""
    nothing = (None,) * len(_Shard._fields)
    if grad is None:
        return nothing
    needs = [ctx.needs_input_grad[place] for place in (0, 1, 3)]
    lse, *tensors = ctx.saved_tensors
    found = vocab_parallel_backward(grad, lse, needs, *tensors, *ctx.options)
    hidden, weight, bias = (part if need else None for part, need in zip(found, needs, strict=True))
    return (hidden, weight, None, bias, *nothing[4:])


vocab_parallel_forward = define_operator(
    "vocab_parallel_logp",
    _forward,
    _forward_fake,
    schema=f"({SHARD}) -> (Tensor, Tensor)",
    capturable=False,
)
vocab_parallel_backward = define_operator(
    "vocab_parallel_logp_backward",
    _backward,
    _backward_fake,
    schema=f"(Tensor grad, Tensor lse, bool[] needs, {SHARD}) -> (Tensor, Tensor, Tensor)",
    capturable=False,
)
torch.library.register_autograd(
    "mmrlhf_kernels::vocab_parallel_logp", _differentiate, setup_context=_save
)
