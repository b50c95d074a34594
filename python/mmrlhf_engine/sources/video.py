"""Frames of videos: the files of a folder, or, with PyAV, what a video file decodes to.

How many frames a stage takes, and which, is its own choice: it passes a function from the number of
frames to the numbers of those it wants, such as :func:`evenly_spaced` or :func:`at_positions`.
"""

import io
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmrlhf_engine.errors import MissingExtraError

__all__ = [
    "VideoError",
    "as_bitmap",
    "as_png",
    "at_positions",
    "decode_frames",
    "evenly_spaced",
    "frame_files",
]


class VideoError(Exception):
    """A video file cannot be decoded (further)."""


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder, by name, hidden files left out.

    Raises:
        OSError: it is no folder, or cannot be listed.
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def evenly_spaced(total: int, count: int) -> list[int]:
    """``count`` of ``total`` numbers, evenly from the first to the last; all where they are fewer.

    >>> evenly_spaced(100, 4)
    [0, 33, 66, 99]
    """
    if total <= count:
        return list(range(total))
    if count == 1:
        return [0]
    return [number * (total - 1) // (count - 1) for number in range(count)]


def at_positions(total: int, positions: Sequence[float]) -> list[int]:
    """The numbers at ``positions`` (0 to 1) of ``total``, ascending, without repeats.

    >>> at_positions(100, (0.5, 0.0, 1.0))
    [0, 50, 99]
    """
    return sorted({min(int(position * total), total - 1) for position in positions if total})


def decode_frames(
    source: str | BinaryIO, name: str, choose: Callable[[int], Collection[int]]
) -> Iterator[Any]:
    """The frames (``av.VideoFrame``) of a video file whose numbers ``choose`` gives, ascending.

    Where the file does not say how many frames it has, they are counted by decoding it once.

    Args:
        source: The file, by path or open.
        name: What errors call it.
        choose: From the number of frames to the numbers of those wanted.

    Raises:
        VideoError: the file cannot be decoded; frames before the damage have been yielded.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", extra="video", needed_for=f"frames of {name}") from None
    try:
        with av.open(source) as container:
            stream = container.streams.video[0]
            total = stream.frames or sum(1 for _ in container.decode(stream))
            wanted = set(choose(total))
            last = max(wanted, default=-1)
            container.seek(0)
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    yield frame
                if number >= last:
                    return
    except (av.FFmpegError, IndexError, OSError) as error:
        raise VideoError(f"{name}: {error}") from None


def as_png(frame: Any) -> bytes:
    """A frame as PNG."""
    content = io.BytesIO()
    frame.to_image().save(content, "PNG", compress_level=1)
    return content.getvalue()


def as_bitmap(frame: Any) -> bytes:
    """A frame as an uncompressed bitmap of 24 bits a pixel, top row first."""
    pixels = frame.to_ndarray(format="bgr24")  # uint8 [height, width, 3]
    height, width, _ = pixels.shape
    rows = np.zeros((height, -(-3 * width // 4) * 4), dtype=np.uint8)
    rows[:, : 3 * width] = pixels.reshape(height, 3 * width)
    header = struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, rows.size, 0, 0, 0, 0)
    return header + info + rows.tobytes()
