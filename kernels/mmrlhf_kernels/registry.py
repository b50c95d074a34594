"""Registers custom operators with torch: opaque to the compiler, with a fake implementation.

``torch.library.custom_op`` would do the same and import the whole compiler at the operator's first
call, six seconds of it; these are the calls it is made of. Results must not share memory with each
other or with an argument, which ``torch.library.opcheck`` holds in the tests.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["define_operator"]

NAMESPACE = "mmrlhf_kernels"
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def define_operator(
    name: str, function: Callable[Parameters, Result], fake: Callable[..., Result]
) -> Callable[Parameters, Result]:
    """Register ``mmrlhf_kernels::name`` for every device and return the operator.

    Args:
        name: Of the operator within the namespace.
        function: Its body; the schema is read from the annotations. It mutates no argument.
        fake: Gives results of the right shapes and dtypes from the same arguments, for tracing.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(qualified, "CompositeExplicitAutograd")(function)
    torch.library.register_fake(qualified)(fake)
    operator: Callable[Parameters, Result] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator
