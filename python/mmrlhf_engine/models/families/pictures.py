"""The pictures of a pack, each once, and where in the text their features go.

Nothing here imports torch until it is called.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.inputs import normalise

__all__ = ["DistinctPictures"]


@dataclass(frozen=True)
class DistinctPictures:
    """M images or videos of B blocks, shown at V tokens of the text."""

    pixels: Any
    """Tensor [B, ...], normalised tiles or patches."""
    blocks: list[int]
    """[M + 1], where the blocks of each picture begin, and the end."""
    grids: Any
    """int64 tensor [M, 3], groups of frames (1 for an image), rows and columns."""
    sizes: Any
    """int64 tensor [M, 2], height and width of the image or of each frame as seen."""
    frames: list[int]
    """[M], frames of a video; 0 for an image."""
    lengths: list[int]
    """[M], features of each picture."""
    tokens: Any
    """int64 tensor [V], the tokens of the pack that stand for pictures, in ascending order."""
    features: Any
    """int64 tensor [V], the feature of each of these tokens, counted over all pictures."""
    content: Any
    """uint8 tensor [B, ...] on the CPU, the pixels before they were normalised."""
    settings: Mapping[str, Any]
    """The part ``pictures`` of the dataset's processor."""

    @classmethod
    def of(
        cls, batch: Any, settings: Mapping[str, Any], device: Any, dtype: Any
    ) -> "DistinctPictures":
        """The pictures of a batch.

        Args:
            batch: A :class:`mmrlhf_engine.PreferenceBatch` of torch tensors on the CPU, with at
                least one placeholder.
            settings: The part ``pictures`` of the dataset's processor.
            device: Where the tensors are put.
            dtype: Of the pixels.
        """
        import torch

        starts, lengths = batch.placeholder_start.long(), batch.placeholder_length.long()
        pictures, offsets = batch.placeholder_image.long(), batch.placeholder_offset.long()
        count = len(batch.image_frames)
        features = torch.zeros(count, dtype=torch.int64)
        features.scatter_reduce_(0, pictures, offsets + lengths, "amax")
        first = features.cumsum(0) - features
        # Token j of a placeholder has feature j of its run.
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(
            lengths
        )
        tokens = starts.repeat_interleave(lengths) + within
        which = (first[pictures] + offsets).repeat_interleave(lengths) + within
        order = tokens.argsort()
        pixels = batch.pixel_values.to(device, non_blocking=True)
        pixels = normalise(pixels, settings["mean"], settings["std"]).to(dtype)
        return cls(
            pixels=pixels,
            blocks=batch.image_blocks.tolist(),
            grids=batch.image_grid_thw.long().to(device),
            sizes=batch.image_sizes.long().to(device),
            frames=batch.image_frames.tolist(),
            lengths=features.tolist(),
            tokens=tokens[order].to(device),
            features=which[order].to(device),
            content=batch.pixel_values,
            settings=settings,
        )

    def split(self, blocks: Any) -> list[Any]:
        """A tensor [B, ...] cut into those of each picture."""
        counts = [end - start for start, end in itertools.pairwise(self.blocks)]
        return list(blocks.split(counts))

    def shown(self, features: list[Any]) -> Any:
        """The features [V, ...] of the tokens that stand for pictures.

        Args:
            features: Of each picture, [length, ...].

        Raises:
            InputError: a picture has another number of features than its tokens.
        """
        import torch

        found = [len(one) for one in features]
        if found != self.lengths:
            raise InputError(
                f"the model makes {found} features of pictures that have {self.lengths} tokens",
                hint="the dataset must be packed for this model's processor",
            )
        return torch.cat(features).index_select(0, self.features)

    @cached_property
    def hashes(self) -> list[str]:
        """[M], SHA-256 of the bytes of each picture, its layout and how it is normalised."""
        said = (self.settings["mean"], self.settings["std"])
        hashes = []
        for content, grid in zip(self.split(self.content), self.grids.tolist(), strict=True):
            described = repr((list(content.shape), grid, said)).encode()
            hashed = hashlib.sha256(described)
            hashed.update(content.numpy().data)
            hashes.append(hashed.hexdigest())
        return hashes
