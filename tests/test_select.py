"""The stage ``select``: compared with its reference implementation, and its reasons and report."""

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmrlhf_engine._core import select_queries, share_by_ratio
from mmrlhf_engine.curate import select
from mmrlhf_engine.curate.select import SelectConfig
from mmrlhf_engine.curate.tables import CLUSTERS, EMBEDDING_IDS, KEPT, SAMPLES
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.config import Section, load_config
from naive_select import NO_ROW, NaiveChoice, Problem

FREE = 2**63 - 1

# Six directions in the plane: 0, 10 and 20 degrees are close at a threshold of 0.9, and so are 90
# and 95; 180 is far from all. Nothing lies near the threshold itself.
ANGLES = np.radians([0, 10, 20, 90, 95, 180])
PLANE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float16)


def core_choice(problem: Problem, seed: int = 0, threads: int = 1):
    """The picks and skips of the core, in the form of the reference implementation."""
    size = len(problem.question_types)
    columns = {
        "id": pa.array([f"s{i:05d}" for i in range(size)], pa.large_string()),
        "question_type": pa.array(problem.question_types, pa.uint32()),
        "modality": pa.array(problem.modalities, pa.uint32()),
        "source": pa.array(problem.sources, pa.uint32()),
        "cluster": pa.array(problem.clusters, pa.int32()),
        "row": pa.array(problem.rows, pa.uint32()),
    }
    embeddings = None
    if problem.embeddings is not None:
        bits = pa.array(problem.embeddings.view(np.uint16).reshape(-1))
        embeddings = pa.FixedSizeListArray.from_arrays(bits, problem.embeddings.shape[1])
    picks, skips = select_queries(
        pa.StructArray.from_arrays(columns.values(), names=list(columns)),
        embeddings,
        count=problem.count,
        ratios=problem.ratios,
        modality_bounds=problem.modality_bounds,
        source_bounds=problem.source_bounds,
        order=problem.order,
        seed=seed,
        semantic_threshold=problem.threshold,
        threads=threads,
    )
    return [_pick(row) for row in pa.array(picks).to_pylist()], [
        (row["candidate"], row["close_to"]) for row in pa.array(skips).to_pylist()
    ]


def _pick(row):
    for column in ("modality", "source"):
        if row[f"floor_{column}"] is not None:
            return row["candidate"], (column, row[f"floor_{column}"])
    return row["candidate"], None


def seeded_rank(size: int, seed: int) -> list[int]:
    """The place of each candidate in the seeded order: the order when nothing else decides."""
    zeros = [0] * size
    everything = Problem(
        *(zeros, zeros, zeros, zeros, zeros, None, size, [1.0]),
        *([(0, FREE)], [(0, FREE)], "seeded", None),
    )
    picks, _ = core_choice(everything, seed)
    rank = [0] * size
    for place, (candidate, _) in enumerate(picks):
        rank[candidate] = place
    return rank


bounds = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 5, FREE])), min_size=2, max_size=2
)


@st.composite
def problems(draw):
    size = draw(st.integers(0, 10))

    def column(values):
        return draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))

    return Problem(
        question_types=column([0, 1, 2]),
        modalities=column([0, 1]),
        sources=column([0, 1]),
        clusters=column([-1, 4, 9]),
        rows=column([*range(6), NO_ROW]),
        embeddings=PLANE,
        count=draw(st.integers(0, 12)),
        ratios=draw(st.lists(st.sampled_from([0.0, 1.0, 4.0, 5.0]), min_size=3, max_size=3)),
        modality_bounds=draw(bounds),
        source_bounds=draw(bounds),
        order=draw(st.sampled_from(["seeded", "farthest"])),
        threshold=draw(st.sampled_from([None, 0.9])),
    )


