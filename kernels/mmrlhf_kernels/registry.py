"""Registers custom operators with torch: opaque to the compiler, with a fake implementation.

``torch.library.custom_op`` would do the same and import the whole compiler at the operator's first
call, six seconds of it; these are the calls it is made of. Results must not share memory with each
other or with an argument, which ``torch.library.opcheck`` holds in the tests.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Context", "add_over", "define_operator", "process_group"]

NAMESPACE = "mmrlhf_kernels"


def define_operator(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    operands: tuple[type, ...],
    result: Any,
    *,
    capturable: bool = True,
) -> Callable[..., Any]:
    """Register ``mmrlhf_kernels::name`` for every device and return the operator.

    Args:
        name: Of the operator within the namespace.
        function: Its body. It mutates no argument.
        fake: Gives results of the right shapes and dtypes from the same arguments, for tracing.
        operands: Named tuples whose fields, one after the other, are the arguments.
        result: The type of the results.
        capturable: Whether it may be captured in a CUDA graph. One that reads a number on the host,
            or talks to other processes, may not.
    """
    qualified = f"{NAMESPACE}::{name}"
    tags = () if capturable else (torch.Tag.cudagraph_unsafe,)
    torch.library.define(qualified, _schema(operands, result), tags=tags)
    torch.library.impl(qualified, "CompositeExplicitAutograd")(_in_full_precision(function))
    torch.library.register_fake(qualified)(fake)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def _schema(operands: tuple[type, ...], result: Any) -> str:
    """Arguments and results in torch's notation."""

    def prototype() -> None: ...

    fields = [one for kind in operands for one in inspect.signature(kind).parameters.values()]
    signature = inspect.Signature(fields, return_annotation=result)
    vars(prototype)["__signature__"] = signature
    return torch.library.infer_schema(prototype, mutates_args=())


def _in_full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function with autocast off: it chooses its dtypes itself.

    Bodies of operators still see the autocast state of their caller, which would round float32
    operands of their matrix products.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run


def process_group(name: str) -> Any:
    """The process group of this name: operators take no group as an argument."""
    return vars(torch.distributed.distributed_c10d)["_resolve_process_group"](name)


def add_over(values: Tensor, group: str | None) -> Tensor:
    """The sum of ``values`` over the processes of a group, in place; as they are without one."""
    if group is not None:
        torch.distributed.all_reduce(values, group=process_group(group))
    return values


class Context(Protocol):
    """What every ``ctx`` of an autograd function has; torch leaves its type open.

    A function declares a protocol of its own with the attributes that it sets, and
    ``saved_tensors: tuple[...]`` with exactly what it saves.
    """

    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs or outputs for backward; None is kept as None."""
        ...

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros, rather than None, for outputs without a gradient."""
        ...
