"""Times the head's log-probabilities on a card: our schedules and plain PyTorch and its peers.

One table: milliseconds of forward alone and of forward with backward (median of CUDA-event times),
peak memory above the operands, at LLaVA-OneVision-7B's head and at three numbers of rows; and the
kernels alone with each of their switches changed by itself. Needs a GPU and says so where there is
none::

    python benches/gpu_kernels.py
    python benches/gpu_kernels.py --rows 400 --hidden 896 --vocabulary 151936
"""

import argparse
import functools
import importlib.util
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
from torch import Tensor
from torch.nn import functional

from record import write_record

WARM_UP, REPEATS = 3, 10
NOT_MEASURED = ["training steps", "more than one card", "clocks were not fixed"]


class Operands(NamedTuple):
    """A head and its rows; ``grad`` is what a loss would send back per row."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    grad: Tensor


Forward = Callable[[Operands], Tensor]


def make(rows: int, hidden: int, vocabulary: int) -> Operands:
    """Random bfloat16 operands of a head on the card."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    return Operands(
        random(rows, hidden).bfloat16().requires_grad_(),
        (random(vocabulary, hidden) / hidden**0.5).bfloat16().requires_grad_(),
        torch.randint(0, vocabulary, (rows,), generator=generator, device="cuda"),
        random(rows),
    )


def plain(o: Operands) -> Tensor:
    """What a trainer without a kernel does: logits, float32, log-softmax, gather."""
    logits = functional.linear(o.hidden, o.weight).float()
    return logits.log_softmax(1).gather(1, o.target[:, None]).squeeze(1)


def ours(schedule: str) -> Forward:
    """The package's primitive under one schedule."""
    from mmrlhf_kernels import fused_linear_logp

    def forward(o: Operands) -> Tensor:
        weight = o.weight.detach() if schedule == "frozen" else o.weight
        logp = fused_linear_logp(o.hidden, weight, o.target, schedule=schedule)
        assert isinstance(logp, Tensor)
        return logp

    return forward


def torch_linear_cross_entropy(o: Operands) -> Tensor:
    """PyTorch's own chunked loss, from 2.13 on."""
    return -functional.linear_cross_entropy(o.hidden, o.weight, o.target, reduction="none")


def liger(o: Operands) -> Tensor:
    """Liger's Triton kernel: a sum, so every row gets the same gradient."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return -loss(o.weight, o.hidden, o.target).reshape(1)


def cut_cross_entropy(o: Operands) -> Tensor:
    """Apple's kernel; it leaves out gradients that are small."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(o.hidden, o.weight, o.target, reduction="none")
    return -loss


def methods() -> Iterator[tuple[str, Forward]]:
    """Everything that is installed, by name."""
    yield "plain PyTorch", plain
    for schedule in ("recompute", "keep", "frozen"):
        yield f"ours, {schedule}", ours(schedule)
    if hasattr(functional, "linear_cross_entropy"):
        yield "torch linear_cross_entropy", torch_linear_cross_entropy
    if importlib.util.find_spec("liger_kernel"):
        yield "Liger fused linear cross-entropy", liger
    if importlib.util.find_spec("cut_cross_entropy"):
        yield "cut cross-entropy", cut_cross_entropy


