"""Sidecar columns reach the batches they were made for, and deleted pairs reach none."""

import json
import pickle
import shutil

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_data import PICTURES, RULES, assert_same, plan, write
from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.columns import ColumnRequest, provenance
from mmrlhf_engine.shards.dataset import add_column
from mmrlhf_engine.shards.loader import PreferenceLoader
from naive_loader import NaiveLoader

FAMILY = "qwen2_vl"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=30)


@pytest.fixture
def dataset(original, tmp_path):
    return shutil.copytree(original, tmp_path / "set")


def loader(path, chosen=None, **options):
    options = {"threads": 1, "balance": False, "pictures": PICTURES[FAMILY]} | options
    return PreferenceLoader(path, plan(FAMILY, **(chosen or {})), **options)


def rows_of(path, table):
    return _core.Dataset(path).rows(table)


def add(path, table, column_set, stated=None, start=0, **fields):
    frame = pl.DataFrame(fields, schema=dict.fromkeys(fields, pl.Float32))
    return add_column(
        path, frame, table=table, column_set=column_set, provenance=stated or {}, start=start
    )


def delete(path, pairs):
    marks = np.isin(np.arange(rows_of(path, "pairs")), list(pairs))
    frame = pl.DataFrame({"deleted": marks})
    return add_column(path, frame, table="pairs", column_set="deleted", provenance={"by": "a test"})


def conditions(path, chosen=None, **own):
    shown = PICTURES[FAMILY].model_dump(mode="json")
    return provenance(_core.Dataset(path), plan(FAMILY, **(chosen or {})), pictures=shown, **own)


@settings(max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 9),
    unit=st.sampled_from(["pair", "response", "query"]),
    share=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    holes=st.booleans(),
)
def test_columns_and_deletions_are_those_of_the_reference(
    tmp_path_factory, seed, unit, share, holes
):
    path = write(tmp_path_factory.mktemp("any") / "set", queries=12, seed=seed, shard_pairs=20)
    random = np.random.default_rng(seed)
    deleted = set(np.flatnonzero(random.random(rows_of(path, "pairs")) < share).tolist())
    delete(path, deleted)
    columns = {
        table: random.random(rows_of(path, table), np.float32) for table in ("pairs", "responses")
    }
    if holes:
        columns["responses"][random.random(len(columns["responses"])) < 0.3] = np.nan
    add(path, "pairs", "better/margin", margin=columns["pairs"])
    add(path, "responses", "reflogp/model", logp=pl.Series(columns["responses"]).fill_nan(None))
    requests = {
        "reference": ColumnRequest("reflogp/model", "logp", allow_missing=holes),
        "margin": ColumnRequest("better/margin", "margin"),
    }
    ours = loader(path, {"unit": unit}, columns=requests, epochs=2)
    theirs = NaiveLoader(
        path,
        plan(FAMILY, unit=unit),
        pictures=PICTURES[FAMILY],
        epochs=2,
        deleted=deleted,
        columns={table: [values] for table, values in columns.items()},
    )
    seen = []
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)
        assert np.array_equal(batch.column("margin"), columns["pairs"][batch.pair_row])
        assert batch.column("reference").shape == batch.sequence_response.shape
        seen += batch.pair_row.tolist()
    left = set(range(rows_of(path, "pairs"))) - deleted
    assert set(seen) <= left
    assert unit == "response" or sorted(seen) == sorted([*left, *left])


def test_pairs_per_query_are_chosen_from_those_that_are_left(dataset):
    pairs = pl.DataFrame(
        [_core.Dataset(dataset).pair(row)[0] for row in range(rows_of(dataset, "pairs"))]
    )
    first_of_query = pairs.with_row_index().group_by("column_0").agg(pl.col("index").min())
    kept = set(first_of_query["index"].to_list())
    delete(dataset, set(range(len(pairs))) - kept)
    found = [
        row
        for batch in loader(dataset, {"unit": "query", "pairs_per_query": 2}, epochs=2)
        for row in batch.pair_row.tolist()
    ]
    assert sorted(found) == sorted([*kept, *kept])


def test_a_cursor_from_before_a_deletion_is_refused(dataset):
    one = loader(dataset)
    next(one)
    state = one.state_dict()
    add(dataset, "pairs", "better/margin", margin=np.ones(rows_of(dataset, "pairs"), np.float32))
    next(loader(dataset, state=state))  # Another column changes no order.
    delete(dataset, {3})
    with pytest.raises(InputError, match=r"cursor: found dataset b3:.* without "):
        loader(dataset, state=state)
    after = loader(dataset)
    next(after)
    next(loader(dataset, state=after.state_dict()))


