"""From a batch of the loader to the keyword arguments of a model's ``forward``.

A batch has each picture once, as unsigned bytes; ``forward`` wants them normalised, in the order of
the text, and again for every sequence that shows them. Each family adds its own names and shapes.
Nothing here imports torch until it is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["ShownPictures", "normalise"]


def normalise(pixels: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """``(pixels / 255 - mean) / std`` by channel, float32, on the device of ``pixels``.

    Args:
        pixels: uint8 tensor [B, 3, height, width], or patches [B, 3 * temporal * patch * patch].
        mean: Of each channel, in units of 0 to 1.
        std: Likewise.
    """
    import torch

    by_channel = pixels.reshape(pixels.shape[0], 3, -1)
    shift = torch.tensor(mean, device=pixels.device).reshape(1, 3, 1)
    scale = torch.tensor(std, device=pixels.device).reshape(1, 3, 1)
    return (by_channel.float().div_(255).sub_(shift).div_(scale)).reshape(pixels.shape)


@dataclass(frozen=True)
class ShownPictures:
    """The pictures of a batch in the order in which its text shows them."""

    batch: Any
    """A :class:`mmrlhf_engine.PreferenceBatch` of torch tensors on the CPU."""
    settings: Mapping[str, Any]
    """The part ``pictures`` of the dataset's processor."""
    device: Any
    dtype: Any

    @cached_property
    def items(self) -> list[int]:
        """The picture of each first placeholder, by its place in the text."""
        batch = self.batch
        first = batch.placeholder_offset == 0
        starts = batch.placeholder_start[first].argsort(stable=True)
        shown: list[int] = batch.placeholder_image[first][starts].tolist()
        return shown

    @property
    def images(self) -> list[int]:
        """Those that are images."""
        return [item for item in self.items if self._frames[item] == 0]

    @property
    def videos(self) -> list[int]:
        """Those that are videos."""
        return [item for item in self.items if self._frames[item] > 0]

    @cached_property
    def _frames(self) -> list[int]:
        frames: list[int] = self.batch.image_frames.tolist()
        return frames

    @cached_property
    def _pixels(self) -> Any:
        pixels = self.batch.pixel_values.to(self.device, non_blocking=True)
        return normalise(pixels, self.settings["mean"], self.settings["std"]).to(self.dtype)

    def blocks(self, item: int) -> Any:
        """The normalised tiles or patches of one picture, [blocks, ...]."""
        start, end = self.batch.image_blocks[item : item + 2].tolist()
        return self._pixels[start:end]

    def joined(self, items: Sequence[int]) -> Any:
        """The blocks of several pictures, one after the other."""
        import torch

        if list(items) == list(range(len(self._frames))):
            return self._pixels
        return torch.cat([self.blocks(item) for item in items])

    def padded(self, items: Sequence[int]) -> Any:
        """The blocks of several pictures, [pictures, most blocks, ...], zeros after the last."""
        from torch.nn.utils.rnn import pad_sequence

        return pad_sequence([self.blocks(item) for item in items], batch_first=True)

    def grids(self, items: Sequence[int]) -> Any:
        """int64 [pictures, 3], time, rows and columns."""
        return self.batch.image_grid_thw[list(items)].long().to(self.device)

    def sizes(self, items: Sequence[int]) -> Any:
        """int64 [pictures, 2], height and width of the image as seen."""
        return self.batch.image_sizes[list(items)].long().to(self.device)

    def images_of_sequences(self) -> list[int]:
        """How many images each sequence shows, of those that show any."""
        batch = self.batch
        frames = batch.image_frames[batch.placeholder_image.long()]
        counts = batch.placeholder_sequence[frames == 0].long().bincount().tolist()
        return [count for count in counts if count]

    def token_types(self) -> Any:
        """int64 [T], 1 where a token stands for a picture."""
        import torch

        types = torch.zeros(len(self.batch.input_ids), dtype=torch.int64)
        starts, lengths = self.batch.placeholder_start, self.batch.placeholder_length
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            types[start : start + length] = 1
        return types.to(self.device)
