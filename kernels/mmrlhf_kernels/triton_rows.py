"""Rows and answers on the device: sums, gradients, and whether targets and bounds fit.

Rows to sums of answers and gradients of answers to rows are device functions of
:mod:`mmrlhf_kernels.mm_dpo_kernel`, whose operands ``call`` and ``out`` are. A sum depends on the
rows of its answer alone: lane ``i`` of an answer takes its rows ``i``, ``i + ROWS`` and so on in
float64, and one tree adds the lanes. There are no atomics.

:func:`checked_rows` finds which rows count and whether targets, bounds and pairs fit, in one launch
of one program: 65,536 targets are 512 KiB. The host reads nothing; a device assertion on what is
written raises later.
"""

from collections import namedtuple
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.mm_dpo_plain import PairCall
from mmrlhf_kernels.triton_settings import jit, jit_for_any, require_runnable
from mmrlhf_kernels.triton_tile import Launch, on_device

__all__ = [
    "Operands",
    "answers_of",
    "check_launch",
    "checked_rows",
    "defect_of",
    "length_of",
    "pointers_of",
    "spread",
    "sum_rows",
]


def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    """A type whose fields are known at run time alone."""
    return namedtuple(name, fields)


TENSORS = PairCall._fields[: PairCall._fields.index("loss_type")]
SIZES = ("chosen_stride", "rejected_stride", "count", "answers", "rows")
Operands: Any = _named_tuple("Operands", (*TENSORS, *SIZES))
"""The tensors of a :class:`PairCall`, entries from one of its answers to the next, and P, S and N,
which the host passes apart, for kernels that fit every size.
"""

BLOCK = tl.constexpr(1024)
"""Rows that are read at once."""
ANSWERS = tl.constexpr(8)
"""Answers that are taken at once; a power of two."""
ROWS = tl.constexpr(128)
"""Rows of each that are read at once, and pairs that are looked through at once."""


@jit
def answers_of(call: tl.tuple, place: tl.tensor, mask: tl.tensor) -> tl.tuple:
    """The two answers of each pair, in range; sums of the two sides have the same place."""
    chosen = place
    rejected = place
    if call.rejected_logp is None:
        rejected = place + call.count
    if call.chosen is not None:
        chosen = tl.load(call.chosen + place * call.chosen_stride, mask=mask, other=0)
        rejected = tl.load(call.rejected + place * call.rejected_stride, mask=mask, other=0)
        chosen = tl.minimum(tl.maximum(chosen, 0), call.answers - 1).to(tl.int32)
        rejected = tl.minimum(tl.maximum(rejected, 0), call.answers - 1).to(tl.int32)
    return chosen, rejected


@jit
def rows_of(call: tl.tuple, answer: tl.tensor, mask: tl.tensor) -> tl.tuple:
    """(first row, past the last row) of each answer, in range."""
    begin = tl.load(call.cu_seqlens + answer, mask=mask, other=0)
    end = tl.load(call.cu_seqlens + answer + 1, mask=mask, other=0)
    begin = tl.minimum(tl.maximum(begin, 0), call.rows).to(tl.int32)
    return begin, tl.maximum(tl.minimum(tl.maximum(end, 0), call.rows).to(tl.int32), begin)


@jit
def defect_of(call: tl.tuple) -> tl.tensor:
    """NaN where bounds fall, do not cover the rows, or an answer does not exist; else 0."""
    lane = tl.arange(0, ROWS)
    wrong = tl.full((ROWS,), 0, dtype=tl.int32)
    if call.cu_seqlens is not None:
        wrong += (tl.load(call.cu_seqlens) != 0).to(tl.int32)
        wrong += (tl.load(call.cu_seqlens + call.answers) != call.rows).to(tl.int32)
        for first in range(0, call.answers, ROWS):
            at = first + lane
            begin = tl.load(call.cu_seqlens + at, mask=at < call.answers, other=0)
            end = tl.load(call.cu_seqlens + at + 1, mask=at < call.answers, other=0)
            wrong += (begin > end).to(tl.int32)
    if call.chosen is not None:
        for first in range(0, call.count, ROWS):
            at = first + lane
            mask = at < call.count
            chosen = tl.load(call.chosen + at * call.chosen_stride, mask=mask, other=0)
            rejected = tl.load(call.rejected + at * call.rejected_stride, mask=mask, other=0)
            wrong += ((chosen < 0) | (chosen >= call.answers)).to(tl.int32)
            wrong += ((rejected < 0) | (rejected >= call.answers)).to(tl.int32)
    return tl.where(tl.sum(wrong, axis=0) > 0, float("nan"), 0.0)


