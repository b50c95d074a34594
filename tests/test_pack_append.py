"""Adding the same pairs again adds nothing."""

import numpy as np
import pytest

from mmrlhf_engine.pack import known_pairs, pack
from mmrlhf_engine.pack.known_pairs import KnownPairs
from pack_data import picture, put, stored, tokenizer_folder, words, write_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def run(folder, tmp_path):
    def packed(*sources, **settings):
        config = pack.PackConfig(
            sources=[str(source) for source in sources], tokenizer=str(folder), **settings
        )
        report = pack.pack_dataset(config, tmp_path / "ds")
        return report, stored(tmp_path / "ds")

    return packed


def rows(numbers):
    return [
        {
            "image": "a.png",
            "prompt": f"<image>\n{words(number)}?",
            "chosen": words(number + 100),
            "rejected": words(number + 200),
        }
        for number in numbers
    ]


def test_rows_that_the_dataset_has_are_counted_and_left_out(run, tmp_path):
    put(tmp_path / "a.png", picture())
    run(write_lines(tmp_path / "first.jsonl", rows(range(5))))
    again = write_lines(tmp_path / "again.jsonl", rows(range(5)))
    report, pairs = run(again, append=True)
    assert (report["dropped"], report["pairs_out"], report["version"]) == (
        {"duplicate_pair": 5},
        0,
        1,
    )
    assert len(pairs) == 5
    more = write_lines(tmp_path / "more.jsonl", rows(range(3, 9)))
    report, pairs = run(more, append=True)
    assert (report["dropped"], report["pairs_out"]) == ({"duplicate_pair": 2}, 4)
    assert len(pairs) == len({pair["pid"] for pair in pairs}) == 9
    reverse = {**rows([1])[0]}
    reverse["chosen"], reverse["rejected"] = reverse["rejected"], reverse["chosen"]
    report, _ = run(write_lines(tmp_path / "reverse.jsonl", [reverse]), append=True)
    assert report["pairs_out"] == 1
    # A dataset that has the rows is no bad input, whatever else is wrong.
    report, _ = run(write_lines(tmp_path / "bad.jsonl", [*rows([1]), "{"]), append=True)
    assert report["dropped"] == {"broken_record": 1, "duplicate_pair": 1}


def test_the_same_rows_of_two_files_are_packed_once(run, tmp_path):
    put(tmp_path / "a.png", picture())
    first = write_lines(tmp_path / "first.jsonl", rows(range(4)))
    second = write_lines(tmp_path / "second.jsonl", rows(range(2, 6)))
    report, pairs = run(first, second)
    assert report["dropped"] == {"duplicate_pair": 2}
    assert len(pairs) == 6


@pytest.mark.parametrize("most_recent", [0, 5, 1000])
def test_an_id_is_known_after_its_first_time(tmp_path, monkeypatch, most_recent):
    monkeypatch.setattr(known_pairs, "_MOST_RECENT", most_recent)
    generator = np.random.default_rng(0)
    # Few different values, zeros at the end among them, so that many come twice.
    drawn = generator.integers(0, 3, (400, 16), dtype=np.uint8)
    drawn[:, 4:] = 0
    known, before = KnownPairs(tmp_path), set()
    for start in range(0, 400, 7):
        batch = [one.tobytes() for one in drawn[start : start + 7]]
        expected = []
        for one in batch:
            expected.append(one in before)
            before.add(one)
        assert known.add(np.frombuffer(b"".join(batch), "S16")).tolist() == expected
    assert len(before) > 50
