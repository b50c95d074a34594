"""The objective over pairs and its gradient per sequence, in closed form and without autograd."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_pairs, check_shape
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.reference import PAIR_LOSS_TYPES, label_probability
from mmrlhf_kernels.registry import define_operator

__all__ = [
    "LOSS_TYPES",
    "Columns",
    "Evaluation",
    "Objective",
    "Totals",
    "evaluate",
    "scalar_of",
    "totals_of",
]

LOSS_TYPES = (*PAIR_LOSS_TYPES, "bco_pair")
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

    def ratios(self, chosen_logp: Tensor, rejected_logp: Tensor) -> tuple[Tensor, Tensor]:
        """(S_c - ref_c, S_r - ref_r), without gradient, in the columns' precision."""
        dtype = self.beta.dtype
        return (
            chosen_logp.detach().to(dtype) - self.ref_chosen_logps,
            rejected_logp.detach().to(dtype) - self.ref_rejected_logps,
        )


class Evaluation(NamedTuple):
    """The objective and its gradient."""

    loss: Tensor
    preference_loss: Tensor
    sft_loss: Tensor
    chosen_gradient: Tensor
    rejected_gradient: Tensor


def _pair_loss(
    delta: Tensor,
    beta: Tensor,
    tie: Tensor | None,
    weight: Tensor | None,
    loss_type: str,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """:func:`mmrlhf_kernels.reference.pair_loss` by the implementation chosen for it."""
    return dispatch.pair_loss(delta)(delta, beta, tie, weight, loss_type, label_smoothing)


def _pair_loss_fake(delta: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Uninitialised results of :func:`_pair_loss`."""
    return torch.empty_like(delta), torch.empty_like(delta)


pair_loss = define_operator("pair_loss", _pair_loss, _pair_loss_fake)


def _logistic(argument: Tensor) -> tuple[Tensor, Tensor]:
    """(softplus(-a), its derivative -sigmoid(-a)), both stable."""
    return -functional.logsigmoid(argument), -torch.sigmoid(-argument)


def _bco_pair(
    chosen: Tensor, rejected: Tensor, columns: Columns, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, d/dS_c, d/dS_r) of each pair under ``bco_pair``, no function of delta alone."""
    beta, shift = columns.beta, objective.reward_shift
    probability = torch.full_like(chosen, label_probability(objective.label_smoothing, "bco_pair"))
    if columns.tie is not None:
        probability = probability.masked_fill(columns.tie, 0.5)
    other = 1.0 - probability
    good, bad = beta * chosen - shift, beta * rejected - shift
    good_up, good_up_slope = _logistic(good)
    good_down, good_down_slope = _logistic(-good)
    bad_up, bad_up_slope = _logistic(bad)
    bad_down, bad_down_slope = _logistic(-bad)
    loss = probability * (good_up + bad_down) + other * (bad_up + good_down)
    of_chosen = beta * (probability * good_up_slope - other * good_down_slope)
    of_rejected = beta * (other * bad_up_slope - probability * bad_down_slope)
    if columns.weight is None:
        return loss, of_chosen, of_rejected
    return loss * columns.weight, of_chosen * columns.weight, of_rejected * columns.weight


class Totals(NamedTuple):
    """Divisors of the means."""

    pairs: int | Tensor
    """What the pair losses, and the supervised terms of sequences, are divided by."""
    tokens: Tensor | None
    """Scalar, what the supervised terms of tokens are divided by; None without such a term."""


def scalar_of(name: str, value: float | Tensor | None, like: Tensor) -> Tensor | None:
    """``num_pairs`` or ``num_tokens`` as a scalar beside ``like``, in its statistics precision.

    A tensor is not read: on a GPU the host would wait for it.

    Raises:
        ValueError: A number is negative or not finite; a tensor is no scalar or lies elsewhere.
    """
    if value is None:
        return None
    dtype = statistics_dtype(like.dtype)
    if not isinstance(value, Tensor):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number, at least 0")
        return torch.full((), value, dtype=dtype, device=like.device)
    check_shape(name, value, ())
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}; expected {like.device}")
    return value.detach().to(dtype)


def totals_of(
    columns: Columns, objective: Objective, num_pairs: Tensor | None, num_tokens: Tensor | None
) -> Totals:
    """The divisors: what is given, else the pairs and chosen tokens at hand; 1 in place of 0."""
    pairs = max(1, columns.beta.shape[0]) if num_pairs is None else _one_for_zero(num_pairs)
    if columns.chosen_tokens is None or not objective.sft_weight or objective.sft != "token":
        return Totals(pairs, None)
    tokens = columns.chosen_tokens.sum() if num_tokens is None else num_tokens
    return Totals(pairs, _one_for_zero(tokens))


def _one_for_zero(total: Tensor) -> Tensor:
    """The total, or 1 where nothing was counted: an empty mean is 0."""
    return torch.where(total > 0, total, 1.0)


def _supervised(
    chosen_logp: Tensor, columns: Columns, objective: Objective, totals: Totals
) -> tuple[Tensor, Tensor]:
    """(L_sft, its gradient with respect to S_c [P])."""
    if columns.chosen_tokens is None or not objective.sft_weight:
        return chosen_logp.new_zeros(()), torch.zeros_like(chosen_logp)
    if totals.tokens is not None:
        share = totals.tokens.reciprocal().expand_as(chosen_logp)
    else:
        share = (columns.chosen_tokens.clamp(min=1) * totals.pairs).reciprocal()
    return -(chosen_logp * share).sum(), -share


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
    objective.check(counted=columns.chosen_tokens is not None)
    check_pairs(chosen_logp.shape[0], chosen_logp.device, rejected_logp=rejected_logp)
    chosen, rejected = columns.ratios(chosen_logp, rejected_logp)
    if objective.loss_type == "bco_pair":
        losses, of_chosen, of_rejected = _bco_pair(chosen, rejected, columns, objective)
    else:
        losses, of_chosen = pair_loss(
            chosen - rejected, columns.beta, columns.tie, columns.weight,
            objective.loss_type, objective.label_smoothing,
        )  # fmt: skip
        of_rejected = -of_chosen
    logp = chosen_logp.detach().to(statistics_dtype(chosen_logp.dtype))
    sft_loss, of_sft = _supervised(logp, columns, objective, totals)
    preference_loss = losses.sum() / totals.pairs
    return Evaluation(
        preference_loss + objective.sft_weight * sft_loss,
        preference_loss,
        sft_loss,
        of_chosen / totals.pairs + objective.sft_weight * of_sft,
        of_rejected / totals.pairs,
    )
