"""Settings of MM-DPO in TRL, and those of TRL that it has no use for."""

from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

__all__ = ["LOSS_TYPES", "MMDPOConfig"]

LOSS_TYPES = ("sigmoid", "hinge", "robust", "bco_pair")
"""Losses that TRL and the kernels define alike."""

_SFT_HINT = "sft_weight is the factor of the supervised term"
_REFUSED: dict[str, tuple[Any, str]] = {
    "loss_weights": (None, _SFT_HINT),
    "ld_alpha": (None, "all tokens of an answer count alike"),
    "f_divergence_type": ("reverse_kl", "the loss is that of the reverse divergence"),
    "f_alpha_divergence_coef": (0.5, "the loss is that of the reverse divergence"),
    "discopop_tau": (0.05, "it belongs to the loss discopop"),
    "use_weighting": (False, "a column named weight holds a factor of each pair's loss"),
    "padding_free": (False, "TRL 1.16 pads in spite of it"),
    "label_smoothing_factor": (0.0, "label_smoothing is the one of preferences"),
    "use_liger_kernel": (False, "model_init_kwargs={'use_kernels': True} replaces it in TRL"),
    "torch_compile": (False, "compile the model's layers before passing it"),
}
"""The one value that is accepted of each, and what to do instead."""


@dataclass
class MMDPOConfig(DPOConfig):  # type: ignore[misc]
    """Settings of :class:`~mmrlhf_kernels.integrations.trl.MMDPOTrainer`; those of TRL, and these.

    The beta of a pair is ``beta (1 + beta_w (1 - exp(-beta_k margin)))``, kept within ``beta`` and
    ``(1 + beta_w) beta``. ``loss_type`` is one of ``sigmoid``, ``hinge``, ``robust`` and
    ``bco_pair``; ``label_smoothing`` is the probability that a pair's answers were swapped, under
    each of them.

    Attributes:
        beta_w: Largest relative increase of ``beta``, at least 0.
        beta_k: How fast it is reached, per unit of margin, at least 0.
        sft_weight: Factor of the supervised loss of the chosen answers, at least 0.
        sft_mean: Over what that loss is a mean: ``token`` or ``sequence``.

    Raises:
        ValueError: A number is out of its range, or a setting of TRL has no meaning here.
    """

    beta_w: float = field(
        default=0.5, metadata={"help": "Largest relative increase of beta by the margin."}
    )
    beta_k: float = field(
        default=0.5, metadata={"help": "How fast the increase is reached, per unit of margin."}
    )
    sft_weight: float = field(
        default=0.0, metadata={"help": "Factor of the supervised loss of the chosen answers."}
    )
    sft_mean: str = field(
        default="token",
        metadata={
            "help": "Over what the supervised loss is a mean.",
            "choices": ["token", "sequence"],
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (accepted, hint) in _REFUSED.items():
            found = getattr(self, name)
            if found != accepted:
                raise ValueError(
                    f"{name} is {found!r}, which MM-DPO does not support; expected {accepted!r}; "
                    f"hint: {hint}"
                )
        self._check_loss()
        for name, least in {"beta_w": 0.0, "beta_k": 0.0, "sft_weight": 0.0}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a number above 0")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected 0 <= e < 1/2")
        if self.sft_mean not in ("token", "sequence"):
            raise ValueError(f"sft_mean is {self.sft_mean!r}; expected 'token' or 'sequence'")

    def _check_loss(self) -> None:
        """Raise unless ``loss_type`` is one loss that both libraries define alike."""
        if len(self.loss_type) == 1 and self.loss_type[0] in LOSS_TYPES:
            return
        hint = _SFT_HINT if "sft" in self.loss_type else "give one of them"
        if self.loss_type == ["ipo"]:
            hint = "fused_linear_logp and mm_dpo_loss_from_rows(average=True)"
        raise ValueError(
            f"loss_type is {self.loss_type}; expected one of {', '.join(LOSS_TYPES)}; hint: {hint}"
        )
