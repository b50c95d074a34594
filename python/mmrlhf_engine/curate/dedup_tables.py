"""From the rows that the core found to the tables of ``dedup``, which name samples by their ids.

Tables are ascending by id and are written some rows at a time: ids and media stay in their columns.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from mmrlhf_engine.curate.sample_columns import SampleColumns
from mmrlhf_engine.curate.tables import NEAR_PAIRS
from mmrlhf_engine.run.tables import ROWS_PER_PART

__all__ = ["kept_rows", "media_of_pairs", "named_pairs", "page_pairs", "places", "rejected_rows"]

_PAGE_PAIRS = 200


def places(samples: SampleColumns) -> np.ndarray:
    """uint32 [rows]: of every row the place of its id among all."""
    found = np.empty(len(samples), np.uint32)
    found[samples.by_id] = np.arange(len(samples), dtype=np.uint32)
    return found


def kept_rows(
    samples: SampleColumns, removed: np.ndarray, first: pl.DataFrame, media: int
) -> Iterator[pl.DataFrame]:
    """Samples that stay, with the hash of the first picture of each of their media.

    Args:
        samples: All of them.
        removed: Rows that do not stay.
        first: ``number`` of media that have a picture, and ``phash`` of the first one, or null.
        media: How many media there are.
    """
    stays = np.ones(len(samples), np.bool_)
    stays[removed] = False
    numbers = first["number"].to_numpy()
    hashes, known = np.zeros(media, np.uint64), np.zeros(media, np.bool_)
    hashes[numbers] = first["phash"].fill_null(0).to_numpy()
    known[numbers] = first["phash"].is_not_null().to_numpy()
    for start in range(0, len(samples), ROWS_PER_PART):
        rows = samples.by_id[start : start + ROWS_PER_PART]
        rows = rows[stays[rows]]
        of_rows = samples.media.take(pa.array(rows))
        of = of_rows.flatten().to_numpy()
        values = pa.array(hashes[of], mask=~known[of])
        lists = pa.LargeListArray.from_arrays(_offsets(of_rows), values)
        numbers_of = pl.Series(samples.numbers.take(pa.array(rows)))
        ids = _ids(samples, rows)
        yield pl.DataFrame({"id": ids, "sample": numbers_of, "phash": pl.Series(lists)})


def named_pairs(
    pairs: pl.DataFrame, samples: SampleColumns, row: str, other: str, evidence: pl.DataFrame
) -> Iterator[pl.DataFrame]:
    """The same pairs in the same order with ``id`` and ``other_id`` in the place of two columns of
    rows, and with what their pictures were found to be."""  # noqa: D205, D209
    evidence = evidence.drop("copy", "equal")
    for part in pairs.iter_slices(ROWS_PER_PART):
        rows, others = (part[name].to_numpy() for name in (row, other))
        both = {"id": _ids(samples, rows), "other_id": _ids(samples, others)}
        named = part.drop(row, other).with_columns(**both).with_row_index("pair")
        found = _differences(samples, rows, others, evidence)
        yield named.join(found, on="pair", how="left", maintain_order="left").drop("pair")


def page_pairs(
    duplicates: pl.DataFrame, misses: pl.DataFrame, samples: SampleColumns, evidence: pl.DataFrame
) -> pl.DataFrame:
    """Pairs for people to look at: removed ones nearest to a threshold, then near misses.

    Those on which text decided and those on which pictures did take turns. ``duplicates`` have
    ``place``, which orders them as their ids do.
    """
    near = duplicates.filter(pl.col("kind") == "near").sort(
        *("text_jaccard", "image_hamming", "place"),
        descending=[False, True, False],
        nulls_last=True,
    )
    by_text = {"removed": pl.col("text_jaccard") < 1, "kept": pl.col("text_jaccard").is_not_null()}
    columns = [name for name in NEAR_PAIRS if name != "verdict"]
    chosen = []
    for pairs, other, verdict in ((near, "kept", "removed"), (misses, "other", "kept")):
        taken = (
            pairs.with_columns(text=by_text[verdict].fill_null(False))
            .with_columns(turn=pl.int_range(pl.len()).over("text"))
            .sort("turn", "text", descending=[False, True], maintain_order=True)
            .head(_PAGE_PAIRS)
        )
        named = named_pairs(taken, samples, "row", other, evidence)
        chosen += [part.select(*columns, verdict=pl.lit(verdict)) for part in named]
    return pl.concat(chosen) if chosen else pl.DataFrame(schema=NEAR_PAIRS)


def media_of_pairs(duplicates: pl.DataFrame, samples: SampleColumns) -> pl.DataFrame:
    """``media`` and ``other_media``, lists of numbers, of pairs whose pictures were near.

    ``duplicates`` have ``question_media`` where the other one is a question of a benchmark.
    """
    near = duplicates.filter(pl.col("image_hamming").is_not_null())
    kept = _media(samples, near["kept"].to_numpy())
    return near.select(
        media=_media(samples, near["row"].to_numpy()),
        other_media=pl.coalesce("question_media", kept),
    )


def rejected_rows(rejected: pl.DataFrame) -> pl.DataFrame:
    """Rejected samples in the form of that table."""
    source = pl.col("id").str.extract(r"^([^:]*):")
    return rejected.with_columns(source=source, position=pl.col("id"))


def _ids(samples: SampleColumns, rows: np.ndarray) -> pl.Series:
    return pl.Series(samples.ids.take(pa.array(rows)), dtype=pl.String)


def _media(samples: SampleColumns, rows: np.ndarray) -> pl.Series:
    return pl.Series(samples.media.take(pa.array(rows)), dtype=pl.List(pl.UInt32))


def _offsets(lists: pa.LargeListArray) -> pa.Array:
    offsets = lists.offsets.to_numpy()
    return pa.array(offsets - offsets[0])


def _differences(
    samples: SampleColumns, rows: np.ndarray, others: np.ndarray, evidence: pl.DataFrame
) -> pl.DataFrame:
    """By ``pair``, what was found of those media of two rows that differ most."""
    media = pl.DataFrame({"a": _media(samples, rows), "b": _media(samples, others)})
    media = media.with_row_index("pair").filter(pl.col("a").list.len() == pl.col("b").list.len())
    return (
        media.explode("a", "b", empty_as_null=False)
        .with_columns(first=pl.min_horizontal("a", "b"), second=pl.max_horizontal("a", "b"))
        .join(evidence, on=["first", "second"])
        .sort("image_difference", descending=True, nulls_last=True, maintain_order=True)
        .unique("pair", keep="first", maintain_order=True)
        .drop("a", "b", "first", "second")
    )
