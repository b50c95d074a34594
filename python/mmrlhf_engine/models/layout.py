"""How a model reads a pack: which token sees which, and which row of hidden states predicts which.

A pack holds several sequences one after the other, and a sequence may continue a prompt that it
shares with others (its ``prefix_sequence``). Both functions take a batch of numpy arrays, or of
torch tensors on the CPU, and give numpy arrays, which ``torch.from_numpy`` takes without a copy.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AnswerRows", "Sequences", "answer_rows", "attention_mask", "sequence_ends"]


class Sequences(Protocol):
    """What is read of a :class:`mmrlhf_engine.PreferenceBatch`."""

    @property
    def input_ids(self) -> Any:
        """int32 [T]."""

    @property
    def cu_seqlens(self) -> Any:
        """int32 [S + 1], where each sequence begins, and the end."""

    @property
    def prompt_lengths(self) -> Any:
        """int32 [S], tokens of a sequence that are not the response's."""

    @property
    def prefix_sequence(self) -> Any:
        """int32 [S], the sequence that this one continues, or -1."""


class AnswerRows(NamedTuple):
    """The rows that a head needs: one for each token of a response, sequence after sequence."""

    row: npt.NDArray[np.int64]
    """[N], the token of the pack from whose hidden state the target is predicted."""
    target: npt.NDArray[np.int64]
    """[N], the id that is predicted."""
    cu_seqlens: npt.NDArray[np.int64]
    """[S + 1], where the rows of each sequence begin, and the end; a shared prompt has none."""


def answer_rows(batch: Sequences) -> AnswerRows:
    """Rows and targets of all responses of a pack, for ``mmrlhf_kernels.fused_linear_logp``.

    The first token of a response is predicted at the last token of its prompt, which is the one
    before it, or the last of the shared prompt.
    """
    starts, prefix = np.asarray(batch.cu_seqlens), np.asarray(batch.prefix_sequence)
    first = starts[:-1] + np.asarray(batch.prompt_lengths)
    counts = (starts[1:] - first).astype(np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(counts)])
    sequence = np.repeat(np.arange(len(counts)), counts)
    at = np.arange(cu_seqlens[-1]) - cu_seqlens[sequence] + first[sequence]
    continues = (at == starts[sequence]) & (prefix[sequence] >= 0)
    row = np.where(continues, starts[prefix[sequence] + 1] - 1, at - 1)
    return AnswerRows(row, np.asarray(batch.input_ids)[at].astype(np.int64), cu_seqlens)


def sequence_ends(batch: Sequences) -> npt.NDArray[np.int64]:
    """Int64 [S], the token of the pack that each sequence ends with.

    Of a sequence without tokens, that of the prompt it continues.
    """
    starts, prefix = np.asarray(batch.cu_seqlens), np.asarray(batch.prefix_sequence)
    empty = (starts[1:] == starts[:-1]) & (prefix >= 0)
    ends: npt.NDArray[np.int64] = np.where(empty, starts[prefix + 1], starts[1:]).astype(np.int64)
    return ends - 1


def attention_mask(batch: Sequences) -> npt.NDArray[np.bool_]:
    """Bool [T, T]: token i sees token j, of its own sequence or its prefix, at or before itself.

    T^2 bytes, for models whose attention takes a mask. Without shared prompts ``cu_seqlens`` alone
    says the same to attention kernels for sequences of different lengths.
    """
    starts, prefix = np.asarray(batch.cu_seqlens), np.asarray(batch.prefix_sequence)
    sequence = np.repeat(np.arange(len(prefix)), np.diff(starts))
    own = sequence[:, None] == sequence[None, :]
    before = prefix[sequence][:, None] == sequence[None, :]
    seen: npt.NDArray[np.bool_] = (own | before) & np.tri(len(sequence), dtype=bool)
    return seen
