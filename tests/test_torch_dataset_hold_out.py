"""A part of a dataset is held out by its content: no picture and no prompt is in both parts."""

import contextlib
import itertools
import json
import pickle
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import naive_order
from load_data import (
    FRAME,
    IMAGE,
    PICTURES,
    RULES,
    TOKENIZER,
    VIDEO,
    Rows,
    add,
    picture,
    plan,
    store,
)
from mmrlhf_engine import PreferenceDataset, _core
from mmrlhf_engine._core import DatasetWriter
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.shards.dataset import add_column

# The machine may have fewer cores than a test has workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

FILES = [picture(np.random.default_rng(seed), "plain", (6, 4)) for seed in range(150)]
PARTS = ("train", "held_out")


def rows_of(queries, blobs):
    """Rows of queries that are (prompt, its pictures, pictures of a response, whether a video)."""
    made = Rows([], [], [])
    for number, (prompt, shown, answered, is_video) in enumerate(queries):
        marks = [VIDEO] + [FRAME] * (len(shown) - 1) if is_video and shown else [IMAGE] * len(shown)
        seconds = [float(at) for at in range(len(shown))] if is_video else []
        media = [blobs[at] for at in shown]
        tokens = [10 + prompt, *marks, 900]
        made.queries.append({"prompt": tokens, "media": media, "media_t": seconds, "weight": 1.0})
        first = len(made.responses)
        of_answer = {
            "tokens": [20] + [IMAGE] * len(answered),
            "media": [blobs[at] for at in answered],
        }
        made.responses += [{"q": number, **of_answer}, {"q": number, "tokens": [21], "media": []}]
        pair = {"chosen": first, "rejected": first + 1, "margin": None, "weight": 1.0, "flags": 0}
        made.pairs.append(pair)
    return made


def write(path, queries, shard_pairs=20):
    return store(path, FILES, lambda blobs: rows_of(queries, blobs), shard_pairs=shard_pairs)


def queries_in(path, **hold_out):
    """Rows of the queries of a part."""
    made = plan("none", hold_out={"share": 0.3, **hold_out})
    return pa.array(_core.DatasetPart(_core.Dataset(path), made).queries()).to_pylist()


def contents(path):
    """Key and hashes of pictures of each query."""
    one = _core.Dataset(path)

    def hashes(blobs):
        return {one.key("blobs", blob) for blob in pa.array(blobs).to_pylist()}

    found = []
    for query in range(one.rows("queries")):
        answers = [one.response_media(row) for row in range(*one.ranges(query)[:2])]
        shown = hashes(one.media(query)).union(*map(hashes, answers))
        found.append((one.key("queries", query), shown))
    return found


