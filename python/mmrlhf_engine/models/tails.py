"""More tokens at the end of a batch's sequences: what follows an answer, such as its critique.

Shards hold prompts and answers. A reward model reads, after an answer, a request to judge it and a
critique; these follow the answer in its own sequence, so that prompt and pictures are still
computed once for all answers of a query.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Tail", "with_tails"]


class Tail(NamedTuple):
    """What follows one sequence."""

    tokens: npt.NDArray[np.uint32]
    """uint32 [n], none where nothing follows."""
    given: int
    """How many of them are read and not predicted; the others take the place of the response."""


def with_tails(batch: Any, tails: Sequence[Tail]) -> Any:
    """The tensors of a batch with more tokens at the ends of its sequences.

    The answers become a part of what is given: only tokens of tails are responses afterwards.

    Args:
        batch: A :class:`mmrlhf_engine.PreferenceBatch` of torch tensors on the CPU, T tokens in S
            sequences.
        tails: S tails.

    Returns:
        The same with other ``input_ids``, ``position_ids`` (going on from the last position of the
        sequence), ``cu_seqlens``, ``prompt_lengths`` and ``placeholder_start``.
    """
    if not len(tails):
        return batch
    starts = np.asarray(batch.cu_seqlens).astype(np.int64)
    lengths = np.diff(starts)
    added = np.array([len(tail.tokens) for tail in tails], np.int64)
    given = np.array([tail.given for tail in tails], np.int64)
    new_starts = np.concatenate([[0], np.cumsum(lengths + added)])
    shift = new_starts[:-1] - starts[:-1]
    old_place = np.arange(starts[-1]) + np.repeat(shift, lengths)
    within = np.arange(added.sum()) - np.repeat(np.cumsum(added) - added, added)
    new_place = np.repeat(new_starts[:-1] + lengths, added) + within
    total = int(new_starts[-1])

    ids = np.empty(total, np.int32)
    ids[old_place] = np.asarray(batch.input_ids)
    ids[new_place] = np.concatenate([np.empty(0, np.int32), *(tail.tokens for tail in tails)])
    before = np.asarray(batch.position_ids)
    positions = np.empty((*before.shape[:-1], total), np.int32)
    positions[..., old_place] = before
    # Text goes on one behind the largest of time, row and column.
    last = before[..., starts[1:] - 1].reshape(-1, len(added)).max(axis=0)
    positions[..., new_place] = np.repeat(last + 1, added) + within
    sequence = np.asarray(batch.placeholder_sequence)
    return dataclasses.replace(
        batch,
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(new_starts.astype(np.int32)),
        prompt_lengths=torch.from_numpy((lengths + given).astype(np.int32)),
        placeholder_start=batch.placeholder_start + torch.from_numpy(shift[sequence]).int(),
    )
