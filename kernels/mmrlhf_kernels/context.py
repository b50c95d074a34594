"""The type of ``ctx`` in autograd functions, which torch leaves untyped.

A function declares a protocol of its own with the attributes that it sets, and
``saved_tensors: tuple[...]`` with exactly what it saves.
"""

from typing import Protocol

from torch import Tensor

__all__ = ["Context"]


class Context(Protocol):
    """What every ``ctx`` has."""

    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs or outputs for backward; None is kept as None."""
        ...

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros, rather than None, for outputs without a gradient."""
        ...
