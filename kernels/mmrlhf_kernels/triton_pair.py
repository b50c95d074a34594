"""The pair losses, forward and backward in one launch.

A preference loss needs one number per pair on the way back, and that number falls out of the
forward formula for a few more instructions. So no graph is kept: a launch reads the pair, and
writes loss and derivatives; :mod:`mmrlhf_kernels.triton_pair_cost` has the formulas.

The fused kernel of MM-DPO (arXiv 2502.10391) starts one step earlier, from summed log-probabilities
and reward margins:

    beta_j  = clamp(beta (1 + w (1 - exp(-k margin_j))), beta, (1 + w) beta)
    delta_j = (chosen_logp - ref_chosen_logps) - (rejected_logp - ref_rejected_logps)
"""

from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmrlhf_kernels.reference import PAIR_LOSS_TYPES, label_probability
from mmrlhf_kernels.triton_pair_cost import pair_cost
from mmrlhf_kernels.triton_settings import jit, require_runnable
from mmrlhf_kernels.triton_tile import Launch, on_device

__all__ = [
    "DynamicBetaPairs",
    "MarginPairs",
    "PairOptions",
    "Pairs",
    "dynamic_beta_pair_loss",
    "dynamic_beta_pair_loss_launch",
    "pair_loss",
    "pair_loss_launch",
    "two_sided_pair_loss",
]

PAIRS = 128
"""Pairs per program."""
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


class DynamicBetaPairs(NamedTuple):
    """What the fused kernel leaves per pair, [P] float32 each."""

    loss: Any
    chosen_gradient: Any
    """Derivative of ``loss`` with respect to ``chosen_logp``."""
    rejected_gradient: Any
    """Derivative of ``loss`` with respect to ``rejected_logp``."""
    beta: Any
    """beta_j."""
    delta: Any
    """delta_j."""
    chosen_reward: Any
    """``beta_j * (chosen_logp - ref_chosen_logps)``."""
    rejected_reward: Any
    """``beta_j * (rejected_logp - ref_rejected_logps)``."""


class PairOptions(TypedDict, total=False):
    """Optional arguments of the pair losses."""

    loss_type: str
    """One of :data:`mmrlhf_kernels.pair.LOSS_TYPES`; ``sigmoid`` if left out."""
    label_smoothing: float
    """Probability that a label is flipped, in [0, 1/2)."""
    tie: Tensor | None
    """[P] bool."""
    weight: Tensor | None
    """[P] factor of each pair's loss."""
    reward_shift: float
    """The shift of ``bco_pair``."""


class Pairs(NamedTuple):
    """Operands of the pair kernels, [P] each."""

    chosen: Any
    """Log-ratio of the chosen side; the difference of both where ``rejected`` is None."""
    rejected: Any
    tie: Any
    weight: Any
    count: Any
    probability: Any
    """q of a pair that is no tie."""
    shift: Any


class MarginPairs(NamedTuple):
    """Further operands of the fused kernel."""

    ref_chosen_logps: Any
    ref_rejected_logps: Any
    margin: Any
    beta: Any
    w: Any
    k: Any


