"""What the schedules ask of a backend: one sweep over the vocabulary, one gradient per chunk.

The schedules (:mod:`mmrlhf_kernels.schedules`) are written once. A backend supplies the two steps
that touch logits, and both keep them out of memory:

1. ``sweep``: per row the running maximum, the sum of exponentials and the target's logit.
2. ``logit_gradient``: once the log-normaliser is known, the gradient of one vocabulary chunk.

The matrix products between those steps (``dX += E W_c`` and ``dW_c = E^T X``) belong to the
schedules. Backends are :mod:`mmrlhf_kernels.chunked` (plain PyTorch, any device) and
``mmrlhf_kernels.triton_backend``.

Symbols: ``N`` rows, ``H`` hidden size, ``V`` vocabulary rows held here, ``C`` rows of one
vocabulary chunk. Raw logits are ``raw = h . w + b``; the logits of the model are

    z = logit_scale * raw                              without a softcap
    z = softcap * tanh(logit_scale * raw / softcap)    with one

Sums and statistics are float32, or float64 where ``hidden`` is float64 and the backend can do it.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Backend", "HeadOptions", "KeepingBackend", "Sweep"]


class HeadOptions(NamedTuple):
    """How raw logits become the logits of the model: scale first, then the softcap."""

    softcap: float | None = None
    logit_scale: float = 1.0


class Sweep(NamedTuple):
    """What one pass over the vocabulary, or over a shard of it, leaves per row.

    ``lse = maximum + log(sum_exp)``, ``logp = target_logit - lse`` and
    ``entropy = lse - sum_z_exp / sum_exp``.
    """

    maximum: Tensor
    """[N] float32, the largest z."""
    sum_exp: Tensor
    """[N] float32, sum of exp(z - maximum)."""
    target_logit: Tensor
    """[N] float32, z at the target; 0 where the target lies outside this shard."""
    sum_z_exp: Tensor | None = None
    """[N] float32, sum of z exp(z - maximum), when the entropy was requested."""
    argmax: Tensor | None = None
    """[N] int64, global id of the largest z (the smallest id on equality), when requested."""
    tile_maximum: Tensor | None = None
    """[N, ceil(V / tile)] bfloat16, the largest z per tile, rounded up, when a tile was given."""


class Backend(Protocol):
    """The two steps that see logits. Implementations hold no state and are deterministic."""

    name: str

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
        """Pass once over the vocabulary rows ``first .. first + V``.

        Args:
            hidden: [N, H].
            weight: [V, H], dtype of ``hidden``.
            bias: [V] or None.
            target: [N] int64 global vocabulary ids; those outside the shard leave 0.
            options: Scale and softcap.
            first: Global id of the first row of ``weight``.
            entropy: Fill ``sum_z_exp``.
            argmax: Fill ``argmax``.
            tile: Width of the tiles of ``tile_maximum``, or None for none.
        """
        ...

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
        """Write the gradient with respect to the raw logits of one vocabulary chunk.

        ``E[n, c] = grad[n] * (1[target[n] == first + c] - exp(z[n, c] - lse[n])) * dz/draw[n, c]``

        Args:
            hidden: [N, H].
            weight_chunk: [C, H], dtype of ``hidden``.
            bias_chunk: [C] or None.
            target: [N] int64 global vocabulary ids.
            lse: [N] float32 log-normalisers over the whole vocabulary.
            grad: [N] float32 gradient of the loss with respect to ``logp``.
            options: Scale and softcap.
            first: Global id of the first row of the chunk.
            out: [N, C], dtype of ``hidden``; overwritten and returned.
        """
        ...


@runtime_checkable
class KeepingBackend(Backend, Protocol):
    """A backend that can also return the logits of a chunk, for schedules that keep them.

    Logits are kept shifted, as ``z - maximum`` of their row within the chunk: near the top, where
    probabilities are large, a half-width float then has its finest steps.
    """

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
        """Write ``z - maximum`` of one vocabulary chunk to ``out`` and return the chunk's sweep.

        Arguments as in :meth:`Backend.sweep`; ``out`` is [N, C], dtype of ``hidden``.
        """
        ...

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
        """:meth:`Backend.logit_gradient` from kept logits instead of from the weight.

        Args:
            shifted: [N, C] as :meth:`shifted_logits` wrote it.
            maximum: [N] float32, the chunk's maximum.
            target: As in :meth:`Backend.logit_gradient`.
            lse: As there.
            grad: As there.
            options: As there.
            first: As there.
            out: [N, C], dtype of ``shifted``; may be ``shifted`` itself.
        """
        ...
