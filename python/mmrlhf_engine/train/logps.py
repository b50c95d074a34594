"""Log-probabilities of answers from hidden states and a head, without logits in memory."""

from torch import Tensor

from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import LinearHead
from mmrlhf_kernels import fused_linear_logp, sequence_of_row, sequence_sums

__all__ = ["IGNORED", "row_logps", "sequence_logps"]

IGNORED = -100
"""Target of a row that no loss is of; the head skips it, and its log-probability is 0."""


def row_logps(hidden: Tensor, head: LinearHead, targets: Tensor) -> Tensor:
    """Float32 [N], the log-probability of each target.

    Args:
        hidden: [N, H] of the rows that predict answers.
        head: Of the model.
        targets: int64 [N], :data:`IGNORED` where none is wanted.
    """
    logp = fused_linear_logp(
        hidden,
        head.weight,
        targets,
        bias=head.bias,
        softcap=head.softcap,
        logit_scale=head.logit_scale,
        ignore_index=IGNORED,
    )
    assert isinstance(logp, Tensor)
    return logp


def sequence_logps(hidden: Tensor, head: LinearHead, pack: ModelPack, targets: Tensor) -> Tensor:
    """Float32 [S], the sums over the answer of each sequence; 0 for a shared prompt."""
    logp = row_logps(hidden, head, targets)
    return sequence_sums(logp, sequence_of_row(pack.cu_rows, len(logp)), len(pack.cu_rows) - 1)
