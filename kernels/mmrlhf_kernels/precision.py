"""Precision: dtypes of statistics, and matrix products that accumulate in float32.

Logits come from float32 accumulators on every device. CUDA multiplies bfloat16 and float16 straight
into float32; the CPU cannot, so there the operands are widened first, which keeps the
log-normaliser free of an error of ``2^-9 |z|``. In backward the gradient of the logits, E, has the
dtype of its products: that of the hidden states, or float32 on a processor without a unit for it.
"""

import functools

import torch
from torch import Tensor

__all__ = [
    "accumulate_product",
    "gradient_dtype",
    "operand_dtype",
    "product_into",
    "statistics_dtype",
    "widened",
]


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of gradients that are computed before the loss scale is known.

    float16 has no exponents for them: with GradScaler they are multiplied by the scale first and
    rounded then.
    """
    return torch.float32 if dtype == torch.float16 else dtype


@functools.cache
def has_bfloat16_unit() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    found = torch.cpu.get_capabilities()
    if found.get("architecture") == "aarch64":
        return bool(found.get("bf16"))
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def operand_dtype(like: Tensor) -> torch.dtype:
    """The dtype in which products of backward take their operands, for hidden states like these.

    A CPU without a unit for bfloat16 takes 5 to 20 times as long for a product in it as in float32;
    float16 has no unit on most, and none that is worth a case.
    """
    narrow = like.dtype == torch.bfloat16 and has_bfloat16_unit()
    return like.dtype if like.device.type != "cpu" or narrow else statistics_dtype(like.dtype)


def widened(operand: Tensor) -> Tensor:
    """The operand in a dtype whose products the device can write in statistics precision.

    CUDA tensors stay as they are; half-width CPU tensors are copied to float32.
    """
    return operand if operand.is_cuda else operand.to(statistics_dtype(operand.dtype))


def product_into(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Write ``left @ right``, accumulated in statistics precision, into ``out``.

    The dtype of ``out`` is that of both operands, or wider on CUDA, or any on the CPU.
    """
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(left, right))


def accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which has statistics precision.

    On a CPU that multiplies bfloat16 the product is rounded once to it before it is added.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(left, right))
