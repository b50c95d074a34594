"""What a model reads of one batch: a pack of sequences, as tensors on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.layout import answer_rows, sequence_ends
from mmrlhf_engine.models.packed_attention import Segments
from mmrlhf_engine.models.tails import Tail, with_tails

__all__ = ["ModelPack"]


@dataclass(frozen=True)
class ModelPack:
    """T tokens in S sequences, with N rows that predict answers."""

    input_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T], or [3, 1, T] where time, row and column are told apart."""
    segments: Segments
    """Which tokens attend to which."""
    rows: Tensor
    """int64 [N], the tokens from whose hidden states the targets are predicted."""
    targets: Tensor
    """int64 [N], the ids that are predicted."""
    cu_rows: Tensor
    """int64 [S + 1], where the rows of each sequence begin, and the end; a shared prompt has
    none."""
    ends: Tensor
    """int64 [S], the last token of each sequence, that of a shared prompt included. The one token
    of a pack without any counts as one sequence."""
    pictures: DistinctPictures | None
    """The pictures that the pack shows; None without."""
    needs_vision: bool
    """Whether some pack of the step shows pictures, on any rank. Where this one has none, a model
    still runs its tower and projector, on one blank picture, so that all ranks do the same."""

    @classmethod
    def of(
        cls,
        batch: Any,
        device: Any = None,
        dtype: torch.dtype | None = None,
        tails: Sequence[Tail] | None = None,
    ) -> "ModelPack":
        """The pack of a batch.

        Args:
            batch: A :class:`mmrlhf_engine.PreferenceBatch`. One without tokens gives a pack of one
                token and no rows, so that all ranks run the model equally often.
            device: Where the tensors are put; None is the CPU.
            dtype: Of the pixels; None is float32.
            tails: What follows each sequence, in place of the answer as what is predicted.

        Raises:
            InputError: the batch has pictures, and the dataset records no processor.
        """
        tensors = batch.to_torch(pin=False)
        if tails is not None:
            tensors = with_tails(tensors, tails)
        return cls.of_tensors(tensors, device, dtype)

    @classmethod
    def of_tensors(
        cls, tensors: Any, device: Any = None, dtype: torch.dtype | None = None
    ) -> "ModelPack":
        """The same of torch tensors on the CPU, as a batch has them."""
        answers = answer_rows(tensors)
        ids, positions = tensors.input_ids.long(), tensors.position_ids.long()
        segments = Segments.of(tensors.cu_seqlens, tensors.prefix_sequence, device)
        ends = torch.from_numpy(sequence_ends(tensors))
        if not len(ids):
            ends = torch.zeros(1, dtype=torch.int64)
            ids, positions = ids.new_zeros(1), positions.new_zeros((*positions.shape[:-1], 1))
            segments = Segments.of([0, 1], [-1], device)
        rows, targets, cu_rows = (torch.from_numpy(part).to(device) for part in answers)
        return cls(
            input_ids=ids[None].to(device),
            position_ids=positions.unsqueeze(-2).to(device),
            segments=segments,
            rows=rows,
            targets=targets,
            cu_rows=cu_rows,
            ends=ends.to(device),
            pictures=_pictures(tensors, device, dtype or torch.float32),
            needs_vision=bool(tensors.step_has_images),
        )


def _pictures(tensors: Any, device: Any, dtype: torch.dtype) -> DistinctPictures | None:
    if not len(tensors.placeholder_start):
        return None
    if tensors.processor is None:
        raise InputError(
            "the batch has pictures, and the dataset records no processor",
            hint="pack with --model",
        )
    return DistinctPictures.of(tensors, tensors.processor["pictures"], device, dtype)
