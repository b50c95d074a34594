"""The objective over pairs: its arguments, checked, and the one operator that evaluates it.

``pair_objective`` gives the objective and its gradient in closed form, without autograd: on a GPU
it is the kernel of :mod:`mmrlhf_kernels.mm_dpo_kernel`, elsewhere
:mod:`mmrlhf_kernels.mm_dpo_plain`. Columns and options are listed in
:mod:`mmrlhf_kernels.preference`. Nothing here copies, converts or reads a tensor, so that the host
never waits for a device.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import (
    check_data,
    check_entries,
    check_factor,
    check_integers,
    check_pairs,
    check_references,
    check_shape,
    check_tensor,
)
from mmrlhf_kernels.dispatch import define_operator
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
from mmrlhf_kernels.rows import check_named

__all__ = [
    "BETA_RULES",
    "LOSS_TYPES",
    "Beta",
    "Logp",
    "LossOptions",
    "call_of",
    "check_answers",
    "check_count",
    "check_map",
    "check_margin",
    "check_names",
    "check_options",
    "check_rule",
    "check_values",
    "pair_objective",
    "scalar_of",
]

LOSS_TYPES = (*PAIR_LOSS_TYPES, *TWO_SIDED_LOSS_TYPES)
SFT_MEANS = ("token", "sequence")
BETA_RULES = ("fixed", "released")


def check_options(
    loss_type: str, label_smoothing: float, sft_weight: float, sft: str, reward_shift: float
) -> None:
    """Raise unless each of these options is one."""
    if loss_type not in LOSS_TYPES:
        names = ", ".join(LOSS_TYPES)
        raise ValueError(f"unknown loss_type {loss_type!r}; expected one of {names}")
    if sft not in SFT_MEANS:
        raise ValueError(f"unknown sft {sft!r}; expected one of {', '.join(SFT_MEANS)}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 <= e < 1/2")
    check_factor("sft_weight", sft_weight)
    if not -math.inf < reward_shift < math.inf:
        raise ValueError(f"reward_shift is {reward_shift}; expected a finite number")


def _check_totals(call: PairCall) -> None:
    """Raise where the numbers of a larger batch are not those of one."""
    numbers = Numbers._make(call.numbers)
    if numbers.num_pairs == 0 and call.pairs and call.weight is None:
        raise ValueError(f"num_pairs is 0 for {call.pairs} pairs; expected a number above 0")
    given = {
        "num_pairs": call.num_pairs is not None or numbers.num_pairs >= 0,
        "num_tokens": call.num_tokens is not None or numbers.num_tokens >= 0,
    }
    if numbers.sft_weight and call.sft == "token" and sum(given.values()) == 1:
        there, missing = sorted(given, key=given.__getitem__, reverse=True)
        raise ValueError(
            f"{there} is given without {missing}, and sft_weight is set; expected both, as the "
            "preference loss is a mean over pairs and the supervised one over chosen tokens; "
            f"hint: {missing} of the whole batch, or sft='sequence', which needs num_pairs alone"
        )


def check_count(
    name: str, value: float | Tensor | None, like: Tensor
) -> tuple[Tensor | None, float]:
    """``num_pairs`` or ``num_tokens`` as a scalar tensor or a number; -1 where it is not a number.

    A tensor is not read: on a GPU the host would wait for it.
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
    """``num_pairs`` or ``num_tokens`` as a scalar beside ``like``, in its statistics precision."""
    tensor, number = check_count(name, value, like)
    dtype = statistics_dtype(like.dtype)
    if tensor is not None:
        return tensor.to(dtype)
    return None if number < 0 else torch.full((), number, dtype=dtype, device=like.device)


class LossOptions(TypedDict, total=False):
    """Options of the losses, as listed in the module docstring."""

    loss_type: str
    label_smoothing: float
    tie: Tensor | None
    weight: Tensor | None
    sft_weight: float
    chosen_tokens: Tensor | None
    sft: str
    reward_shift: float
    num_pairs: float | Tensor | None
    num_tokens: float | Tensor | None


OPTIONS = tuple(LossOptions.__annotations__)


