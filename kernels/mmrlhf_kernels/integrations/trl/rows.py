"""The positions of a batch whose next token belongs to an answer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrlhf_kernels import fused_linear_logp, sequence_of_row, sequence_sums
from mmrlhf_kernels.integrations.trl.columns import COLUMNS
from mmrlhf_kernels.integrations.trl.states import Head

__all__ = ["AnswerRows"]

_NOT_OF_THE_MODEL = {"completion_mask", "num_pairs", "num_tokens", *COLUMNS}


class AnswerRows:
    """N positions of a batch [2 P, T], the chosen answers first.

    Args:
        inputs: ``input_ids`` and ``completion_mask`` [2 P, T], inputs of the model, and columns.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self.model_inputs = {k: v for k, v in inputs.items() if k not in _NOT_OF_THE_MODEL}
        self._counted: Tensor = inputs["completion_mask"][:, 1:].bool()
        self._ids: Tensor = inputs["input_ids"]

    @property
    def target(self) -> Tensor:
        """[N] int64, the next token of each."""
        return self._ids[:, 1:][self._counted]

    @property
    def bounds(self) -> Tensor:
        """[2 P + 1] int64, of the answers within the rows."""
        return pad(self._counted.sum(1).cumsum(0), (1, 0))

    def of(self, states: Tensor) -> Tensor:
        """[N, H] of hidden states [2 P, T, H]."""
        return states[:, :-1][self._counted]

    def counts(self) -> Tensor:
        """[2] float32: pairs, and tokens of the chosen answers."""
        pairs = self._counted.shape[0] // 2
        tokens = self._counted[:pairs].sum()
        return torch.stack([torch.full_like(tokens, pairs), tokens]).float()

    def sums(self, states: Tensor, head: Head) -> Tensor:
        """[2 P] summed log-probabilities of the answers."""
        logp = fused_linear_logp(
            self.of(states), head.weight, self.target, bias=head.bias, softcap=head.softcap,
            logit_scale=head.logit_scale,
        )  # fmt: skip
        assert isinstance(logp, Tensor)
        answers = self._counted.shape[0]
        return sequence_sums(logp, sequence_of_row(self.bounds, logp.numel()), answers)
