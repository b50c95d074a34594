"""The Triton backend: the steps that see logits, as :mod:`mmrlhf_kernels.backend` asks.

Importing this module needs Triton and no device. Running it needs a GPU, or ``TRITON_INTERPRET=1``
in the environment before the import; without either every call says so in one sentence.
"""

from torch import Tensor

from mmrlhf_kernels.backend import HeadOptions, Sweep
from mmrlhf_kernels.triton_logit_gradient import logit_gradient
from mmrlhf_kernels.triton_shifted import shifted_gradient, shifted_logits
from mmrlhf_kernels.triton_sweep import sweep

__all__ = ["BACKEND", "TritonBackend"]


class TritonBackend:
    """Triton kernels on NVIDIA and AMD GPUs; see the protocol for what each method does.

    Launch settings come from :mod:`mmrlhf_kernels.triton_settings`; override them there.
    """

    name = "triton"

    def sweep(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        options: HeadOptions,
        *,
        first: int,
        entropy: bool,
        argmax: bool,
        tile: int | None,
    ) -> Sweep:
        """See :meth:`mmrlhf_kernels.backend.Backend.sweep`."""
        return sweep(
            hidden,
            weight,
            bias,
            target,
            options,
            first=first,
            entropy=entropy,
            argmax=argmax,
            tile=tile,
        )

    def logit_gradient(
        self,
        hidden: Tensor,
        weight_chunk: Tensor,
        bias_chunk: Tensor | None,
        target: Tensor,
        lse: Tensor,
        grad: Tensor,
        options: HeadOptions,
        *,
        first: int,
        out: Tensor,
    ) -> Tensor:
        """See :meth:`mmrlhf_kernels.backend.Backend.logit_gradient`."""
        return logit_gradient(
            hidden, weight_chunk, bias_chunk, target, lse, grad, options, first=first, out=out
        )

    def shifted_logits(
        self,
        hidden: Tensor,
        weight_chunk: Tensor,
        bias_chunk: Tensor | None,
        target: Tensor,
        options: HeadOptions,
        *,
        first: int,
        entropy: bool,
        argmax: bool,
        out: Tensor,
    ) -> Sweep:
        """See :meth:`mmrlhf_kernels.backend.KeepingBackend.shifted_logits`."""
        return shifted_logits(
            hidden,
            weight_chunk,
            bias_chunk,
            target,
            options,
            first=first,
            entropy=entropy,
            argmax=argmax,
            out=out,
        )

    def shifted_gradient(
        self,
        shifted: Tensor,
        maximum: Tensor,
        target: Tensor,
        lse: Tensor,
        grad: Tensor,
        options: HeadOptions,
        *,
        first: int,
        out: Tensor,
    ) -> Tensor:
        """See :meth:`mmrlhf_kernels.backend.KeepingBackend.shifted_gradient`."""
        return shifted_gradient(shifted, maximum, target, lse, grad, options, first=first, out=out)


BACKEND = TritonBackend()
