"""MM-DPO in one launch: from log-probabilities and reward margins to loss, gradient and metrics.

The kernel of the project (arXiv 2502.10391). Of P pairs it reads log-probabilities of rows, of
answers or of both sides, reference sums and margins, and leaves

    S       = sums of each answer's rows, added in float64
    beta_j  = clamp(beta (1 + w (1 - exp(-k margin_j))), beta, (1 + w) beta)
    loss    = 1/num_pairs sum_j weight_j l_j + sft_weight L_sft
    gradient of the loss, one number per row, answer or side
    rewards, margins, accuracies and betas of each pair; means, ties and weights of all

without a graph and without a host that reads: the derivative of a pair falls out of its loss for a
few more instructions, so backward is one multiplication by the incoming scalar. Formulas are those
of :mod:`mmrlhf_kernels.reference`; :func:`mmrlhf_kernels.mm_dpo_plain.evaluate_plain` gives the
same results in plain PyTorch. A pair whose label holds with probability q costs
``q l(chosen, rejected) + (1 - q) l(rejected, chosen)``, except under ``exo_pair``, whose target is
the label's probability itself.

**One program** does all of it, block of pairs after block of pairs, so that one launch suffices and
every sum has one order: no atomics, no counter to be zeroed. An answer's sum depends on its rows
alone. Several programs would need a second launch for the total, or a counter and a launch that
zeroes it, to share work that is small beside the head's: 65,536 rows are 256 KiB.

Answers and bounds cannot be checked by a host that does not read them. They are brought into range
before they are used, and where they were not, loss and gradients are NaN.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.mm_dpo_plain import COLUMNS, FIGURES, Numbers, PairCall, Result
from mmrlhf_kernels.reference import TWO_SIDED_LOSS_TYPES, label_probability
from mmrlhf_kernels.triton_rows import (
    Operands,
    answers_of,
    defect_of,
    length_of,
    pointers_of,
    spread,
    sum_rows,
)
from mmrlhf_kernels.triton_settings import jit, jit_for_any, require_runnable
from mmrlhf_kernels.triton_tile import Launch, logistic, on_device, softplus

__all__ = ["evaluate", "mm_dpo_launch"]

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
PAIRS = tl.constexpr(128)
"""Pairs that are taken at once."""


class _Outputs(NamedTuple):
    """Fresh tensors that the kernel fills."""

    loss: Any
    figures: Any
    columns: Any
    gradient: Any
    sums: Any
    """[S] float64 sums of rows, or None."""
    lengths: Any
    """[S] int32 rows that count, or None where all do."""


class Form(NamedTuple):
    """What is decided at compile time."""

    loss_type: str
    two_sided: bool
    sft: str
    """``token``, ``sequence`` or ``none``."""
    count_tokens: bool
    """Whether the divisor of the supervised term is the sum of ``chosen_tokens``."""
    average: bool


@jit
def _of_difference(
    delta: tl.tensor, beta: tl.tensor, shift: tl.tensor, FORM: tl.constexpr
) -> tl.tuple:
    """(l, dl/ddelta) of the losses that see a pair through its difference alone."""
    x = beta * delta
    if FORM.loss_type == "ipo":
        distance = delta - 0.5 / beta
        loss = distance * distance
        slope = 2.0 * distance
    elif FORM.loss_type == "hinge":
        loss = tl.maximum(1.0 - x, 0.0)
        slope = tl.where(x < 1.0, -beta, 0.0)
    else:
        if FORM.loss_type == "simpo":
            x -= shift
        loss = softplus(-x)
        slope = -beta * logistic(-x)
    return loss, slope


@jit
def _of_both_sides(
    chosen: tl.tensor, rejected: tl.tensor, beta: tl.tensor, shift: tl.tensor,
    FORM: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(l, dl/dchosen, dl/drejected) of the other losses."""
    if FORM.loss_type == "sppo_hard":
        good = chosen - 0.5 / beta
        bad = rejected + 0.5 / beta
        loss = good * good + bad * bad
        up = 2.0 * good
        down = 2.0 * bad
    elif FORM.loss_type == "apo_down":
        good = beta * chosen
        lead = beta * (chosen - rejected)
        loss = logistic(good) + logistic(-lead)
        down = beta * logistic(lead) * logistic(-lead)
        up = beta * logistic(good) * logistic(-good) - down
    else:
        good = beta * chosen
        bad = beta * rejected
        if FORM.loss_type != "apo_zero":
            good -= shift
            bad -= shift
        if FORM.loss_type == "bco_pair":
            loss = softplus(-good) + softplus(bad)
            up = -beta * logistic(-good)
            down = beta * logistic(bad)
        else:
            loss = logistic(-good) + logistic(bad)
            up = -beta * logistic(good) * logistic(-good)
            down = beta * logistic(bad) * logistic(-bad)
    return loss, up, down