def test_columns_pass_through_workers_and_pickles(dataset):
    from torch.utils.data import DataLoader

    from mmrlhf_engine import PreferenceDataset

    values = np.arange(rows_of(dataset, "responses"), dtype=np.float32)
    add(dataset, "responses", "reflogp/model", logp=values)
    columns = {"reference": ColumnRequest("reflogp/model", "logp")}
    options = {"image_rule": RULES[FAMILY], "pictures": PICTURES[FAMILY], "columns": columns}
    one = PreferenceDataset(dataset, 400, unit="pair", too_large="alone", **options)
    made = DataLoader(one, batch_size=None, num_workers=2)
    count = 0
    for batch in made:
        again = pickle.loads(pickle.dumps(batch)).to_torch(pin=False)
        assert again.column("reference").tolist() == batch.sequence_response.tolist()
        count += len(batch.sequence_response)
    assert count == 2 * rows_of(dataset, "pairs")
    with pytest.raises(KeyError, match="margin"):
        batch.column("margin")
    with pytest.raises(KeyError, match=r"found no 'x', expected one of \['reference'\]"):
        batch.column("x")


def changed(stated, *path, to):
    """A copy of nested dictionaries in which one value is another."""
    copy = json.loads(json.dumps(stated))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return copy


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("tokenizer", "sha256"), "other", r"tokenizer\.sha256: found \"other\", expected \"000"),
        (("tokenizer", "template_sha256"), "t", r"tokenizer\.template_sha256: found \"t\""),
        (("image_rule", "max_pixels"), 999, r"image_rule\.max_pixels: found 999, expected 576"),
        (("image_rule", "family"), "internvl", r"image_rule\.family: found \"internvl\""),
        (("pictures", "filter"), "lanczos", r"pictures\.filter: found \"lanczos\""),
        (("model",), "tiny-1", r"model: found \"tiny-1\", expected \"tiny-2\""),
    ],
)
def test_a_column_made_under_other_conditions_is_refused(dataset, path, to, said):
    stated = conditions(dataset, model="tiny-2")
    values = np.zeros(rows_of(dataset, "responses"), np.float32)
    request = ColumnRequest("reflogp/model", "logp", expect={"model": "tiny-2"})
    add(dataset, "responses", "reflogp/model", changed(stated, *path, to=to), logp=values)
    with pytest.raises(InputError, match=f"reflogp/model: made under other.*{said}") as raised:
        loader(dataset, columns={"reference": request})
    assert "compute the column again" in str(raised.value.hint)
    add(dataset, "responses", "reflogp/model", stated, logp=values)
    next(loader(dataset, columns={"reference": request}))


def test_pictures_that_the_run_lacks_are_a_difference(tmp_path):
    path = write(tmp_path / "set", queries=5, text_only=True)
    values = np.zeros(rows_of(path, "responses"), np.float32)
    add(path, "responses", "reflogp/model", conditions(path), logp=values)
    columns = {"reference": ColumnRequest("reflogp/model", "logp")}
    with pytest.raises(InputError, match=r"image_rule: found .*expected null"):
        PreferenceLoader(path, plan("none"), columns=columns)


def test_a_column_that_is_not_there_or_not_complete_is_refused(dataset):
    rows = rows_of(dataset, "responses")
    with pytest.raises(InputError, match=r"no set 'absent', expected one of \[\]"):
        loader(dataset, columns={"x": ColumnRequest("absent", "logp")})
    add(dataset, "responses", "reflogp/model", logp=np.zeros(10, np.float32))
    request = ColumnRequest("reflogp/model", "logp")
    with pytest.raises(InputError, match=f"reflogp/model: 10 of {rows:,} rows have values"):
        loader(dataset, columns={"x": request})
    add(dataset, "responses", "reflogp/model", start=10, logp=np.zeros(rows - 10, np.float32))
    next(loader(dataset, columns={"x": request}))
    with pytest.raises(InputError, match="other"):
        loader(dataset, columns={"x": ColumnRequest("reflogp/model", "other")})
    add(dataset, "queries", "weights/own", weight=np.zeros(rows_of(dataset, "queries"), np.float32))
    with pytest.raises(
        InputError, match="weights/own: a column of queries, expected pairs or responses"
    ):
        loader(dataset, columns={"x": ColumnRequest("weights/own", "weight")})
