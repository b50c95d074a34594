"""Checks of arguments; every message says what was found and what was expected."""

import functools

import torch
from torch import Tensor

__all__ = ["as_linear", "check_head", "check_pairs", "check_shape", "flat_rows", "under_autocast"]


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a tensor has exactly this shape; nothing is broadcast.

    Raises:
        ValueError: The shape differs.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def check_pairs(pairs: int, device: torch.device, **columns: Tensor | None) -> None:
    """Raise unless every column that is given is [pairs] on the device.

    Raises:
        ValueError: A column has another shape or lies elsewhere.
    """
    for name, column in columns.items():
        if column is None:
            continue
        check_shape(name, column, (pairs,))
        if column.device != device:
            raise ValueError(f"{name} is on {column.device}; expected {device}")


def check_head(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    """Raise unless hidden [N, H], weight [V, H], target [N] and bias [V] fit together.

    Raises:
        TypeError: A dtype does not fit.
        ValueError: A shape or device does not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "expected [N, H] and [V, H]"
        )
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} is {tensor.dtype}; expected a floating dtype")
    if weight.shape[0] == 0:
        raise ValueError("weight has no vocabulary rows; expected at least one")
    check_shape("target", target, (hidden.shape[0],))
    if target.dtype != torch.int64:
        raise TypeError(f"target is {target.dtype}; expected torch.int64 or a narrower integer")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    for name, tensor in (("weight", weight), ("target", target), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {hidden.device}")


def flat_rows(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden [N, H], target [N] int64) of hidden states [..., H] and targets [...].

    Raises:
        ValueError: The leading dimensions differ.
    """
    if hidden.dim() > 2:
        check_shape("target", target, tuple(hidden.shape[:-1]))
        hidden, target = hidden.flatten(0, -2), target.flatten()
    if target.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        target = target.to(torch.int64)
    return hidden, target


def as_linear(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in one dtype: autocast's where it is on, else the widest among them."""
    tensors = under_autocast(*tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    if any(not tensor.dtype.is_floating_point for tensor in given):
        return tensors
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in given])
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def under_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast would hand them to a linear layer; unchanged outside of it."""
    first = next(tensor for tensor in tensors if tensor is not None)
    device = first.device.type
    if not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