def check_names(function: str, options: Iterable[str]) -> None:
    """Raise unless all these are names of :class:`LossOptions`."""
    for name in options:
        if name not in OPTIONS:
            hint = "; hint: it is called weight here" if name == "pair_weight" else ""
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; options of the loss "
                f"are {', '.join(OPTIONS)}{hint}"
            )


class Logp(NamedTuple):
    """Log-probabilities as one of the public functions has them."""

    logp: Tensor
    rejected_logp: Tensor | None
    cu_seqlens: Tensor | None = None
    pair_index: Tensor | None = None
    average: bool = False

    def answers(self) -> tuple[Tensor | None, Tensor | None]:
        """The columns of ``pair_index``."""
        if self.pair_index is None:
            return None, None
        return self.pair_index[:, 0], self.pair_index[:, 1]

    def check(self, pairs: int) -> None:
        """Raise unless shapes and dtypes fit P pairs."""
        if self.rejected_logp is not None:
            check_pairs(pairs, self.logp.device, rejected_logp=self.rejected_logp)
            return
        check_answers(self.cu_seqlens, self.pair_index, pairs)
        integers = {"cu_seqlens": self.cu_seqlens, "pair_index": self.pair_index}
        for name, tensor in integers.items():
            if tensor is not None and tensor.device != self.logp.device:
                raise ValueError(f"{name} is on {tensor.device}; expected {self.logp.device}")


def check_answers(cu_seqlens: Tensor | None, pair_index: Tensor | None, pairs: int) -> None:
    """Raise unless bounds [S + 1] and answers of pairs [P, 2] fit P pairs."""
    if pair_index is not None:
        check_integers("pair_index", pair_index, "[P, 2]")
        if pair_index.shape == (2, pairs) and pairs != 2:
            raise ValueError(
                f"pair_index has shape (2, {pairs}); expected ({pairs}, 2); hint: transpose it"
            )
        check_shape("pair_index", pair_index, (pairs, 2))
    if cu_seqlens is None:
        return
    check_integers("cu_seqlens", cu_seqlens, "[S + 1]")
    if cu_seqlens.dim() != 1 or not cu_seqlens.numel():
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected [S + 1]")
    sequences = cu_seqlens.numel() - 1
    if pair_index is None and sequences != 2 * pairs:
        raise ValueError(
            f"{sequences} answers for {pairs} pairs; expected {2 * pairs}, all chosen ones first "
            "(or a pair_index)"
        )


class Beta(NamedTuple):
    """How the betas are made."""

    beta: float | Tensor
    margin: Tensor | None
    w: float
    k: float

    def check(self) -> None:
        """Raise unless the betas can be made."""
        if isinstance(self.beta, Tensor):
            if self.margin is not None:
                raise ValueError("margin was given, so beta is one number; got a tensor")
        elif not hasattr(self.beta, "__float__"):
            raise TypeError(
                f"beta is of type {type(self.beta).__name__}; expected a number or a tensor [P]"
            )
        elif self.margin is not None:
            check_map(self.beta, self.w, self.k)
        elif not 0 < self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}; expected a number above 0")


def check_map(beta: float, w: float, k: float) -> None:
    """Raise unless these are numbers of the paper's map."""
    if not (0 < beta < math.inf and 0 <= w < math.inf and 0 <= k < math.inf):
        raise ValueError(f"beta {beta}, w {w}, k {k}; expected beta > 0, w >= 0 and k >= 0")


def check_margin(margin: Tensor | None) -> None:
    """Raise where a margin on the CPU is not a number."""
    check_entries("margin", margin, lambda m: ~m.isnan(), "a number")


def check_values(call: PairCall, weight: str = "weight") -> None:
    """Raise where a column or an answer of a pair is out of its range, all on the CPU.

    ``weight`` is what the caller calls the factors of pairs. Columns on other devices, which the
    host would have to wait for, are not read: what is no number there makes a loss that is none.
    """
    if call.logp.device.type != "cpu":
        return
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        check_entries(name, getattr(call, name), lambda r: ~r.isnan(), "a number")
    check_margin(call.margin)
    check_entries("beta", call.beta, lambda b: b > 0, "a number above 0")
    check_entries(weight, call.weight, lambda x: x >= 0, "a number, at least 0")
    check_entries("chosen_tokens", call.chosen_tokens, lambda n: n >= 0, "a number, at least 0")
    if call.chosen is not None and call.rejected is not None:
        check_named(call.chosen, call.rejected, call.answers)