@jit
def _pair_loss_kernel(
    pairs: tl.tuple, beta: tl.tensor, loss: tl.tensor, chosen_gradient: tl.tensor,
    rejected_gradient: tl.tensor, LOSS_TYPE: tl.constexpr, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    """Loss and derivatives of one block of pairs."""
    place = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    mask = place < pairs.count
    chosen = tl.load(pairs.chosen + place, mask=mask, other=0.0)
    rejected = tl.zeros_like(chosen)
    if pairs.rejected is not None:
        rejected = tl.load(pairs.rejected + place, mask=mask, other=0.0)
    pair_beta = tl.load(beta + place, mask=mask, other=1.0)
    cost, up, down = pair_cost(pairs, place, chosen, rejected, pair_beta, LOSS_TYPE)
    tl.store(loss + place, cost, mask=mask)
    tl.store(chosen_gradient + place, up, mask=mask)
    if rejected_gradient is not None:
        tl.store(rejected_gradient + place, down, mask=mask)


@jit
def _dynamic_beta_kernel(
    pairs: tl.tuple, margins: tl.tuple, out: tl.tuple, LOSS_TYPE: tl.constexpr, PAIRS: tl.constexpr
) -> None:
    """Everything between summed log-probabilities and their gradient, for one block of pairs."""
    place = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    mask = place < pairs.count
    chosen = tl.load(pairs.chosen + place, mask=mask, other=0.0)
    chosen -= tl.load(margins.ref_chosen_logps + place, mask=mask, other=0.0)
    rejected = tl.load(pairs.rejected + place, mask=mask, other=0.0)
    rejected -= tl.load(margins.ref_rejected_logps + place, mask=mask, other=0.0)
    margin = tl.load(margins.margin + place, mask=mask, other=0.0)
    margin = tl.minimum(tl.maximum(margin, 0.0), LARGEST)  # 0 * inf would be NaN
    beta = margins.beta * (1.0 + margins.w * (1.0 - tl.exp(-margins.k * margin)))
    beta = tl.minimum(tl.maximum(beta, margins.beta), (1.0 + margins.w) * margins.beta)
    loss, up, down = pair_cost(pairs, place, chosen, rejected, beta, LOSS_TYPE)
    tl.store(out.loss + place, loss, mask=mask)
    tl.store(out.chosen_gradient + place, up, mask=mask)
    tl.store(out.rejected_gradient + place, down, mask=mask)
    tl.store(out.beta + place, beta, mask=mask)
    tl.store(out.delta + place, chosen - rejected, mask=mask)
    tl.store(out.chosen_reward + place, beta * chosen, mask=mask)
    tl.store(out.rejected_reward + place, beta * rejected, mask=mask)


def _pairs_of(
    chosen: Tensor,
    rejected: Tensor | None,
    *,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    weight: Tensor | None = None,
    reward_shift: float = 0.0,
) -> Pairs:
    """Check the operands and gather them.

    Raises:
        ValueError: An unknown ``loss_type``, a label smoothing outside [0, 1/2), or unequal shapes.
    """
    loss_types = PAIR_LOSS_TYPES if rejected is None else (*PAIR_LOSS_TYPES, "bco_pair")
    if loss_type not in loss_types:
        two_sided = loss_type == "bco_pair"
        hint = "; hint: bco_pair needs both sides, see two_sided_pair_loss" if two_sided else ""
        names = ", ".join(loss_types)
        raise ValueError(f"unknown loss_type {loss_type!r}; expected one of {names}{hint}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, outside [0, 0.5)")
    _check_shapes(chosen, rejected=rejected, tie=tie, weight=weight)
    probability = label_probability(label_smoothing, loss_type)
    bits = None if tie is None else tie.contiguous().view(torch.int8)
    return Pairs(
        _float(chosen),
        None if rejected is None else _float(rejected),
        bits,
        None if weight is None else _float(weight),
        chosen.numel(),
        float(probability),
        float(reward_shift),
    )


def _float(values: Tensor) -> Tensor:
    """The values as contiguous float32."""
    return values.detach().to(torch.float32).contiguous()


def _check_shapes(chosen: Tensor, **others: Tensor | None) -> None:
    """Refuse operands that are not [P]: a beta [1] or [P, 1] would broadcast to a wrong loss."""
    require_runnable(chosen, *others.values())
    if chosen.dim() != 1:
        raise ValueError(f"pairs must be [P], not {list(chosen.shape)}")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != chosen.shape:
            raise ValueError(f"{name} {list(tensor.shape)} must be {list(chosen.shape)}")


def pair_loss_launch(pairs: Pairs, beta: Tensor, loss_type: str) -> Launch:
    """The launch of the pair kernel with fresh outputs, in its ``arguments``."""
    loss = torch.empty_like(pairs.chosen)
    two_sided = pairs.rejected is not None
    arguments = {
        "pairs": pairs,
        "beta": _float(beta),
        "loss": loss,
        "chosen_gradient": torch.empty_like(loss),
        "rejected_gradient": torch.empty_like(loss) if two_sided else None,
        "LOSS_TYPE": loss_type,
        "PAIRS": PAIRS,
    }
    return Launch(_pair_loss_kernel, (triton.cdiv(pairs.count, PAIRS),), arguments)


def pair_loss(
    delta: Tensor,
    beta: Tensor,
    tie: Tensor | None,
    weight: Tensor | None,
    loss_type: str,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Loss of each pair and its derivative with respect to ``delta``, in one launch.

    Args:
        delta: [P] log-ratio of the chosen answer minus log-ratio of the rejected one.
        beta: [P].
        tie: [P] bool or None.
        weight: [P] factor of each pair's loss, or None.
        loss_type: One of :data:`mmrlhf_kernels.reference.PAIR_LOSS_TYPES`.
        label_smoothing: Probability that a label is flipped, in [0, 1/2).

    Returns:
        (loss [P] float32, derivative [P] float32), both multiplied by ``weight``.

    Raises:
        RuntimeError: No GPU and no interpreter.
        ValueError: ``loss_type`` is unknown or ``bco_pair``, or shapes differ.
    """
    _check_shapes(delta, beta=beta)
    pairs = _pairs_of(
        delta, None, loss_type=loss_type, label_smoothing=label_smoothing, tie=tie, weight=weight
    )
    launch = pair_loss_launch(pairs, beta, loss_type)
    if pairs.count:
        with on_device(delta.device):
            launch.run()
    return launch.arguments["loss"], launch.arguments["chosen_gradient"]


def two_sided_pair_loss(
    chosen_ratio: Tensor, rejected_ratio: Tensor, beta: Tensor, **options: Unpack[PairOptions]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each pair and its derivatives with respect to both log-ratios, in one launch.

    Args:
        chosen_ratio: [P] S_c - ref_c.
        rejected_ratio: [P] S_r - ref_r.
        beta: [P].
        options: See :class:`PairOptions`.

    Returns:
        (loss, d loss / d chosen_ratio, d loss / d rejected_ratio), [P] float32 each; it raises
        what :func:`pair_loss` raises.
    """
    _check_shapes(chosen_ratio, beta=beta)
    pairs = _pairs_of(chosen_ratio, rejected_ratio, **options)
    launch = pair_loss_launch(pairs, beta, options.get("loss_type", "sigmoid"))
    if pairs.count:
        with on_device(chosen_ratio.device):
            launch.run()
    out = launch.arguments
    return out["loss"], out["chosen_gradient"], out["rejected_gradient"]


def dynamic_beta_pair_loss_launch(pairs: Pairs, margins: MarginPairs, loss_type: str) -> Launch:
    """The launch of the fused kernel with fresh outputs in ``arguments["out"]``."""
    out = DynamicBetaPairs(*(torch.empty_like(pairs.chosen) for _ in DynamicBetaPairs._fields))
    arguments = {
        "pairs": pairs,
        "margins": margins,
        "out": out,
        "LOSS_TYPE": loss_type,
        "PAIRS": PAIRS,
    }
    return Launch(_dynamic_beta_kernel, (triton.cdiv(pairs.count, PAIRS),), arguments)


def dynamic_beta_pair_loss(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    margin: Tensor,
    beta: float,
    w: float = 0.5,
    k: float = 0.5,
    **options: Unpack[PairOptions],
) -> DynamicBetaPairs:
    """MM-DPO's pair loss with its gradients, betas and rewards, in one launch.

    Args:
        chosen_logp: [P] S_c, summed log-probabilities of the chosen answers.
        rejected_logp: [P] S_r.
        ref_chosen_logps: [P] S_c of the reference model.
        ref_rejected_logps: [P] S_r of the reference model.
        margin: [P] reward margin (the paper's delta).
        beta: The paper's beta_ori.
        w: Largest relative increase of beta.
        k: How fast the increase is reached.
        options: See :class:`PairOptions`; the paper's loss type is ``sigmoid``.

    Returns:
        Loss, gradients, betas, differences and rewards, [P] float32 each; it raises what
        :func:`pair_loss` raises.
    """
    columns = (ref_chosen_logps, ref_rejected_logps, margin)
    names = ("ref_chosen_logps", "ref_rejected_logps", "margin")
    _check_shapes(chosen_logp, **dict(zip(names, columns, strict=True)))
    pairs = _pairs_of(chosen_logp, rejected_logp, **options)
    rule = (float(beta), float(w), float(k))
    margins = MarginPairs._make((*map(_float, columns), *rule))
    launch = dynamic_beta_pair_loss_launch(pairs, margins, options.get("loss_type", "sigmoid"))
    if pairs.count:
        with on_device(chosen_logp.device):
            launch.run()
    out: DynamicBetaPairs = launch.arguments["out"]
    return out
