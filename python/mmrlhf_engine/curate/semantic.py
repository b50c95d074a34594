"""Samples whose picture means the same as that of another in their cluster, removed before quotas.

Within a cluster the pictures are taken in an order: ``hard`` begins with the one farthest from the
centroid, ``easy`` with the nearest. A picture goes if its cosine to one that stays is at least the
threshold, and the nearest of those is named. The rule and the two orders are those of SemDeDup
(Abbas et al., arXiv 2303.09540), but for one thing: a picture goes only because of one that stays,
not because of one that has gone itself. Samples of one picture are equal: the first by id stays.

The work grows with the square of the size of a cluster. The embeddings are copied by cluster into
the scratch folder, and compared block by block.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import polars as pl

from mmrlhf_engine.curate.kmeans import import_faiss
from mmrlhf_engine.curate.partitioned_rows import PartitionedRows
from mmrlhf_engine.run.ordered_map import ordered_map
from mmrlhf_engine.run.stage import StageContext

__all__ = ["SemanticOrder", "semantic_duplicates"]

SemanticOrder = Literal["hard", "easy"]

PARTITION_ROWS = 65_536
"""Rows of a file with several clusters, at most; a larger cluster has one of its own."""
BLOCK = 4_096
"""Rows compared with those before them at once."""

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Removed row and row that stays, int64 [m], and their cosine, float32 [m]."""


def semantic_duplicates(
    kept: pl.DataFrame,
    embeddings: np.ndarray,
    threshold: float,
    order: SemanticOrder,
    stage: StageContext,
) -> pl.DataFrame:
    """Rows of ``kept`` that go, ``candidate``, and which stays: ``close_to``, with the ``cosine``.

    Args:
        kept: Ascending by id, with ``row`` (of ``embeddings``, or null), ``cluster``, ``distance``.
        embeddings: float16 [n, d], unit rows.
        threshold: Least cosine of duplicates.
        order: Which of two stays.
        stage: Gives threads, scratch folder and progress.
    """
    samples = kept.select("row", "cluster", "distance").with_row_index("candidate")
    samples = samples.drop_nulls("row")
    pictures = samples.unique("row", keep="first", maintain_order=True)
    removed = [
        pl.DataFrame({"row": row, "other": other, "cosine": cosine})
        for row, other, cosine in _by_cluster(pictures, embeddings, threshold, order, stage)
    ]
    schema = {"row": pl.Int64, "other": pl.Int64, "cosine": pl.Float32}
    pairs = pl.concat([pl.DataFrame(schema=schema), *removed])
    return _of_samples(samples, pictures, pairs)


