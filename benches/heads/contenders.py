"""DPO from hidden states to gradients, six ways: the same tensors in, loss and two gradients out.

``2 P`` answers of equal length lie one after the other, chosen ones first, so that Liger, which
takes [2 P, T, H], gets the same rows as everybody else. Each contender runs forward and backward;
the reference log-probabilities are numbers that are given, where a contender takes them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BETA = 0.1
IGNORED = -100


@dataclass
class Problem:
    """One training step of a head: tensors and their sizes."""

    hidden: Tensor
    """[2 P T, H], requires grad."""
    weight: Tensor
    """[V, H], requires grad."""
    target: Tensor
    """[2 P T] int64."""
    reference: Tensor
    """[2 P] float32 summed log-probabilities of the reference model."""
    pairs: int

    @classmethod
    def make(
        cls, rows: int, pairs: int, hidden_size: int, vocabulary: int, dtype: torch.dtype
    ) -> "Problem":
        """Random states of a size that gives logits of about unit variance."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, hidden_size, generator=generator)
        weight = torch.randn(vocabulary, hidden_size, generator=generator) * hidden_size**-0.5
        return cls(
            hidden=hidden.to(dtype).requires_grad_(),
            weight=weight.to(dtype).requires_grad_(),
            target=torch.randint(vocabulary, (rows,), generator=generator),
            reference=torch.full((2 * pairs,), -float(rows // (2 * pairs)) * 12.4),
            pairs=pairs,
        )


def _dpo(logp: Tensor, problem: Problem) -> Tensor:
    """Mean sigmoid loss from log-probabilities by row, [2 P T]."""
    sums = logp.float().view(2 * problem.pairs, -1).sum(1)
    chosen, rejected = (sums - problem.reference).chunk(2)
    return -functional.logsigmoid(BETA * (chosen - rejected)).mean()


def plain(problem: Problem) -> Tensor:
    """All logits, ``log_softmax`` in float32, gather: what a first implementation does."""
    logits = functional.linear(problem.hidden, problem.weight)
    logp = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return _dpo(logp.gather(1, problem.target[:, None]).squeeze(1), problem)


def trl_chunked(problem: Problem) -> Tensor:
    """What TRL's DPOTrainer runs: its chunked function with all outputs it asks for."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    logp = _ChunkedLogProbFunction.apply(
        problem.hidden,
        problem.weight,
        None,
        problem.target,
        1.0,
        _CHUNKED_LOGPROB_CHUNK_SIZE,
        None,
        1.0,
        ("log_probs", "entropy", "mean_logits", "is_top1"),
    )[0]
    return _dpo(logp, problem)


def trl_selective(problem: Problem) -> Tensor:
    """All logits and TRL's ``selective_log_softmax``, as its trainers did before they chunked."""
    from trl.trainer.utils import selective_log_softmax

    logits = functional.linear(problem.hidden, problem.weight)
    return _dpo(selective_log_softmax(logits, problem.target), problem)


def liger(problem: Problem) -> Tensor:
    """Liger's chunked DPO without a reference model, for it takes no reference numbers."""
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False, compiled=False)
    shape = (2 * problem.pairs, -1)
    hidden = problem.hidden.view(*shape, problem.hidden.shape[1])
    result = loss(problem.weight, hidden, problem.target.view(shape))
    return result[0] if isinstance(result, tuple) else result


def torch_linear_cross_entropy(problem: Problem) -> Tensor:
    """PyTorch's own chunked function, one loss a row."""
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    loss = linear_cross_entropy(
        problem.hidden,
        problem.weight,
        problem.target,
        reduction="none",
        options=LinearCrossEntropyOptions(),
    )
    return _dpo(-loss, problem)


def ours(problem: Problem) -> Tensor:
    """``fused_linear_logp`` under the plain loss: the primitive alone."""
    from mmrlhf_kernels import fused_linear_logp

    return _dpo(fused_linear_logp(problem.hidden, problem.weight, problem.target), problem)


def ours_fused(problem: Problem) -> Tensor:
    """``fused_linear_mm_dpo``: the loss is the only consumer, gradients are taken in one go."""
    from mmrlhf_kernels import fused_linear_mm_dpo

    rows, answers = problem.target.numel(), 2 * problem.pairs
    chosen, rejected = problem.reference.chunk(2)
    bounds = torch.arange(0, rows + 1, rows // answers)
    states = (problem.hidden, problem.weight, problem.target)
    return fused_linear_mm_dpo(*states, chosen, rejected, BETA, cu_seqlens=bounds).loss


CONTENDERS: dict[str, Callable[[Problem], Tensor]] = {
    "plain": plain,
    "trl, chunked": trl_chunked,
    "trl, selective_log_softmax": trl_selective,
    "liger": liger,
    "torch linear_cross_entropy": torch_linear_cross_entropy,
    "ours, fused_linear_logp": ours,
    "ours, fused_linear_mm_dpo": ours_fused,
}
