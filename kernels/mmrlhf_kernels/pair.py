"""The objective over pairs: its arguments, checked, and the one operator that evaluates it.

``pair_objective`` gives the objective and its gradient in closed form, without autograd: on a GPU
it is the kernel of :mod:`mmrlhf_kernels.mm_dpo_kernel`, elsewhere
:mod:`mmrlhf_kernels.mm_dpo_plain`. Columns and options are listed in
:mod:`mmrlhf_kernels.preference`. Nothing here copies, converts or reads a tensor, so that the host
never waits for a device.
"""

import math
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import check_pairs, check_shape
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
    "check_options",
    "check_rule",
    "pair_objective",
    "scalar_of",
]

LOSS_TYPES = (*PAIR_LOSS_TYPES, *TWO_SIDED_LOSS_TYPES)
SFT_MEANS = ("token", "sequence")
BETA_RULES = ("fixed", "released")


def check_options(call: PairCall, *, counted: bool) -> None:
    """Raise unless the options make sense together; ``counted``: chosen tokens are known."""
    numbers = Numbers._make(call.numbers)
    if call.loss_type not in LOSS_TYPES:
        names = ", ".join(LOSS_TYPES)
        raise ValueError(f"unknown loss_type {call.loss_type!r}; expected one of {names}")
    if call.sft not in SFT_MEANS:
        raise ValueError(f"unknown sft {call.sft!r}; expected one of {', '.join(SFT_MEANS)}")
    if not 0.0 <= numbers.label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {numbers.label_smoothing}; expected 0 <= e < 1/2")
    if numbers.sft_weight < 0.0:
        raise ValueError(f"sft_weight is {numbers.sft_weight}; expected at least 0")
    if numbers.sft_weight and not counted:
        raise ValueError("sft_weight is set, so chosen_tokens [P] is needed to take the mean")


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
        if self.cu_seqlens is None:
            check_pairs(pairs, self.logp.device, rejected_logp=self.rejected_logp)
            return
        integers = {"cu_seqlens": self.cu_seqlens, "pair_index": self.pair_index}
        for name, tensor in integers.items():
            if tensor is not None and tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"{name} is {tensor.dtype}; expected torch.int32 or torch.int64")
            if tensor is not None and tensor.device != self.logp.device:
                raise ValueError(f"{name} is on {tensor.device}; expected {self.logp.device}")
        check_answers(self.cu_seqlens, self.pair_index, pairs)


def check_answers(cu_seqlens: Tensor | None, pair_index: Tensor | None, pairs: int) -> None:
    """Raise unless bounds [S + 1] and answers of pairs [P, 2] fit P pairs."""
    if pair_index is not None:
        check_shape("pair_index", pair_index, (pairs, 2))
    if cu_seqlens is None:
        return
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
            if self.beta.requires_grad:
                raise ValueError("beta requires a gradient; it is data here, pass beta.detach()")
        elif self.margin is not None:
            check_map(self.beta, self.w, self.k)
        elif not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a number above 0")


def check_map(beta: float, w: float, k: float) -> None:
    """Raise unless these are numbers of the paper's map."""
    if not (beta > 0 and w >= 0 and k >= 0):
        raise ValueError(f"beta {beta}, w {w}, k {k}; expected beta > 0, w >= 0 and k >= 0")


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
    sums = "logp" if found.rejected_logp is None else "chosen_logp"
    if logp.dim() != 1:
        expected = "[N]" if found.rejected_logp is None else "[P]"
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
    found.check(pairs)
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
    known = chosen_tokens is not None or found.cu_seqlens is not None
    check_options(call, counted=counted or known)
    return call


def check_rule(beta_rule: str, beta: float | Tensor) -> None:
    """Raise unless the rule is known and beta fits it."""
    if beta_rule not in BETA_RULES:
        raise ValueError(
            f"unknown beta_rule {beta_rule!r}; expected one of {', '.join(BETA_RULES)}"
        )
    if beta_rule == "released" and isinstance(beta, Tensor):
        raise ValueError(
            f"beta_rule 'released' takes one number as beta; got shape {tuple(beta.shape)}"
        )


def _pair_objective(*fields: Any) -> Result:
    """A :class:`PairCall`, field by field, by the implementation chosen for it."""
    call = PairCall(*fields)
    kernel = dispatch.triton_module(call.logp, "mm_dpo_kernel") if call.pairs else None
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
        like.new_empty((len(COLUMNS) + 2, call.pairs)),
        like.new_empty(call.gradient_shape()),
    )


pair_objective = define_operator(
    "pair_objective", _pair_objective, _pair_objective_fake, (PairCall,), Result
)
