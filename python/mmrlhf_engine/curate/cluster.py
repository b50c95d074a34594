"""Stage ``cluster``: which pictures are of a kind.

Spherical k-means (FAISS) over the rows of ``embeddings.npy``, see `kmeans.py`: centroids are found
on a seeded sample of the rows, then every row is given to the centroid of largest cosine, block by
block, so that the embeddings need not fit in memory. For thousands of clusters there is
``method: hierarchical``. A sample takes the cluster of its first picture; one that has none (text
only) is in cluster -1.

The same embeddings and seed give the same clusters on any number of threads. FAISS uses a GPU where
it sees one; then the same holds from run to run on the same kind of GPU.
"""

import importlib.util
import math
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from mmrlhf_engine.curate.kmeans import BLOCK, LARGEST_GROUP, Clustering, KMeans, on_gpu
from mmrlhf_engine.curate.tables import CLUSTERS
from mmrlhf_engine.errors import MissingExtraError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext

__all__ = ["STAGE", "ClusterConfig"]


class ClusterConfig(Section):
    """Settings of ``cluster``."""

    clusters: int = Field(default=100, ge=1)
    """Number of clusters; the number of distinct pictures if there are fewer."""
    method: Literal["flat", "hierarchical"] = "flat"
    """``flat``: every picture is compared with every centroid; ``hierarchical``: centroids below
    coarse centroids, in proportion to their pictures, for thousands of clusters of even size."""
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
    found = None
    if count:
        cores = stage.resources.cores
        kmeans = KMeans(config.points_per_centroid, config.iterations, stage.seed, cores)
        found = _find(config, stage, kmeans, embeddings, count)
        for start, nearest, distance in kmeans.assign(embeddings, found):
            labels[start : start + len(nearest)] = nearest
            distances[start : start + len(nearest)] = distance
            stage.progress("pictures", start + len(nearest), len(embeddings))
    nothing = np.zeros((0, embeddings.shape[1]), dtype=np.float32)
    _write_array(stage.folder / "centroids.npy", nothing if found is None else found.centroids)
    rows, without = _write_clusters(stage, labels, distances)
    sizes = np.bincount(labels, minlength=count)
    stage.finish(
        rows_in=rows,
        rows_out=rows,
        dropped={},
        clusters=count,
        empty_clusters=int((sizes == 0).sum()),
        largest_cluster=int(sizes.max(initial=0)),
        images=len(embeddings),
        without_embedding=without,
        mean_distance=round(float(distances.mean()), 6) if count else None,
        training_objective=None if found is None else found.objective,
        device="none" if found is None else "gpu" if on_gpu() else "cpu",
    )


def check(_config: ClusterConfig) -> None:
    """Refuse to begin without FAISS.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError("faiss", extra="curate", needed_for="cluster")


def _find(
    config: ClusterConfig, stage: StageContext, kmeans: KMeans, embeddings: np.ndarray, count: int
) -> Clustering:
    if config.method == "flat":
        return kmeans.flat(embeddings, count)
    return kmeans.hierarchical(embeddings, count, stage.scratch / "groups", stage.progress)


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
    """The sample that centroids are found on, or blocks of rows, and a label for each row."""
    rows, width = inputs.rows("embeddings.npy"), inputs.width("embeddings.npy")
    clusters = min(config.clusters, rows)
    sample = min(rows, clusters * config.points_per_centroid)
    blocks = min(rows, BLOCK * threads)
    labels = 12
    if config.method == "hierarchical":
        groups = math.isqrt(max(clusters - 1, 0)) + 1
        coarse = min(rows, groups * config.points_per_centroid)
        group = min(sample, max(LARGEST_GROUP * -(-sample // groups), clusters))
        sample = max(coarse, threads * group) + clusters
        labels = 40
    return (128 << 20) + 4 * width * max(3 * sample, 2 * blocks) + rows * labels


STAGE = Stage(
    name="cluster",
    config=ClusterConfig,
    run=run,
    reads=("embeddings.npy", "embedding_ids"),
    writes=("centroids.npy", "clusters"),
    check=check,
    memory=memory,
)
