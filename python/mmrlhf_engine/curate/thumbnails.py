"""Small pictures for the page, as data URIs, so that the page needs no other file."""

import base64
from collections.abc import Set as AbstractSet

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import thumbnail_images
from mmrlhf_engine.curate.media import picture_batches

__all__ = ["thumbnails"]

_EDGE = 160
_MAX_PIXELS = 89_478_485
_BATCH = 64


def thumbnails(media: pl.LazyFrame | None, hashes: AbstractSet[str | None]) -> dict[str, str]:
    """Content hash -> ``data:image/jpeg`` URI, longest side 160 pixels.

    A picture that can no longer be read (its file was moved since the run) is left out: the page
    shows an empty frame in its place.
    """
    if media is None:
        return {}
    named = pl.col("hash").is_in([name for name in hashes if name is not None])
    wanted = media.filter(named).collect(engine="streaming").sort("hash")
    found: dict[str, str] = {}
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
                uri = "data:image/jpeg;base64," + base64.b64encode(content).decode()
                found.setdefault(wanted["hash"][int(row)], uri)
    return found
