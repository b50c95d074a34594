"""Which implementation runs a call, and why.

========== ================================================= =====================================
name       what it is                                        where it runs
========== ================================================= =====================================
reference  plain PyTorch that forms all logits               any device
chunked    PyTorch, blocks of logits in cache                any device
triton     Triton kernels                                    CUDA; the CPU under TRITON_INTERPRET
========== ================================================= =====================================

By default CUDA tensors go to ``triton`` where it can be imported and all others to ``chunked``. A
fallback from ``triton`` is logged once per reason, on the logger ``mmrlhf_kernels``. The
environment variable ``MMRLHF_KERNELS`` names one implementation for all calls; one that cannot run
then raises instead of falling back. Triton is imported at the first call that asks for it, never
with the package.

Operators are registered with torch here too: opaque to the compiler, with a fake implementation.
``torch.library.custom_op`` would do the same and import the whole compiler at the operator's first
call, six seconds of it; :func:`define_operator` has the calls it is made of. Results must not share
memory with each other or with an argument, which ``torch.library.opcheck`` holds in the tests.
"""

import functools
import importlib
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmrlhf_kernels import chunked
from mmrlhf_kernels.backend import Backend

__all__ = [
    "IMPLEMENTATIONS",
    "add_over",
    "choose",
    "define_operator",
    "process_group",
    "row_backend",
    "triton_module",
]

IMPLEMENTATIONS = ("reference", "chunked", "triton")
VARIABLE = "MMRLHF_KERNELS"
NAMESPACE = "mmrlhf_kernels"

log = logging.getLogger("mmrlhf_kernels")


def forced() -> str | None:
    """The implementation named by the environment, or None."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"{VARIABLE} is {name!r}; expected one of {', '.join(IMPLEMENTATIONS)}, or unset"
        )
    return name


@functools.cache
def _warn_once(reason: str) -> None:
    """Log why a call does not go to Triton, the first time it happens."""
    log.warning("using the chunked PyTorch implementation: %s", reason)


@functools.cache
def _import_triton(module: str) -> tuple[object | None, str]:
    """(module, "") or (None, reason)."""
    try:
        return importlib.import_module(f"mmrlhf_kernels.{module}"), ""
    except (ImportError, RuntimeError) as error:
        return None, f"mmrlhf_kernels.{module} cannot be imported: {error}"


def _obstacle(like: Tensor) -> str:
    """Why Triton cannot take this tensor; empty if it can."""
    if like.dtype == torch.float64:
        return "Triton kernels take no float64"
    if not like.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton kernels need CUDA tensors, got {like.device} (and no TRITON_INTERPRET=1)"
    return ""


def choose(like: Tensor, module: str = "triton_sweep") -> str:
    """Name of the implementation for a call on tensors like this one.

    Raises:
        RuntimeError: ``MMRLHF_KERNELS=triton`` and Triton cannot run.
        ValueError: ``MMRLHF_KERNELS`` names no implementation.
    """
    name = forced()
    if name is not None and name != "triton":
        return name
    if name is None and not like.is_cuda:
        return "chunked"
    reason = _obstacle(like) or _import_triton(module)[1]
    if not reason:
        return "triton"
    if name == "triton":
        raise RuntimeError(f"{VARIABLE}=triton, but {reason}")
    _warn_once(reason)
    return "chunked"


@functools.cache
def _triton_backend() -> Backend:
    """The table of the Triton kernels; their modules are imported here."""
    names = ("triton_sweep", "triton_gradient")
    sweep, gradient = (vars(_import_triton(name)[0]) for name in names)
    return Backend(
        "triton",
        sweep["sweep"],
        gradient["logit_gradient"],
        sweep["kept_exponentials"],
        gradient["gradient_of_kept"],
        gradient["finish_unit"],
    )


def row_backend(like: Tensor) -> Backend:
    """The backend for tensors like this one; ``reference`` has none and gives ``chunked``."""
    return _triton_backend() if choose(like) == "triton" else chunked.BACKEND


def triton_module(like: Tensor, module: str) -> Any:
    """The Triton module for tensors like this one, or None where another implementation runs."""
    if (like.is_cuda or forced() == "triton") and choose(like, module) == "triton":
        return _import_triton(module)[0]
    return None


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
