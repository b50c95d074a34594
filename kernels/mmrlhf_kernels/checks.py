"""Checks of arguments; every message says what was found and what was expected."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions

__all__ = [
    "LinearInputs",
    "check_data",
    "check_entries",
    "check_factor",
    "check_integers",
    "check_pairs",
    "check_references",
    "check_shape",
    "check_tensor",
    "head_options",
    "linear_inputs",
    "lora_parts",
]


def check_tensor(name: str, value: object, shape: str) -> None:
    """Raise unless a value is a tensor; ``shape`` says of which shape one is expected."""
    if not isinstance(value, Tensor):
        hint = "; hint: pass its weight" if hasattr(value, "weight") else ""
        found = f"{name} is of type {type(value).__name__}"
        raise TypeError(f"{found}; expected a tensor {shape}{hint}")


def check_integers(name: str, value: object, shape: str) -> None:
    """Raise unless a tensor is of int32 or int64, or empty: ``torch.tensor([])`` is float32."""
    check_tensor(name, value, shape)
    fitting = (torch.int32, torch.int64)
    if isinstance(value, Tensor) and value.numel() and value.dtype not in fitting:
        raise TypeError(f"{name} is {value.dtype}; expected torch.int32 or torch.int64")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a tensor has exactly this shape; nothing is broadcast."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def check_pairs(pairs: int, device: torch.device, **columns: Tensor | None) -> None:
    """Raise unless every column that is given is [pairs] on the device."""
    for name, column in columns.items():
        if column is None:
            continue
        check_tensor(name, column, "[P]")
        check_shape(name, column, (pairs,))
        if column.device != device:
            raise ValueError(f"{name} is on {column.device}; expected {device}")


def check_references(chosen: Tensor, rejected: Tensor) -> None:
    """Raise unless both columns of the reference are [P]."""
    for name, column in (("ref_chosen_logps", chosen), ("ref_rejected_logps", rejected)):
        check_tensor(name, column, "[P]")
        if column.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(column.shape)}; expected [P]")
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"ref_chosen_logps has shape {tuple(chosen.shape)} and ref_rejected_logps "
            f"{tuple(rejected.shape)}; expected one number of each for each pair"
        )


def check_data(**columns: Tensor | None) -> None:
    """Raise where a column requires a gradient: it would get none."""
    for name, column in columns.items():
        if column is not None and column.requires_grad:
            raise ValueError(f"{name} requires a gradient; it is data here, pass {name}.detach()")


def check_entries(
    name: str, values: Tensor | None, fits: Callable[[Tensor], Tensor], expected: str
) -> None:
    """Raise unless all entries [P] fit. On a CPU alone: the host would wait for other devices."""
    if values is None or values.device.type != "cpu" or torch.compiler.is_compiling():
        return
    fitting = fits(values)
    if not bool(fitting.all()):
        place = int((~fitting).nonzero()[0])
        raise ValueError(f"{name}[{place}] is {values[place].item()}; expected {expected}")


def check_factor(name: str, value: float) -> None:
    """Raise unless a factor of a term is finite and not negative."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; expected a finite number, at least 0")


def head_options(softcap: float | None, logit_scale: float, temperature: float) -> HeadOptions:
    """The options of a head whose logits are divided by a temperature."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; expected a number above 0, or None for none")
    if not -math.inf < logit_scale < math.inf:
        raise ValueError(f"logit_scale is {logit_scale}; expected a finite number")
    # (c / t) tanh(s / c) = c' tanh(s' / c') with c' = c / t and s' = s / t.
    capped = None if softcap is None else softcap / temperature
    return HeadOptions(capped, logit_scale / temperature)


NAMES = ("hidden", "weight", "target", "bias", "lora A", "lora B")
SHAPES = ("[N, H]", "[V, H]", "[N]", "[V]", "[r, H]", "[V, r]")


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
    for name, value, shape in zip(NAMES[:3], (hidden, weight, target), SHAPES, strict=False):
        check_tensor(name, value, shape)
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


def lora_parts(
    lora: tuple[Tensor, Tensor, float] | None,
) -> tuple[Tensor | None, Tensor | None, float]:
    """(A, B, scale) of an adapter."""
    if lora is None:
        return None, None, 1.0
    if not isinstance(lora, tuple | list) or len(lora) != 3:
        found = f" of {len(lora)}" if isinstance(lora, tuple | list) else ""
        raise TypeError(
            f"lora is a {type(lora).__name__}{found}; expected (A [r, H], B [V, r], scale)"
        )
    return lora[0], lora[1], lora[2]


def _check_dtypes(found: LinearInputs) -> None:
    """Raise unless dtypes and devices fit together."""
    for name, tensor, shape in zip(NAMES, found, SHAPES, strict=True):
        if tensor is None:
            continue
        check_tensor(name, tensor, shape)
        if tensor is not found.target and not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} is {tensor.dtype}; expected a floating dtype")
        if tensor.device != found.hidden.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {found.hidden.device}")
    if found.target.dtype != torch.int64:
        raise TypeError(
            f"target is {found.target.dtype}; expected torch.int64 or a narrower integer dtype"
        )


def _check_shapes(found: LinearInputs) -> None:
    """Raise unless shapes fit together."""
    hidden, weight, target, bias, low, high = found
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            f"expected [N, H] and [V, H]{_hint_of(hidden, weight)}"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight has no vocabulary rows; expected at least one")
    check_shape("target", target, (hidden.shape[0],))
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    if low is not None and high is not None:
        sizes = (hidden.shape[1], low.shape[0], weight.shape[0]) if low.dim() else ()
        if sizes != (*low.shape[1:], *high.shape[1:], *high.shape[:1]):
            raise ValueError(
                f"lora A has shape {tuple(low.shape)} and lora B {tuple(high.shape)}; expected "
                f"[r, {hidden.shape[1]}] and [{weight.shape[0]}, r]; hint: PEFT's lora_A.weight "
                "and lora_B.weight, in this order"
            )


def _hint_of(hidden: Tensor, weight: Tensor) -> str:
    """What may be wrong with a head whose shape does not fit."""
    if weight.dim() == 2 and weight.shape[0] == hidden.shape[-1]:
        return "; hint: the weight of a linear layer as it is, not transposed"
    return ""
