"""Kernels for preference training, usable without the engine.

The import name is ``mmrlhf_kernels`` because ``kernels`` belongs to another package that
transformers imports. One primitive, :func:`fused_linear_logp`, turns hidden states into
log-probabilities without logits in memory; the losses are built on it.
:mod:`mmrlhf_kernels.reference` holds every operation in plain PyTorch and is the specification.
Importing the package imports torch and no Triton.
"""

from mmrlhf_kernels.fused import FusedLinearMMDPOLoss, fused_linear_mm_dpo
from mmrlhf_kernels.linear_logp import (
    LinearLogp,
    fused_linear_logp,
    vocab_parallel_linear_logp,
)
from mmrlhf_kernels.plan import PairPlan, Plan, plan_pair_schedule, plan_schedule
from mmrlhf_kernels.preference import (
    MMDPOOutput,
    dynamic_beta,
    mm_dpo_loss,
    mm_dpo_loss_from_rows,
    pair_gradients,
    released_beta,
)
from mmrlhf_kernels.reward import RewardOutput, pairwise_reward_loss
from mmrlhf_kernels.rows import sequence_of_row, sequence_sums

__all__ = [
    "FusedLinearMMDPOLoss",
    "LinearLogp",
    "MMDPOOutput",
    "PairPlan",
    "Plan",
    "RewardOutput",
    "__version__",
    "dynamic_beta",
    "fused_linear_logp",
    "fused_linear_mm_dpo",
    "mm_dpo_loss",
    "mm_dpo_loss_from_rows",
    "pair_gradients",
    "pairwise_reward_loss",
    "plan_pair_schedule",
    "plan_schedule",
    "released_beta",
    "sequence_of_row",
    "sequence_sums",
    "vocab_parallel_linear_logp",
]

__version__ = "0.1.0"
