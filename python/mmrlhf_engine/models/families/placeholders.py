"""What stands for pictures in texts before they are tokenised, and in token ids after.

Each placeholder stands for exactly one picture: an image, or one frame of a video. A video is one
or more runs of frames; the model sees the tokens of a run without text between them.
"""

__all__ = ["FRAME", "IMAGE", "PLACEHOLDER_IDS", "RUN", "SMALLEST_ID", "VIDEO", "run_of_frames"]

IMAGE = "<|mmrlhf:image|>"
"""An image."""
VIDEO = "<|mmrlhf:video|>"
"""The first frame of a video."""
RUN = "<|mmrlhf:run|>"
"""The first frame of a further run of the same video."""
FRAME = "<|mmrlhf:frame|>"
"""A further frame of the same run."""

PLACEHOLDER_IDS = {
    IMAGE: 0xFFFF_FFFF,
    VIDEO: 0xFFFF_FFFE,
    RUN: 0xFFFF_FFFD,
    FRAME: 0xFFFF_FFFC,
}
"""The id that is stored for each, uint32; ``docs/shard-format.md`` has them."""

SMALLEST_ID = min(PLACEHOLDER_IDS.values())
"""Ids from here on are placeholders."""


def run_of_frames(frames: int, *, first: bool) -> str:
    """The placeholders of a run of so many frames; ``first`` is the first run of its video."""
    return (VIDEO if first else RUN) + FRAME * (frames - 1)
