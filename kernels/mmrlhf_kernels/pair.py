"""The objective over pairs and its gradient per sequence, in closed form and without autograd."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_pairs
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.reference import PAIR_KINDS, label_probability
from mmrlhf_kernels.registry import define_operator

__all__ = ["LOSSES", "Columns", "Evaluation", "Objective", "Totals", "evaluate"]

LOSSES = (*PAIR_KINDS, "bco")
SFT_MEANS = ("token", "sequence")


class Objective(NamedTuple):
    """The plain values of the objective; see :mod:`mmrlhf_kernels.preference`."""

    loss: str
    label_smoothing: float
    sft_weight: float
    sft: str
    reward_shift: float

    @property
    def opposite(self) -> bool:
        """Whether dL/dS_r = -dL/dS_c for every pair: the loss sees it through delta alone."""
        return self.loss in PAIR_KINDS and not self.sft_weight

    def check(self, *, counted: bool) -> None:
        """Raise unless the options make sense together.

        Raises:
            ValueError: They do not.
        """
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; expected one of {', '.join(LOSSES)}")
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

    reference_chosen: Tensor
    reference_rejected: Tensor
    beta: Tensor
    tie: Tensor | None
    weight: Tensor | None
    chosen_tokens: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Columns":
        """``function`` of each column that is given."""
        return Columns(
            function(self.reference_chosen),
            function(self.reference_rejected),
            function(self.beta),
            *(None if column is None else function(column) for column in self[3:]),
        )

    def ratios(self, chosen_logp: Tensor, rejected_logp: Tensor) -> tuple[Tensor, Tensor]:
        """(S_c - reference_c, S_r - reference_r), without gradient, in the columns' precision."""
        dtype = self.beta.dtype
        return (
            chosen_logp.detach().to(dtype) - self.reference_chosen,
            rejected_logp.detach().to(dtype) - self.reference_rejected,
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
    kind: str,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """:func:`mmrlhf_kernels.reference.pair_loss` by the implementation chosen for it."""
    return dispatch.pair_loss(delta)(delta, beta, tie, weight, kind, label_smoothing)


def _pair_loss_fake(delta: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Uninitialised results of :func:`_pair_loss`."""
    return torch.empty_like(delta), torch.empty_like(delta)


pair_loss = define_operator("pair_loss", _pair_loss, _pair_loss_fake)


def _logistic(argument: Tensor) -> tuple[Tensor, Tensor]:
    """(softplus(-a), its derivative -sigmoid(-a)), both stable."""
    return -functional.logsigmoid(argument), -torch.sigmoid(-argument)


def _bco(
    chosen: Tensor, rejected: Tensor, columns: Columns, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, d/dS_c, d/dS_r) of each pair under ``bco``, which is no function of delta alone."""
    beta, shift = columns.beta, objective.reward_shift
    probability = torch.full_like(chosen, label_probability(objective.label_smoothing, "bco"))
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
    """What the means are taken over, where the pairs at hand are a part of a batch."""

    pairs: int
    tokens: Tensor | None


def _supervised(
    chosen_logp: Tensor, columns: Columns, objective: Objective, totals: Totals
) -> tuple[Tensor, Tensor]:
    """(L_sft, its gradient with respect to S_c [P])."""
    tokens = columns.chosen_tokens
    if tokens is None or not objective.sft_weight:
        return chosen_logp.new_zeros(()), torch.zeros_like(chosen_logp)
    if objective.sft == "token":
        every = tokens.sum() if totals.tokens is None else totals.tokens
        share = every.clamp(min=1).to(chosen_logp.dtype).reciprocal().expand_as(chosen_logp)
    else:
        share = (tokens.clamp(min=1).to(chosen_logp.dtype) * max(1, totals.pairs)).reciprocal()
    return -(chosen_logp * share).sum(), -share


def evaluate(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    columns: Columns,
    objective: Objective,
    totals: Totals | None = None,
) -> Evaluation:
    """The objective of :mod:`mmrlhf_kernels.preference` for S_c, S_r [P], and its gradient.

    ``totals`` are those of the batch these pairs are a part of; None if they are all.

    Raises:
        ValueError: The options do not fit, or ``rejected_logp`` is not [P].
    """
    objective.check(counted=columns.chosen_tokens is not None)
    pairs = chosen_logp.shape[0]
    check_pairs(pairs, chosen_logp.device, rejected_logp=rejected_logp)
    chosen, rejected = columns.ratios(chosen_logp, rejected_logp)
    if objective.loss == "bco":
        losses, of_chosen, of_rejected = _bco(chosen, rejected, columns, objective)
    else:
        losses, of_chosen = pair_loss(
            chosen - rejected, columns.beta, columns.tie, columns.weight,
            objective.loss, objective.label_smoothing,
        )  # fmt: skip
        of_rejected = -of_chosen
    totals = Totals(pairs, None) if totals is None else totals
    count = max(1, totals.pairs)
    logp = chosen_logp.detach().to(statistics_dtype(chosen_logp.dtype))
    sft_loss, of_sft = _supervised(logp, columns, objective, totals)
    preference_loss = losses.sum() / count
    return Evaluation(
        preference_loss + objective.sft_weight * sft_loss,
        preference_loss,
        sft_loss,
        of_chosen / count + objective.sft_weight * of_sft,
        of_rejected / count,
    )
