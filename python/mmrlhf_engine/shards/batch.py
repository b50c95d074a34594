"""One batch of preference pairs: a block of memory, and names for the arrays that lie in it.

The core makes the block; every array of a :class:`PreferenceBatch` is a writable view of it, and a
torch tensor is another view.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

__all__ = ["STANDING", "PreferenceBatch", "assembled"]

Array = TypeVar("Array")
_FieldRow = tuple[str, str, list[int], int]

STANDING = (
    "step",
    "pack",
    "ends_step",
    "step_has_images",
    "cursor",
    "broken",
    "muted_pairs",
    "column_names",
)
"""What is said about a batch beside its arrays."""


@dataclass(frozen=True)
class PreferenceBatch(Generic[Array]):
    """One pack: T tokens in S sequences, N picture slots, M pictures of B blocks, P pairs."""

    tokens: Array
    """int32 [T], image tokens written out."""
    position_ids: Array
    """int32 [T]; [3, T] (time, row, column) for Qwen2-VL."""
    cu_seqlens: Array
    """int32 [S + 1], where each sequence begins, and the end."""
    prompt_lengths: Array
    """int32 [S], tokens of a sequence that are not the response's."""
    prefix: Array
    """int32 [S], the sequence that stands before this one without being repeated, or -1."""
    sequence_query: Array
    """int64 [S], row of queries."""
    sequence_response: Array
    """int64 [S], row of responses; -1 for a prompt that several responses share."""
    slot_sequence: Array
    """int32 [N], the sequence of a slot."""
    slot_start: Array
    """int32 [N], its first image token, counted in T."""
    slot_length: Array
    """int32 [N], its image tokens."""
    slot_image: Array
    """int32 [N], the picture it shows."""
    image_blob: Array
    """int64 [M], blob id."""
    image_sizes: Array
    """int32 [M, 2], height and width of the picture as seen."""
    image_grid: Array
    """int32 [M, 3], 1, rows and columns: of patches (``image_grid_thw``) or of tiles."""
    image_blocks: Array
    """int32 [M + 1], where the blocks of each picture begin, and the end."""
    image_broken: Array
    """uint8 [M], 1 where the picture is blank because it could not be read."""
    pixels: Array
    """uint8 [B, 3, height, width] tiles or [B, 3 * temporal * patch * patch] patches."""
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
    """float32 [P], 0 where a picture is blank."""
    pair_flags: Array
    """int32 [P], the bits of docs/shard-format.md."""
    pair_columns: Array
    """float32 [C, P], columns beside pairs; :meth:`column` knows them by name."""
    sequence_columns: Array
    """float32 [C, S], columns beside responses; NaN where a value or the response is missing."""
    step: int
    """The step of training it belongs to."""
    pack: int
    """Which pack of the step; from ``packs_per_step`` on, an empty one that evens out the ranks."""
    ends_step: bool
    """Whether it is this rank's last of the step."""
    step_has_images: bool
    """Whether any pack of the step has a picture, on any rank."""
    cursor: str
    """JSON for :meth:`PreferenceLoader.load_state_dict`; within a step, that of its start."""
    broken: list[tuple[int, str]]
    """Blob id and problem of each blank picture."""
    muted_pairs: int
    """Pairs of weight 0 for that."""
    column_names: dict[str, list[str]]
    """Names of the rows of ``pair_columns`` (``pairs``), ``sequence_columns`` (``responses``)."""
    memory: Array
    """uint8, the block all arrays lie in."""
    fields: list[_FieldRow]
    """Name, type, shape and offset in ``memory`` of each array."""

    def column(self, name: str) -> Array:
        """A column that was requested: float32 [P] of pairs, [S] of responses.

        Raises:
            KeyError: it was not asked for.
        """
        for table, columns in (
            ("pairs", self.pair_columns),
            ("responses", self.sequence_columns),
        ):
            if name in self.column_names[table]:
                rows: Any = columns
                found: Array = rows[self.column_names[table].index(name)]
                return found
        raise KeyError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the block once; torch, if loaded, passes it between processes by shared memory."""
        torch = sys.modules.get("torch")
        memory: Any = self.memory
        if torch is not None and isinstance(memory, np.ndarray):
            memory = torch.from_numpy(memory)
        return _unpickled, (memory, self.fields, self._standing(), isinstance(memory, np.ndarray))

    def _standing(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STANDING}

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
        return assembled(shared, self.fields, self._standing())


def _unpickled(
    memory: Any, fields: list[_FieldRow], standing: dict[str, Any], arrays: bool
) -> PreferenceBatch[Any]:
    return assembled(memory if arrays else memory.numpy(), fields, standing)


def assembled(
    memory: Any, fields: list[_FieldRow], standing: dict[str, Any]
) -> PreferenceBatch[Any]:
    """Name the arrays, or tensors, that lie in a block."""
    arrays = {}
    for name, kind, shape, offset in fields:
        dtype = np.dtype(kind)
        size = math.prod(shape) * dtype.itemsize
        if not isinstance(memory, np.ndarray):
            dtype = getattr(sys.modules["torch"], kind)
        arrays[name] = memory[offset : offset + size].view(dtype).reshape(shape)
    return PreferenceBatch(**arrays, **standing, memory=memory, fields=fields)
