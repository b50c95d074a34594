"""The custom operators behind ``fused_linear_logp``: gather rows, run a schedule, scatter results.

They are opaque to the compiler and known to autograd. Ignored rows are removed first and restored
last, where that needs no read of the device (:mod:`mmrlhf_kernels.rows`). What forward keeps for
backward has a shape that follows from the arguments alone, so that a compiler can know it: ``kept``
is [N * V] for schedule ``keep`` (ignored rows leave its tail unused), [N, H + r] for ``frozen`` and
else empty.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, Sweep, logp_of, lse_of
from mmrlhf_kernels.dispatch import row_backend
from mmrlhf_kernels.precision import gradient_dtype, statistics_dtype
from mmrlhf_kernels.registry import Context, define_operator
from mmrlhf_kernels.rows import Rows, rows_that_count
from mmrlhf_kernels.schedules import (
    Gradients,
    Head,
    Kept,
    Needs,
    add_gradients,
    finished_unit,
    kept_gradient,
    new_gradients,
    recomputed_gradient,
    sweep_head,
    sweep_keeping,
    unit_sums,
)

__all__ = ["Request", "linear_logp_backward", "linear_logp_forward"]

REQUEST = (
    "Tensor hidden, Tensor weight, Tensor target, Tensor? bias, Tensor? side_hidden, Tensor? side, "
    "float? softcap, float logit_scale, int ignore_index, int? counted_rows, bool entropy, "
    "bool argmax, str schedule, SymInt chunk"
)
"""The arguments of one call in torch's notation; :class:`Request` in the same order."""

ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""logp [N], entropy, argmax, lse [N], kept, shifts; empty where not requested."""
BackwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradients of hidden, weight, bias, side_hidden and side; empty where not needed."""


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

    @property
    def head(self) -> Head:
        """The head, with a weight whose rows lie one behind the other."""
        options = HeadOptions(self.softcap, self.logit_scale)
        return Head(self.weight.contiguous(), self.bias, self.side, options)

    @property
    def height(self) -> int:
        """N, ignored rows included."""
        return self.hidden.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics."""
        return statistics_dtype(self.hidden.dtype)

    def rows(self, *, checked: bool = False) -> Rows:
        """The rows that count; ``checked``: targets were found to be in range."""
        vocab = self.weight.shape[0]
        return rows_that_count(
            self.target, self.ignore_index, vocab, self.counted_rows, checked=checked
        )

    def joined(self, rows: Rows) -> Tensor:
        """[M, H + r]: the rows that count, with LoRA's part appended."""
        x = rows.gather(self.hidden)
        if self.side_hidden is None:
            return x
        return torch.cat([x, rows.gather(self.side_hidden)], dim=1)


def _forward(*arguments: Any) -> ForwardResult:
    """Log-probabilities, extras, and what the schedule keeps."""
    request = Request(*arguments)
    rows = request.rows()
    if rows.are_none(request.height):
        result = _empty_result(*arguments)
        for tensor in result:
            tensor.fill_(-1 if tensor.dtype == torch.int64 else 0)
        return result
    x, target = request.joined(rows), rows.gather(request.target)
    sweep, kept, shifts = _run_schedule(request, x, target)
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


def _run_schedule(request: Request, x: Tensor, target: Tensor) -> tuple[Sweep, Tensor, Tensor]:
    """(sweep over compacted rows, kept, shifts)."""
    head, backend, nothing = request.head, row_backend(x), x.new_empty(0, dtype=request.dtype)
    extras = {"entropy": request.entropy, "argmax": request.argmax}
    if request.schedule == "keep":
        logits = x.new_empty(request.height * head.weight.shape[0])
        sweep, kept = sweep_keeping(backend, x, head, target, request.chunk, logits, **extras)
        return sweep, logits, _padded(kept.shifts, request.height)
    if request.schedule == "frozen":
        sums = unit_sums(backend, x, head, target, request.chunk, **extras)
        return sums[0], finished_unit(backend, x, head, target, sums, None), nothing
    sweep = sweep_head(backend, x, head, target, request.chunk, **extras)
    return sweep, x.new_empty(0), nothing


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


