"""The custom operators behind ``fused_linear_logp``: gather rows, run a schedule, scatter results.

They are opaque to the compiler and known to autograd. Ignored rows are removed first and restored
last, where that needs no read of the device (:mod:`mmrlhf_kernels.rows`). What forward keeps for
backward has a shape that follows from the arguments alone, so that a compiler can know it: ``kept``
is [N * V] for schedule ``keep`` (ignored rows leave its tail unused), [N, H + r] for ``frozen`` and
else empty.

Under a head whose vocabulary rows are spread over processes each process sweeps its own rows. Two
reductions join the sweeps: the largest of the maxima, then the sum of (exponentials against it,
target logits). In backward each process knows the whole normaliser and forms the gradient of its
own weight rows without communication; the gradients of the hidden states are added over the group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mmrlhf_kernels.backend import Extras, HeadOptions, LossGradient, Sweep, logp_of, lse_of
from mmrlhf_kernels.dispatch import add_over, define_operator, process_group
from mmrlhf_kernels.precision import gradient_dtype, statistics_dtype
from mmrlhf_kernels.rows import Rows, rows_that_count
from mmrlhf_kernels.schedules import Gradients, Head, Kept, Needs, Projection

__all__ = ["Request", "linear_logp_forward", "sharded_logp_forward"]

ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""logp [N], entropy, argmax, lse [N], kept, shifts; empty where not requested."""
BackwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradients of hidden, weight, bias, side_hidden and side; empty where not needed."""
TENSORS = 6
"""The first arguments of an operator, which are tensors or None."""
LARGEST_ID = torch.iinfo(torch.int64).max


class Request(NamedTuple):
    """One call after its checks; LoRA as hidden states [N, r] and rows of B [V, r]."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    bias: Tensor | None
    side_hidden: Tensor | None
    side: Tensor | None
    softcap: float | None
    logit_scale: float
    ignore_index: int
    counted_rows: int | None
    entropy: bool
    argmax: bool
    schedule: str
    chunk: int
    first: int = 0
    """Global id of the first row of ``weight``."""
    group: str | None = None
    """The processes that hold the other rows, by the name of their group: ``recompute`` alone, and
    no extras."""

    @property
    def height(self) -> int:
        """N, ignored rows included."""
        return self.hidden.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics."""
        return statistics_dtype(self.hidden.dtype)

    def rows(self, *, checked: bool = False) -> Rows:
        """The rows that count; ``checked``: targets were found to be in range.

        Which ids exist is not known where others hold a part of the head.
        """
        vocab = self.weight.shape[0] if self.group is None else LARGEST_ID
        return rows_that_count(
            self.target, self.ignore_index, vocab, self.counted_rows, checked=checked
        )

    def projection(self, rows: Rows) -> Projection:
        """The rows that count, with LoRA's part appended, under the head."""
        x = rows.gather(self.hidden)
        if self.side_hidden is not None:
            x = torch.cat([x, rows.gather(self.side_hidden)], dim=1)
        options = HeadOptions(self.softcap, self.logit_scale)
        head = Head(self.weight.contiguous(), self.bias, self.side, options, self.first)
        return Projection(x, rows.gather(self.target), head, self.chunk)


def _forward(*arguments: Any) -> ForwardResult:
    """Log-probabilities, extras, and what the schedule keeps."""
    request = Request(*arguments)
    rows = request.rows()
    if rows.are_none(request.height):
        # Every process of a group sees the same targets, so all of them leave out the reductions.
        result = _empty_result(*arguments)
        for tensor in result:
            tensor.fill_(-1 if tensor.dtype == torch.int64 else 0)
        return result
    sweep, kept, shifts = _run_schedule(request, request.projection(rows))
    if request.group is not None:
        sweep = _joined(sweep, request.group)
    count = request.height
    lse = lse_of(sweep)
    empty = lse.new_empty(0)
    entropy, argmax = empty, empty.to(torch.int64)
    if sweep.sum_z_exp is not None:
        entropy = rows.scatter(lse - sweep.sum_z_exp / sweep.sum_exp, count)
    if sweep.argmax is not None:
        argmax = rows.scatter(sweep.argmax, count, fill=-1)
    if request.schedule == "frozen":
        kept = rows.scatter(kept, count)
    lse = lse if rows.taken is None else rows.scatter(lse, count)
    return rows.scatter(logp_of(sweep), count), entropy, argmax, lse, kept, shifts


