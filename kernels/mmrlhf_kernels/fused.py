"""Hidden states to the MM-DPO loss, with all gradients taken in the forward pass.

:func:`fused_linear_mm_dpo` is for the usual case in which the loss is the only consumer of the
log-probabilities: the products of the backward pass then run as soon as a pair's own logits have
been seen, and the head's weight is needed once. It takes

=================== ===============================================================================
hidden              [N, H] rows of all answers, or [S, T, H], row by row an answer; prompt rows are
                    better left out, at least ignored
weight, target,     as in :mod:`mmrlhf_kernels.linear_logp`
bias, softcap,
logit_scale,
temperature,
ignore_index,
counted_rows
cu_seqlens          [S + 1] bounds of the S answers within the rows; on the CPU, the planner knows
                    their lengths without waiting for a GPU. Or
sequence_of_row     [N], or [S, T], the answer of each row; one of the two is given, or none for
                    hidden states [S, T, H]
pair_index          [P, 2], (chosen, rejected) answers of each pair; one answer may belong to
                    several pairs, whose tokens are then counted in each. None: S = 2 P, all chosen
                    answers first, then all rejected ones in the same order. All three are int32 or
                    int64
ref_chosen_logps,   [P], as in :mod:`mmrlhf_kernels.preference`, with ``loss_type``,
ref_rejected_logps, ``label_smoothing``, ``tie``, ``sft_weight``, ``sft``, ``reward_shift``,
beta                ``num_pairs``, ``num_tokens`` and ``beta_rule``
pair_weight         [P], called ``weight`` there
group               the processes that hold other rows of the same answers (sequence parallelism),
                    with the same pairs in each: sums and tokens are added over them, the loss is
                    the same in all, and each gets the gradient of its own rows. Gradients of the
                    head are those of the rows here; add them over the group
schedule            ``keep``, ``recompute``, ``frozen``, ``one_sum`` or ``two_sums``, as listed in
                    :mod:`mmrlhf_kernels.plan`; None: ``plan_pair_schedule``
workspace_bytes     bound of the memory beyond inputs, outputs and gradients; None:
                    ``default_pair_workspace`` there
=================== ===============================================================================

The tokens of each chosen answer, which the supervised term needs, are counted here. In eager mode
the gradients are passed to autograd and not kept: a second backward pass through the same loss
raises, and checkpointing would save nothing, as nothing is stored but gradients. The upstream
scalar multiplies them in place. Those of float16 inputs wait for it in float32: a loss scale that
came after rounding would come too late for the small ones.

Where ``beta_rule`` is ``released``, which needs the whole batch before it knows any beta, the loss
is put together from ``fused_linear_logp`` and ``mm_dpo_loss`` instead. It draws from torch's global
generator and needs at least two pairs.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrlhf_kernels import dispatch
from mmrlhf_kernels.checks import (
    check_data,
    check_integers,
    check_pairs,
    check_references,
    check_shape,
    head_options,
    linear_inputs,
)
from mmrlhf_kernels.linear_logp import fused_linear_logp
from mmrlhf_kernels.mm_dpo_plain import MMDPOOutput, PairCall, output_of
from mmrlhf_kernels.pair import (
    Beta,
    Logp,
    call_of,
    check_answers,
    check_map,
    check_options,
    check_rule,
)
from mmrlhf_kernels.pair_operator import FusedRows, batch_of, linear_mm_dpo
from mmrlhf_kernels.plan import PAIR_SCHEDULES, check_schedule, check_workspace
from mmrlhf_kernels.precision import statistics_dtype
from mmrlhf_kernels.preference import differentiable, dynamic_beta

__all__ = ["FusedLinearMMDPOLoss", "fused_linear_mm_dpo"]


def fused_linear_mm_dpo(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float | Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    sequence_of_row: Tensor | None = None,
    pair_index: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    counted_rows: int | None = None,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    pair_weight: Tensor | None = None,
    sft_weight: float = 0.0,
    sft: str = "token",
    reward_shift: float = 0.0,
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
    beta_rule: str = "fixed",
    group: "dist.ProcessGroup | None" = None,
    schedule: str | None = None,
    workspace_bytes: int | None = None,
) -> MMDPOOutput:
    """MM-DPO of P pairs from hidden states; arguments as listed in the module docstring.

    Raises:
        IndexError: A target, answer or row lies outside its range.
        TypeError: An argument is no tensor, or a dtype does not fit.
        ValueError: A shape, an option or the schedule does not fit, a column requires a gradient;
            on the CPU also: a beta is not above 0, a weight is negative, a sum is NaN.
    """
    head = head_options(softcap, logit_scale, temperature)
    check_workspace(workspace_bytes)
    check_references(ref_chosen_logps, ref_rejected_logps)
    check_rule(beta_rule, beta)
    inputs = linear_inputs(hidden, weight, target, bias)
    states, pairs = inputs.hidden, ref_chosen_logps.shape[0]
    cu_seqlens, sequence_of_row = _answers_of(hidden, cu_seqlens, sequence_of_row)
    check_answers(cu_seqlens, pair_index, pairs)
    check_pairs(pairs, states.device, pair_weight=pair_weight)
    like = states.new_empty(ref_chosen_logps.shape[0], dtype=statistics_dtype(states.dtype))
    call = call_of(
        Logp(like, None), (ref_chosen_logps, ref_rejected_logps), Beta(beta, None, 0.0, 0.0),
        counted=True, loss_type=loss_type, label_smoothing=label_smoothing, tie=tie,
        weight=pair_weight, sft_weight=sft_weight, sft=sft, reward_shift=reward_shift,
        num_pairs=num_pairs, num_tokens=num_tokens,
    )  # fmt: skip
    leaves = states, inputs.weight, inputs.bias
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in leaves]
    check_schedule(schedule, PAIR_SCHEDULES, "weight or bias", trained=needs[1] or needs[2])
    rows = FusedRows(
        *leaves, inputs.target, cu_seqlens, sequence_of_row, pair_index, *head, ignore_index,
        counted_rows, schedule, workspace_bytes, None if group is None else group.group_name,
        needs,
    )  # fmt: skip
    if beta_rule == "released" or dispatch.choose(states) == "reference":
        return _compose(rows, call, beta_rule)
    data = (None if leaf is None else leaf.detach() for leaf in leaves)
    loss, figures, values, *gradients = linear_mm_dpo(*data, *rows[3:], *call)
    if any(needs):
        loss = _PrecomputedGradient.apply(*leaves, loss, *gradients)
    return output_of(loss, figures, values)


def _answers_of(
    hidden: Tensor, cu_seqlens: Tensor | None, sequence: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(bounds, answer of each row [N]), one of them None; hidden states [S, T, H] are S answers."""
    if cu_seqlens is not None and sequence is not None:
        raise ValueError("cu_seqlens and sequence_of_row are both given; expected one of them")
    if sequence is not None:
        check_integers("sequence_of_row", sequence, "[N]")
        check_shape("sequence_of_row", sequence, tuple(hidden.shape[:-1]))
        return None, sequence.flatten().to(torch.int64)
    if cu_seqlens is None and hidden.dim() == 3:
        cu_seqlens = torch.arange(hidden.shape[0] + 1) * hidden.shape[1]
    if cu_seqlens is None:
        raise ValueError(
            "which rows belong to which answer is not given; expected cu_seqlens [S + 1], "
            "sequence_of_row [N], or hidden states [S, T, H] whose S rows are the answers"
        )
    return cu_seqlens, None