def _of_samples(samples: pl.DataFrame, pictures: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The samples of removed pictures, and all but the first of those that stay."""
    first = pictures.select(pl.col("row").cast(pl.Int64), close_to="candidate")
    rows = samples.select("candidate", pl.col("row").cast(pl.Int64))
    rows = rows.join(pairs, on="row", how="left", maintain_order="left")
    rows = rows.with_columns(
        other=pl.coalesce("other", "row"), cosine=pl.col("cosine").fill_null(1.0)
    )
    rows = rows.join(first.rename({"row": "other"}), on="other", how="left", maintain_order="left")
    return rows.filter(pl.col("candidate") != pl.col("close_to")).select(
        "candidate", "close_to", "cosine"
    )


def _by_cluster(
    pictures: pl.DataFrame,
    embeddings: np.ndarray,
    threshold: float,
    order: SemanticOrder,
    stage: StageContext,
) -> Iterator[Pairs]:
    """The duplicates of each cluster."""
    farthest_first = order == "hard"
    pictures = pictures.sort(
        "cluster", "distance", "candidate", descending=[False, farthest_first, False]
    )
    sizes = pictures["cluster"].rle().struct.field("len").to_numpy()
    partition_of_cluster, partitions = _partitions(sizes)
    rows = pictures["row"].to_numpy().astype(np.int64)
    partition_of = np.full(len(embeddings), -1, np.int32)
    partition_of[rows] = np.repeat(partition_of_cluster, sizes)
    files = PartitionedRows(embeddings, partition_of, partitions, stage.scratch / "semantic")
    ends = np.cumsum(sizes)

    def compare(partition: int) -> list[Pairs]:
        numbers, vectors = files.numbers(partition), files.rows(partition)
        found = []
        for cluster in np.flatnonzero(partition_of_cluster == partition):
            mine = rows[ends[cluster] - sizes[cluster] : ends[cluster]]
            gone, stays, cosine = near_earlier(vectors, np.searchsorted(numbers, mine), threshold)
            found.append((mine[gone], mine[stays], cosine))
        return found

    options = {"initializer": import_faiss().omp_set_num_threads, "initargs": (1,)}
    work = ordered_map(compare, range(partitions), stage.resources.cores, **options)
    for number, found in enumerate(work, start=1):
        stage.progress("semantic duplicates, files", number, partitions)
        yield from found


def _partitions(sizes: np.ndarray) -> tuple[np.ndarray, int]:
    """The partition of each cluster, int64 [clusters], and how many there are."""
    partition_of, partition, held = np.zeros(len(sizes), np.int64), 0, 0
    for cluster, size in enumerate(sizes):
        if held and held + size > PARTITION_ROWS:
            partition, held = partition + 1, 0
        partition_of[cluster] = partition
        held += int(size)
    return partition_of, partition + 1 if len(sizes) else 0


def near_earlier(vectors: np.ndarray, order: np.ndarray, threshold: float) -> Pairs:
    """Places in ``order`` within ``threshold`` of an earlier one that stays, and which that is.

    The nearest of those before its block of ``BLOCK`` places, else the first in the block.

    Args:
        vectors: float [n, d], unit rows; it may be mapped.
        order: int64 [m], rows of ``vectors`` in the order in which they are taken.
        threshold: Least cosine of duplicates.
    """
    faiss = import_faiss()

    def take(places: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(vectors[order[places]], dtype=np.float32)

    staying: list[np.ndarray] = []
    removed: list[Pairs] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    for start in range(0, len(order), BLOCK):
        places = np.arange(start, min(start + BLOCK, len(order)))
        block = take(places)
        best = np.full(len(block), -2, np.float32)
        nearest = np.full(len(block), -1, np.int64)
        for before in staying:
            cosine, place = faiss.knn(block, take(before), 1, metric=faiss.METRIC_INNER_PRODUCT)
            closer = cosine[:, 0] > best
            best[closer] = cosine[closer, 0]
            nearest[closer] = before[place[closer, 0]]
        rest = np.flatnonzero(best < threshold)
        row, other, cosine = _close_within(block[rest], threshold)
        best[rest[row]], nearest[rest[row]] = cosine, places[rest[other]]
        gone = best >= threshold
        removed.append((places[gone], nearest[gone], best[gone]))
        if not gone.all():
            staying.append(places[~gone])
    return tuple(np.concatenate(column) for column in zip(*removed, strict=True))  # type: ignore[return-value]


def _close_within(rows: np.ndarray, threshold: float) -> Pairs:
    """Rows of float32 [m, d] within ``threshold`` of an earlier one that stays: of the first."""
    faiss = import_faiss()
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    # A range search finds what lies above its radius; the threshold itself counts as near.
    limits, cosines, others = index.range_search(rows, float(np.nextafter(threshold, -2)))
    gone = np.zeros(len(rows), bool)
    pairs = []
    for row in range(len(rows)):
        found, cosine = (column[limits[row] : limits[row + 1]] for column in (others, cosines))
        earlier = (found < row) & (cosine >= threshold) & ~gone[found]
        if earlier.any():
            first = np.flatnonzero(earlier)[found[earlier].argmin()]
            pairs.append((row, found[first], cosine[first]))
            gone[row] = True
    columns = np.array(pairs, np.float64).reshape(-1, 3)
    near = columns[:, :2].astype(np.int64)
    return near[:, 0], near[:, 1], columns[:, 2].astype(np.float32)