def _run_schedule(request: Request, x: Projection) -> tuple[Sweep, Tensor, Tensor]:
    """(sweep over compacted rows, kept, shifts)."""
    extras = Extras(request.entropy, request.argmax)
    if request.schedule == "keep":
        logits = x.hidden.new_empty(request.height * x.head.weight.shape[0])
        sweep, kept = x.keep(logits, extras)
        return sweep, logits, _padded(kept.shifts, request.height)
    no_shifts = x.hidden.new_empty(0, dtype=request.dtype)
    if request.schedule == "frozen":
        sums = x.unit_sums(extras)
        return sums[0], x.finish_unit(sums, None), no_shifts
    return x.sweep(extras), x.hidden.new_empty(0), no_shifts


def _joined(sweep: Sweep, group: str) -> Sweep:
    """The sweep over all shards of a head."""
    maximum = sweep.maximum.clone()
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=process_group(group))
    own = sweep.sum_exp * torch.exp(sweep.maximum - maximum)
    sum_exp, target_logit = add_over(torch.stack([own, sweep.target_logit]), group).unbind()
    return Sweep(maximum, sum_exp, target_logit)


def _padded(shifts: Tensor, height: int) -> Tensor:
    """[chunks, M] in a tensor that has [chunks * N] entries, as ``kept`` has N * V."""
    chunks, rows = shifts.shape
    if rows == height:
        return shifts.flatten()
    flat = shifts.new_zeros(chunks * height)
    flat[: chunks * rows] = shifts.flatten()
    return flat


def _empty_result(*arguments: Any) -> ForwardResult:
    """Uninitialised results of the forward pass; their shapes follow from the arguments."""
    request = Request(*arguments)
    hidden, vocab = request.hidden, request.weight.shape[0]
    count, width = hidden.shape
    if request.side_hidden is not None:
        width += request.side_hidden.shape[1]
    chunks = (vocab + request.chunk - 1) // request.chunk
    keeps, dtype = request.schedule == "keep", request.dtype
    kept: dict[str, tuple[int, ...]] = {"keep": (count * vocab,), "frozen": (count, width)}
    of_kept = gradient_dtype(hidden.dtype) if request.schedule == "frozen" else hidden.dtype
    return (
        hidden.new_empty(count, dtype=dtype),
        hidden.new_empty(count if request.entropy else 0, dtype=dtype),
        hidden.new_empty(count if request.argmax else 0, dtype=torch.int64),
        hidden.new_empty(count, dtype=dtype),
        hidden.new_empty(kept.get(request.schedule, (0,)), dtype=of_kept),
        hidden.new_empty(chunks * count if keeps else 0, dtype=dtype),
    )


class Saved(NamedTuple):
    """What backward is given beyond the call: gradients, results of forward, and what is needed."""

    grad: Tensor | None
    grad_entropy: Tensor | None
    logp: Tensor
    lse: Tensor
    entropies: Tensor
    kept: Tensor
    shifts: Tensor
    needs: list[bool]
    """In the order of :data:`BackwardResult`."""


