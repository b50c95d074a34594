"""Scores of another model from JSON Lines, by row and by id; and every way a line can be wrong."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from mmrlhf_engine.errors import CorruptDataError, InputError
from mmrlhf_engine.shards.dataset import open_dataset
from mmrlhf_engine.train.given_scores import read_scores
from pack_data import write_lines
from shard_data import ONE, pack

NAN = float("nan")
THREE = {
    **ONE,
    "prompt": [9],
    "responses": [
        {"tokens": [token], "score": None, "rank": None, "critique": None} for token in (1, 2, 3)
    ],
    "pairs": [(0, 1, None), (0, 2, None), (1, 2, None)],
}
"""Pairs 1 to 3 of responses 2 to 4; pair 0, of responses 0 and 1, is that of ONE."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("scores") / "shards"
    pack(path, [ONE, THREE])
    return open_dataset(path)


@pytest.fixture
def read(dataset, tmp_path):
    return lambda *lines: read_scores(write_lines(tmp_path / "scores.jsonl", list(lines)), dataset)


def ids_of(dataset, table):
    column = {"pairs": "pid", "responses": "rid"}[table]
    return dataset.table(table).select(pl.col(column).bin.encode("hex")).collect()[column].to_list()


def equal(found, expected):
    np.testing.assert_array_equal(found, np.float32(expected))
    assert found.dtype == np.float32


def test_rewards_of_pairs_are_margins_and_rewards(read):
    scores = read(
        {"row": 1, "rewards": [2.0, 0.5]},
        {"row": 0, "rewards": [1, -1.5]},
        {"row": 2, "rewards": [2.0, -1.0]},
        {"row": 3, "rewards": [0.5, -1.0]},
    )
    equal(scores.margins, [2.5, 1.5, 3.0, 1.5])
    equal(scores.rewards, [1.0, -1.5, 2.0, 0.5, -1.0])
    assert (scores.missing, scores.differing) == (0, 0)


def test_a_response_with_other_rewards_in_other_pairs_has_none(read):
    scores = read({"row": 1, "rewards": [2.0, 0.5]}, {"row": 2, "rewards": [1.0, 0.25]})
    equal(scores.margins, [NAN, 1.5, 0.75, NAN])
    equal(scores.rewards, [NAN, NAN, NAN, 0.5, 0.25])
    assert (scores.missing, scores.differing) == (2, 1)


def test_no_reward_of_a_response_is_none_at_all(read):
    scores = read(
        {"row": 1, "rewards": [2, 1]}, {"row": 2, "rewards": [3, 2]}, {"row": 3, "rewards": [5, 4]}
    )
    assert scores.rewards is None
    equal(scores.margins, [NAN, 1, 1, 1])
    assert (scores.missing, scores.differing) == (1, 3)


def test_margins_by_row_and_by_id(read, dataset):
    ids = ids_of(dataset, "pairs")
    scores = read(
        {"dataset": dataset.fingerprint},
        {"pair": ids[3], "margin": -0.5},
        {"pair": 0, "margin": 2},
        {"pair": ids[1].upper(), "margin": 1.25},
    )
    assert scores.rewards is None
    equal(scores.margins, [2.0, 1.25, NAN, -0.5])
    assert scores.missing == 1


def test_rewards_of_pairs_by_id(read, dataset):
    scores = read({"pair": ids_of(dataset, "pairs")[0], "rewards": [0.5, 0.25]})
    equal(scores.margins, [0.25, NAN, NAN, NAN])
    equal(scores.rewards, [0.5, 0.25, NAN, NAN, NAN])
    assert scores.missing == 3


def test_rewards_of_responses_give_margins_where_both_are_known(read, dataset):
    ids = ids_of(dataset, "responses")
    scores = read(
        *({"response": row, "reward": row / 2} for row in (0, 1, 4)),
        {"response": ids[2], "reward": 3.0},
    )
    equal(scores.rewards, [0.0, 0.5, 3.0, NAN, 2.0])
    equal(scores.margins, [-0.5, NAN, 1.0, NAN])
    assert scores.missing == 1


def test_an_id_of_several_rows_stands_for_all_of_them(tmp_path):
    pack(tmp_path / "twice", [ONE], calls=2)
    dataset = open_dataset(tmp_path / "twice")
    ids = ids_of(dataset, "responses")
    assert ids[:2] == ids[2:]
    file = write_lines(
        tmp_path / "scores.jsonl",
        [{"response": ids[0], "reward": 1}, {"response": ids[1], "reward": -1}],
    )
    equal(read_scores(file, dataset).margins, [2.0, 2.0])


