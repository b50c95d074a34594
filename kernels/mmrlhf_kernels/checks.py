"""Checks of arguments; every message says what was found and what was expected."""

import torch
from torch import Tensor

__all__ = ["check_head", "check_pairs", "check_shape", "under_autocast"]


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
    """Raise unless hidden [N, H], weight [V, H], target [N] int64 and bias [V] fit together.

    Raises:
        TypeError: A dtype does not fit.
        ValueError: A shape or device does not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "expected [N, H] and [V, H]"
        )
    if not hidden.dtype.is_floating_point or weight.dtype != hidden.dtype:
        raise TypeError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}; expected one floating dtype "
            "(torch.autocast casts both)"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight has no vocabulary rows; expected at least one")
    check_shape("target", target, (hidden.shape[0],))
    if target.dtype != torch.int64:
        raise TypeError(f"target is {target.dtype}; expected torch.int64")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    for name, tensor in (("weight", weight), ("target", target), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {hidden.device}")


def under_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast would hand them to a linear layer; unchanged outside of it."""
    first = next(tensor for tensor in tensors if tensor is not None)
    device = first.device.type
    if not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
