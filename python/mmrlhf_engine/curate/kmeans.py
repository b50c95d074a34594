"""Spherical k-means by FAISS: centroids of a seeded sample of rows, and the nearest of each row.

Centroids are unit rows, and the nearest is the one of largest cosine. Embeddings may be larger than
memory: the sample is read once, in the order of the file, and rows are assigned block by block.

``flat`` compares every row with every centroid. ``hierarchical`` does it in two levels: about
sqrt(k) coarse centroids, and under each as many fine ones as its share of the rows, so that a
cluster holds about n / k rows wherever it lies; a row is compared with the coarse centroids and
with the fine ones of the nearest. For k centroids of n rows that is 2 sqrt(k) comparisons a row
instead of k. The number of clusters in proportion to rows, level by level, follows hierarchical
k-means as in Vo et al., Automatic Data Curation for Self-Supervised Learning, arXiv 2405.15613.

A matrix product that is split differently adds up differently. So each k-means runs on one thread,
and so does each block of rows; several at a time give the same result on any number of threads.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_engine.curate.partitioned_rows import PartitionedRows
from mmrlhf_engine.errors import MissingExtraError
from mmrlhf_engine.run.ordered_map import ordered_map

__all__ = ["BLOCK", "LARGEST_GROUP", "Clustering", "KMeans", "import_faiss", "on_gpu"]

BLOCK = 16_384
"""Rows assigned at once."""
LARGEST_GROUP = 4
"""The sample of a group at most, as a multiple of that of an even group."""

Block = tuple[int, np.ndarray, np.ndarray]
"""First row, centroid int64 [n] and distance float32 [n] of each row of a block."""


def import_faiss() -> Any:
    """The package ``faiss``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", extra="curate", needed_for="cluster") from None
    return faiss


def on_gpu() -> bool:
    """Whether FAISS sees a GPU, and so uses it."""
    return bool(import_faiss().get_num_gpus() > 0)


@dataclass(frozen=True)
class Clustering:
    """Centroids in groups: one group, or those under each coarse centroid.

    Attributes:
        centroids: float32 [k, d], unit rows, those of a group next to each other.
        starts: int64 [groups + 1], where each group begins in ``centroids``.
        coarse: float32 [groups, d], or None where there is one group.
        objective: Sum of the cosines of the sample to the nearest centroid of their group.
    """

    centroids: np.ndarray
    starts: np.ndarray
    coarse: np.ndarray | None
    objective: float


