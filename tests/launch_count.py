"""Counts what a call would launch on a GPU and how often its host would wait.

A dispatch mode sees every operator of torch, those inside this package's own operators included;
operators that only make a view or allocate are left out. Kernels of Triton are counted where they
are launched. Run in Triton's interpreter, a call takes the path that it takes on a GPU.
"""

import collections
from importlib import import_module
from unittest import mock

from torch.utils._python_dispatch import TorchDispatchMode

FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh", "new_empty",
    "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip
READS = {"_local_scalar_dense", "bincount", "equal", "is_nonzero", "nonzero"}
"""Operators whose result, or the size of whose result, the host has to wait for."""


BODIES = {
    "linear_logp_forward": "operators._forward",
    "linear_mm_dpo": "pair_operator._linear_mm_dpo",
    "pair_objective": "pair._pair_objective",
}
"""The functions behind the package's operators."""


def body_of(operator):
    """The function behind an operator of the package."""
    module, name = BODIES[operator].split(".")
    return getattr(import_module(f"mmrlhf_kernels.{module}"), name)


class LaunchCount(TorchDispatchMode):
    """Counts operators and launches while it is on."""

    def __init__(self):
        super().__init__()
        self.operators = collections.Counter()
        self.kernels = collections.Counter()

    @property
    def launches(self):
        """Operators of torch and kernels of Triton that a GPU would be given."""
        passed_over = FREE | {"_local_scalar_dense", "is_nonzero"}
        operators = sum(n for name, n in self.operators.items() if name not in passed_over)
        return operators + self.kernels.total()

    @property
    def reads(self):
        """How often the host would wait for the device."""
        return sum(n for name, n in self.operators.items() if name in READS)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if func.namespace == "mmrlhf_kernels":
            with self:  # an operator of this package is counted by what it is made of
                return body_of(name)(*args, **(kwargs or {}))
        self.operators[name] += 1
        return func(*args, **(kwargs or {}))


def counted(call):
    """(launches, host reads, kernels of Triton by name) of a call."""
    from mmrlhf_kernels.triton_tile import Launch

    run = Launch.run
    with LaunchCount() as count:

        def counting(launch):
            count.kernels[launch.kernel.__name__] += 1
            # What the interpreter does to run a kernel is no launch.
            before = count.operators.copy()
            run(launch)
            count.operators = before

        with mock.patch.object(Launch, "run", counting):
            call()
    return count.launches, count.reads, dict(count.kernels)
