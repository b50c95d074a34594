"""The arguments of the public losses, checked and brought into the form of the operator.

Columns and options are listed in :mod:`mmrlhf_kernels.preference`. Nothing here copies, converts
or reads a tensor, so that the host never waits for a device.
"""

from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from mmrlhf_kernels.checks import check_pairs, check_shape
from mmrlhf_kernels.mm_dpo_plain import Numbers, PairCall
from mmrlhf_kernels.pair import check_count, check_options

__all__ = [
    "BETA_RULES",
    "Beta",
    "Logp",
    "LossOptions",
    "call_of",
    "check_map",
    "check_rule",
]

BETA_RULES = ("fixed", "released")


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
        """Raise unless shapes and dtypes fit P pairs.

        Raises:
            TypeError: Bounds or answers are no integers.
            ValueError: A shape or a device does not fit.
        """
        if self.cu_seqlens is None:
            check_pairs(pairs, self.logp.device, rejected_logp=self.rejected_logp)
            return
        integers = {"cu_seqlens": self.cu_seqlens, "pair_index": self.pair_index}
        for name, tensor in integers.items():
            if tensor is not None and tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"{name} is {tensor.dtype}; expected torch.int32 or torch.int64")
            if tensor is not None and tensor.device != self.logp.device:
                raise ValueError(f"{name} is on {tensor.device}; expected {self.logp.device}")
        if self.cu_seqlens.dim() != 1 or not self.cu_seqlens.numel():
            shape = tuple(self.cu_seqlens.shape)
            raise ValueError(f"cu_seqlens has shape {shape}; expected [S + 1]")
        if self.pair_index is not None:
            check_shape("pair_index", self.pair_index, (pairs, 2))
        elif self.cu_seqlens.numel() != 2 * pairs + 1:
            raise ValueError(
                f"{self.cu_seqlens.numel() - 1} answers for {pairs} pairs; expected {2 * pairs}, "
                "all chosen ones first (or a pair_index)"
            )


class Beta(NamedTuple):
    """How the betas are made."""

    beta: float | Tensor
    margin: Tensor | None
    w: float
    k: float

    def check(self) -> None:
        """Raise unless the betas can be made.

        Raises:
            ValueError: They cannot.
        """
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
    """Raise unless these are numbers of the paper's map.

    Raises:
        ValueError: One is out of its range.
    """
    if not (beta > 0 and w >= 0 and k >= 0):
        raise ValueError(f"beta {beta}, w {w}, k {k}; expected beta > 0, w >= 0 and k >= 0")


def call_of(
    found: Logp,
    reference_logps: tuple[Tensor, Tensor],
    rule: Beta,
    options: LossOptions,
    *,
    counted: bool = False,
) -> PairCall:
    """The checked operands of the objective; nothing is copied, converted or read.

    ``counted`` says that the caller will count the chosen tokens.

    Raises:
        TypeError: A dtype does not fit, or an option does not exist.
        ValueError: A shape or an option does not fit.
    """
    given = _Options(**options)
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
        "beta": beta, "margin": rule.margin, "tie": given.tie, "weight": given.weight,
        "chosen_tokens": given.chosen_tokens,
    }  # fmt: skip
    check_pairs(pairs, logp.device, **columns)
    found.check(pairs)
    if given.tie is not None and given.tie.dtype != torch.bool:
        raise TypeError(f"tie is {given.tie.dtype}; expected torch.bool")
    num_pairs, pairs_number = check_count("num_pairs", given.num_pairs, logp)
    num_tokens, tokens_number = check_count("num_tokens", given.num_tokens, logp)
    numbers = Numbers(
        given.label_smoothing, given.sft_weight, given.reward_shift,
        1.0 if isinstance(rule.beta, Tensor) else rule.beta, rule.w, rule.k, pairs_number,
        tokens_number,
    )  # fmt: skip
    chosen, rejected = found.answers()
    data: dict[str, Any] = {name: None if c is None else c.detach() for name, c in columns.items()}
    call = PairCall(
        logp, found.rejected_logp, found.cu_seqlens, None, chosen, rejected, **data,
        num_pairs=num_pairs, num_tokens=num_tokens, loss_type=given.loss_type, sft=given.sft,
        average=found.average, numbers=[float(number) for number in numbers],
    )  # fmt: skip
    known = given.chosen_tokens is not None or found.cu_seqlens is not None
    check_options(call, counted=counted or known)
    return call


class _Options(NamedTuple):
    """:class:`LossOptions` with their defaults."""

    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    tie: Tensor | None = None
    weight: Tensor | None = None
    sft_weight: float = 0.0
    chosen_tokens: Tensor | None = None
    sft: str = "token"
    reward_shift: float = 0.0
    num_pairs: float | Tensor | None = None
    num_tokens: float | Tensor | None = None


def check_rule(beta_rule: str, beta: float | Tensor) -> None:
    """Raise unless the rule is known and beta fits it.

    Raises:
        ValueError: The rule is unknown, or it is ``released`` and beta is not one number.
    """
    if beta_rule not in BETA_RULES:
        raise ValueError(
            f"unknown beta_rule {beta_rule!r}; expected one of {', '.join(BETA_RULES)}"
        )
    if beta_rule == "released" and isinstance(beta, Tensor):
        raise ValueError(
            f"beta_rule 'released' takes one number as beta; got shape {tuple(beta.shape)}"
        )
