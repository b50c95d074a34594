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
"""

import functools
import importlib
import logging
import os
from typing import Any

import torch
from torch import Tensor

from mmrlhf_kernels import chunked
from mmrlhf_kernels.backend import Backend

__all__ = ["IMPLEMENTATIONS", "choose", "row_backend", "triton_module"]

IMPLEMENTATIONS = ("reference", "chunked", "triton")
VARIABLE = "MMRLHF_KERNELS"

log = logging.getLogger("mmrlhf_kernels")


def forced() -> str | None:
    """The implementation named by the environment, or None.

    Raises:
        ValueError: The variable names no implementation.
    """
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
