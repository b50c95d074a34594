"""The objective over pairs and its gradient per sequence, in closed form and without autograd.

One operator does it, ``pair_objective``: on a GPU it is the kernel of
:mod:`mmrlhf_kernels.mm_dpo_kernel`, elsewhere :mod:`mmrlhf_kernels.mm_dpo_plain`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_shape
from mmrlhf_kernels.mm_dpo_plain import (
    COLUMNS,
    FIGURES,
    Numbers,
    PairCall,
    Result,
    evaluate_plain,
)
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.reference import PAIR_LOSS_TYPES, TWO_SIDED_LOSS_TYPES
from mmrlhf_kernels.registry import define_operator

__all__ = [
    "LOSS_TYPES",
    "check_count",
    "check_options",
    "pair_objective",
    "scalar_of",
]

LOSS_TYPES = (*PAIR_LOSS_TYPES, *TWO_SIDED_LOSS_TYPES)
SFT_MEANS = ("token", "sequence")


def check_options(call: PairCall, *, counted: bool) -> None:
    """Raise unless the options make sense together; ``counted``: chosen tokens are known.

    Raises:
        ValueError: They do not.
    """
    numbers = Numbers._make(call.numbers)
    if call.loss_type not in LOSS_TYPES:
        names = ", ".join(LOSS_TYPES)
        raise ValueError(f"unknown loss_type {call.loss_type!r}; expected one of {names}")
    if call.sft not in SFT_MEANS:
        raise ValueError(f"unknown sft {call.sft!r}; expected one of {', '.join(SFT_MEANS)}")
    if not 0.0 <= numbers.label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {numbers.label_smoothing}; expected 0 <= e < 1/2")
    if numbers.sft_weight < 0.0:
        raise ValueError(f"sft_weight is {numbers.sft_weight}; expected at least 0")
    if numbers.sft_weight and not counted:
        raise ValueError("sft_weight is set, so chosen_tokens [P] is needed to take the mean")


def check_count(
    name: str, value: float | Tensor | None, like: Tensor
) -> tuple[Tensor | None, float]:
    """``num_pairs`` or ``num_tokens`` as a scalar tensor or a number; -1 where it is not a number.

    A tensor is not read: on a GPU the host would wait for it.

    Raises:
        ValueError: A number is negative or not finite; a tensor is no scalar or lies elsewhere.
    """
    if value is None:
        return None, -1.0
    if not isinstance(value, Tensor):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number, at least 0")
        return None, float(value)
    check_shape(name, value, ())
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}; expected {like.device}")
    return value.detach(), -1.0


def scalar_of(name: str, value: float | Tensor | None, like: Tensor) -> Tensor | None:
    """``num_pairs`` or ``num_tokens`` as a scalar beside ``like``, in its statistics precision.

    Raises:
        ValueError: As :func:`check_count` does.
    """
    tensor, number = check_count(name, value, like)
    dtype = statistics_dtype(like.dtype)
    if tensor is not None:
        return tensor.to(dtype)
    return None if number < 0 else torch.full((), number, dtype=dtype, device=like.device)


def _pair_objective(
    logp: Tensor,
    rejected_logp: Tensor | None,
    cu_seqlens: Tensor | None,
    counted: Tensor | None,
    chosen: Tensor | None,
    rejected: Tensor | None,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: Tensor | None,
    margin: Tensor | None,
    tie: Tensor | None,
    weight: Tensor | None,
    chosen_tokens: Tensor | None,
    num_pairs: Tensor | None,
    num_tokens: Tensor | None,
    loss_type: str,
    sft: str,
    average: bool,
    numbers: list[float],
) -> Result:
    """A :class:`PairCall`, field by field, by the implementation chosen for it."""
    call = PairCall(
        logp, rejected_logp, cu_seqlens, counted, chosen, rejected, ref_chosen_logps,
        ref_rejected_logps, beta, margin, tie, weight, chosen_tokens, num_pairs, num_tokens,
        loss_type, sft, average, numbers,
    )  # fmt: skip
    kernel = dispatch.triton_module(logp, "mm_dpo_kernel") if call.pairs else None
    if kernel is None:
        return evaluate_plain(call)
    found: Result = kernel.evaluate(call)
    return found


def _pair_objective_fake(*fields: Any) -> Result:
    """Uninitialised results of :func:`_pair_objective`."""
    call = PairCall(*fields)
    like = torch.empty_like(call.ref_chosen_logps, dtype=statistics_dtype(call.logp.dtype))
    return (
        like.new_empty(()),
        like.new_empty(len(FIGURES)),
        like.new_empty((len(COLUMNS) + 2, call.pairs)),
        like.new_empty(call.gradient_shape()),
    )


pair_objective = define_operator("pair_objective", _pair_objective, _pair_objective_fake)