def _compose(rows: FusedRows, call: PairCall, beta_rule: str) -> MMDPOOutput:
    """The same loss from its parts, for calls whose gradients are not taken in forward."""
    batch = batch_of(rows, call)
    logp = fused_linear_logp(
        batch.x.hidden, rows.head_weight, batch.x.target, bias=rows.bias, softcap=rows.softcap,
        logit_scale=rows.logit_scale, ignore_index=rows.ignore_index,
        counted_rows=rows.counted_rows, workspace_bytes=rows.workspace_bytes,
    )  # fmt: skip
    assert isinstance(logp, Tensor)
    return differentiable(batch.objective_of(logp), beta_rule)


class _PrecomputedGradient(torch.autograd.Function):
    """A loss with the gradients computed along with it; empty ones mean none."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Tensor,
        *gradients: Tensor,
    ) -> Tensor:
        ctx.compiled = torch.compiler.is_compiling()
        ctx.dtypes = (hidden.dtype, weight.dtype, hidden.dtype if bias is None else bias.dtype)
        if ctx.compiled:
            ctx.save_for_backward(*gradients)
        else:
            # Not saved_tensors: autograd would hold a second reference, and the leaf would copy
            # a gradient as large as the head instead of taking it over.
            ctx.gradients = list(gradients)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.compiled:
            found = [part * grad for part in ctx.saved_tensors]
        elif ctx.gradients:
            # backward() alone sends 1, and multiplying a gradient as large as the head takes time;
            # on a GPU, reading the number would make the host wait instead.
            is_one = grad.device.type == "cpu" and float(grad) == 1.0
            found = ctx.gradients if is_one else [part.mul_(grad) for part in ctx.gradients]
            ctx.gradients = []
        else:
            raise RuntimeError(
                "the gradients of fused_linear_mm_dpo were used by an earlier backward pass; "
                "for a second one use fused_linear_logp with mm_dpo_loss"
            )
        needs = ctx.needs_input_grad[:3]
        given = (
            part.to(dtype) if need else None
            for part, dtype, need in zip(found, ctx.dtypes, needs, strict=True)
        )
        return (*given, None, None, None, None)


SETTINGS = (
    "loss_type", "label_smoothing", "sft_weight", "sft", "reward_shift", "softcap", "logit_scale",
    "ignore_index",
)  # fmt: skip


class FusedLinearMMDPOLoss(nn.Module):
    """:func:`fused_linear_mm_dpo` with MM-DPO's betas; it has no parameters and no state.

    Args:
        beta: beta_ori, the beta of a pair without a lead.
        w: Largest relative increase of a pair's beta.
        k: How fast the increase is reached as the reward margin grows.
        loss_type: As in :mod:`mmrlhf_kernels.preference`, like the next four.
        label_smoothing: Probability that a label is flipped, in [0, 1/2).
        sft_weight: Factor of the supervised term.
        sft: ``token`` or ``sequence``.
        reward_shift: What is subtracted from rewards under ``bco_pair``, ``kto_pair``, ``simpo``.
        softcap: Bound of the head's logits, or None.
        logit_scale: Factor of the head's logits.
        ignore_index: The target that marks an ignored row.

    Raises:
        ValueError: A setting is unknown or out of its range.

    Example:
        >>> loss = FusedLinearMMDPOLoss(beta=0.1, sft_weight=0.25)
        >>> head, hidden = torch.nn.Linear(8, 100, bias=False), torch.randn(6, 8)
        >>> target, bounds = torch.arange(6), torch.tensor([0, 4, 6])  # one pair, chosen first
        >>> reference = torch.tensor([-18.0]), torch.tensor([-9.0])
        >>> margin = torch.tensor([1.5])  # by how much the reward of the chosen answer leads
        >>> out = loss(hidden, head.weight, target, *reference, margin, cu_seqlens=bounds)
        >>> out.loss.backward()
    """

    def __init__(
        self,
        beta: float = 0.1,
        w: float = 0.5,
        k: float = 0.5,
        *,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        sft_weight: float = 0.0,
        sft: str = "token",
        reward_shift: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_map(beta, w, k)
        check_options(loss_type, label_smoothing, sft_weight, sft, reward_shift)
        head_options(softcap, logit_scale, 1.0)
        self.beta, self.w, self.k = beta, w, k
        self.loss_type, self.label_smoothing = loss_type, label_smoothing
        self.sft_weight, self.sft, self.reward_shift = sft_weight, sft, reward_shift
        self.softcap, self.logit_scale, self.ignore_index = softcap, logit_scale, ignore_index

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        margin: Tensor | None = None,
        **operands: Any,
    ) -> MMDPOOutput:
        """The loss of P pairs, with the figures to log; raises what the function raises.

        Args:
            hidden: [N, H] or [S, T, H].
            weight: [V, H].
            target: [N] or [S, T].
            ref_chosen_logps: [P].
            ref_rejected_logps: [P].
            margin: [P] reward margins; None gives every pair ``beta``.
            operands: Others of :func:`fused_linear_mm_dpo`, by name: ``cu_seqlens`` or
                ``sequence_of_row``, and ``pair_index``, ``bias``, ``tie``, ``pair_weight``,
                ``num_pairs``, ``num_tokens``, ``temperature``, ``counted_rows``, ``group``,
                ``schedule``, ``workspace_bytes`` where they are needed.
        """
        for name in ("beta", "w", "k", *SETTINGS):
            if name in operands:
                raise TypeError(f"{name} is a setting of the module; give it at construction")
        check_references(ref_chosen_logps, ref_rejected_logps)
        check_rule(operands.get("beta_rule", "fixed"), self.beta, margin)
        check_pairs(ref_chosen_logps.shape[0], ref_chosen_logps.device, margin=margin)
        check_data(margin=margin)
        beta = self.beta if margin is None else dynamic_beta(margin, self.beta, self.w, self.k)
        settings: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS}
        return fused_linear_mm_dpo(
            hidden, weight, target, ref_chosen_logps, ref_rejected_logps, beta, **operands,
            **settings,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings, as ``print`` shows them."""
        return ", ".join(
            f"{name}={getattr(self, name)!r}" for name in ("beta", "w", "k", *SETTINGS)
        )