PICTURE_SETS = st.lists(st.integers(0, 40), max_size=3)
QUERIES = st.lists(
    st.tuples(
        st.integers(0, 9), PICTURE_SETS | st.just([]), PICTURE_SETS | st.just([]), st.booleans()
    ),
    min_size=2,
    max_size=40,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(QUERIES, st.floats(0.05, 0.95), st.integers(0, 2**64 - 1))
def test_the_parts_are_those_of_the_reference(tmp_path, queries, share, seed):
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    path = write(tmp_path / "set", queries, shard_pairs=7)
    held = naive_order.held_out(contents(path), share, seed)
    expected = {"held_out": sorted(held), "train": sorted(set(range(len(queries))) - held)}
    for part, rows in expected.items():
        if rows:
            assert queries_in(path, part=part, share=share, seed=seed) == rows
        else:
            with pytest.raises(InputError, match=f"found none of {len(queries)} queries in part"):
                queries_in(path, part=part, share=share, seed=seed)


def many(count=120, seed=0):
    """Queries that share few of their pictures, and some of their prompts."""
    random = np.random.default_rng(seed)
    for number in range(count):
        own = [number] if number % 3 else []
        shared = [int(random.integers(0, 150))] if random.random() < 0.2 else []
        prompt = number if own or shared else number % 60
        as_answer = random.random() < 0.5
        yield prompt, own + shared * (not as_answer), shared * as_answer, number % 6 == 1


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hold_out") / "set", list(many()))


def dataset(path, part=None, share=0.3, **options):
    hold_out = None if part is None else {"share": share, "part": part}
    options = {"unit": "pair", "packs_per_step": 2, "window": 16} | options
    options |= {"image_rule": RULES["qwen2_vl_video"], "pictures": PICTURES["qwen2_vl_video"]}
    return PreferenceDataset(path, 120, hold_out=hold_out, **options)


def pairs_of(batches):
    return [row for batch in batches for row in batch.pair_row.tolist()]


@pytest.mark.parametrize("unit", ["pair", "query", "response"])
def test_both_parts_together_are_the_dataset_in_every_epoch(path, unit):
    of_queries = {part: queries_in(path, part=part) for part in PARTS}
    assert sorted([*of_queries["train"], *of_queries["held_out"]]) == list(range(120))
    for part, queries in of_queries.items():
        one = dataset(path, part, unit=unit, seed=len(part))
        assert 20 < len(queries) < 100
        for _ in range(2):
            length = len(one)
            batches = list(one)
            assert len(batches) == length
            shown = {row for batch in batches for row in batch.sequence_query.tolist()}
            # The only pair of a query has its number.
            assert sorted(shown) == queries
            if unit != "response":
                assert sorted(pairs_of(batches)) == queries
    whole = contents(path)
    keys, pictures = (
        [set().union(*(of(whole[row]) for row in rows)) for rows in of_queries.values()]
        for of in (lambda query: {query[0]}, lambda query: query[1])
    )
    assert not keys[0] & keys[1]
    assert not pictures[0] & pictures[1]
    assert all(pictures)


def keys_held(path, **hold_out):
    keys = [key for key, _ in contents(path)]
    return {keys[row] for row in queries_in(path, part="held_out", **hold_out)}


def append(path, queries):
    return store(path, FILES, lambda blobs: rows_of(queries, blobs))


def test_queries_stay_in_their_part_when_others_are_added(tmp_path, path):
    queries = list(many())
    expected = keys_held(path)
    again = write(tmp_path / "again", queries[50:][::-1], shard_pairs=9)
    append(again, queries[:50])
    assert _core.Dataset(again).fingerprint != _core.Dataset(path).fingerprint
    assert keys_held(again) == expected
    others = [(prompt + 500, [], [], False) for prompt in range(200)]
    append(again, others)
    added = keys_held(again) - expected
    assert keys_held(again) > expected
    assert 30 < len(added) < 90  # Of 200, with a standard deviation of 6.5.
    # One query with two pictures connects their groups, and moves nothing else.
    append(again, [(900, [1, 4], [], False)])
    moved = keys_held(again) ^ (expected | added)
    assert len(moved) < 10


def test_a_larger_share_only_adds(path):
    held = [keys_held(path, share=share) for share in (0.1, 0.2, 0.5, 0.9)]
    assert all(small < large for small, large in itertools.pairwise(held))
    assert keys_held(path, seed=1) != keys_held(path)


def test_a_picture_that_two_writers_stored_is_one(tmp_path):
    tokenizer = json.dumps(TOKENIZER | {"vocabulary": 1000})
    writers = [DatasetWriter(tmp_path / "set", tokenizer=tokenizer, threads=1) for _ in range(9)]
    for number, writer in enumerate(writers):
        stored = writer.add_media(bytes=pa.array(FILES[:1], pa.large_binary()))
        blobs = pa.array(stored).field("id").to_pylist()
        shown = [0] if number else []  # The first file is of a picture that no query shows.
        add(writer, rows_of([(number, shown, [], False)], blobs))
    for writer in writers:
        writer.commit()
    assert _core.Dataset(tmp_path / "set").rows("blobs") == 9
    parts = []
    for part in PARTS:
        with contextlib.suppress(InputError):
            parts.append(set(queries_in(tmp_path / "set", part=part, share=0.5)))
    assert any(part >= set(range(1, 9)) for part in parts)


def test_the_part_is_found_once_in_a_process(path, monkeypatch):
    found, find = [], _core.DatasetPart

    def counted(*arguments):
        found.append(find(*arguments))
        return found[-1]

    monkeypatch.setattr(_core, "DatasetPart", counted)
    one = dataset(path, "train")
    for _ in range(2):
        assert len(one) == len(list(one))
    one.load_state_dict(one.state_dict())
    next(iter(DataLoader(one, batch_size=None)))
    assert len(found) == 1


def test_any_ranks_and_workers_go_on_from_any_step(path):
    def steps(state=None, ranks=1, workers=0, stop=None):
        found = {}
        for rank in range(ranks):
            one = dataset(path, "train", rank=rank, world_size=ranks, state=state)
            loader = DataLoader(one, batch_size=None, num_workers=workers)
            for batch in loader:
                found.setdefault(batch.step, set()).update(batch.pair_row.tolist())
                if batch.step == stop and batch.ends_step:
                    break
        return found, one.state_dict(batch)

    expected, _ = steps()
    assert len(expected) > 4
    for (before, first), (after, second) in [((1, 0), (2, 1)), ((2, 2), (3, 0)), ((3, 1), (1, 2))]:
        start, state = steps(ranks=before, workers=first, stop=1)
        rest, _ = steps(state, after, second)
        assert start | rest == expected
        assert min(rest) == 2
    copy = pickle.loads(pickle.dumps(dataset(path, "train")))
    assert sorted(pairs_of(copy)) == queries_in(path)


def test_a_state_of_the_other_part_is_refused(path):
    batch = next(iter(dataset(path, "held_out")))
    for other, message in (
        ("train", r'hold_out\.part "held_out", expected hold_out\.part "train"'),
        (None, "hold_out {.*}, expected hold_out null"),
    ):
        with pytest.raises(InputError, match=f"cursor: found {message}"):
            dataset(path, other, state=batch.cursor)
        with pytest.raises(InputError, match=f"cursor: found {message}"):
            dataset(path, other).load_state_dict(batch.cursor)
    with pytest.raises(
        InputError, match=r"found hold_out\.share 0\.3, expected hold_out\.share 0\.4"
    ):
        dataset(path, "held_out", share=0.4, state=batch.cursor)


def test_deletions_move_nothing(tmp_path, path):
    again = shutil.copytree(path, tmp_path / "set")
    expected = queries_in(again, part="held_out")
    marks = pl.DataFrame({"deleted": [row % 4 == 0 for row in range(120)]})
    add_column(again, marks, table="pairs", column_set="deleted", provenance={"by": "a test"})
    assert queries_in(again, part="held_out") == expected
    left = [row for row in expected if row % 4]
    assert sorted(pairs_of(dataset(again, "held_out"))) == left


def test_only_the_part_is_held_to_the_budget(tmp_path):
    queries = [(number, [], [], False) for number in range(40)]
    one = write(tmp_path / "set", queries)
    held = set(queries_in(one, part="held_out"))
    long = min(held)

    def rows(blobs):
        made = rows_of(queries, blobs)
        made.responses[2 * long]["tokens"] = [20] * 500
        return made

    path = store(tmp_path / "long", [], rows)
    assert set(queries_in(path, part="held_out")) == held
    options = {"tokens": 60, "unit": "pair"}
    train = PreferenceDataset(path, **options, hold_out={"share": 0.3})
    assert train.units_above_budget == 0
    assert sorted(pairs_of(train)) == sorted(set(range(40)) - held)
    with pytest.raises(InputError, match=f"1 of {len(held)} units .* the largest pair {long} with"):
        PreferenceDataset(path, **options, hold_out={"share": 0.3, "part": "held_out"})
    rest = {"hold_out": {"share": 0.3, "part": "held_out"}, "too_large": "drop"}
    assert PreferenceDataset(path, **options, **rest).units_above_budget == 1


@pytest.mark.parametrize(("part", "share"), [("held_out", 1e-6), ("train", 0.999999)])
def test_an_empty_part_is_an_error_with_numbers(tmp_path, part, share):
    path = write(tmp_path / "set", [(number, [number // 4], [], False) for number in range(12)])
    with pytest.raises(InputError) as raised:
        dataset(path, part, share=share)
    assert str(raised.value).startswith(
        f'hold_out: found none of 12 queries in part "{part}" with share {share:.6f}'
    )
    assert "3 groups, the largest of 4" in str(raised.value)
    assert raised.value.hint == "another share or seed of hold_out"


def test_wrong_settings_are_refused(path):
    for share in (0, 1, -0.5):
        with pytest.raises(ConfigError, match=rf"hold_out\.share: found {share}, Input should be"):
            dataset(path, "train", share=share)
    with pytest.raises(ConfigError, match=r"hold_out\.part: found 'test', Input should be 'train'"):
        dataset(path, "test")
