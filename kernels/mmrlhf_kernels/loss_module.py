"""The fused loss as a module: the settings of a run once, the tensors of a step at each call."""

from torch import Tensor, nn

from mmrlhf_kernels.fused import fused_linear_mm_dpo
from mmrlhf_kernels.preference import MMDPOOutput, dynamic_beta

__all__ = ["FusedLinearMMDPOLoss"]

SETTINGS = (
    "beta", "w", "k", "loss_type", "label_smoothing", "sft_weight", "sft", "reward_shift",
    "softcap", "logit_scale", "ignore_index",
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
        *,
        cu_seqlens: Tensor | None = None,
        sequence_of_row: Tensor | None = None,
        pair_index: Tensor | None = None,
        bias: Tensor | None = None,
        tie: Tensor | None = None,
        pair_weight: Tensor | None = None,
        num_pairs: float | Tensor | None = None,
        num_tokens: float | Tensor | None = None,
    ) -> MMDPOOutput:
        """The loss of P pairs, with the figures to log.

        Args:
            hidden: [N, H] states of the answers' rows.
            weight: [V, H] weight of the head.
            target: [N] int64 next tokens.
            ref_chosen_logps: [P] sums under the reference model.
            ref_rejected_logps: [P].
            margin: [P] reward margins; None gives every pair ``beta``.
            cu_seqlens: [S + 1] bounds of the answers; this or ``sequence_of_row``.
            sequence_of_row: [N] answer of each row.
            pair_index: [P, 2] answers of each pair; None: chosen answers first.
            bias: [V] or None.
            tie: [P] bool or None.
            pair_weight: [P] or None.
            num_pairs: Pairs of the whole batch; None: P.
            num_tokens: Chosen tokens of the whole batch; None: these.

        Raises:
            IndexError: A target, answer or row lies outside its range.
            TypeError: A dtype does not fit.
            ValueError: A shape or a setting does not fit.
        """
        beta = self.beta if margin is None else dynamic_beta(margin, self.beta, self.w, self.k)
        return fused_linear_mm_dpo(
            hidden, weight, target, ref_chosen_logps, ref_rejected_logps, beta,
            cu_seqlens=cu_seqlens, sequence_of_row=sequence_of_row, pair_index=pair_index,
            bias=bias, softcap=self.softcap, logit_scale=self.logit_scale,
            ignore_index=self.ignore_index, loss_type=self.loss_type,
            label_smoothing=self.label_smoothing, tie=tie, pair_weight=pair_weight,
            sft_weight=self.sft_weight, sft=self.sft, reward_shift=self.reward_shift,
            num_pairs=num_pairs, num_tokens=num_tokens,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings, as ``print`` shows them."""
        settings = {name: value for name, value in vars(self).items() if name in SETTINGS}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())
