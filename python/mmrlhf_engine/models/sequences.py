"""Some sequences of a batch, and several batches as one: tensors in, tensors out.

Both work on the torch tensors of a :class:`mmrlhf_engine.PreferenceBatch` on the CPU, and give as
much of a batch as a model reads: pairs and sidecar columns are left as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["joined", "spans_of"]

_IMAGES = ("blob", "sizes", "grid_thw", "frames", "unreadable")


def spans_of(batch: Any, spans: Sequence[tuple[int, int, int]]) -> Any:
    """A batch of parts of the sequences of another, each on its own.

    Args:
        batch: The tensors.
        spans: Of each part: the sequence, which must not continue another one, and where in the
            batch's tokens the part begins and ends.

    Returns:
        The parts as prompts, with those pictures that they show.
    """
    tokens = torch.cat([torch.arange(start, end) for _, start, end in spans])
    lengths = torch.tensor([end - start for _, start, end in spans])
    starts = lengths.cumsum(0) - lengths
    placed = batch.placeholder_start.long()
    chosen, sequence, moved = [], [], []
    for number, (_, start, end) in enumerate(spans):
        own = ((placed >= start) & (placed < end)).nonzero()[:, 0]
        chosen.append(own)
        sequence.append(torch.full_like(own, number))
        moved.append(placed[own] - start + starts[number])
    rows = torch.cat(chosen)
    shown, image = batch.placeholder_image.long()[rows].unique(return_inverse=True)
    which = torch.tensor([number for number, _, _ in spans])
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[..., tokens],
        cu_seqlens=_ends(lengths),
        prompt_lengths=lengths.int(),
        prefix_sequence=torch.full_like(lengths, -1).int(),
        sequence_query=batch.sequence_query[which],
        sequence_response=torch.full_like(lengths, -1),
        placeholder_sequence=torch.cat(sequence).int(),
        placeholder_start=torch.cat(moved).int(),
        placeholder_length=batch.placeholder_length[rows],
        placeholder_image=image.int(),
        placeholder_offset=batch.placeholder_offset[rows],
        **_images(batch, shown),
    )


def _images(batch: Any, shown: Tensor) -> dict[str, Tensor]:
    """What a batch says of some of its images, with their blocks alone."""
    found = {f"image_{name}": getattr(batch, f"image_{name}")[shown] for name in _IMAGES}
    blocks = batch.image_blocks.long()
    counts = blocks.diff()[shown]
    places = [torch.arange(int(blocks[one]), int(blocks[one + 1])) for one in shown.tolist()]
    rows = torch.cat([torch.empty(0, dtype=torch.int64), *places])
    return {**found, "image_blocks": _ends(counts), "pixel_values": batch.pixel_values[rows]}


def joined(batches: Sequence[Any]) -> Any:
    """The sequences and pictures of several batches, of one dataset, as one batch."""
    first = batches[0]
    if len(batches) == 1:
        return first
    tokens, sequences, images = (
        _before([len(getattr(batch, name)) for batch in batches])
        for name in ("input_ids", "prompt_lengths", "image_frames")
    )

    def cat(name: str, offsets: list[int] | None = None, axis: int = 0) -> Tensor:
        parts = [getattr(batch, name) for batch in batches]
        if offsets is not None:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=True)]
        return torch.cat(parts, axis)

    prefixes = [
        torch.where(batch.prefix_sequence >= 0, batch.prefix_sequence + offset, -1)
        for batch, offset in zip(batches, sequences, strict=True)
    ]
    lengths = torch.cat([batch.cu_seqlens.long().diff() for batch in batches])
    blocks = torch.cat([batch.image_blocks.long().diff() for batch in batches])
    plain = ("input_ids", "prompt_lengths", "sequence_query", "sequence_response", "pixel_values")
    return dataclasses.replace(
        first,
        **{name: cat(name) for name in plain},
        **{f"image_{name}": cat(f"image_{name}") for name in _IMAGES},
        position_ids=cat("position_ids", axis=-1),
        cu_seqlens=_ends(lengths),
        prefix_sequence=torch.cat(prefixes),
        placeholder_sequence=cat("placeholder_sequence", sequences),
        placeholder_start=cat("placeholder_start", tokens),
        placeholder_length=cat("placeholder_length"),
        placeholder_image=cat("placeholder_image", images),
        placeholder_offset=cat("placeholder_offset"),
        image_blocks=_ends(blocks),
        step_has_images=any(batch.step_has_images for batch in batches),
    )


def _ends(lengths: Tensor) -> Tensor:
    """int32 [n + 1], where each of n parts begins, and the end."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


def _before(counts: list[int]) -> list[int]:
    """How many there are before each of several."""
    return [sum(counts[:number]) for number in range(len(counts))]
