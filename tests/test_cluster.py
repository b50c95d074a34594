"""The stage ``cluster``: similar pictures together, for any number of threads or block size."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.curate import cluster, kmeans, partitioned_rows
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
    monkeypatch.setattr(kmeans, "BLOCK", 37)
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
    monkeypatch.setattr(kmeans, "BLOCK", 100)
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


HIERARCHICAL = ClusterConfig(clusters=30, method="hierarchical", points_per_centroid=32)


def test_hierarchical_rows_go_to_the_nearest_centroid_below_the_nearest_coarse_one(
    stage, tmp_path, monkeypatch
):
    monkeypatch.setattr(kmeans, "BLOCK", 37)
    rows = unit(np.random.default_rng(0).normal(size=(900, 24))).astype(np.float16)
    means = kmeans.KMeans(points_per_centroid=32, iterations=5, seed=0, threads=2)
    told = []
    found = means.hierarchical(rows, 30, tmp_path, lambda *said: told.append(said))
    assert found.centroids.shape == (30, 24)
    assert found.starts[-1] == 30
    assert told[-1] == ("groups", 6, 6)
    vectors = rows.astype(np.float32)
    group_of = (vectors @ found.coarse.T).argmax(axis=1)
    cosines = vectors @ found.centroids.T
    outside = np.arange(30)[None] < found.starts[group_of][:, None]
    outside |= np.arange(30)[None] >= found.starts[group_of + 1][:, None]
    cosines[outside] = -2
    labels = np.concatenate([labels for _, labels, _ in means.assign(rows, found)])
    np.testing.assert_array_equal(labels, cosines.argmax(axis=1))


def test_hierarchical_clusters_are_even_where_the_rows_are_not(stage):
    random = np.random.default_rng(3)
    # Nine of ten rows lie around one direction.
    centres = np.eye(16)[[0] * 900 + [1 + n % 15 for n in range(100)]]
    embedded(stage, unit(centres + 0.2 * random.normal(size=centres.shape)))

    def largest(method):
        config = ClusterConfig(clusters=40, method=method, points_per_centroid=8)
        begun, _ = cluster_of(stage, config)
        report = begun.run.report("cluster")
        assert report["clusters"] == 40
        return report["largest_cluster"]

    assert largest("hierarchical") <= 4 * 1000 / 40


def test_hierarchical_clusters_are_the_same_on_any_number_of_threads(stage, monkeypatch):
    monkeypatch.setattr(kmeans, "BLOCK", 100)
    embedded(stage, unit(np.random.default_rng(0).normal(size=(700, 48))))

    def digests(**options):
        begun, _ = cluster_of(stage, HIERARCHICAL, **options)
        return begun.run.manifest("cluster")["outputs"]

    one = digests(threads=1)
    assert digests(threads=3) == one
    assert digests(threads=1, seed=1) != one


@pytest.mark.parametrize("clusters", [1, 2, 7, 8])
def test_hierarchical_of_few_pictures(stage, clusters):
    embedded(stage, np.eye(8), without=1)
    config = ClusterConfig(clusters=clusters, method="hierarchical")
    begun, found = cluster_of(stage, config)
    assert begun.run.report("cluster")["clusters"] == clusters
    assert set(found["cluster"]) <= {-1, *range(clusters)}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 600))
def test_shares_are_proportional_and_within_their_bounds(sizes, wanted):
    sizes = np.array(sizes)
    total = int(np.clip(wanted, (sizes > 0).sum(), sizes.sum()))
    shares = kmeans.proportional(total, sizes)
    assert shares.sum() == total
    assert ((shares >= (sizes > 0)) & (shares <= sizes)).all()
    rows = sizes - (sizes > 0)
    rest = total - (sizes > 0).sum()
    exact = rest * rows / max(rows.sum(), 1)
    assert (np.abs(shares - (sizes > 0) - exact) < 1 + 1e-9).all()


@given(st.lists(st.integers(-1, 4), max_size=60), st.integers(1, 7), st.sampled_from([1, 2, 300]))
def test_partitioned_rows_are_those_of_the_array(tmp_path_factory, of, block, files):
    array = np.random.default_rng(0).normal(size=(len(of), 3)).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioned_rows, "_BLOCK", block)
        patch.setattr(partitioned_rows, "_OPEN_FILES", files)
        folder = tmp_path_factory.mktemp("rows")
        parts = partitioned_rows.PartitionedRows(array, np.array(of, np.int32), 5, folder)
        for number in range(5):
            mine = [row for row, partition in enumerate(of) if partition == number]
            assert parts.numbers(number).tolist() == mine
            np.testing.assert_array_equal(parts.rows(number), array[mine])