# The floor of source 1 cannot be met, which is seen when its one candidate is too close. What was
# held back for it is free again, and the cluster with the fewest picks comes first.
FLOOR_THAT_FAILS = Problem(
    question_types=[0, 0, 0, 0, 0],
    modalities=[0, 0, 0, 0, 0],
    sources=[0, 0, 0, 0, 1],
    clusters=[-1, -1, -1, 4, -1],
    rows=[0, 0, 0, 0, 0],
    embeddings=PLANE,
    count=2,
    ratios=[1.0, 0.0, 0.0],
    modality_bounds=[(2, 2), (0, 0)],
    source_bounds=[(0, 2), (1, 1)],
    order="seeded",
    threshold=0.9,
)


@settings(max_examples=200)
@given(problems(), st.integers(0, 3))
@example(FLOOR_THAT_FAILS, 0)
def test_the_core_selects_as_its_reference_implementation(problem, seed):
    reference = NaiveChoice(problem, seeded_rank(len(problem.question_types), seed))
    assert core_choice(problem, seed) == reference.run()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(*(st.integers(0, n) for n in (2, 3, 4, 30))), min_size=1, max_size=400),
    st.integers(1, 400),
    st.lists(st.integers(0, 40), min_size=5, max_size=5),
)
def test_counts_caps_and_floors_hold_at_any_size(rows, count, caps):
    types, modalities, sources, clusters = (list(column) for column in zip(*rows, strict=True))
    floors = [min(cap, 10) if number % 2 else 0 for number, cap in enumerate(caps)]
    problem = Problem(
        types,
        modalities,
        sources,
        clusters,
        [NO_ROW] * len(rows),
        None,
        count,
        [4.0, 5.0, 1.0],
        [(0, FREE)] * 4,
        list(zip(floors, caps, strict=True)),
        "seeded",
        None,
    )
    picks = [candidate for candidate, _ in core_choice(problem, threads=2)[0]]
    assert len(picks) == len(set(picks))
    there = [sources.count(source) for source in range(5)]
    # With caps on one column alone, what can be reached is plain.
    assert len(picks) == min(count, sum(map(min, there, caps)))
    got = [sum(sources[i] == source for i in picks) for source in range(5)]
    assert all(g <= cap for g, cap in zip(got, caps, strict=True))
    if sum(floors) <= count:
        assert all(g >= min(f, t) for g, f, t in zip(got, floors, there, strict=True))
    assert core_choice(problem, threads=1)[0] == core_choice(problem, threads=3)[0]


def test_the_type_with_the_fewest_candidates_is_allocated_first():
    # 20 long in the capped source; short there and in the free one. Short must leave it to long.
    types = [0] * 20 + [1] * 60
    sources = [1] * 20 + [1] * 30 + [0] * 30
    problem = Problem(
        types,
        [0] * 80,
        sources,
        [0] * 80,
        [NO_ROW] * 80,
        None,
        40,
        [1.0, 1.0],
        [(0, FREE)],
        [(0, FREE), (0, 20)],
        "seeded",
        None,
    )
    picks = [candidate for candidate, _ in core_choice(problem)[0]]
    assert [sum(types[i] == kind for i in picks) for kind in (0, 1)] == [20, 20]


