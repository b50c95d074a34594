"""Frames of ingest between the core and the tables: rows named, bad ones listed, media grouped."""

import numpy as np
import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import UniqueIds
from mmrlhf_engine.sources.samples.batch import RawBatch, Source

__all__ = [
    "INSPECTED",
    "STORED",
    "attached_counts",
    "bad_rows",
    "media_by_record",
    "name_rows",
    "to_frame",
    "with_media",
    "with_unique_ids",
]

INSPECTED: dict[str, pl.DataType] = {
    **{name: pl.String() for name in ("hash", "kind", "format", "path", "reason", "detail")},
    **{name: pl.UInt32() for name in ("width", "height", "frames")},
    "bytes": pl.UInt64(),
}
"""What the core finds out about a media file: its columns of `media`, or reason and detail."""


STORED = ("hash", "phash", "colour", "width", "height")
"""What a reference says itself of a picture of which the hash alone is known."""


def to_frame(table: object) -> pl.DataFrame:
    """A struct array of the core as a frame."""
    batch = pa.RecordBatch.from_struct_array(pa.array(table))
    return pl.DataFrame(pl.from_arrow(batch))


def attached_counts(batch: RawBatch) -> pa.Array:
    """uint32, a number a record: how many media belong to it by their file names."""
    parents = batch.attached["record"].to_numpy()
    return pa.array(np.bincount(parents, minlength=len(batch.keys)).astype(np.uint32))


def name_rows(source: Source, batch: RawBatch, turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with position, source id and the id of their record."""
    key, position = (names.rename("") for names in (batch.keys, batch.positions))
    if turns.height != len(key):  # a record may have several turns, and has one at least
        key, position = key.gather(turns["record"]), position.gather(turns["record"])
    # The pairs of one query share its id by design; the row tells them apart.
    pair = pl.col("pair").is_not_null() & pl.col("source_id").is_not_null()
    source_id = pl.coalesce("source_id", "key")
    if turns["pair"].null_count() < turns.height:
        source_id = pl.when(pair).then(pl.format("{}@{}", "source_id", "key")).otherwise(source_id)
    return turns.with_columns(key=key, position=position).with_columns(
        source_id=source_id,
        record_id=pl.lit(f"{source.name}:") + source_id,
    )


def with_unique_ids(rows: pl.DataFrame, ids: UniqueIds) -> pl.DataFrame:
    """Good rows with ``id``: the id of their record, ``#2`` where it repeats, and the turn."""
    numbers = ids.claim(
        rows["record"].to_arrow(),
        rows["record_id"].to_arrow(compat_level=pl.CompatLevel.oldest()),
        rows["turn"].fill_null(0).to_arrow(),
    )
    repeat = pl.Series(pl.from_arrow(pa.array(numbers)), dtype=pl.UInt32)
    mark: list[pl.Expr] = []
    if (repeat > 1).any():
        repeats = pl.when(pl.col("repeat") > 1).then(pl.format("#{}", "repeat"))
        mark.append(repeats.otherwise(pl.lit("")))
    if rows["turn"].null_count() < rows.height:
        mark.append(_turn_mark())
    return rows.with_columns(repeat=repeat).with_columns(id=sum(mark, pl.col("record_id")))


def _turn_mark() -> pl.Expr:
    """``#2`` for the second turn of several, nothing for the only one."""
    return pl.when(pl.col("turn").is_null()).then(pl.lit("")).otherwise(pl.format("#{}", "turn"))


def bad_rows(rows: pl.DataFrame, unreadable: pl.DataFrame) -> pl.DataFrame:
    """What goes into `rejected`: a defect of the whole record is one row, of a turn one each."""
    if rows["reason"].null_count() == rows.height:
        return unreadable
    bad = rows.filter(pl.col("reason").is_not_null())
    whole = bad.filter("whole").unique("record", keep="first", maintain_order=True)
    turns = bad.filter(~pl.col("whole")).with_columns(position=pl.col("position") + _turn_mark())
    ordered = pl.concat([whole, turns]).sort("record", "turn", nulls_last=False)
    return pl.concat([ordered.select("position", "reason", "detail"), unreadable])


def media_by_record(media: pl.DataFrame) -> pl.DataFrame:
    """Per record: the hashes in order, the modality, and what is wrong with the first bad one."""
    is_video = pl.col("kind").is_in(["video", "frames"])
    if media["record"].is_unique().all():
        return media.select(
            "record",
            pl.col("hash").reshape((-1, 1)).arr.to_list().alias("media"),
            pl.when(is_video).then(pl.lit("video")).otherwise(pl.lit("image")).alias("modality"),
            pl.col("reason").alias("media_reason"),
            pl.col("detail").alias("media_detail"),
        )
    bad = pl.col("reason").is_not_null()
    modality = (
        pl.when(is_video.any())
        .then(pl.lit("video"))
        .when(pl.len() > 1)
        .then(pl.lit("multi_image"))
        .otherwise(pl.lit("image"))
    )
    return media.group_by("record", maintain_order=True).agg(
        pl.col("hash").alias("media"),
        modality.alias("modality"),
        pl.col("reason").filter(bad).first().alias("media_reason"),
        pl.col("detail").filter(bad).first().alias("media_detail"),
    )


def with_media(rows: pl.DataFrame, media: pl.DataFrame, records: int) -> pl.DataFrame:
    """The turns with the media of their record; what is wrong with those is wrong with the turns.

    Args:
        rows: A row a turn.
        media: As :func:`media_by_record` returns it.
        records: How many records there are.
    """
    # A join, where the number of a record is its place.
    places = np.full(records, -1)
    places[media["record"].to_numpy()] = np.arange(media.height)
    places = places[rows["record"].to_numpy()]
    known = pl.Series(pl.from_arrow(pa.array(places, mask=places < 0)))
    found = media.drop("record").select(pl.all().gather(known))
    return rows.with_columns(found.get_columns()).with_columns(
        pl.col("modality").fill_null("text"),
        pl.col("media").fill_null([]),
        pl.coalesce("media_reason", "reason").alias("reason"),
        pl.coalesce("media_detail", "detail").alias("detail"),
        whole=pl.col("media_reason").is_not_null(),
    )