@jit
def pair_cost(
    chosen: tl.tensor, rejected: tl.tensor, beta: tl.tensor, shift: tl.tensor, holds: tl.tensor,
    fails: tl.tensor, FORM: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(loss, d loss / d chosen, d loss / d rejected) of pairs from their two log-ratios.

    ``holds`` and ``fails`` are q and 1 - q: a small 1 - q is lost in float32 once q is formed.
    """
    if FORM.two_sided:
        ahead, up, down = _of_both_sides(chosen, rejected, beta, shift, FORM)
        behind, turned_down, turned_up = _of_both_sides(rejected, chosen, beta, shift, FORM)
        loss = holds * ahead + fails * behind
        up = holds * up + fails * turned_up
        down = holds * down + fails * turned_down
    elif FORM.loss_type == "exo_pair":
        x = beta * (chosen - rejected)
        wins = logistic(x)
        loses = logistic(-x)
        log_holds = tl.log(holds)
        log_fails = tl.log(fails)
        loss = wins * (-softplus(-x) - log_holds) + loses * (-softplus(x) - log_fails)
        up = beta * wins * loses * (x - log_holds + log_fails)
        down = -up
    else:
        delta = chosen - rejected
        ahead, slope_ahead = _of_difference(delta, beta, shift, FORM)
        behind, slope_behind = _of_difference(-delta, beta, shift, FORM)
        loss = holds * ahead + fails * behind
        up = holds * slope_ahead - fails * slope_behind
        down = -up
    return loss, up, down


@jit
def _beta(call: tl.tuple, number: tl.tuple, place: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """The beta of each pair; a margin that is no number stays one."""
    if call.margin is not None:
        margin = tl.load(call.margin + place, mask=mask, other=0.0).to(tl.float32)
        margin = tl.where(margin < 0.0, 0.0, margin)
        margin = tl.where(margin > LARGEST, LARGEST, margin)  # 0 * inf would be NaN
        beta = number.beta * (1.0 + number.w * (1.0 - tl.exp(-number.k * margin)))
        beta = tl.where(beta < number.beta, number.beta, beta)
        most = (1.0 + number.w) * number.beta
        beta = tl.where(beta > most, most, beta)
    elif call.beta is not None:
        beta = tl.load(call.beta + place, mask=mask, other=1.0).to(tl.float32)
    else:
        beta = tl.full(place.shape, 0.0, dtype=tl.float32) + number.beta
    return beta


@jit
def _tokens(call: tl.tuple, out: tl.tuple, place: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """The tokens of each chosen answer, float32."""
    if call.chosen_tokens is not None:
        tokens = tl.load(call.chosen_tokens + place, mask=mask, other=0).to(tl.float32)
    else:
        chosen, _ = answers_of(call, place, mask)
        tokens = length_of(call, out, chosen, mask).to(tl.float32)
    return tokens


@jit
def _divisors(call: tl.tuple, number: tl.tuple, out: tl.tuple, FORM: tl.constexpr) -> tl.tuple:
    """(num_pairs, num_tokens), 1 in place of 0."""
    one = tl.full((), 1.0, dtype=tl.float32)
    pairs = one * number.num_pairs
    tokens = one * number.num_tokens
    if call.num_pairs is not None:
        pairs = tl.load(call.num_pairs).to(tl.float32)
    if call.num_tokens is not None:
        tokens = tl.load(call.num_tokens).to(tl.float32)
    elif FORM.count_tokens:
        lane = tl.arange(0, PAIRS)
        counted = tl.full((PAIRS,), 0.0, dtype=tl.float64)
        for first in range(0, call.count, PAIRS):
            place = first + lane
            counted += _tokens(call, out, place, place < call.count).to(tl.float64)
        tokens = tl.sum(counted, axis=0).to(tl.float32)
    return tl.where(pairs > 0.0, pairs, one), tl.where(tokens > 0.0, tokens, one)


@jit
def _labels(call: tl.tuple, label: tl.tuple, place: tl.tensor, mask: tl.tensor) -> tl.tuple:
    """(1 for a tie, else 0; the label's q; 1 - q; the weight) of each pair."""
    tie = tl.full(place.shape, 0.0, dtype=tl.float32)
    weight = tie + 1.0
    if call.tie is not None:
        tie = tl.load(call.tie + place, mask=mask, other=0).to(tl.float32)
    if call.weight is not None:
        weight = tl.load(call.weight + place, mask=mask, other=0.0).to(tl.float32)
    holds = tl.where(tie != 0.0, 0.5, label[0])
    return tie, holds, tl.where(tie != 0.0, 0.5, label[1]), weight


@jit
def _share(
    call: tl.tuple, out: tl.tuple, place: tl.tensor, mask: tl.tensor, num_pairs: tl.tensor,
    num_tokens: tl.tensor, FORM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What a chosen log-probability is multiplied by in the supervised term."""
    share = tl.full(place.shape, 0.0, dtype=tl.float32)
    if FORM.sft == "token":
        share += 1.0 / num_tokens
    if FORM.sft == "sequence":
        share += 1.0 / (tl.maximum(_tokens(call, out, place, mask), 1.0) * num_pairs)
    return share


@jit
def _ratio(
    call: tl.tuple, out: tl.tuple, total: tl.tensor, reference: tl.tensor, answer: tl.tensor,
    place: tl.tensor, mask: tl.tensor, FORM: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(log-ratio to the reference, rows it is a mean over or 1) of one side of each pair."""
    length = tl.full(place.shape, 1.0, dtype=tl.float32)
    if FORM.average:
        length = tl.maximum(length_of(call, out, answer, mask), 1).to(tl.float32)
        total = (total.to(tl.float32) / length).to(tl.float64)
    # The difference is taken before it is rounded: both sums are large beside it.
    ratio = total - tl.load(reference + place, mask=mask, other=0.0).to(tl.float64)
    return ratio.to(tl.float32), length


@jit
def _values(call: tl.tuple, out: tl.tuple) -> tl.tuple:
    """Where the log-probabilities of chosen and of rejected answers lie; sums rows first."""
    chosen_values = call.logp
    rejected_values = call.logp
    if call.rejected_logp is not None:
        rejected_values = call.rejected_logp
    if call.cu_seqlens is not None:
        sum_rows(call, out)
        chosen_values = out.sums
        rejected_values = out.sums
    return chosen_values, rejected_values


@jit_for_any("count", "answers", "rows")
def _mm_dpo_kernel(
    pointers: tl.tuple, count: tl.tensor, answers: tl.tensor, rows: tl.tensor, label: tl.tuple,
    number: tl.tuple, out: tl.tuple, FORM: tl.constexpr,
) -> None:  # fmt: skip
    """The whole objective; see the module docstring.

    ``label`` is q of a pair that is no tie and 1 - q, ``number`` the other :class:`Numbers` with
    those of pairs and tokens filled in.
    """
    call = Operands(*pointers, count, answers, rows)
    lane = tl.arange(0, PAIRS)
    zero = tl.full((PAIRS,), 0.0, dtype=tl.float32)
    losses = zero
    supervised = zero
    betas = zero
    lowest = zero + LARGEST
    highest = zero - LARGEST
    ties = zero
    weights = zero
    defect = defect_of(call)
    shift = zero + number.reward_shift
    chosen_values, rejected_values = _values(call, out)
    num_pairs, num_tokens = _divisors(call, number, out, FORM)
    of_pairs = out.columns + 7 * call.count
    for first in range(0, call.count, PAIRS):
        place = first + lane
        mask = place < call.count
        chosen_at, rejected_at = answers_of(call, place, mask)
        chosen_sum = tl.load(chosen_values + chosen_at, mask=mask, other=0.0).to(tl.float64)
        rejected_sum = tl.load(rejected_values + rejected_at, mask=mask, other=0.0).to(tl.float64)
        chosen, chosen_length = _ratio(
            call, out, chosen_sum, call.ref_chosen_logps, chosen_at, place, mask, FORM
        )
        rejected, rejected_length = _ratio(
            call, out, rejected_sum, call.ref_rejected_logps, rejected_at, place, mask, FORM
        )
        beta = _beta(call, number, place, mask)
        tie, holds, fails, weight = _labels(call, label, place, mask)
        loss, up, down = pair_cost(chosen, rejected, beta, shift, holds, fails, FORM)
        chosen_logp = chosen_sum.to(tl.float32)
        share = _share(call, out, place, mask, num_pairs, num_tokens, FORM)
        up = up * weight / num_pairs / chosen_length - number.sft_weight * share + defect
        down = down * weight / num_pairs / rejected_length + defect
        tl.store(of_pairs + place, up, mask=mask)
        tl.store(of_pairs + call.count + place, down, mask=mask)
        if call.rejected_logp is not None:
            tl.store(out.gradient + place, up, mask=mask)
            tl.store(out.gradient + call.count + place, down, mask=mask)

        losses += tl.where(mask, loss * weight, 0.0)
        supervised -= tl.where(mask, chosen_logp * share, 0.0)
        betas += tl.where(mask, beta, 0.0)
        lowest = tl.where(mask, tl.minimum(lowest, beta), lowest)
        highest = tl.where(mask, tl.maximum(highest, beta), highest)
        ties += tl.where(mask, tie, 0.0)
        weights += tl.where(mask, weight, 0.0)
        lead = beta * chosen - beta * rejected
        won = tl.where(lead > 0.0, 1.0, 0.0)
        column = out.columns + place
        tl.store(column, beta * chosen, mask=mask)
        tl.store(column + call.count, beta * rejected, mask=mask)
        tl.store(column + 2 * call.count, lead, mask=mask)
        tl.store(column + 3 * call.count, tl.where(tie != 0.0, 0.5, won), mask=mask)
        tl.store(column + 4 * call.count, chosen_logp, mask=mask)
        tl.store(column + 5 * call.count, rejected_sum.to(tl.float32), mask=mask)
        tl.store(column + 6 * call.count, beta, mask=mask)

    if call.rejected_logp is None:
        spread(call, of_pairs, out.gradient)
    preference_loss = tl.sum(losses, axis=0) / num_pairs + defect
    sft_loss = tl.sum(supervised, axis=0)
    tl.store(out.loss, preference_loss + number.sft_weight * sft_loss)
    tl.store(out.figures, preference_loss)
    tl.store(out.figures + 1, sft_loss)
    tl.store(out.figures + 2, tl.sum(betas, axis=0) / call.count)
    tl.store(out.figures + 3, tl.min(lowest, axis=0))
    tl.store(out.figures + 4, tl.max(highest, axis=0))
    tl.store(out.figures + 5, tl.sum(ties, axis=0))
    tl.store(out.figures + 6, tl.sum(weights, axis=0))


def mm_dpo_launch(call: PairCall) -> Launch:
    """The launch of the kernel with fresh outputs in ``arguments["out"]``."""
    numbers, pairs = Numbers._make(call.numbers), call.pairs
    like = call.logp
    apart, rows = call.rejected_logp is not None, call.cu_seqlens is not None
    probability = label_probability(numbers.label_smoothing, call.loss_type)
    sft = call.sft if numbers.sft_weight else "none"
    count = numbers.num_tokens < 0 and sft == "token" and call.num_tokens is None
    resolved = numbers._replace(
        num_pairs=float(pairs) if numbers.num_pairs < 0 else numbers.num_pairs,
        num_tokens=max(0.0, numbers.num_tokens),
    )

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=like.device)

    out = _Outputs(
        empty(), empty(len(FIGURES)), empty(len(COLUMNS) + 2, pairs),
        empty(*call.gradient_shape()),
        empty(call.answers, dtype=torch.float64) if rows else None,
        None if call.counted is None else empty(call.answers, dtype=torch.int32),
    )  # fmt: skip
    form = Form(call.loss_type, call.loss_type in TWO_SIDED_LOSS_TYPES, sft, count, call.average)
    arguments = {
        "pointers": pointers_of(call._asdict()), "count": pairs, "answers": call.answers,
        "rows": like.shape[0] if rows else 0, "label": (probability, 1.0 - probability),
        "number": resolved, "out": out, "FORM": form,
    }  # fmt: skip
    return Launch(_mm_dpo_kernel, (1,), arguments, warps=4 if apart else 8)


def evaluate(call: PairCall) -> Result:
    """:func:`mmrlhf_kernels.mm_dpo_plain.evaluate_plain` in one launch, in float32.

    Raises:
        RuntimeError: No GPU and no interpreter.
        TypeError: ``logp`` is float64.
    """
    require_runnable(call.logp, call.rejected_logp)
    launch = mm_dpo_launch(call)
    with on_device(call.logp.device):
        launch.run()
    out: _Outputs = launch.arguments["out"]
    return out.loss, out.figures, out.columns, out.gradient
