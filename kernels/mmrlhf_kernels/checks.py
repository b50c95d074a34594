"""Checks of arguments; every message says what was found and what was expected."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions

__all__ = ["LinearInputs", "check_pairs", "check_shape", "head_options", "linear_inputs"]


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a tensor has exactly this shape; nothing is broadcast."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def check_pairs(pairs: int, device: torch.device, **columns: Tensor | None) -> None:
    """Raise unless every column that is given is [pairs] on the device."""
    for name, column in columns.items():
        if column is None:
            continue
        check_shape(name, column, (pairs,))
        if column.device != device:
            raise ValueError(f"{name} is on {column.device}; expected {device}")


def head_options(softcap: float | None, logit_scale: float, temperature: float) -> HeadOptions:
    """The options of a head whose logits are divided by a temperature."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    # (c / t) tanh(s / c) = c' tanh(s' / c') with c' = c / t and s' = s / t.
    capped = None if softcap is None else softcap / temperature
    return HeadOptions(capped, logit_scale / temperature)


NAMES = ("hidden", "weight", "target", "bias", "lora A", "lora B")


class LinearInputs(NamedTuple):
    """Operands of a head in one dtype that fit together."""

    hidden: Tensor
    """[N, H]."""
    weight: Tensor
    """[V, H]."""
    target: Tensor
    """[N] int64."""
    bias: Tensor | None
    """[V]."""
    low: Tensor | None
    """LoRA's A [r, H]."""
    high: Tensor | None
    """LoRA's B [V, r]."""


def linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> LinearInputs:
    """Flatten hidden states [..., H] and targets [...], bring all to one dtype, and check.

    The dtype is autocast's where it is on, as for a linear layer, else the widest among them.

    Raises:
        TypeError: A dtype does not fit.
        ValueError: A shape or device does not fit.
    """
    if hidden.dim() > 2:
        check_shape("target", target, tuple(hidden.shape[:-1]))
        hidden, target = hidden.flatten(0, -2), target.flatten()
    if target.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        target = target.to(torch.int64)
    found = LinearInputs(hidden, weight, target, bias, low, high)
    _check_dtypes(found)
    _check_shapes(found)
    floats = [tensor for tensor in found if tensor is not None and tensor is not target]
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in floats])
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    bias, low, high = (None if t is None else t.to(dtype) for t in (bias, low, high))
    return LinearInputs(hidden.to(dtype), weight.to(dtype), target, bias, low, high)


def _check_dtypes(found: LinearInputs) -> None:
    """Raise unless dtypes and devices fit together."""
    for name, tensor in zip(NAMES, found, strict=True):
        if tensor is None:
            continue
        if tensor is not found.target and not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} is {tensor.dtype}; expected a floating dtype")
        if tensor.device != found.hidden.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {found.hidden.device}")
    if found.target.dtype != torch.int64:
        raise TypeError(
            f"target is {found.target.dtype}; expected torch.int64 or a narrower integer"
        )


def _check_shapes(found: LinearInputs) -> None:
    """Raise unless shapes fit together."""
    hidden, weight, target, bias, low, high = found
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "expected [N, H] and [V, H]"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight has no vocabulary rows; expected at least one")
    check_shape("target", target, (hidden.shape[0],))
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    if low is not None and high is not None:
        check_shape("lora A", low, (low.shape[0], hidden.shape[1]))
        check_shape("lora B", high, (weight.shape[0], low.shape[0]))