def test_compressed_with_a_mark_and_empty_lines(tmp_path, dataset):
    file = tmp_path / "scores.jsonl.gz"
    file.write_bytes(gzip.compress(b'\xef\xbb\xbf\n{"row": 0, "rewards": [1, 0]}\n\n'))
    equal(read_scores(file, dataset).margins, [1, NAN, NAN, NAN])


def test_a_damaged_file_or_a_folder_is_named(tmp_path, dataset):
    file = tmp_path / "scores.jsonl.gz"
    packed = bytearray(gzip.compress(b'{"row": 0, "rewards": [1, 0]}\n' * 900))
    packed[20:30] = b"\xff" * 10
    file.write_bytes(packed)
    with pytest.raises(CorruptDataError, match=r"scores\.jsonl\.gz: cannot be read behind line 0"):
        read_scores(file, dataset)
    with pytest.raises(InputError, match="found a folder, expected a file of scores"):
        read_scores(tmp_path, dataset)


GOOD = '{"row": 0, "rewards": [1, 0]}'
FAULTS = {
    "row_too_large": ('{"row": 4, "rewards": [1, 0]}', r"row 4: .* has 4 pairs, from 0"),
    "row_below_0": ('{"row": -1, "rewards": [1, 0]}', r"row -1: .* has 4 pairs, from 0"),
    "row_is_text": ('{"row": "1", "rewards": [1, 0]}', "'row' is \"1\", expected a row from 0"),
    "row_is_true": ('{"row": true, "rewards": [1, 0]}', "'row' is true, expected a row from 0"),
    "twice": (GOOD, "a second line for row 0, the first is line 1"),
    "nan": ('{"row": 1, "rewards": [NaN, 0]}', r"'rewards' is \[NaN, 0\], expected finite"),
    "infinite": ('{"row": 1, "rewards": [0, 1e999]}', "expected finite numbers"),
    "too_large": (f'{{"row": 1, "rewards": [0, 1{"0" * 400}]}}', "expected finite numbers"),
    "null": ('{"row": 1, "rewards": [0, null]}', "expected finite numbers"),
    "true": ('{"row": 1, "rewards": [0, true]}', "expected finite numbers"),
    "three": ('{"row": 1, "rewards": [0, 1, 2]}', r"expected \[CHOSEN, REJECTED\]"),
    "no_list": ('{"row": 1, "rewards": 2}', r"expected \[CHOSEN, REJECTED\]"),
    "mixed": ('{"pair": 1, "margin": 1}', "mixed forms: row/rewards and pair/margin"),
    "other_keys": ('{"row": 1, "reward": 1}', "keys found: reward, row"),
    "no_keys": ("{}", "keys found: none"),
    "not_json": ("{row: 1}", "not JSON"),
    "no_object": ("[1, 2]", "found list, expected an object"),
    "late_dataset": ('{"dataset": "b3:00"}', "'dataset' is expected on the first line"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_line_is_named(read, name):
    line, message = FAULTS[name]
    with pytest.raises(InputError, match=r"scores\.jsonl:2: .*" + message) as caught:
        read(GOOD, line)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"response": 5, "reward": 1}, "response 5: .* has 5 responses, from 0"),
        ({"response": "ab" * 16, "reward": 1}, "no such id among the 5 responses"),
        ({"pair": "short", "margin": 1}, "no such id among the 4 pairs"),
        ({"pair": None, "margin": 1}, "'pair' is null, expected a row from 0 or an id"),
        ({"pair": 1, "margin": "1"}, "'margin' is \"1\", expected finite numbers"),
        ({"dataset": "b3:00"}, 'scores of another dataset: found "b3:00", expected b3:'),
    ],
)
def test_a_wrong_first_line_is_named(read, line, message):
    with pytest.raises(InputError, match=r"scores\.jsonl:1: .*" + message) as caught:
        read(line)
    assert caught.value.hint


def test_two_names_of_one_row_are_two_lines_for_it(read, dataset):
    with pytest.raises(InputError, match="a second line for pair 2, the first is line 1"):
        read({"pair": 2, "margin": 1}, {"pair": ids_of(dataset, "pairs")[2], "margin": 1})


def test_a_file_without_scores_is_refused(read, dataset, tmp_path):
    with pytest.raises(InputError, match="no scores"):
        read({"dataset": dataset.fingerprint})
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="the file is empty"):
        read_scores(tmp_path / "empty.jsonl", dataset)
    with pytest.raises(InputError, match="no such file"):
        read_scores(tmp_path / "absent.jsonl", dataset)


def test_errors_show_a_long_value_cut(read):
    with pytest.raises(InputError) as caught:
        read({"pair": "x" * 500, "margin": 1})
    assert len(json.dumps(str(caught.value))) < 500
