"""The pair objective in plain PyTorch, its gradient in closed form: any device, float64 too.

:mod:`mmrlhf_kernels.mm_dpo_kernel` takes the same :class:`PairCall` and gives the same results in
one launch. Formulas and names are those of :mod:`mmrlhf_kernels.reference`, to which both are held.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.reference import TWO_SIDED_LOSS_TYPES, dynamic_beta, label_probability
from mmrlhf_kernels.rows import sequence_of_row, sequence_sums

__all__ = [
    "CHOSEN_LOGP",
    "COLUMNS",
    "FIGURES",
    "REJECTED_LOGP",
    "MMDPOOutput",
    "Numbers",
    "PairCall",
    "Result",
    "evaluate_plain",
    "output_of",
]


class MMDPOOutput(NamedTuple):
    """The loss, and what a trainer logs. Only ``loss`` carries a gradient."""

    loss: Tensor
    """Scalar, preference part plus ``sft_weight`` times supervised part."""
    preference_loss: Tensor
    """Scalar, the sum of the weighted pair losses divided by ``num_pairs``."""
    sft_loss: Tensor
    """Scalar before its factor; 0 where ``sft_weight`` is 0."""
    beta_mean: Tensor
    """Scalar."""
    beta_min: Tensor
    """Scalar."""
    beta_max: Tensor
    """Scalar."""
    tie_count: Tensor
    """Scalar, the number of ties."""
    weight_sum: Tensor
    """Scalar, the sum of the weights; P without any."""
    chosen_rewards: Tensor
    """[P] ``beta (S_c - ref_c)``."""
    rejected_rewards: Tensor
    """[P] ``beta (S_r - ref_r)``."""
    margins: Tensor
    """[P] chosen minus rejected rewards."""
    accuracies: Tensor
    """[P] 1 where the margin is positive, else 0; 1/2 for ties."""
    chosen_logp: Tensor
    """[P] S_c."""
    rejected_logp: Tensor
    """[P] S_r."""
    beta: Tensor
    """[P] the beta that was used."""


FIGURES = MMDPOOutput._fields[1:8]
"""The scalars beside the loss, in the order of the operator."""
COLUMNS = MMDPOOutput._fields[8:]
"""The values of each pair, likewise."""
CHOSEN_LOGP, REJECTED_LOGP = COLUMNS.index("chosen_logp"), COLUMNS.index("rejected_logp")

Result = tuple[Tensor, Tensor, Tensor, Tensor]
"""loss [], figures [7], columns [9, P], of which the last two are the gradients of the loss with
respect to S_c and S_r, and that with respect to the log-probabilities: [2, P], or of the shape of
``logp`` where that holds both sides.
"""


PAIR_COLUMNS = (
    "ref_chosen_logps", "ref_rejected_logps", "beta", "margin", "tie", "weight", "chosen_tokens",
)  # fmt: skip
"""Fields of :class:`PairCall` that are [P] or None."""


class Numbers(NamedTuple):
    """The plain numbers of a call."""

    label_smoothing: float
    sft_weight: float
    reward_shift: float
    beta: float
    """beta_ori, or the beta of every pair without margins; unused where the call has betas."""
    w: float
    k: float
    num_pairs: float
    """Below 0: the pairs at hand."""
    num_tokens: float
    """Below 0: the chosen tokens at hand."""


class PairCall(NamedTuple):
    """Operands of the objective; columns are [P].

    There are three forms: both sides' sums, ``logp`` [P] and ``rejected_logp`` [P]; the sums of S
    answers, ``logp`` [S]; and rows, ``logp`` [N] with ``cu_seqlens`` [S + 1]. In the last two,
    ``chosen`` and ``rejected`` are the answers of each pair, or None where S = 2 P and all chosen
    answers come first.
    """

    logp: Tensor
    rejected_logp: Tensor | None
    cu_seqlens: Tensor | None
    counted: Tensor | None
    """[N] bool, the rows that take part: others have no log-probability and get no gradient."""
    chosen: Tensor | None
    rejected: Tensor | None
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    beta: Tensor | None
    margin: Tensor | None
    """Reward margins from which the betas are made."""
    tie: Tensor | None
    weight: Tensor | None
    chosen_tokens: Tensor | None
    """n_j; None: the chosen answers' rows that count, where there are rows."""
    num_pairs: Tensor | None
    """Scalar that goes before the number, as ``num_tokens``."""
    num_tokens: Tensor | None
    loss_type: str
    sft: str
    average: bool
    """Whether the pair losses see means over rows instead of sums."""
    numbers: list[float]
    """:class:`Numbers`."""

    @property
    def pairs(self) -> int:
        """P."""
        return self.ref_chosen_logps.shape[0]

    @property
    def answers(self) -> int:
        """S; 2 P where both sides come apart."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.shape[0] - 1
        return self.logp.shape[0] if self.rejected_logp is None else 2 * self.pairs

    @property
    def opposite(self) -> bool:
        """Whether dL/dS_r = -dL/dS_c for every pair: the loss sees it through delta alone."""
        of_difference = self.loss_type not in TWO_SIDED_LOSS_TYPES
        return of_difference and not Numbers._make(self.numbers).sft_weight

    def map_columns(self, function: Callable[[Tensor], Tensor]) -> "PairCall":
        """The call with ``function`` of each column that is given."""
        found: dict[str, Any] = {name: getattr(self, name) for name in PAIR_COLUMNS}
        found = {name: None if c is None else function(c) for name, c in found.items()}
        return self._replace(**found)

    def gradient_shape(self) -> tuple[int, ...]:
        """The shape of the gradient."""
        return (2, self.pairs) if self.rejected_logp is not None else tuple(self.logp.shape)


def output_of(loss: Tensor, figures: Tensor, columns: Tensor) -> MMDPOOutput:
    """What the public functions return, from the results of the operator."""
    return MMDPOOutput(loss, *figures.unbind(), *columns[: len(COLUMNS)].unbind())


def evaluate_plain(call: PairCall) -> Result:
    """Loss, figures, columns and gradient of a call."""
    dtype, numbers = statistics_dtype(call.logp.dtype), Numbers._make(call.numbers)
    sums, lengths = _sums(call, dtype)
    chosen, rejected = _answers(call)
    chosen_logp, rejected_logp = sums[chosen], sums[rejected]
    beta = _beta(call, numbers, dtype)
    left, right, share = chosen_logp, rejected_logp, None
    if call.average and lengths is not None:
        share = 1.0 / lengths.clamp(min=1).to(dtype)
        left, right = left * share[chosen], right * share[rejected]
    left = left - call.ref_chosen_logps.to(dtype)
    right = right - call.ref_rejected_logps.to(dtype)
    weight = None if call.weight is None else call.weight.to(dtype)
    losses, up, down = _weighted_costs(call, numbers, left, right, beta, weight)
    if share is not None:
        up, down = up * share[chosen], down * share[rejected]

    pairs = _divisor(call.num_pairs, numbers.num_pairs, max(1, call.pairs), beta)
    tokens = call.chosen_tokens if lengths is None else lengths[chosen]
    tokens = tokens if call.chosen_tokens is None else call.chosen_tokens
    sft_loss, of_sft = _supervised(call, numbers, chosen_logp, tokens, pairs)
    preference_loss = losses.sum() / pairs
    up, down = up / pairs + numbers.sft_weight * of_sft, down / pairs
    ties = beta.new_zeros(()) if call.tie is None else call.tie.sum().to(dtype)
    weights = beta.new_full((), call.pairs) if weight is None else weight.sum()
    spread = (beta.mean(), beta.amin(), beta.amax()) if call.pairs else (beta.sum(),) * 3
    figures = torch.stack([preference_loss, sft_loss, *spread, ties, weights])
    rewards = beta * left, beta * right
    margins = rewards[0] - rewards[1]
    accuracies = (margins > 0).to(dtype)
    if call.tie is not None:
        accuracies = accuracies.masked_fill(call.tie, 0.5)
    columns = torch.stack(
        [*rewards, margins, accuracies, chosen_logp, rejected_logp, beta, up, down]
    )
    loss = preference_loss + numbers.sft_weight * sft_loss
    return loss, figures, columns, _gradient(call, up, down)


def _sums(call: PairCall, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """(sums of all answers [S], their rows that count [S] if there are rows)."""
    if call.rejected_logp is not None:
        return torch.cat([call.logp.to(dtype), call.rejected_logp.to(dtype)]), None
    if call.cu_seqlens is None:
        return call.logp.to(dtype), None
    sequence = sequence_of_row(call.cu_seqlens, call.logp.shape[0])
    logp, lengths = call.logp.to(dtype), call.cu_seqlens.diff()
    if call.counted is not None:
        logp = logp.where(call.counted, 0.0)
        lengths = torch.zeros_like(lengths).scatter_add_(0, sequence, call.counted.to(lengths))
    return sequence_sums(logp, sequence, call.answers), lengths


def _answers(call: PairCall) -> tuple[Tensor, Tensor]:
    """The answers of each pair, [P] int64 each."""
    if call.chosen is not None and call.rejected is not None:
        return call.chosen.long(), call.rejected.long()
    chosen = torch.arange(call.pairs, device=call.logp.device)
    return chosen, chosen + call.pairs


def _gradient(call: PairCall, up: Tensor, down: Tensor) -> Tensor:
    """The gradients of the pairs [P], spread over the log-probabilities they came from."""
    if call.rejected_logp is not None:
        return torch.stack([up, down])
    both = torch.cat(_answers(call))
    of_answer = sequence_sums(torch.cat([up, down]), both, call.answers)
    if call.cu_seqlens is None:
        return of_answer
    rows = call.logp.shape[0]
    of_row = of_answer.repeat_interleave(call.cu_seqlens.diff(), output_size=rows)
    return of_row if call.counted is None else of_row.where(call.counted, 0.0)


def _beta(call: PairCall, numbers: Numbers, dtype: torch.dtype) -> Tensor:
    """[P] betas: those given, those of the margins, or one for all."""
    if call.beta is not None:
        return call.beta.to(dtype)
    if call.margin is not None:
        return dynamic_beta(call.margin.to(dtype), numbers.beta, numbers.w, numbers.k)
    return call.ref_chosen_logps.new_full((call.pairs,), numbers.beta, dtype=dtype)


def _divisor(given: Tensor | None, number: float, at_hand: int | Tensor, like: Tensor) -> Tensor:
    """What a mean is divided by: a tensor, a number, else what is at hand; 1 in place of 0."""
    total = given if given is not None else number if number >= 0 else at_hand
    total = torch.as_tensor(total, dtype=like.dtype, device=like.device)
    return torch.where(total > 0, total, 1.0)


def _supervised(
    call: PairCall, numbers: Numbers, chosen_logp: Tensor, tokens: Tensor | None, pairs: Tensor
) -> tuple[Tensor, Tensor]:
    """(L_sft, its gradient with respect to S_c [P])."""
    if tokens is None or not numbers.sft_weight:
        return chosen_logp.new_zeros(()), torch.zeros_like(chosen_logp)
    if call.sft == "token":
        total = _divisor(call.num_tokens, numbers.num_tokens, tokens.sum(), chosen_logp)
        share = total.reciprocal().expand_as(chosen_logp)
    else:
        share = (tokens.to(chosen_logp.dtype).clamp(min=1) * pairs).reciprocal()
    return -(chosen_logp * share).sum(), -share


def _weighted_costs(
    call: PairCall, numbers: Numbers, left: Tensor, right: Tensor, beta: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(cost, d cost / d left, d cost / d right) of each pair, times its weight."""
    probability = label_probability(numbers.label_smoothing, call.loss_type)
    # 1 - q is formed in double precision: a small one would be lost in float32.
    holds, fails = (torch.full_like(left, number) for number in (probability, 1.0 - probability))
    if call.tie is not None:
        holds, fails = holds.masked_fill(call.tie, 0.5), fails.masked_fill(call.tie, 0.5)
    if call.loss_type == "exo_pair":
        loss, up, down = _exo(beta * (left - right), beta, holds, fails)
    else:
        sure = _of_both_sides if call.loss_type in TWO_SIDED_LOSS_TYPES else _of_difference
        ahead, up, down = sure(left, right, beta, call.loss_type, numbers.reward_shift)
        behind, turned_down, turned_up = sure(
            right, left, beta, call.loss_type, numbers.reward_shift
        )
        loss = holds * ahead + fails * behind
        up, down = holds * up + fails * turned_up, holds * down + fails * turned_down
    return (loss, up, down) if weight is None else (loss * weight, up * weight, down * weight)