def median_ms(call: Callable[[], Any]) -> float:
    """Median milliseconds of a call, by CUDA events, after warming up."""
    times = []
    for repeat in range(WARM_UP + REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= WARM_UP:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def backward(forward: Forward, o: Operands) -> None:
    """Forward and backward, gradients dropped before."""
    o.hidden.grad = o.weight.grad = None
    logp = forward(o)
    logp.backward(o.grad[: logp.numel()])


def measure(name: str, forward: Forward, o: Operands) -> dict[str, Any]:
    """One row of the table; a method that runs out of memory says so in it."""
    row: dict[str, Any] = {"method": name, "rows": o.hidden.shape[0]}
    try:
        with torch.no_grad():
            row["forward_ms"] = round(median_ms(lambda: forward(o)), 3)
        backward(forward, o)
        o.hidden.grad = o.weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        backward(forward, o)
        peak = torch.cuda.max_memory_allocated() - before
        row["forward_backward_ms"] = round(median_ms(lambda: backward(forward, o)), 3)
        row["peak_MB_with_gradients"] = round(peak / 1e6)
    except torch.OutOfMemoryError:
        row["failed"] = "out of memory"
        torch.cuda.empty_cache()
    return row


class Bare(NamedTuple):
    """A kernel alone; ``columns`` vocabulary rows meet all rows."""

    name: str
    columns: int
    call: Callable[[], Any]


def bare_kernels(o: Operands, chunk: int = 8192) -> Iterator[Bare]:
    """The kernels with a matrix product, in each form and with each switch changed by itself."""
    from mmrlhf_kernels.backend import NO_EXTRAS, Block, LossGradient
    from mmrlhf_kernels.triton_gradient import logit_gradient
    from mmrlhf_kernels.triton_settings import Loads, device_of, settings_for, use_settings
    from mmrlhf_kernels.triton_sweep import kept_exponentials, sweep

    hidden, weight, target, grad = (operand.detach() for operand in o)
    some = weight[:chunk]
    out, lse = hidden.new_empty(len(hidden), len(some)), torch.full_like(grad, 12.0)
    whole, rows = Block(hidden, weight, None, target), LossGradient(lse, grad)
    part = whole.columns(0, chunk)
    yield Bare("matrix product", len(some), lambda: torch.mm(hidden, some.T, out=out))
    calls = {
        "sweep": (len(weight), lambda: sweep(whole)),
        "sweep that keeps": (len(some), lambda: kept_exponentials(part, NO_EXTRAS, out)),
        "logit_gradient": (len(some), lambda: logit_gradient(part, rows, out)),
    }
    architecture, width = device_of(hidden.device).architecture, hidden.shape[1]
    where = ("sweep", width, len(weight), hidden.dtype, architecture)
    for loads in get_args(Loads):
        with use_settings(loads=loads):
            if settings_for(*where).loads == loads:
                for name, (columns, call) in calls.items():
                    yield Bare(f"{name}, {loads}", columns, call)
    usual = settings_for(*where)
    for splits in (1, 2, 4, 8, 16):
        with use_settings(sweep=usual._replace(splits=splits)):
            yield Bare(f"sweep, {splits} parts", *calls["sweep"])
    for rank in (16, 64):  # LoRA's B beside the weight: bare, and padded to whole tiles
        pair = functional.pad(hidden, (0, rank)), functional.pad(some, (0, rank))
        call = functools.partial(sweep, Block(*pair, None, target))
        yield Bare(f"sweep of a chunk, H + {rank}", len(some), call)


def measure_bare(kernel: Bare, o: Operands, firsts: dict[str, Tensor]) -> dict[str, Any]:
    """One row of the table, with the largest difference to the first form of the same kernel."""
    row: dict[str, Any] = {"method": f"kernel alone: {kernel.name}", "rows": len(o.hidden)}
    try:
        result = kernel.call()
        found = result if isinstance(result, Tensor) else result.logp
        first = firsts.setdefault(kernel.name.split(",")[0], found.clone())
        row["largest_difference"] = float((found - first).abs().max())
        milliseconds = median_ms(kernel.call)
    except Exception as error:
        return {**row, "failed": str(error).splitlines()[0]}
    work = 2 * o.hidden.numel() * kernel.columns
    rate = round(work / milliseconds / 1e9, 1)
    return {**row, "forward_ms": round(milliseconds, 3), "TFLOP/s": rate}


def first_calls(o: Operands) -> Iterator[dict[str, Any]]:
    """Time of the first sweep of other numbers of rows, which would show a second compilation."""
    from mmrlhf_kernels.backend import Block
    from mmrlhf_kernels.triton_sweep import sweep

    hidden, weight, target, _ = (operand.detach() for operand in o)
    for rows in (len(hidden) - 1, len(hidden) - 16, 1):
        begin = time.perf_counter()
        sweep(Block(hidden[:rows], weight, None, target[:rows]))
        torch.cuda.synchronize()
        yield {
            "method": "first call with another number of rows",
            "rows": rows,
            "forward_ms": round(1e3 * (time.perf_counter() - begin), 3),
        }


def main() -> int:
    """Measure, print as it goes, write the record."""
    parser = argparse.ArgumentParser(description="time the kernels on a GPU")
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 1024, 400])
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--vocabulary", type=int, default=152_064)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_kernels needs a GPU and found none; nothing was measured", file=sys.stderr)
        return 2
    found = []
    for rows in arguments.rows:
        operands = make(rows, arguments.hidden, arguments.vocabulary)
        named = (measure(name, forward, operands) for name, forward in methods())
        firsts: dict[str, Tensor] = {}
        bare = (measure_bare(kernel, operands, firsts) for kernel in bare_kernels(operands))
        for row in itertools.chain(named, bare, first_calls(operands)):
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
            found.append(row)
    parameters = {**vars(arguments), "device": torch.cuda.get_device_name()}
    print(write_record("gpu_kernels", parameters, found, NOT_MEASURED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
