"""Precision: dtypes of statistics, and matrix products that accumulate in float32.

Logits come from float32 accumulators on every device. CUDA multiplies bfloat16 and float16 straight
into float32; the CPU cannot, so there the operands are widened first. That costs speed on the CPU
for half-width weights and keeps the log-normaliser free of an error of ``2^-9 |z|``.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = [
    "accumulate_product",
    "in_full_precision",
    "product_into",
    "statistics_dtype",
    "widened",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(operand: Tensor) -> Tensor:
    """The operand in a dtype whose products the device can write in statistics precision.

    CUDA tensors stay as they are; half-width CPU tensors are copied to float32.
    """
    return operand if operand.is_cuda else operand.to(statistics_dtype(operand.dtype))


def product_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Write ``left @ right`` into ``out``, which has statistics precision.

    Args:
        out: [M, N] in the statistics dtype of the operands.
        left: [M, K], as :func:`widened` gives it.
        right: [K, N], likewise.
    """
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which has statistics precision.

    On the CPU a half-width product is rounded once to its own dtype before it is added.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.add_(torch.mm(left, right))


def in_full_precision(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Run a function with autocast off: it chooses its dtypes itself.

    The bodies of custom operators still see the autocast state of their caller, which would round
    float32 operands of their matrix products.
    """

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run
