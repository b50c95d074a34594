"""The objective over pairs and its gradient per sequence, in closed form and without autograd.

One operator does it, ``pair_objective``: on a GPU it is the kernel of
:mod:`mmrlhf_kernels.mm_dpo_kernel`, elsewhere :mod:`mmrlhf_kernels.mm_dpo_plain`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_pairs, check_shape
from mmrlhf_kernels.mm_dpo_plain import (
    COLUMNS,
    FIGURES,
    Numbers,
    PairCall,
    Result,
    evaluate_plain,
)
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.reference import PAIR_LOSS_TYPES, TWO_SIDED_LOSS_TYPES
from mmrlhf_kernels.registry import define_operator

__all__ = [
    "LOSS_TYPES",
    "Columns",
    "Evaluation",
    "Metrics",
    "Objective",
    "Totals",
    "answer_gradient",
    "check_count",
    "evaluate",
    "pair_objective",
    "scalar_of",
    "totals_of",
]

LOSS_TYPES = (*PAIR_LOSS_TYPES, *TWO_SIDED_LOSS_TYPES)
SFT_MEANS = ("token", "sequence")


class Objective(NamedTuple):
    """The plain values of the objective; see :mod:`mmrlhf_kernels.preference`."""

    loss_type: str
    label_smoothing: float
    sft_weight: float
    sft: str
    reward_shift: float

    @property
    def opposite(self) -> bool:
        """Whether dL/dS_r = -dL/dS_c for every pair: the loss sees it through delta alone."""
        return self.loss_type in PAIR_LOSS_TYPES and not self.sft_weight

    def check(self, *, counted: bool) -> None:
        """Raise unless the options make sense together.

        Raises:
            ValueError: They do not.
        """
        if self.loss_type not in LOSS_TYPES:
            names = ", ".join(LOSS_TYPES)
            raise ValueError(f"unknown loss_type {self.loss_type!r}; expected one of {names}")
        if self.sft not in SFT_MEANS:
            raise ValueError(f"unknown sft {self.sft!r}; expected one of {', '.join(SFT_MEANS)}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected 0 <= e < 1/2")
        if self.sft_weight < 0.0:
            raise ValueError(f"sft_weight is {self.sft_weight}; expected at least 0")
        if self.sft_weight and not counted:
            raise ValueError("sft_weight is set, so chosen_tokens [P] is needed to take the mean")


class Columns(NamedTuple):
    """What is known of each pair beforehand, all [P]."""

    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    beta: Tensor
    tie: Tensor | None
    weight: Tensor | None
    chosen_tokens: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Columns":
        """``function`` of each column that is given."""
        return Columns(
            function(self.ref_chosen_logps),
            function(self.ref_rejected_logps),
            function(self.beta),
            *(None if column is None else function(column) for column in self[3:]),
        )


class Metrics(NamedTuple):
    """What is logged; fields as in :class:`mmrlhf_kernels.preference.MMDPOOutput`."""

    preference_loss: Tensor
    sft_loss: Tensor
    beta_mean: Tensor
    beta_min: Tensor
    beta_max: Tensor
    tie_count: Tensor
    weight_sum: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins: Tensor
    accuracies: Tensor
    chosen_logp: Tensor
    rejected_logp: Tensor
    beta: Tensor


class Evaluation(NamedTuple):
    """The objective, its gradient and what is logged."""

    loss: Tensor
    gradient: Tensor
    """[2, P] with respect to S_c and S_r."""
    metrics: Metrics

    @property
    def chosen_gradient(self) -> Tensor:
        """dL/dS_c [P]."""
        return self.gradient[0]

    @property
    def rejected_gradient(self) -> Tensor:
        """dL/dS_r [P]."""
        return self.gradient[1]


class Totals(NamedTuple):
    """Divisors of the means."""

    pairs: int | Tensor
    """What the pair losses, and the supervised terms of sequences, are divided by."""
    tokens: Tensor | None
    """Scalar, what the supervised terms of tokens are divided by; None without such a term."""


def check_count(
    name: str, value: float | Tensor | None, like: Tensor
) -> tuple[Tensor | None, float]:
    """``num_pairs`` or ``num_tokens`` as a scalar tensor or a number; -1 where it is not a number.

    A tensor is not read: on a GPU the host would wait for it.

    Raises:
        ValueError: A number is negative or not finite; a tensor is no scalar or lies elsewhere.
    """
    if value is None:
        return None, -1.0
    if not isinstance(value, Tensor):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number, at least 0")
        return None, float(value)
    check_shape(name, value, ())
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}; expected {like.device}")
    return value.detach(), -1.0


def scalar_of(name: str, value: float | Tensor | None, like: Tensor) -> Tensor | None:
    """``num_pairs`` or ``num_tokens`` as a scalar beside ``like``, in its statistics precision.

    Raises:
        ValueError: As :func:`check_count` does.
    """
    tensor, number = check_count(name, value, like)
    dtype = statistics_dtype(like.dtype)
    if tensor is not None:
        return tensor.to(dtype)
    return None if number < 0 else torch.full((), number, dtype=dtype, device=like.device)


def totals_of(
    columns: Columns, objective: Objective, num_pairs: Tensor | None, num_tokens: Tensor | None
) -> Totals:
    """The divisors: what is given, else the pairs and chosen tokens at hand."""
    pairs = columns.beta.shape[0] if num_pairs is None else num_pairs
    if columns.chosen_tokens is None or not objective.sft_weight or objective.sft != "token":
        return Totals(pairs, None)
    return Totals(pairs, columns.chosen_tokens.sum() if num_tokens is None else num_tokens)


def _pair_objective(
    logp: Tensor,
    rejected_logp: Tensor | None,
    cu_seqlens: Tensor | None,
    chosen: Tensor | None,
    rejected: Tensor | None,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: Tensor | None,
    margin: Tensor | None,
    tie: Tensor | None,
    weight: Tensor | None,
    chosen_tokens: Tensor | None,
    num_pairs: Tensor | None,
    num_tokens: Tensor | None,
    loss_type: str,
    sft: str,
    average: bool,
    numbers: list[float],
) -> Result:
    """A :class:`PairCall`, field by field, by the implementation chosen for it."""
    call = PairCall(
        logp, rejected_logp, cu_seqlens, chosen, rejected, ref_chosen_logps, ref_rejected_logps,
        beta, margin, tie, weight, chosen_tokens, num_pairs, num_tokens, loss_type, sft, average,
        numbers,
    )  # fmt: skip
    kernel = dispatch.triton_module(logp, "mm_dpo_kernel") if call.pairs else None
    if kernel is None:
        return evaluate_plain(call)
    found: Result = kernel.evaluate(call)
    return found


def _pair_objective_fake(*fields: Any) -> Result:
    """Uninitialised results of :func:`_pair_objective`."""
    call = PairCall(*fields)
    like = torch.empty_like(call.ref_chosen_logps, dtype=statistics_dtype(call.logp.dtype))
    return (
        like.new_empty(()),
        like.new_empty(len(FIGURES)),
        like.new_empty((len(COLUMNS), call.pairs)),
        like.new_empty(call.gradient_shape()),
    )


pair_objective = define_operator("pair_objective", _pair_objective, _pair_objective_fake)


def evaluate(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    columns: Columns,
    objective: Objective,
    totals: Totals,
) -> Evaluation:
    """The objective of :mod:`mmrlhf_kernels.preference` for S_c, S_r [P], and its gradient.

    Raises:
        ValueError: The options do not fit, or ``rejected_logp`` is not [P].
    """
    check_pairs(chosen_logp.shape[0], chosen_logp.device, rejected_logp=rejected_logp)
    loss, figures, values, gradient = pair_objective(
        chosen_logp.detach(), rejected_logp.detach(), None, None, None,
        *_operands(columns, objective, totals),
    )  # fmt: skip
    return Evaluation(loss, gradient, Metrics(*figures.unbind(), *values.unbind()))


def answer_gradient(
    logp: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    columns: Columns,
    objective: Objective,
    totals: Totals,
) -> Tensor:
    """dL/dlogp [S] of pairs ``chosen`` and ``rejected`` [P] among the sums ``logp`` [S] of answers.

    An answer may belong to several pairs or to none.
    """
    operands = _operands(columns, objective, totals)
    gradient: Tensor = pair_objective(logp, None, None, chosen, rejected, *operands)[3]
    return gradient


def _operands(columns: Columns, objective: Objective, totals: Totals) -> tuple[Any, ...]:
    """The fields of a :class:`PairCall` from the columns on."""
    objective.check(counted=columns.chosen_tokens is not None)
    known = isinstance(totals.pairs, int)
    numbers = Numbers(
        objective.label_smoothing, objective.sft_weight, objective.reward_shift, 1.0, 0.0, 0.0,
        float(totals.pairs) if known else -1.0, -1.0,
    )  # fmt: skip
    return (
        columns.ref_chosen_logps, columns.ref_rejected_logps, columns.beta, None, columns.tie,
        columns.weight, columns.chosen_tokens, None if known else totals.pairs, totals.tokens,
        objective.loss_type, objective.sft, False, list(numbers),
    )  # fmt: skip