def _of_difference(
    left: Tensor, right: Tensor, beta: Tensor, loss_type: str, shift: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(l, dl/dleft, dl/dright) of the losses that see the difference alone."""
    delta = left - right
    if loss_type == "ipo":
        distance = delta - 0.5 / beta
        return distance.square(), 2.0 * distance, -2.0 * distance
    x = beta * delta
    if loss_type == "hinge":
        slope = -beta * (x < 1.0)
        return torch.relu(1.0 - x), slope, -slope
    if loss_type == "simpo":
        x = x - shift
    slope = -beta * torch.sigmoid(-x)
    return -functional.logsigmoid(x), slope, -slope


def _of_both_sides(
    left: Tensor, right: Tensor, beta: Tensor, loss_type: str, shift: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(l, dl/dleft, dl/dright) of the losses that see both sides apart."""
    if loss_type == "sppo_hard":
        good, bad = left - 0.5 / beta, right + 0.5 / beta
        return good.square() + bad.square(), 2.0 * good, 2.0 * bad
    if loss_type == "apo_down":
        good, lead = beta * left, beta * (left - right)
        down = beta * _bell(lead)
        return torch.sigmoid(good) + torch.sigmoid(-lead), beta * _bell(good) - down, down
    shift = 0.0 if loss_type == "apo_zero" else shift
    good, bad = beta * left - shift, beta * right - shift
    if loss_type == "bco_pair":
        loss = -functional.logsigmoid(good) - functional.logsigmoid(-bad)
        return loss, -beta * torch.sigmoid(-good), beta * torch.sigmoid(bad)
    return torch.sigmoid(-good) + torch.sigmoid(bad), -beta * _bell(good), beta * _bell(bad)


def _bell(x: Tensor) -> Tensor:
    """The derivative of the logistic function."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _exo(x: Tensor, beta: Tensor, holds: Tensor, fails: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of ``exo_pair``, whose target is the label's probability."""
    wins, loses = torch.sigmoid(x), torch.sigmoid(-x)
    log_holds, log_fails = holds.log(), fails.log()
    loss = wins * (functional.logsigmoid(x) - log_holds)
    loss = loss + loses * (functional.logsigmoid(-x) - log_fails)
    slope = beta * wins * loses * (x - log_holds + log_fails)
    return loss, slope, -slope
