"""MM-DPO: direct preference optimisation with a beta for each pair, by the margin of its rewards.

The loss of a pair is ``-log sigmoid(beta (gap of the policy - gap of the reference))`` with
``beta = beta0 (1 + w (1 - exp(-k margin)))`` (MM-RLHF, arXiv 2502.10391, section 4), where a gap is
the log-probability of the chosen answer minus that of the rejected one. The reference is a sidecar
column that ``mmrlhf-engine reference`` has made: no second model is in memory.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["MMDPOConfig"]


class MMDPOConfig(TrainSettings):
    """Settings of ``mm-dpo``."""

    beta: PositiveFloat = 0.1
    """beta0, that of a pair whose answers are equally good."""
    beta_rule: str = "paper"
    """``paper``: by the margin; ``constant``: beta0; ``released``: what the code released with the
    paper computes; or ``SET/FIELD``: a sidecar column of pairs that holds each pair's beta."""
    beta_w: NonNegativeFloat = 0.5
    """Largest relative increase of beta0 under the rule ``paper``."""
    beta_k: NonNegativeFloat = 0.5
    """How fast it is reached, per unit of margin."""
    margin: str | None = None
    """``SET/FIELD``: a sidecar column of pairs with margins; null is the column that was packed."""
    missing_margin: Literal["error", "constant"] = "error"
    """Pairs without a margin under the rule ``paper``: refused, or beta0."""
    reference: str | None = None
    """The column set with the reference's log-probabilities; null is that of ``model``."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "bco"] = "sigmoid"
    """The loss of a pair, as ``mmrlhf_kernels`` has them."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the two answers of a pair were swapped."""
    sft_weight: NonNegativeFloat = 0.0
    """Factor of the supervised loss of the chosen answers."""
    sft_mean: Literal["token", "sequence"] = "token"
    """Over what that loss is a mean."""
    ties: Literal["leave_out", "fair_coin"] = "leave_out"
    """Pairs of equal rank: not trained on, or with a label that is a fair coin."""