def _backward(
    grad: Tensor | None,
    grad_entropy: Tensor | None,
    logp: Tensor,
    lse: Tensor,
    entropy: Tensor,
    kept: Tensor,
    shifts: Tensor,
    needs: list[bool],
    *arguments: Any,
) -> BackwardResult:
    """Gradients of a call whose schedule is not ``frozen``; ``needs`` has the result's order."""
    request = Request(*arguments)
    rows = request.rows(checked=True)
    if rows.are_none(request.height):
        zeros = _empty_gradients(request, needs)
        for tensor in zeros:
            tensor.zero_()
        return zeros
    x, target, normaliser = request.joined(rows), rows.gather(request.target), rows.gather(lse)
    g = torch.zeros_like(normaliser) if grad is None else rows.gather(rows.masked(grad.to(lse)))
    spread = None
    if grad_entropy is not None:
        spread = rows.gather(rows.masked(grad_entropy.to(lse))), rows.gather(entropy)
    head, chunk = request.head, request.chunk
    if request.schedule == "keep":
        per_chunk = shifts[: shifts.shape[0] // request.height * len(x)].view(-1, len(x))
        chunk_gradient = kept_gradient(
            row_backend(x), Kept(kept, per_chunk, rows.gather(logp) + normaliser),
            head.options, target, normaliser, g, chunk, in_place=False, spread=spread,
        )  # fmt: skip
    else:
        chunk_gradient = recomputed_gradient(row_backend(x), x, head, target, normaliser, g, spread)
    wanted = Needs(needs[0] or needs[3], needs[1], needs[2], needs[4])
    found = new_gradients(x, head, wanted)
    add_gradients(found, chunk_gradient, x, head, chunk, accumulate=False)
    of_hidden = found.hidden
    if of_hidden is not None and rows.taken is not None:
        of_hidden = rows.scatter(of_hidden, request.height)
    return _as_result(request, needs, of_hidden, found)


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


def _empty_gradients(request: Request, needs: list[bool]) -> BackwardResult:
    """Uninitialised gradients, empty where not needed."""
    inputs = (request.hidden, request.weight, request.bias, request.side_hidden, request.side)
    hidden, weight, bias, side_hidden, side = (
        torch.empty_like(like, memory_format=torch.contiguous_format)
        if needed and like is not None
        else request.hidden.new_empty(0)
        for like, needed in zip(inputs, needs, strict=True)
    )
    return hidden, weight, bias, side_hidden, side


def _backward_fake(*arguments: Any) -> BackwardResult:
    """Results of :func:`_backward`, uninitialised."""
    return _empty_gradients(Request(*arguments[8:]), list(arguments[7]))


class _LogpContext(Context, Protocol):
    saved_tensors: tuple[Tensor | None, ...]
    """logp, lse, entropy, kept and shifts, then the operator's tensors; ``frozen``: kept alone."""
    options: tuple[Any, ...]
    """The operator's other arguments."""
    width: int
    dtype: torch.dtype


def _save(ctx: _LogpContext, inputs: tuple[Any, ...], output: ForwardResult) -> None:
    """Keep the inputs and what the schedule kept; ``frozen`` keeps its unit gradient alone."""
    request = Request(*inputs)
    logp, entropy, _, lse, kept, shifts = output
    ctx.set_materialize_grads(False)
    ctx.options = request[6:]
    ctx.width, ctx.dtype = request.hidden.shape[1], request.hidden.dtype
    if request.schedule == "frozen":
        ctx.save_for_backward(kept)
    else:
        ctx.save_for_backward(logp, lse, entropy, kept, shifts, *request[:6])


def _differentiate(
    ctx: _LogpContext, grad: Tensor | None, grad_entropy: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the forward operator's arguments."""
    nothing = (None,) * len(Request._fields)
    entropy_was_asked, schedule = ctx.options[-4], ctx.options[-2]
    # The entropy of schedule "frozen" is a figure: its caller detaches it.
    if not entropy_was_asked or schedule == "frozen":
        grad_entropy = None
    if grad is None and grad_entropy is None:
        return nothing
    needed = ctx.needs_input_grad
    needs = [needed[0], needed[1], needed[3], needed[4], needed[5]]
    if schedule == "frozen" and grad is not None:
        return (*_from_unit(ctx, grad, needs), *nothing[6:])
    saved = ctx.saved_tensors  # read once: checkpointing recomputes them at each read
    found = linear_logp_backward(grad, grad_entropy, *saved[:5], needs, *saved[5:], *ctx.options)
    hidden, weight, bias, side_hidden, side = (
        part if need else None for part, need in zip(found, needs, strict=True)
    )
    return (hidden, weight, None, bias, side_hidden, side, *nothing[6:])


def _from_unit(ctx: _LogpContext, grad: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
    """Schedule ``frozen``: each row's unit gradient times its number."""
    if needs[1] or needs[2] or needs[4]:
        raise RuntimeError("schedule 'frozen' was run, but the head needs a gradient")
    unit = ctx.saved_tensors[0]
    assert unit is not None
    both = (unit * grad.unsqueeze(1)).to(ctx.dtype)
    hidden = both[:, : ctx.width] if needs[0] else None
    return hidden, None, None, None, both[:, ctx.width :] if needs[3] else None, None


linear_logp_forward = define_operator(
    "linear_logp",
    _forward,
    _empty_result,
    schema=f"({REQUEST}) -> ({', '.join(['Tensor'] * 6)})",
)
linear_logp_backward = define_operator(
    "linear_logp_backward",
    _backward,
    _backward_fake,
    schema="(Tensor? grad, Tensor? grad_entropy, Tensor logp, Tensor lse, Tensor entropies, "
    f"Tensor kept, Tensor shifts, bool[] needs, {REQUEST}) -> ({', '.join(['Tensor'] * 5)})",
)
torch.library.register_autograd("mmrlhf_kernels::linear_logp", _differentiate, setup_context=_save)
