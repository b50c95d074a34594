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
Arguments of the same name mean the same in all functions:

============  ====================================================================================
hidden        [N, H]
weight        [V, H] or [C, H], dtype of ``hidden``
bias          [V] or [C], or None
target        [N] int64 global vocabulary ids; those outside the rows of ``weight`` are no target
options       scale and softcap
first         global id of the first row of ``weight``
entropy       whether ``sum_z_exp`` is wanted
argmax        whether ``argmax`` is wanted
lse           [N] log-normalisers over the whole vocabulary, statistics dtype
grad          [N] gradient of the loss with respect to ``logp``, statistics dtype
spread        None, or (gradient of the loss with respect to the entropy, entropy), [N] each
out           [N, C] in the dtype of ``hidden`` or of the statistics; overwritten and returned
============  ====================================================================================
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LIFT", "Backend", "HeadOptions", "Spread", "Sweep", "lift_of", "logp_of", "lse_of"]

LIFT = 15.0 * math.log(2.0)
"""Exponentials in float16 go up to 2^15, so that those down to 2^-29 of the largest are normal."""

Spread = tuple[Tensor, Tensor] | None
"""(gradient with respect to the entropy, entropy), [N] each; None where it carries none."""


def lift_of(dtype: torch.dtype) -> float:
    """What the exponents of kept exponentials of a dtype are raised by."""
    return LIFT if dtype == torch.float16 else 0.0


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


class Backend(NamedTuple):
    """The steps that see logits."""

    name: str

    sweep: Callable[..., Sweep]
    """(hidden, weight, bias, target, options, *, first, entropy, argmax): one pass over ``weight``.
    """

    logit_gradient: Callable[..., Tensor]
    """(hidden, weight, bias, target, lse, grad, options, *, first, out, spread): the gradient with
    respect to the raw logits of one chunk.

    ``E[n, c] = dz/draw[n, c] * (grad[n] * (1[target[n] == first + c] - p) - dH[n] p (log p + H))``
    with ``p = exp(z[n, c] - lse[n])`` and dH, H the two parts of ``spread``.
    """

    kept_exponentials: Callable[..., Sweep]
    """(hidden, weight, bias, target, options, *, first, entropy, argmax, out): write
    ``exp(z - shift)`` of one chunk to ``out`` and return the chunk's sweep with its ``shift``, the
    row's largest z, less :data:`LIFT` where ``out`` is float16.

    A half-width exponential is off by a constant share of itself; a half-width z would be off by a
    share of z, which changes its exponential the more, the smaller that is.
    """

    gradient_of_kept: Callable[..., Tensor]
    """(kept, shift, target, lse, grad, options, *, first, out, spread, target_logit):
    ``logit_gradient`` from kept exponentials [N, C] and their shift [N]; ``out`` may be ``kept``
    itself. With a softcap and targets, ``target_logit`` [N] is needed: the exponential of a target
    may be 0, the slope at its logit is not.

    With ``unit``, a number, the result is ``unit * exp(z - lse) dz/draw``, and 0 at targets, for
    any ``lse``; there is no ``grad`` then.
    """

    finish_unit: Callable[..., Tensor]
    """(total, sweep, weight, target, grad, options, raised, dtype): the gradient with respect to
    hidden states [N, H] from ``total``, the sum of the rows of ``weight`` times ``raised`` times
    their exponentials against the row's maximum and ``dz/draw``, those of targets left out:
    ``grad ((1 - p_y) W_y dz_y/draw - total / (raised * sum_exp))``, rounded to ``dtype``.
    ``grad`` None is 1; ``total`` may be overwritten.
    """
