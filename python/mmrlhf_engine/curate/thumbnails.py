"""Small pictures for the page, as data URIs, so that the page needs no other file."""

import base64
import struct
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import thumbnail_images
from mmrlhf_engine.curate.media import picture_batches

__all__ = ["Thumbnail", "thumbnails"]

_EDGE = 160
_MAX_PIXELS = 89_478_485
_BATCH = 64
_START_OF_FRAME = b"\xff\xc0"


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG picture whose longest side is 160 pixels."""

    uri: str
    """``data:image/jpeg`` and its content."""
    width: int
    height: int

    @classmethod
    def of(cls, content: bytes) -> "Thumbnail":
        """From the bytes of a baseline JPEG, which say its size behind the start of the frame
        (ITU-T T.81, B.2.2)."""  # noqa: D205, D209
        place = content.index(_START_OF_FRAME) + 5
        height, width = struct.unpack(">HH", content[place : place + 4])
        uri = "data:image/jpeg;base64," + base64.b64encode(content).decode()
        return cls(uri, width, height)


def thumbnails(media: pl.LazyFrame | None, hashes: AbstractSet[str | None]) -> dict[str, Thumbnail]:
    """The thumbnail of each of these content hashes.

    A picture that can no longer be read (its file was moved since the run) is left out: the page
    shows an empty frame in its place.
    """
    if media is None:
        return {}
    named = pl.col("hash").is_in([name for name in hashes if name is not None])
    wanted = media.filter(named).collect(engine="streaming").sort("hash")
    found: dict[str, Thumbnail] = {}
    for batch in picture_batches(wanted, _BATCH):
        made = pa.array(
            thumbnail_images(
                batch.paths,
                batch.offsets,
                batch.lengths,
                batch.inline,
                edge=_EDGE,
                max_pixels=_MAX_PIXELS,
                threads=0,
            )
        )
        for row, content in zip(batch.rows, made.to_pylist(), strict=True):
            if content is not None:
                found.setdefault(wanted["hash"][int(row)], Thumbnail.of(content))
    return found