@dataclass(frozen=True)
class KMeans:
    """Finds centroids and assigns rows.

    Attributes:
        points_per_centroid: Rows of the sample, per centroid.
        iterations: Rounds of k-means.
        seed: Of the sample and of the first centroids.
        threads: Of the CPU.
    """

    points_per_centroid: int
    iterations: int
    seed: int
    threads: int

    def flat(self, embeddings: np.ndarray, count: int) -> Clustering:
        """``count`` centroids of float [n, d] unit rows, n >= ``count``."""
        rows = self._sample(len(embeddings), count)
        sample = np.ascontiguousarray(embeddings[rows], dtype=np.float32)
        centroids, objective = self._train(sample, count)
        return Clustering(centroids, np.array([0, count]), None, objective)

    def hierarchical(
        self,
        embeddings: np.ndarray,
        count: int,
        scratch: Path,
        progress: Callable[[str, int, int], None],
    ) -> Clustering:
        """``count`` centroids in groups, of float [n, d] unit rows, n >= ``count``.

        The sample lies in ``scratch`` by group: ``2 d`` bytes a row.
        """
        coarse = self.flat(embeddings, math.isqrt(count - 1) + 1)
        groups = len(coarse.centroids)
        group_of = np.full(len(embeddings), -1, np.int32)
        for start, found, _ in self.assign(embeddings, coarse):
            group_of[start : start + len(found)] = found
            progress("rows in groups", start + len(found), len(embeddings))
        sizes = np.bincount(group_of, minlength=groups)
        counts = proportional(count, sizes)
        group_of[~self._sampled_by_group(group_of, counts)] = -1
        parts = PartitionedRows(embeddings, group_of, groups, scratch)

        def train(group: int) -> tuple[np.ndarray, float]:
            if not counts[group]:
                return np.zeros((0, embeddings.shape[1]), np.float32), 0.0
            return self._train(parts.rows(group).astype(np.float32), int(counts[group]))

        fine, objective = [], 0.0
        for centroids, reached in self._on_threads(train, range(groups)):
            fine.append(centroids)
            objective += reached
            progress("groups", len(fine), groups)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Clustering(np.concatenate(fine), starts, coarse.centroids, objective)

    def assign(self, embeddings: np.ndarray, clustering: Clustering) -> Iterator[Block]:
        """For each block of rows the nearest centroid and 1 - cosine to it, not less than 0."""
        groups = [_index(part) for part in np.split(clustering.centroids, clustering.starts[1:-1])]
        coarse = None if clustering.coarse is None else _index(clustering.coarse)

        def assign(start: int) -> Block:
            block = np.ascontiguousarray(embeddings[start : start + BLOCK], dtype=np.float32)
            if coarse is None:
                cosines, nearest = groups[0].search(block, 1)
                return start, nearest[:, 0], np.maximum(1 - cosines[:, 0], 0)
            group_of = coarse.search(block, 1)[1][:, 0]
            found = np.empty(len(block), np.int64)
            distance = np.empty(len(block), np.float32)
            for group in np.unique(group_of):
                rows = np.flatnonzero(group_of == group)
                cosines, nearest = groups[group].search(block[rows], 1)
                found[rows] = clustering.starts[group] + nearest[:, 0]
                distance[rows] = np.maximum(1 - cosines[:, 0], 0)
            return start, found, distance

        yield from self._on_threads(assign, range(0, len(embeddings), BLOCK))

    def _sample(self, rows: int, count: int) -> np.ndarray:
        """Row numbers in ascending order."""
        wanted = min(rows, count * self.points_per_centroid)
        random = np.random.default_rng(self.seed % 2**64)
        return np.sort(random.choice(rows, wanted, replace=False))

    def _sampled_by_group(self, group_of: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Whether each row is in the sample, bool [n]: of each group at least a row for each of its
        centroids, and ``LARGEST_GROUP`` times an even share at most, unless it needs more.
        """  # noqa: D205
        count = int(counts.sum())
        sampled = np.zeros(len(group_of), bool)
        sampled[self._sample(len(group_of), count)] = True
        most = LARGEST_GROUP * -(-int(sampled.sum()) // len(counts))
        found = np.bincount(group_of[sampled], minlength=len(counts))
        for group in np.flatnonzero((found < counts) | (found > np.maximum(most, counts))):
            rows = np.flatnonzero(group_of == group)
            wanted = max(int(counts[group]), min(most, len(rows)))
            sampled[rows] = False
            sampled[rows[np.arange(wanted) * len(rows) // wanted]] = True
        return sampled

    def _train(self, sample: np.ndarray, count: int) -> tuple[np.ndarray, float]:
        """Centroids float32 [count, d], and the sum of cosines they reach on the sample."""
        faiss = import_faiss()
        kmeans = faiss.Kmeans(
            sample.shape[1],
            count,
            niter=self.iterations,
            nredo=1,
            seed=self.seed % 2**31,
            spherical=True,
            gpu=on_gpu(),
            # The sample is ours: FAISS is neither to thin it out again nor to warn of a small one.
            min_points_per_centroid=1,
            max_points_per_centroid=math.ceil(len(sample) / count),
        )
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            objective = kmeans.train(sample)
        finally:
            faiss.omp_set_num_threads(threads)
        return np.ascontiguousarray(kmeans.centroids, dtype=np.float32), float(objective)

    def _on_threads(self, work: Callable[[int], Any], items: range) -> Iterator[Any]:
        # The number of OpenMP threads is a setting of each thread that calls FAISS.
        options = {"initializer": import_faiss().omp_set_num_threads, "initargs": (1,)}
        return ordered_map(work, items, 1 if on_gpu() else self.threads, **options)


def proportional(total: int, sizes: np.ndarray) -> np.ndarray:
    """int64: ``total`` shared in proportion to ``sizes``, by largest remainder.

    Each group that is not empty has at least one and none more than its size; ``total`` lies
    between the number of groups that are not empty and the sum of sizes.
    """
    least = (sizes > 0).astype(np.int64)
    room = sizes - least
    exact = (total - least.sum()) * room / max(room.sum(), 1)
    shares = np.minimum(np.floor(exact).astype(np.int64), room)
    missing = total - least.sum() - shares.sum()
    by_remainder = np.argsort(shares - exact, kind="stable")
    for group in by_remainder[shares[by_remainder] < room[by_remainder]][:missing]:
        shares[group] += 1
    counts: np.ndarray = least + shares
    return counts


def _index(centroids: np.ndarray) -> Any:
    faiss = import_faiss()
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    return faiss.index_cpu_to_all_gpus(index) if on_gpu() else index