def _backward(*arguments: Any) -> BackwardResult:
    """Gradients of a call whose schedule is not ``frozen``."""
    saved, request = _split(arguments)
    needs, rows, lse = saved.needs, request.rows(checked=True), saved.lse
    if rows.are_none(request.height):
        zeros = _empty_gradients(*arguments)
        for tensor in zeros:
            tensor.zero_()
        return zeros
    x, normaliser = request.projection(rows), rows.gather(lse)
    grad, of_entropy = (
        None if part is None else rows.gather(rows.masked(part.to(lse)))
        for part in (saved.grad, saved.grad_entropy)
    )
    of_rows = LossGradient(
        normaliser,
        torch.zeros_like(normaliser) if grad is None else grad,
        of_entropy,
        None if of_entropy is None else rows.gather(saved.entropies),
    )
    if request.schedule == "keep":
        height, shifts = x.hidden.shape[0], saved.shifts
        per_chunk = shifts[: shifts.shape[0] // request.height * height].view(-1, height)
        kept = Kept(saved.kept, per_chunk, rows.gather(saved.logp) + normaliser)
        chunk_gradient = x.from_kept(kept, of_rows, in_place=False)
    else:
        chunk_gradient = x.recomputed(of_rows)
    found = x.new_gradients(Needs(needs[0] or needs[3], needs[1], needs[2], needs[4]))
    x.add_gradients(found, chunk_gradient, accumulate=False)
    of_hidden = found.hidden
    if of_hidden is not None:
        of_hidden = add_over(of_hidden, request.group)
        of_hidden = of_hidden if rows.taken is None else rows.scatter(of_hidden, request.height)
    return _as_result(request, needs, of_hidden, found)


def _split(arguments: tuple[Any, ...]) -> tuple[Saved, Request]:
    """The operands of backward."""
    count = len(Saved._fields)
    return Saved(*arguments[:count]), Request(*arguments[count:])


def _as_result(
    request: Request, needs: list[bool], of_hidden: Tensor | None, found: Gradients
) -> BackwardResult:
    """Split the gradient of [h, u], round it, and put empty tensors where nothing was needed."""
    like = request.hidden
    width = like.shape[1]
    hidden = side_hidden = None
    if of_hidden is not None and request.side_hidden is None:
        hidden = of_hidden.to(like.dtype)
    elif of_hidden is not None:
        # Two copies: what an operator returns must not share memory.
        hidden = of_hidden[:, :width].to(like.dtype, copy=True) if needs[0] else None
        side_hidden = of_hidden[:, width:].to(like.dtype, copy=True) if needs[3] else None
    hidden, weight, bias, side_hidden, side = (
        like.new_empty(0) if part is None else part
        for part in (hidden, found.weight, found.bias, side_hidden, found.side)
    )
    return hidden, weight, bias, side_hidden, side


def _empty_gradients(*arguments: Any) -> BackwardResult:
    """Results of :func:`_backward`, uninitialised."""
    saved, request = _split(arguments)
    inputs = (request.hidden, request.weight, request.bias, request.side_hidden, request.side)
    hidden, weight, bias, side_hidden, side = (
        torch.empty_like(like, memory_format=torch.contiguous_format)
        if needed and like is not None
        else request.hidden.new_empty(0)
        for like, needed in zip(inputs, saved.needs, strict=True)
    )
    return hidden, weight, bias, side_hidden, side


def _save(ctx: Any, inputs: tuple[Any, ...], output: ForwardResult) -> None:
    """Keep the inputs and what the schedule kept; ``frozen`` keeps its unit gradient alone."""
    request = Request(*inputs)
    logp, entropy, _, lse, kept, shifts = output
    ctx.set_materialize_grads(False)
    ctx.options = inputs[TENSORS:]
    ctx.width, ctx.dtype = request.hidden.shape[1], request.hidden.dtype
    if request.schedule == "frozen":
        ctx.save_for_backward(kept)
    else:
        ctx.save_for_backward(logp, lse, entropy, kept, shifts, *inputs[:TENSORS])


def _differentiate(
    ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the forward operator's arguments."""
    nothing: tuple[Any, ...] = (None,) * len(Request._fields)
    request = Request(*nothing[:TENSORS], *ctx.options)
    # The entropy of schedule "frozen" is a figure: its caller detaches it.
    if not request.entropy or request.schedule == "frozen":
        grad_entropy = None
    if grad is None and grad_entropy is None:
        return nothing
    needed = ctx.needs_input_grad
    needs = [needed[0], needed[1], needed[3], needed[4], needed[5]]
    if request.schedule == "frozen" and grad is not None:
        return (*_from_unit(ctx, grad, needs), *nothing[TENSORS:])
    saved = ctx.saved_tensors  # read once: checkpointing recomputes them at each read
    backward = linear_logp_backward if request.group is None else sharded_logp_backward
    found = backward(grad, grad_entropy, *saved[:5], needs, *saved[5:], *ctx.options)
    hidden, weight, bias, side_hidden, side = (
        part if need else None for part, need in zip(found, needs, strict=True)
    )
    return (hidden, weight, None, bias, side_hidden, side, *nothing[TENSORS:])


def _from_unit(ctx: Any, grad: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
    """Schedule ``frozen``: each row's unit gradient times its number."""
    if needs[1] or needs[2] or needs[4]:
        raise RuntimeError("schedule 'frozen' was run, but the head needs a gradient")
    unit = ctx.saved_tensors[0]
    assert unit is not None
    both = (unit * grad.unsqueeze(1)).to(ctx.dtype)
    hidden = both[:, : ctx.width] if needs[0] else None
    return hidden, None, None, None, both[:, ctx.width :] if needs[3] else None, None


def _define(name: str, *, capturable: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(forward, backward); those that talk to other processes cannot be captured."""
    forward = define_operator(
        name, _forward, _empty_result, (Request,), ForwardResult, capturable=capturable
    )
    backward = define_operator(
        f"{name}_backward", _backward, _empty_gradients, (Saved, Request), BackwardResult,
        capturable=capturable,
    )  # fmt: skip
    torch.library.register_autograd(f"mmrlhf_kernels::{name}", _differentiate, setup_context=_save)
    return forward, backward


linear_logp_forward, linear_logp_backward = _define("linear_logp", capturable=True)
sharded_logp_forward, sharded_logp_backward = _define("sharded_logp", capturable=False)