@settings(max_examples=100)
@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=4),
)
def test_shares_keep_their_ratios_up_to_their_limits(amount, groups):
    ratios, limits = [float(ratio) for ratio, _ in groups], [limit for _, limit in groups]
    shares = share_by_ratio(amount, ratios, limits)
    reachable = sum(limit for ratio, limit in groups if ratio)
    assert sum(shares) == min(amount, reachable)
    assert all(share <= limit for share, limit in zip(shares, limits, strict=True))
    # Webster's condition: no group short of its limit is owed a unit that another one holds.
    for a, b in [(a, b) for a in range(len(groups)) for b in range(len(groups))]:
        if ratios[a] and shares[a] < limits[a] and shares[b]:
            held, owed = ratios[b] / (2 * shares[b] - 1), ratios[a] / (2 * shares[a] + 1)
            assert held >= owed or math.isclose(held, owed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": [math.nan]}, "ratios: found NaN"),
        ({"ratios": []}, "question_types: found 0, expected an index below 0"),
        ({"source_bounds": []}, "quotas: found no groups"),
        ({"sources": [7]}, "sources: found 7, expected an index below 1"),
        ({"rows": [6]}, "rows: found 6, expected a row below 6"),
        ({"embeddings": None}, "embeddings: found none"),
        ({"order": "sorted"}, 'order: found "sorted", expected seeded or farthest'),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    fits = {
        "question_types": [0],
        "modalities": [0],
        "sources": [0],
        "clusters": [0],
        "rows": [0],
        "embeddings": PLANE,
        "count": 1,
        "ratios": [1.0],
        "modality_bounds": [(0, FREE)],
        "source_bounds": [(0, FREE)],
        "order": "farthest",
        "threshold": None,
    }
    assert core_choice(Problem(**fits)) == ([(0, None)], [])
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        core_choice(Problem(**fits | change))


# The stage.


def corpus(size=1000, seed=0) -> pl.DataFrame:
    """Kept samples mixed as the paper's raw ones: mostly short, in clusters of unlike sizes."""
    random = np.random.default_rng(seed)
    types = random.choice(["short", "long", "mcq"], size, p=[0.8, 0.14, 0.06])
    clusters = np.minimum(random.geometric(0.3, size) - 1, 11)
    modality = np.where(random.random(size) < 0.1, "text", "image")
    return pl.DataFrame(
        {
            "id": [f"a:{i:05d}" for i in range(size)],
            "source": random.choice(["web", "books", "safety"], size, p=[0.9, 0.08, 0.02]),
            "modality": modality,
            "question_type": types,
            "cluster": np.where(modality == "text", -1, clusters),
            "row": random.integers(0, 60, size),
        }
    )


def selected(stage, rows: pl.DataFrame, config: SelectConfig, shuffled=False, **options):
    """Run ``select`` on the rows behind finished stages before it; the stage and its queries."""
    rows = rows.with_columns(
        source_id="id",
        tags=pl.lit([], pl.List(pl.String)),
        prompt=pl.lit("Why?"),
        answer=pl.lit(None, pl.String),
        options=pl.lit([], pl.List(pl.String)),
        history=pl.lit([], SAMPLES["history"]),
        needs_history=pl.lit(False),
        media=pl.lit([], pl.List(pl.String)),
        distance=pl.lit(0.25),
        phash=pl.lit(None, pl.List(pl.UInt64)),
    )
    random = np.random.default_rng(2).normal(size=(60, 12))
    embeddings = random / np.linalg.norm(random, axis=1, keepdims=True)
    if (rows["cluster"] < 0).all():
        embeddings = np.zeros((0, 0))  # as embed writes them where no sample has a picture
    embedded = rows.with_columns(row=pl.when(pl.col("cluster") >= 0).then("row"))
    if shuffled:
        rows = rows.sample(fraction=1, shuffle=True, seed=0)
    kept = rows.with_row_index("sample").sort("id")
    for name, table, schema, content in [
        ("ingest", "samples", SAMPLES, rows),
        ("dedup", "kept", KEPT, kept),
        ("embed", "embedding_ids", EMBEDDING_IDS, embedded.sort("id")),
        ("cluster", "clusters", CLUSTERS, rows.sort("id")),
    ]:
        arrays = {"embeddings.npy": embeddings.astype(np.float16)} if name == "embed" else {}
        stage.upstream(name, **arrays, **{table: (schema, content)})
    begun = stage("select", config, **options)
    select.run(config, begun)
    return begun, pl.read_parquet(begun.folder / "queries" / "*.parquet")


def test_quotas_are_met_exactly_and_clusters_evenly(stage):
    rows = corpus()
    begun, queries = selected(stage, rows, SelectConfig(count=100))
    counts = dict(queries["question_type"].value_counts().iter_rows())
    assert counts == {"long": 40, "short": 50, "mcq": 10}
    assert queries["id"].is_sorted()
    assert queries["id"].is_unique().all()
    # No cluster gave two more of a type than one that had more to give.
    stock = rows.group_by("question_type", "cluster").len("there")
    got = queries.group_by("question_type", "cluster").len("got")
    for _, part in stock.join(got, on=["question_type", "cluster"], how="left").group_by(
        "question_type"
    ):
        part = part.with_columns(pl.col("got").fill_null(0))
        unfinished = part.filter(pl.col("got") < pl.col("there"))
        assert part["got"].max() <= unfinished["got"].min() + 1
    report = begun.run.report("select")
    assert (report["rows_in"], report["rows_out"], report["shortfalls"]) == (1000, 100, [])
    assert report["dropped"] == {"not_chosen": 900, "semantic_duplicate": 0}
    assert report["quotas"]["question_type"]["long"]["asked"] == 40
    coverage = report["coverage"]
    assert coverage["clusters"] == 13
    assert coverage["chosen"]["covered"] >= coverage["random"]["covered"]
    assert coverage["chosen"]["effective"] > 1.3 * coverage["random"]["effective"]


def test_each_query_has_a_reason(stage):
    config = SelectConfig(count=440, source={"safety": {"floor": 15}})
    rows = corpus()
    begun, queries = selected(stage, rows, config)
    assert queries.filter(pl.col("source") == "safety").height >= 15
    by_floor = queries.filter(pl.col("why").str.contains("floor 15 of source safety"))
    assert by_floor.height == 15
    # There are fewer than 176 long; short and mcq make up for them, 5 to 1.
    missing = 176 - rows.filter(pl.col("question_type") == "long").height
    got = dict(queries["question_type"].value_counts().iter_rows())
    assert missing > 6
    assert got["long"] == 176 - missing
    assert got["short"] == 220 + round(missing * 5 / 6)
    beyond = queries.filter(pl.col("why").str.contains("gone beyond"))
    assert beyond.height == missing
    one = queries.filter((pl.col("question_type") == "short") & (pl.col("cluster") == 2))
    there = rows.filter((pl.col("question_type") == "short") & (pl.col("cluster") == 2)).height
    numbers = [int(why.split(" pick ")[1].split(" of ")[0]) for why in one["why"]]
    assert sorted(numbers) == list(range(1, one.height + 1))
    assert all(
        f"short, cluster 2: pick {number} of {one.height} ({there} there), seeded order; " in why
        for number, why in zip(numbers, one["why"], strict=True)
    )
    text = queries.filter(pl.col("cluster") == -1)["why"]
    assert text.len() > 0
    assert text.str.contains("without picture: pick").all()
    assert any("filled by short +" in line for line in begun.run.report("select")["shortfalls"])


@pytest.mark.parametrize("order", ["seeded", "farthest"])
@pytest.mark.parametrize("threshold", [None, 0.8])
def test_threads_and_the_order_of_rows_do_not_change_the_output(stage, order, threshold):
    config = SelectConfig(count=80, order=order, semantic_threshold=threshold)

    def outputs(**options):
        begun, _ = selected(stage, corpus(400), config, **options)
        return begun.run.manifest("select")["outputs"]

    one = outputs(threads=1)
    assert outputs(threads=3) == one
    assert outputs(threads=2, shuffled=True) == one
    assert outputs(threads=1, seed=1) != one


def test_a_corpus_smaller_than_count_is_selected_whole_and_reported(stage):
    begun, queries = selected(stage, corpus(50), SelectConfig(count=80))
    assert queries.height == 50
    assert "50 of 80 queries" in begun.run.report("select")["shortfalls"][0]


def test_an_empty_corpus_gives_no_queries(stage):
    begun, queries = selected(stage, corpus(50).clear(), SelectConfig(count=80))
    assert queries.height == 0
    assert begun.run.report("select")["rows_in"] == 0


@pytest.mark.parametrize("order", ["seeded", "farthest"])
@pytest.mark.parametrize("keep", ["chosen", "hard"])
def test_texts_alone_are_selected_under_any_rule_about_pictures(stage, order, keep):
    texts = corpus(50).with_columns(cluster=pl.lit(-1, pl.Int64), modality=pl.lit("text"))
    config = SelectConfig(count=80, order=order, semantic_threshold=0.9, semantic_keep=keep)
    _, queries = selected(stage, texts, config)
    assert queries.height == 50


def test_shares_and_counts_bound_groups(stage):
    config = SelectConfig(
        count=100,
        modality={"text": {"floor": 0.07, "cap": 0.07}, "video": {"floor": 3}},
        source={"web": {"cap": 30}, "books": {"floor": 0.3}},
    )
    begun, queries = selected(stage, corpus(), config)
    sources = dict(queries["source"].value_counts().iter_rows())
    assert queries.height == 100
    assert sources["web"] == 30
    assert sources["books"] >= 30
    assert queries.filter(pl.col("modality") == "text").height == 7
    report = begun.run.report("select")
    assert "modality video: 0, below its floor of 3" in report["shortfalls"]
    assert report["quotas"]["source"]["web"]["cap"] == 30
    assert report["quotas"]["modality"]["video"] == {"there": 0, "got": 0, "floor": 3, "cap": None}


def test_semantic_duplicates_are_named_with_the_query_they_repeat(stage):
    config = SelectConfig(count=1000, semantic_threshold=0.99)
    rows = corpus(300)
    begun, queries = selected(stage, rows, config)
    skipped = pl.read_parquet(begun.folder / "semantic_duplicates" / "*.parquet")
    report = begun.run.report("select")
    assert report["dropped"]["semantic_duplicate"] == skipped.height > 0
    assert report["dropped"]["not_chosen"] == 0
    place = {row["id"]: (row["cluster"], row["row"]) for row in rows.iter_rows(named=True)}
    # Only pictures that are the same are as close as that: one query for each in each cluster.
    assert all(place[row[0]] == place[row[1]] for row in skipped.iter_rows())
    np.testing.assert_allclose(skipped["cosine"].to_numpy(), 1, atol=2e-3)
    with_picture = queries.filter(pl.col("cluster") >= 0)["id"]
    assert len({place[identifier] for identifier in with_picture}) == with_picture.len()
    assert set(skipped["kept_id"]) <= set(queries["id"])


def test_farthest_first_spreads_within_a_cluster(stage):
    rows = corpus(400).with_columns(cluster=pl.lit(0), question_type=pl.lit("long"))

    def closest_pair(order):
        begun, queries = selected(stage, rows, SelectConfig(count=8, order=order))
        chosen = rows.join(queries.select("id"), on="id")["row"].to_numpy()
        vectors = np.load(begun.path("embeddings.npy"))[chosen].astype(np.float32)
        return (vectors @ vectors.T - 2 * np.eye(8)).max()

    assert closest_pair("farthest") < 0.5 < closest_pair("seeded")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.question_types={longer: 1}", "select.question_types.longer"),
        ("select.question_types={long: 0}", "one of them above 0"),
        ("select.source={a: {cap: 1.5}}", "a share is at most 1.0"),
        ("select.source={a: {floor: -1}}", "greater than or equal to 0"),
        ("select.modality={audio: {cap: 1}}", "select.modality.audio"),
    ],
)
def test_invalid_settings_are_refused(override, message):
    class Settings(Section):
        select: SelectConfig = SelectConfig()

    with pytest.raises(ConfigError, match=message):
        load_config(Settings, overrides=[override])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"web": {"floor": 20, "cap": 0.1}}, "floor 20 is above cap 10"),
        ({"web": {"floor": 80}, "books": {"floor": 0.3}}, "floors add up to 110, count is 100"),
        ({"wbe": {"cap": 5}}, "did you mean web?"),
    ],
)
def test_bounds_that_contradict_are_refused_before_work_starts(stage, source, message):
    with pytest.raises(ConfigError) as error:
        selected(stage, corpus(20), SelectConfig(count=100, source=source))
    assert message in str(error.value)
