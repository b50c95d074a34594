"""Semantic duplicates that are removed before anything is chosen: against a plain double loop."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.curate import semantic
from mmrlhf_engine.curate.select import SelectConfig

THRESHOLD = 0.9
# Cosines of angles of whole degrees: none lies near the threshold, that of 25.84 degrees.
DEGREES = st.integers(0, 180)


def on_circle(degrees) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def naive(vectors: np.ndarray, order: list[int]) -> dict[int, list[int]]:
    """Of each place in the order that goes, the earlier places that stay and are near."""
    gone: dict[int, list[int]] = {}
    for place, row in enumerate(order):
        near = [
            before
            for before in range(place)
            if before not in gone and vectors[row] @ vectors[order[before]] >= THRESHOLD
        ]
        if near:
            gone[place] = near
    return gone


@given(st.lists(DEGREES, max_size=40), st.randoms(use_true_random=False), st.integers(1, 9))
def test_rows_go_because_of_an_earlier_one_that_stays(degrees, random, block):
    vectors = on_circle(degrees)
    order = random.sample(range(len(degrees)), len(degrees))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "BLOCK", block)
        found = semantic.near_earlier(vectors, np.array(order, np.int64), THRESHOLD)
    expected = naive(vectors, order)
    places, stays, cosines = (column.tolist() for column in found)
    assert places == sorted(expected)
    for place, other, cosine in zip(places, stays, cosines, strict=True):
        assert other in expected[place]
        assert cosine == pytest.approx(vectors[order[place]] @ vectors[order[other]], abs=1e-5)


def kept_rows() -> tuple[pl.DataFrame, np.ndarray]:
    """Two clusters of pictures, some with several samples, and samples without a picture."""
    random = np.random.default_rng(5)
    embeddings = on_circle(random.integers(0, 180, 60)).astype(np.float16)
    row = [None if n % 9 == 0 else int(random.integers(0, 60)) for n in range(150)]
    cluster = [-1 if r is None else r % 2 for r in row]
    distance = [None if r is None else round((r * 37 % 60) / 60, 3) for r in row]
    ids = [f"s{n:03d}" for n in range(150)]
    kept = pl.DataFrame({"id": ids, "row": row, "cluster": cluster, "distance": distance})
    return kept.cast({"row": pl.UInt32, "cluster": pl.Int32, "distance": pl.Float32}), embeddings


@pytest.mark.parametrize("order", ["hard", "easy"])
def test_of_two_near_pictures_the_harder_or_easier_stays(stage, order, monkeypatch):
    monkeypatch.setattr(semantic, "PARTITION_ROWS", 1)
    kept, embeddings = kept_rows()
    found = semantic.semantic_duplicates(
        kept, embeddings, THRESHOLD, order, stage("select", SelectConfig())
    )
    vectors = embeddings.astype(np.float32)
    samples = list(kept.with_row_index("candidate").iter_rows(named=True))
    stays = set(range(kept.height)) - set(found["candidate"])
    assert 0 < len(stays) < kept.height
    of = [sample["row"] for sample in samples]
    staying_rows = [of[candidate] for candidate in stays if of[candidate] is not None]
    assert len(set(staying_rows)) == len(staying_rows)
    for candidate, close_to, cosine in found.iter_rows():
        one, other = samples[candidate], samples[close_to]
        assert close_to in stays
        assert one["cluster"] == other["cluster"]
        assert cosine == pytest.approx(vectors[of[candidate]] @ vectors[of[close_to]], abs=2e-3)
        if one["row"] == other["row"]:
            assert close_to < candidate
        elif order == "hard":
            assert one["distance"] <= other["distance"]
        else:
            assert one["distance"] >= other["distance"]
    for cluster in (0, 1):
        rows = [row for row in staying_rows if row % 2 == cluster]
        cosines = vectors[rows] @ vectors[rows].T - 2 * np.eye(len(rows))
        assert cosines.max() < THRESHOLD


def test_threads_change_nothing(stage, monkeypatch):
    monkeypatch.setattr(semantic, "BLOCK", 7)
    kept, embeddings = kept_rows()
    one, three = (
        semantic.semantic_duplicates(
            kept, embeddings, THRESHOLD, "hard", stage("select", SelectConfig(), threads=threads)
        )
        for threads in (1, 3)
    )
    assert one.equals(three)


def test_samples_without_pictures_alone(stage):
    kept, embeddings = kept_rows()
    texts = kept.filter(pl.col("row").is_null())
    found = semantic.semantic_duplicates(
        texts, embeddings[:0], THRESHOLD, "hard", stage("select", SelectConfig())
    )
    assert found.is_empty()
