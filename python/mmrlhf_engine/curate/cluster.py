"""Stage ``cluster``: which pictures are of a kind.

Spherical k-means (FAISS) over the rows of ``embeddings.npy``: the centroids are found on a seeded
sample of the rows, then every row is given to the centroid of largest cosine, block by block, so
that the embeddings need not fit in memory. A sample takes the cluster of its first picture; one
that has none (text only) is in cluster -1.

The same embeddings and seed give the same clusters on any number of threads. A matrix product that
is split differently adds up differently, so centroids are found on one thread, and blocks of fixed
size are assigned on one thread each, several at a time. FAISS uses a GPU where it sees one; then
the same holds from run to run on the same kind of GPU.
"""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from mmrlhf_engine.curate.tables import CLUSTERS
from mmrlhf_engine.errors import MissingExtraError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.ordered_map import ordered_map
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext

__all__ = ["STAGE", "ClusterConfig"]

BLOCK = 65_536
"""Rows assigned at once."""


class ClusterConfig(Section):
    """Settings of ``cluster``."""

    clusters: int = Field(default=100, ge=1)
    """Number of clusters; the number of distinct pictures if there are fewer."""
    points_per_centroid: int = Field(default=256, ge=1)
    """Rows the centroids are found on, per centroid: a seeded sample of the embeddings."""
    iterations: int = Field(default=25, ge=1)
    """Rounds of k-means."""


def run(config: ClusterConfig, stage: StageContext) -> None:
    """Write ``centroids.npy`` (float32 [clusters, d], unit rows) and the table ``clusters``."""
    embeddings = stage.array("embeddings.npy")
    count = min(config.clusters, len(embeddings))
    labels = np.empty(len(embeddings), dtype=np.int32)
    distances = np.empty(len(embeddings), dtype=np.float32)
    objective = None
    device = "none"
    if count:
        faiss = _import_faiss()
        device = "gpu" if faiss.get_num_gpus() > 0 else "cpu"
        centroids, objective = _find_centroids(faiss, embeddings, count, config, stage.seed)
        for start, found, distance in _assign(faiss, embeddings, centroids, stage):
            labels[start : start + len(found)] = found
            distances[start : start + len(found)] = distance
            stage.progress("pictures", start + len(found), len(embeddings))
    else:
        centroids = np.zeros((0, embeddings.shape[1]), dtype=np.float32)
    _write_array(stage.folder / "centroids.npy", centroids)
    rows, without = _write_clusters(stage, labels, distances)
    sizes = np.bincount(labels, minlength=count)
    stage.finish(
        rows_in=rows,
        rows_out=rows,
        dropped={},
        clusters=count,
        empty_clusters=int((sizes == 0).sum()),
        images=len(embeddings),
        without_embedding=without,
        mean_distance=round(float(distances.mean()), 6) if count else None,
        training_objective=objective,
        device=device,
    )


def check(_config: ClusterConfig) -> None:
    """Refuse to begin without FAISS.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError("faiss", extra="curate", needed_for="cluster")


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", extra="curate", needed_for="cluster") from None
    return faiss


def _find_centroids(
    faiss: Any, embeddings: np.ndarray, count: int, config: ClusterConfig, seed: int
) -> tuple[np.ndarray, float]:
    """Centroids, float32 [count, d] unit rows, and the sum of cosines they reach on the sample."""
    wanted = min(len(embeddings), count * config.points_per_centroid)
    rows = np.random.default_rng(seed % 2**64).choice(len(embeddings), wanted, replace=False)
    sample = np.ascontiguousarray(embeddings[np.sort(rows)], dtype=np.float32)
    kmeans = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=config.iterations,
        nredo=1,
        seed=seed % 2**31,
        spherical=True,
        gpu=faiss.get_num_gpus() > 0,
        # The sample is ours: FAISS is neither to thin it out again nor to warn of a small corpus.
        min_points_per_centroid=1,
        max_points_per_centroid=math.ceil(wanted / count),
    )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        objective = kmeans.train(sample)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.ascontiguousarray(kmeans.centroids, dtype=np.float32), float(objective)


def _assign(
    faiss: Any, embeddings: np.ndarray, centroids: np.ndarray, stage: StageContext
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each block its first row, then the nearest centroid and the distance of each of its rows.

    The distance is 1 - cosine, not less than 0.
    """
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    on_gpu = faiss.get_num_gpus() > 0
    if on_gpu:
        index = faiss.index_cpu_to_all_gpus(index)

    def assign(start: int) -> tuple[int, np.ndarray, np.ndarray]:
        block = np.ascontiguousarray(embeddings[start : start + BLOCK], dtype=np.float32)
        cosines, nearest = index.search(block, 1)
        return start, nearest[:, 0], np.maximum(1 - cosines[:, 0], 0)

    # The number of OpenMP threads is a setting of each thread that calls FAISS.
    options = {"initializer": faiss.omp_set_num_threads, "initargs": (1,)}
    threads = 1 if on_gpu else stage.resources.cores
    yield from ordered_map(assign, range(0, len(embeddings), BLOCK), threads, **options)


def _write_array(path: Path, array: np.ndarray) -> None:
    with appearing(path) as temporary:
        np.save(temporary, array)


def _write_clusters(
    stage: StageContext, labels: np.ndarray, distances: np.ndarray
) -> tuple[int, int]:
    """Write the table ``clusters``; how many samples there are, and how many without embedding."""
    label_of, distance_of = pl.Series(labels), pl.Series(distances)
    without = 0
    with stage.table("clusters", CLUSTERS) as table:
        for part in stage.parts("embedding_ids", "id", "row"):
            clusters = label_of.gather(part["row"]).fill_null(-1)
            table.write(
                part.with_columns(cluster=clusters, distance=distance_of.gather(part["row"]))
            )
            without += part["row"].null_count()
        return table.rows, without


def memory(config: ClusterConfig, inputs: Inputs, threads: int) -> int:
    """The sample that centroids are found on, blocks of rows, and a label for each row."""
    rows, width = inputs.rows("embeddings.npy"), inputs.width("embeddings.npy")
    sample = min(rows, config.clusters * config.points_per_centroid)
    blocks = min(rows, BLOCK * 2 * threads)
    return (512 << 20) + 3 * 4 * width * (sample + blocks) + rows * 24


STAGE = Stage(
    name="cluster",
    config=ClusterConfig,
    run=run,
    reads=("embeddings.npy", "embedding_ids"),
    writes=("centroids.npy", "clusters"),
    check=check,
    memory=memory,
)