@jit
def length_of(call: tl.tuple, out: tl.tuple, answer: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """The rows of each answer that count, int32; after :func:`sum_rows`."""
    if call.counted is not None:
        length = tl.load(out.lengths + answer, mask=mask, other=0)
    else:
        begin, end = rows_of(call, answer, mask)
        length = end - begin
    return length


@jit
def sum_rows(call: tl.tuple, out: tl.tuple) -> None:
    """Write the sum of every answer's rows, float64, and how many of them count."""
    row = tl.arange(0, ROWS)
    for first in range(0, call.answers, ANSWERS):
        answer = first + tl.arange(0, ANSWERS)
        mask = answer < call.answers
        begin, end = rows_of(call, answer, mask)
        total = tl.full((ANSWERS, ROWS), 0.0, dtype=tl.float64)
        lengths = tl.full((ANSWERS, ROWS), 0, dtype=tl.int32)
        longest = tl.max(end - begin, axis=0)
        for start in range(0, longest, ROWS):
            at = begin[:, None] + (start + row)[None, :]
            inside = at < end[:, None]
            if call.counted is not None:
                inside &= tl.load(call.counted + at, mask=inside, other=0) != 0
                lengths += inside.to(tl.int32)
            value = tl.load(call.logp + at, mask=inside, other=0.0)
            total += value.to(tl.float64)
        tl.store(out.sums + answer, tl.sum(total, axis=1), mask=mask)
        if call.counted is not None:
            tl.store(out.lengths + answer, tl.sum(lengths, axis=1), mask=mask)
    tl.debug_barrier()  # other threads of this program will read them


@jit
def spread(call: tl.tuple, of_pairs: tl.tensor, gradient: tl.tensor) -> None:
    """Write the gradient of every answer, or of every row where there are rows.

    ``of_pairs`` [2, P] holds the gradients of the pairs' two sides. An answer that several pairs
    name gets their sum, in their order.
    """
    tl.debug_barrier()  # of_pairs was written by other threads of this program
    row = tl.arange(0, ROWS)
    for first in range(0, call.answers, ANSWERS):
        answer = first + tl.arange(0, ANSWERS)
        mask = answer < call.answers
        if call.chosen is not None:
            total = _shared(call, of_pairs, answer)
        else:  # chosen answers come first, as in of_pairs
            total = tl.load(of_pairs + answer, mask=mask, other=0.0)
        if call.cu_seqlens is None:
            tl.store(gradient + answer, total, mask=mask)
        else:
            begin, end = rows_of(call, answer, mask)
            repeated = total[:, None] + tl.full((ANSWERS, ROWS), 0.0, dtype=tl.float32)
            longest = tl.max(end - begin, axis=0)
            for start in range(0, longest, ROWS):
                at = begin[:, None] + (start + row)[None, :]
                inside = at < end[:, None]
                value = repeated
                if call.counted is not None:
                    counts = tl.load(call.counted + at, mask=inside, other=0) != 0
                    value = tl.where(counts, repeated, 0.0)
                tl.store(gradient + at, value, mask=inside)


@jit
def _shared(call: tl.tuple, of_pairs: tl.tensor, answer: tl.tensor) -> tl.tensor:
    """The sum of the gradients of all pairs that name an answer."""
    total = tl.full((ANSWERS, ROWS), 0.0, dtype=tl.float32)
    for first in range(0, call.count, ROWS):
        place = first + tl.arange(0, ROWS)
        mask = place < call.count
        chosen, rejected = answers_of(call, place, mask)
        up = tl.load(of_pairs + place, mask=mask, other=0.0)
        down = tl.load(of_pairs + call.count + place, mask=mask, other=0.0)
        total += tl.where(chosen[None, :] == answer[:, None], up[None, :], 0.0)
        total += tl.where(rejected[None, :] == answer[:, None], down[None, :], 0.0)
    return tl.sum(total, axis=1)


@jit_for_any("count", "answers", "rows")
def _check_kernel(
    pointers: tl.tuple, count: tl.tensor, answers: tl.tensor, rows: tl.tensor, target: tl.tensor,
    counted: tl.tensor, fits: tl.tensor, ignored: tl.tensor, vocab: tl.tensor,
) -> None:  # fmt: skip
    """Write which rows count, and two flags: targets fit, bounds and pairs fit."""
    call = Operands(*pointers, count, answers, rows)
    lane = tl.arange(0, BLOCK)
    wrong = tl.full((BLOCK,), 0, dtype=tl.int32)
    for first in range(0, call.rows, BLOCK):
        row = first + lane
        mask = row < call.rows
        found = tl.load(target + row, mask=mask, other=0)
        counts = found != ignored
        tl.store(counted + row, counts.to(tl.int8), mask=mask)
        outside = (found < 0) | (found >= vocab)
        wrong += (mask & counts & outside).to(tl.int32)
    tl.store(fits, (tl.sum(wrong, axis=0) == 0).to(tl.int8))
    defect = defect_of(call)
    tl.store(fits + 1, (defect == defect).to(tl.int8))


def pointers_of(found: dict[str, Any]) -> tuple[Any, ...]:
    """:data:`Operands` but for the sizes, of the tensors that are there; bools as bytes."""
    sides = {"chosen": found.get("chosen"), "rejected": found.get("rejected")}
    flat = (sides[name] if name in sides else _flat(found.get(name)) for name in TENSORS)
    return (*flat, *(0 if side is None else side.stride(0) for side in sides.values()))


def _flat(tensor: Tensor | None) -> Tensor | None:
    """The tensor with adjacent entries; bools as bytes."""
    if tensor is None:
        return None
    flat = tensor.contiguous()
    return flat.view(torch.int8) if flat.dtype == torch.bool else flat


def check_launch(
    target: Tensor,
    ignore_index: int,
    vocab: int,
    bounds: Tensor | None,
    pair_index: Tensor | None,
    answers: int,
) -> Launch:
    """The launch with fresh outputs in its arguments ``counted`` and ``fits``.

    The operands are those of :func:`mmrlhf_kernels.rows.rows_that_count`.
    """
    sides = (None, None) if pair_index is None else pair_index.unbind(1)
    found = {"cu_seqlens": bounds, "chosen": sides[0], "rejected": sides[1]}
    arguments = {
        "pointers": pointers_of(found),
        "count": 0 if pair_index is None else pair_index.shape[0],
        "answers": answers,
        "rows": target.shape[0],
        "target": target.contiguous(),
        "counted": torch.empty(target.shape, dtype=torch.int8, device=target.device),
        "fits": torch.empty(2, dtype=torch.int8, device=target.device),
        "ignored": ignore_index,
        "vocab": vocab,
    }
    return Launch(_check_kernel, (1,), arguments, warps=8)


def checked_rows(target: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    """([N] bool, which rows are not ignored; [2] bool, whether targets and the layout fit).

    Arguments are those of :func:`check_launch`.
    """
    require_runnable(target)
    launch = check_launch(target, *operands)
    with on_device(target.device):
        launch.run()
    counted, fits = launch.arguments["counted"], launch.arguments["fits"]
    return counted.view(torch.bool), fits.view(torch.bool)
