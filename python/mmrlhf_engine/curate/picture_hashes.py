"""Hashes and colours of the pictures of media rows, as ``find_duplicates`` takes them.

Every distinct picture is decoded once. The hashes are kept in the scratch folder of the stage
chunk by chunk, so that a kill loses one chunk at most.
"""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import hash_images
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.curate.media_judge import FRAME_POSITIONS, MAX_PIXELS
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.stage import StageContext

__all__ = ["NO_PICTURES", "hash_chunk", "hash_pictures", "picture_columns"]

_MEDIA_PER_CHUNK = 8192

_PICTURES: dict[str, pl.DataType] = {
    "number": pl.UInt32(),
    "phash": pl.UInt64(),
    "colour": pl.Array(pl.UInt8(), 192),
    "reason": pl.String(),
    "detail": pl.String(),
}
NO_PICTURES = pl.DataFrame(schema=_PICTURES)


def hash_pictures(media: pl.DataFrame, stage: StageContext) -> pl.DataFrame:
    """One row a picture, ascending by the number of its media: hash and colours, or what is wrong.

    Chunks of media that were hashed before a kill are read back.
    """
    chunks = []
    for start in range(0, media.height, _MEDIA_PER_CHUNK):
        file = stage.scratch / f"pictures-{start // _MEDIA_PER_CHUNK:05d}.parquet"
        if not file.exists():
            part = media.slice(start, _MEDIA_PER_CHUNK)
            hashed = [NO_PICTURES, *hash_chunk(part, stage, start, media.height)]
            with appearing(file) as temporary:
                pl.concat(hashed).write_parquet(temporary)
        chunks.append(pl.read_parquet(file))
    return pl.concat([NO_PICTURES, *chunks])


def hash_chunk(
    part: pl.DataFrame, stage: StageContext, start: int, total: int
) -> Iterator[pl.DataFrame]:
    """Hash, colours and faults of the pictures of media rows; ``start`` of ``total`` are done."""
    for batch in picture_batches(part, 256, FRAME_POSITIONS):
        hashed = hash_images(
            *(batch.paths, batch.offsets, batch.lengths, batch.inline),
            max_pixels=MAX_PIXELS,
            threads=stage.threads,
        )
        rows = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(hashed))))
        numbers = part["number"].gather(batch.rows)
        yield rows.with_columns(number=numbers).select(*_PICTURES).cast(_PICTURES)  # type: ignore[arg-type]
        stage.progress("hashing pictures", start + int(batch.rows[-1]) + 1, total)


def picture_columns(pictures: pl.DataFrame) -> dict[str, pa.Array]:
    """Pictures that could be read, rows as of ``hash_chunk``, as ``find_duplicates`` takes them."""
    readable = pictures.filter(pl.col("phash").is_not_null())
    return {
        "media": readable["number"].to_arrow().cast(pa.uint32()),
        "phash": readable["phash"].to_arrow().cast(pa.uint64()),
        "colour": readable["colour"].to_arrow().cast(pa.large_list(pa.uint8())),
    }
