"""The stage ``cluster``: similar pictures together, for any number of threads or block size."""

import numpy as np
import polars as pl
import pytest

from mmrlhf_engine.curate import cluster
from mmrlhf_engine.curate.cluster import ClusterConfig
from mmrlhf_engine.curate.tables import EMBEDDING_IDS


def embedded(stage, rows: np.ndarray, without: int = 0, shared: int = 0):
    """The stages before ``cluster``: one sample a row, some sharing row 0, some without one."""
    ids = [f"p{i:06d}" for i in range(len(rows) + shared)]
    numbers = [*range(len(rows)), *[0] * shared]
    names = [*ids, *(f"t{i}" for i in range(without))]
    rows_of = pl.DataFrame({"id": names, "row": [*numbers, *[None] * without]}, EMBEDDING_IDS)
    arrays = {"embeddings.npy": rows.astype(np.float16)}
    stage.upstream("embed", **arrays, embedding_ids=(EMBEDDING_IDS, rows_of))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def groups(count: int, each: int, dimension: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Groups of unit rows around orthogonal directions, and the group of each row."""
    random = np.random.default_rng(1)
    truth = np.repeat(np.arange(count), each)
    rows = np.eye(dimension)[truth] + 0.05 * random.normal(size=(len(truth), dimension))
    return unit(rows), truth


def cluster_of(stage, config=None, **options):
    config = config or ClusterConfig()
    begun = stage("cluster", config, **options)
    cluster.run(config, begun)
    return begun, pl.read_parquet(begun.folder / "clusters" / "*.parquet")


def test_separate_groups_are_found_and_measured(stage, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 37)
    rows, truth = groups(count=6, each=40)
    embedded(stage, rows, without=3, shared=5)
    begun, found = cluster_of(stage, ClusterConfig(clusters=6))

    centroids = np.load(begun.folder / "centroids.npy")
    assert centroids.shape == (6, 32)
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    pictures = found.filter(pl.col("cluster") >= 0)
    labels = pictures["cluster"].to_numpy()[: len(truth)]
    # Reference implementation of the assignment: the largest of all cosines.
    cosines = rows.astype(np.float16).astype(np.float32) @ centroids.T
    np.testing.assert_array_equal(labels, cosines.argmax(axis=1))
    np.testing.assert_allclose(
        pictures["distance"].to_numpy()[: len(truth)], 1 - cosines.max(axis=1), atol=1e-5
    )
    # Every group is one cluster: as many pairs as groups.
    assert len(set(zip(truth, labels, strict=True))) == 6
    assert set(pictures["cluster"].tail(5)) == {labels[0]}
    texts = found.filter(pl.col("id").str.starts_with("t"))
    assert texts["cluster"].to_list() == [-1] * 3
    assert texts["distance"].null_count() == 3
    report = begun.run.report("cluster")
    assert (report["rows_in"], report["rows_out"], report["without_embedding"]) == (248, 248, 3)
    assert (report["clusters"], report["empty_clusters"], report["device"]) == (6, 0, "cpu")


def test_the_same_seed_gives_the_same_files_on_any_number_of_threads(stage, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 100)
    random = np.random.default_rng(0)
    embedded(stage, unit(random.normal(size=(1500, 48))))
    config = ClusterConfig(clusters=12, points_per_centroid=64)

    def digests(**options):
        begun, _ = cluster_of(stage, config, **options)
        return begun.run.manifest("cluster")["outputs"]

    one = digests(threads=1)
    assert digests(threads=1) == one
    assert digests(threads=3) == one
    assert digests(threads=1, seed=1) != one


def test_fewer_pictures_than_clusters(stage):
    embedded(stage, np.eye(4))
    begun, found = cluster_of(stage, ClusterConfig(clusters=100))
    assert sorted(found["cluster"]) == [0, 1, 2, 3]
    assert begun.run.report("cluster")["clusters"] == 4


def test_equal_pictures_leave_clusters_empty_and_the_report_counts_them(stage):
    embedded(stage, np.repeat(np.eye(3), 20, axis=0))
    begun, found = cluster_of(stage, ClusterConfig(clusters=10))
    sizes = found["cluster"].value_counts()
    report = begun.run.report("cluster")
    assert report["empty_clusters"] == 10 - sizes.height
    assert report["empty_clusters"] >= 7
    # No cluster mixes two of the three pictures.
    of_sample = dict(zip(found["id"], found["cluster"], strict=True))
    by_picture = [{of_sample[f"p{p * 20 + i:06d}"] for i in range(20)} for p in range(3)]
    assert not by_picture[0] & by_picture[1]
    assert not by_picture[1] & by_picture[2]


def test_a_corpus_of_text_alone_has_no_clusters(stage):
    embedded(stage, np.zeros((0, 8)), without=5)
    begun, found = cluster_of(stage)
    assert found["cluster"].to_list() == [-1] * 5
    assert np.load(begun.folder / "centroids.npy").shape == (0, 8)
    assert begun.run.report("cluster")["clusters"] == 0


@pytest.mark.parametrize("seed", [-5, 2**40])
def test_any_integer_is_a_seed(stage, seed):
    embedded(stage, np.eye(8))
    _, found = cluster_of(stage, ClusterConfig(clusters=2), seed=seed)
    assert set(found["cluster"]) == {0, 1}
