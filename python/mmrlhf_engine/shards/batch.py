"""One batch of preference pairs: a block of memory, and names for the arrays that lie in it.

The core makes the block and declares the arrays (``_core.batch_fields``); every array of a
:class:`PreferenceBatch` is a writable view of the block, and a torch tensor is another view.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from mmrlhf_engine import _core

__all__ = ["BATCH_FIELDS", "METADATA", "PreferenceBatch", "assembled"]

Array = TypeVar("Array")
_Layout = list[tuple[list[int], int]]

BATCH_FIELDS = tuple(_core.batch_fields())
"""Name, dtype and axes of each array, in their order in memory."""

METADATA = (
    "step",
    "pack",
    "ends_step",
    "step_has_images",
    "cursor",
    "unreadable",
    "zero_weight_pairs",
    "column_names",
    "processor",
)
"""What a batch has in addition to its arrays."""


@dataclass(frozen=True)
class PreferenceBatch(Generic[Array]):
    """One pack: T tokens in S sequences, N placeholders, M images or videos of B blocks, P pairs.

    A placeholder is an image, or a run of frames of a video between two texts. It takes the
    features ``offset`` to ``offset + length`` of its image or video.
    """

    input_ids: Array
    """int32 [T], image tokens written out."""
    position_ids: Array
    """int32 [..., T]: [T], or [3, T] (time, row, column) for Qwen2-VL."""
    cu_seqlens: Array
    """int32 [S + 1], where each sequence begins, and the end."""
    prompt_lengths: Array
    """int32 [S], tokens of a sequence that are not the response's."""
    prefix_sequence: Array
    """int32 [S], the sequence that this one continues without repeating its tokens, or -1."""
    sequence_query: Array
    """int64 [S], row of queries."""
    sequence_response: Array
    """int64 [S], row of responses; -1 for a prompt that several responses share."""
    placeholder_sequence: Array
    """int32 [N], the sequence that a placeholder is in."""
    placeholder_start: Array
    """int32 [N], its first image token, counted in T."""
    placeholder_length: Array
    """int32 [N], its image tokens."""
    placeholder_image: Array
    """int32 [N], the image or video it stands for."""
    placeholder_offset: Array
    """int32 [N], which feature of the video its run begins at; 0 for an image."""
    image_blob: Array
    """int64 [M], blob id; of a video, that of its first frame."""
    image_sizes: Array
    """int32 [M, 2], height and width of the image or of each frame as seen."""
    image_grid_thw: Array
    """int32 [M, 3], groups of frames (1 for an image), rows and columns: of patches or tiles."""
    image_frames: Array
    """int32 [M], frames of a video before its last group is filled up; 0 for an image."""
    image_blocks: Array
    """int32 [M + 1], where the blocks of each image or video begin, and the end."""
    image_unreadable: Array
    """uint8 [M], 1 where the image or video is blank because it could not be read."""
    pixel_values: Array
    """uint8 [B, ...]: tiles [B, 3, height, width] or patches [B, 3 * temporal * patch * patch].

    Of a video: one tile a frame, or the patches of its groups, one after the other.
    """
    pair_row: Array
    """int64 [P], row of pairs."""
    pair_query: Array
    """int64 [P], row of queries."""
    pair_chosen: Array
    """int32 [P], the chosen sequence."""
    pair_rejected: Array
    """int32 [P], the rejected sequence."""
    pair_margin: Array
    """float32 [P], NaN where unknown."""
    pair_weight: Array
    """float32 [P], 0 where an image is blank."""
    pair_flags: Array
    """int32 [P], the bits of docs/shard-format.md."""
    pair_columns: Array
    """float32 [C, P], sidecar columns of pairs; :meth:`column` knows them by name."""
    sequence_columns: Array
    """float32 [C, S], sidecar columns of responses; NaN where value or response is missing."""
    step: int
    """The step of training it belongs to."""
    pack: int
    """Which pack of the step; from ``packs_per_step`` on, an empty one that evens out the ranks."""
    ends_step: bool
    """Whether it is this rank's last of the step."""
    step_has_images: bool
    """Whether any pack of the step has an image, on any rank."""
    cursor: str
    """JSON for :meth:`PreferenceLoader.load_state_dict`; within a step, that of its start."""
    unreadable: list[tuple[int, str]]
    """Blob id and problem of each blank image or video."""
    zero_weight_pairs: int
    """Pairs given weight 0 because an image of theirs is blank."""
    column_names: dict[str, list[str]]
    """Names of the rows of ``pair_columns`` (``pairs``), ``sequence_columns`` (``responses``)."""
    processor: dict[str, Any] | None
    """The processor that the dataset was packed for; None where it was packed for text alone, or
    with settings of its own."""
    memory: Array
    """uint8, the block all arrays lie in."""
    layout: _Layout
    """Shape and offset in ``memory`` of each array, in the order of :data:`BATCH_FIELDS`."""

    def column(self, name: str) -> Array:
        """A sidecar column that was requested: float32 [P] of pairs, [S] of responses.

        Raises:
            KeyError: it was not asked for; the message names those that were.
        """
        for table, columns in (
            ("pairs", self.pair_columns),
            ("responses", self.sequence_columns),
        ):
            if name in self.column_names[table]:
                rows: Any = columns
                found: Array = rows[self.column_names[table].index(name)]
                return found
        there = [name for names in self.column_names.values() for name in names]
        raise KeyError(f"column: found no {name!r}, expected one of {there}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the block once; torch, if loaded, passes it between processes by shared memory."""
        torch = sys.modules.get("torch")
        memory: Any = self.memory
        if torch is not None and isinstance(memory, np.ndarray):
            memory = torch.from_numpy(memory)
        return _unpickled, (memory, self.layout, self._metadata(), isinstance(memory, np.ndarray))

    def _metadata(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in METADATA}

    def to_torch(self, *, pin: bool | None = None) -> "PreferenceBatch[Any]":
        """The same with torch tensors.

        Args:
            pin: Copy the block once into pinned memory, from where devices read without waiting;
                None: if CUDA is there. Else the tensors share the memory of the arrays.
        """
        import torch

        shared: Any = self.memory
        if isinstance(shared, np.ndarray):
            shared = torch.from_numpy(shared)
        if torch.cuda.is_available() if pin is None else pin:
            # torch keeps freed pinned blocks and gives them out again once the device is done.
            pinned = torch.empty(shared.shape, dtype=torch.uint8, pin_memory=True)
            shared = pinned.copy_(shared)
        return assembled(shared, self.layout, self._metadata())

    def model_inputs(
        self,
        device: Any = None,
        *,
        dtype: Any = None,
        attention: Literal["mask", "varlen"] = "mask",
    ) -> dict[str, Any]:
        """The keyword arguments of the ``forward`` of the model that the dataset was packed for.

        ``input_ids`` int64 [1, T], ``position_ids`` int64 [1, T] or [3, 1, T], the attention, and
        what the family takes of pictures: normalised pixels in the order of the text, once for
        every sequence that shows them.

        Args:
            device: Where the tensors are put; None is the CPU.
            dtype: Of the pixels; None is float32.
            attention: ``mask`` gives ``attention_mask`` bool [1, 1, T, T], for attention by
                ``sdpa``; ``varlen`` gives ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``
                and ``max_length_k`` for FlashAttention, where no prompt is shared.

        Raises:
            InputError: the batch has pictures, and the dataset records no processor; or a prompt
                is shared, which ``varlen`` cannot say.
        """
        from mmrlhf_engine.shards.forward import forward_inputs

        return forward_inputs(self, device, dtype, attention)


def _unpickled(
    memory: Any, layout: _Layout, metadata: dict[str, Any], arrays: bool
) -> PreferenceBatch[Any]:
    return assembled(memory if arrays else memory.numpy(), layout, metadata)


def assembled(memory: Any, layout: _Layout, metadata: dict[str, Any]) -> PreferenceBatch[Any]:
    """Name the arrays, or tensors, that lie in a block."""
    arrays = {}
    for (name, kind, _), (shape, offset) in zip(BATCH_FIELDS, layout, strict=True):
        dtype = np.dtype(kind)
        size = math.prod(shape) * dtype.itemsize
        if not isinstance(memory, np.ndarray):
            dtype = getattr(sys.modules["torch"], kind)
        arrays[name] = memory[offset : offset + size].view(dtype).reshape(shape)
    return PreferenceBatch(**arrays, **metadata, memory=memory, layout=layout)