def call_of(
    found: Logp,
    reference_logps: tuple[Tensor, Tensor],
    rule: Beta,
    *,
    counted: bool = False,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    weight: Tensor | None = None,
    sft_weight: float = 0.0,
    chosen_tokens: Tensor | None = None,
    sft: str = "token",
    reward_shift: float = 0.0,
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
) -> PairCall:
    """The checked operands of the objective; nothing is copied, converted or read.

    ``counted`` says that the caller will count the chosen tokens; the rest is :class:`LossOptions`.
    """
    logp = found.logp
    sums, expected = ("logp", "[N]") if found.rejected_logp is None else ("chosen_logp", "[P]")
    check_tensor(sums, logp, expected)
    check_references(*reference_logps)
    check_options(loss_type, label_smoothing, sft_weight, sft, reward_shift)
    if logp.dim() != 1:
        raise ValueError(f"{sums} has shape {tuple(logp.shape)}; expected {expected}")
    pairs = logp.shape[0] if found.cu_seqlens is None else reference_logps[0].numel()
    rule.check()
    beta = rule.beta if isinstance(rule.beta, Tensor) else None
    columns: dict[str, Any] = {
        "ref_chosen_logps": reference_logps[0], "ref_rejected_logps": reference_logps[1],
        "beta": beta, "margin": rule.margin, "tie": tie, "weight": weight,
        "chosen_tokens": chosen_tokens,
    }  # fmt: skip
    check_pairs(pairs, logp.device, **columns)
    check_data(**columns)
    found.check(pairs)
    known = counted or chosen_tokens is not None or found.cu_seqlens is not None
    if sft_weight and not known:
        raise ValueError("sft_weight is set, so chosen_tokens [P] is needed to take the mean")
    if tie is not None and tie.dtype != torch.bool:
        raise TypeError(f"tie is {tie.dtype}; expected torch.bool")
    total_pairs, pairs_number = check_count("num_pairs", num_pairs, logp)
    total_tokens, tokens_number = check_count("num_tokens", num_tokens, logp)
    numbers = Numbers(
        label_smoothing, sft_weight, reward_shift,
        1.0 if isinstance(rule.beta, Tensor) else rule.beta, rule.w, rule.k, pairs_number,
        tokens_number,
    )  # fmt: skip
    chosen, rejected = found.answers()
    data: dict[str, Any] = {name: None if c is None else c.detach() for name, c in columns.items()}
    call = PairCall(
        logp, found.rejected_logp, found.cu_seqlens, None, chosen, rejected, **data,
        num_pairs=total_pairs, num_tokens=total_tokens, loss_type=loss_type, sft=sft,
        average=found.average, numbers=[float(number) for number in numbers],
    )  # fmt: skip
    _check_totals(call)
    return call


def check_rule(beta_rule: str, beta: float | Tensor, margin: Tensor | None = None) -> None:
    """Raise unless the rule is known and beta, or the margins it is made of, fit it."""
    if beta_rule not in BETA_RULES:
        raise ValueError(
            f"unknown beta_rule {beta_rule!r}; expected one of {', '.join(BETA_RULES)}"
        )
    if beta_rule == "released" and margin is not None:
        raise ValueError("beta_rule 'released' makes the betas itself; expected no margin")
    if beta_rule == "released" and isinstance(beta, Tensor):
        raise ValueError(
            f"beta_rule 'released' takes one number as beta; got shape {tuple(beta.shape)}"
        )


def _pair_objective(*fields: Any) -> Result:
    """A :class:`PairCall`, field by field, by the implementation chosen for it."""
    call = PairCall(*fields)
    kernel = dispatch.triton_module(call.logp, "mm_dpo_kernel") if call.pairs else None
    if kernel is None:
        check_values(call)
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
        like.new_empty((len(COLUMNS) + 2, call.pairs)),
        like.new_empty(call.gradient_shape()),
    )


pair_objective = define_operator(
    "pair_objective", _pair_objective, _pair_objective_fake, (PairCall,), Result
)
