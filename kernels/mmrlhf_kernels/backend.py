"""What the schedules ask of a backend: a table of five functions that touch logits.

The schedules (:mod:`mmrlhf_kernels.schedules`) are written once. :class:`Backend` lists the steps
that touch logits; the matrix products between them (``dX += E W_c`` and ``dW_c = E^T X``) belong to
the schedules. The tables are :data:`mmrlhf_kernels.chunked.BACKEND` (plain PyTorch, any device) and
:func:`mmrlhf_kernels.dispatch.row_backend`'s of the Triton kernels. Functions of a table hold no
state and are deterministic.

Symbols: ``N`` rows, ``H`` hidden size, ``V`` vocabulary rows held here, ``C`` rows of one
vocabulary chunk. Raw logits are ``raw = h . w + b``; the logits of the model are

    z = logit_scale * raw                              without a softcap
    z = softcap * tanh(logit_scale * raw / softcap)    with one

Sums and statistics are float32, or float64 where ``hidden`` is float64 and the backend can do it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LIFT",
    "NO_EXTRAS",
    "Backend",
    "Block",
    "Extras",
    "HeadOptions",
    "KeptBlock",
    "LossGradient",
    "Sweep",
    "lift_of",
    "logp_of",
    "lse_of",
    "raised_units",
]

LIFT = 15.0 * math.log(2.0)
"""Exponentials in float16 go up to 2^15, so that those down to 2^-29 of the largest are normal."""


def lift_of(dtype: torch.dtype) -> float:
    """What the exponents of kept exponentials of a dtype are raised by."""
    return LIFT if dtype == torch.float16 else 0.0


class HeadOptions(NamedTuple):
    """How raw logits become the logits of the model: scale first, then the softcap."""

    softcap: float | None = None
    logit_scale: float = 1.0


class Block(NamedTuple):
    """Rows and the vocabulary rows they meet."""

    hidden: Tensor
    """[N, H]."""
    weight: Tensor
    """[V, H] or [C, H], dtype of ``hidden``."""
    bias: Tensor | None
    """[V] or [C]."""
    target: Tensor
    """[N] int64 global vocabulary ids; those outside the rows of ``weight`` are no target."""
    options: HeadOptions = HeadOptions()
    first: int = 0
    """Global id of the first row of ``weight``."""

    def columns(self, begin: int, end: int) -> "Block":
        """The same rows and some of the vocabulary rows."""
        bias = None if self.bias is None else self.bias[begin:end]
        weight, first = self.weight[begin:end], self.first + begin
        return self._replace(weight=weight, bias=bias, first=first)


class Extras(NamedTuple):
    """Statistics that a sweep gathers in addition to those of the log-probability."""

    entropy: bool = False
    """Fill ``sum_z_exp``."""
    argmax: bool = False
    """Fill ``argmax``."""


NO_EXTRAS = Extras()


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
    shift: Tensor | None = None
    """[N] float32, where exponentials were kept: what they are taken against."""
    lse: Tensor | None = None
    """[N] float32, where it came out along with the rest; see :func:`lse_of`."""
    logp: Tensor | None = None
    """[N] float32, likewise; see :func:`logp_of`."""


def lse_of(sweep: Sweep) -> Tensor:
    """[N] log-normalisers of a sweep over the whole vocabulary."""
    return sweep.maximum + sweep.sum_exp.log() if sweep.lse is None else sweep.lse


def logp_of(sweep: Sweep) -> Tensor:
    """[N] log-probabilities of the targets, of a sweep over the whole vocabulary."""
    return sweep.target_logit - lse_of(sweep) if sweep.logp is None else sweep.logp


class LossGradient(NamedTuple):
    """The gradient of the loss by row, as far as logits are concerned, in statistics precision."""

    lse: Tensor
    """[N] log-normalisers over the whole vocabulary."""
    grad: Tensor | None
    """[N] gradient of the loss with respect to ``logp``; None with ``unit``."""
    of_entropy: Tensor | None = None
    """[N] gradient with respect to the entropy; None where it carries none."""
    entropy: Tensor | None = None
    """[N], with ``of_entropy``."""
    unit: float | None = None
    """A number: the result is ``unit * exp(z - lse) dz/draw``, and 0 at targets, for any ``lse``.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> "LossGradient":
        """The same with ``function`` of each column."""
        parts: list[Any] = [function(part) if isinstance(part, Tensor) else part for part in self]
        return LossGradient(*parts)


class KeptBlock(NamedTuple):
    """Exponentials of one chunk and what turns them into gradients."""

    exponentials: Tensor
    """[N, C] ``exp(z - shift)``."""
    shift: Tensor
    """[N]."""
    target: Tensor
    """[N], like ``options`` and ``first`` as in :class:`Block`."""
    options: HeadOptions
    first: int
    target_logit: Tensor | None = None
    """[N], needed with a softcap and targets: the exponential of a target may be 0, the slope at
    its logit is not."""


class Backend(NamedTuple):
    """The steps that see logits. ``out`` [N, C] is overwritten and returned."""

    name: str

    sweep: Callable[[Block, Extras], Sweep]
    """One pass over the weight of a block."""

    logit_gradient: Callable[[Block, LossGradient, Tensor], Tensor]
    """(block, rows, out): the gradient with respect to the raw logits of one chunk, in the dtype of
    ``hidden`` or of the statistics:

    ``E[n, c] = dz/draw[n, c] * (grad[n] * (1[target[n] == first + c] - p) - dH[n] p (log p + H))``
    with ``p = exp(z[n, c] - lse[n])``, dH = ``of_entropy`` and H = ``entropy``.
    """

    kept_exponentials: Callable[[Block, Extras, Tensor], Sweep]
    """(block, extras, out): write ``exp(z - shift)`` of one chunk to ``out``, in the dtype of
    ``hidden`` or of the statistics, and return the chunk's sweep with its ``shift``, the row's
    largest z, less :data:`LIFT` where ``out`` is float16.

    A half-width exponential is off by a constant share of itself; a half-width z would be off by a
    share of z, which changes its exponential the more, the smaller that is.
    """

    gradient_of_kept: Callable[[KeptBlock, LossGradient, Tensor], Tensor]
    """(kept, rows, out): ``logit_gradient`` from kept exponentials; ``out`` may be those."""

    finish_unit: Callable[[Block, Sweep, Tensor, Tensor | None], Tensor]
    """(block, sweep, total, grad): the gradient with respect to hidden states [N, H] from
    ``total``, the sum of the rows of ``weight`` times :func:`raised_units` times their exponentials
    against the row's maximum and ``dz/draw``, those of targets left out:
    ``grad ((1 - p_y) W_y dz_y/draw - total / (raised * sum_exp))``, rounded to the
    :func:`mmrlhf_kernels.precision.gradient_dtype` of ``hidden``. ``grad`` None is 1; ``total`` may
    be overwritten.
    """


def raised_units(dtype: torch.dtype, options: HeadOptions) -> float:
    """What exponentials up to 1 are multiplied by so that float16 keeps those far below 1."""
    return 2.0**14 / max(1.0, abs(options.logit_scale)) if dtype == torch.float16 else 1.0
