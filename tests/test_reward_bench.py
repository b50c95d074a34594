"""``evaluate reward-bench``: figures by hand, intervals, baselines, and files that do not fit."""

import json
import random
from itertools import product

import numpy as np
import pytest

from command import engine
from mmrlhf_engine.measure.bootstrap import (
    Resampling,
    cluster_numbers,
    cluster_sums,
    difference_of_ratios,
    ratio,
    resampled_sums,
)
from mmrlhf_engine.measure.chance import central_range, count_distribution
from mmrlhf_engine.measure.reward_bench import CATEGORIES, category_of, scorecard
from naive_measure import accuracies, bootstrap_ratios
from naive_measure import count_distribution as naive_distribution
from pack_data import write_lines


def pair(query, path, chosen="good answer", rejected="bad"):
    kind = "video" if path.startswith("video") else "image"
    return {"id": query, kind: path, "prompt": "?", "chosen": chosen, "rejected": rejected}


# Queries of mcq (2 pairs), long (1), video (1). Longer answers: right, wrong, equal, right.
ROWS = [
    pair("q0", "mcq/0.jpg"),
    pair("q0", "mcq/0.jpg", "no", "rather long"),
    pair("q1", "long/1.jpg", "same", "size"),
    pair("q2", "video/2"),
]
REWARDS = [[2, 1], [0.5, -0.5], [1, 1], [0, 3]]


def bench(folder, rows=ROWS, scores=None):
    """A benchmark, its scores in another order, and what the command says."""
    if scores is None:
        scores = [{"row": row, "rewards": values} for row, values in enumerate(REWARDS)][::-1]
    file, given = write_lines(folder / "b.jsonl", rows), write_lines(folder / "s.jsonl", scores)
    done = engine("evaluate", "reward-bench", file, "--scores", given, "--out", folder / "out")
    return done, folder / "out"


def test_a_hand_case(tmp_path):
    done, out = bench(tmp_path)
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "scorecard.json").read_text())["reward_bench"]
    overall = card["overall"]
    # Right, right, equal (wrong), wrong; only q0 has all of its pairs right.
    assert (overall["acc"], overall["acc_plus"]) == (0.5, pytest.approx(1 / 3))
    assert (overall["pairs"], overall["queries"], overall["equal_rewards"]) == (4, 3, 1)
    figures = {
        name: (found["acc"], found["acc_plus"], found["pairs"], found["queries"])
        for name, found in card["by_category"].items()
    }
    nothing = (None, None, 0, 0)
    assert figures == {
        "mcq": (1, 1, 2, 1),
        "long": (0, 0, 1, 1),
        "short": nothing,
        "safety": nothing,
        "video": (0, 0, 1, 1),
    }
    assert card["by_category"]["short"]["acc_interval"] is None
    longer = card["baselines"]["longer_answer"]
    assert (longer["acc"], longer["acc_plus"]) == (0.5, pytest.approx(1 / 3))
    assert longer["by_category"]["mcq"]["acc"] == 0.5
    assert overall["acc_over_longer_answer"] == 0
    assert "ACC 0.500" in done.stdout


def test_chance_by_hand():
    chance = scorecard(ROWS, REWARDS)["baselines"]["random"]
    # Coins: 1/2 of the pairs; all of two pairs in 1/4 of the cases, of one pair in 1/2.
    assert (chance["acc"], chance["acc_plus"]) == (0.5, pytest.approx((0.25 + 0.5 + 0.5) / 3))
    # P(0 of 4) = 1/16 is more than a tail of 2.5 %.
    assert chance["acc_interval"] == [0, 1]
    assert chance["by_category"]["short"] == {
        **{"pairs": 0, "queries": 0, "acc": None, "acc_plus": None},
        **{"acc_interval": None, "acc_plus_interval": None},
    }
    constant = scorecard(ROWS, np.zeros((4, 2)))
    assert constant["overall"]["acc"] == constant["baselines"]["constant"]["acc"] == 0
    assert constant["overall"]["equal_rewards"] == 4


def test_the_range_of_coins_is_that_of_the_binomial_distribution():
    # 10 coins: 0 to 1 heads 1.07 %, 0 to 2 heads 5.47 %.
    assert central_range(count_distribution([0.5] * 10), 0.95) == [0.2, 0.8]


@pytest.mark.parametrize("probabilities", [[], [1.0], [0.5, 0.25, 0.25, 0.125], [0.5] * 30 + [0.1]])
def test_counts_are_distributed_as_trial_after_trial(probabilities):
    found = count_distribution(probabilities)
    np.testing.assert_allclose(found, naive_distribution(probabilities), atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "category"),
    [
        ({"image": "mcq/long/short.png"}, "mcq"),
        ({"image": "x/safety_long.png"}, "other"),
        ({"image": "belongings/short/0.jpg"}, "short"),
        ({"image": "MCQ/1.jpg"}, "mcq"),
        ({"image": "D:\\data\\Long\\1.jpg"}, "long"),
        ({"image": "mcq/cauldron_long_images_1.png.png"}, "mcq"),
        ({"video": "video/short"}, "short"),
        ({"image": ["a.png", "safety/b.png"]}, "safety"),
        ({"image": None, "video": "video/7"}, "video"),
        ({"image": "pictures/7.png"}, "other"),
        ({}, "other"),
    ],
)
def test_a_category_is_the_first_one_in_the_path(fields, category):
    assert category_of(fields) == category


def test_pairs_without_a_category_are_counted():
    card = scorecard([*ROWS, pair("q9", "x.png")], [*REWARDS, [1, 0]])
    assert card["no_category"] == 1
    assert card["by_category"]["other"]["acc"] == 1
    assert list(card["by_category"]) == [*CATEGORIES, "other"]
    assert "other" not in scorecard(ROWS, REWARDS)["by_category"]


def test_a_text_and_a_number_are_two_ids():
    card = scorecard([pair("1", "mcq/1"), pair(1, "mcq/1")], [[1, 0], [0, 1]])
    assert (card["overall"]["queries"], card["overall"]["acc_plus"]) == (2, 0.5)


def test_figures_are_as_row_by_row():
    chance = random.Random(3)
    rows = [pair(f"q{chance.randrange(40)}", f"{chance.choice(CATEGORIES)}/1") for _ in range(150)]
    rewards = [[chance.randrange(3), chance.randrange(2)] for _ in rows]
    card = scorecard(rows, rewards)
    found = (card["overall"]["acc"], card["overall"]["acc_plus"])
    assert found == pytest.approx(accuracies(rows, rewards))
    for category in CATEGORIES:
        part = [n for n, row in enumerate(rows) if category_of(row) == category]
        expected = accuracies([rows[n] for n in part], [rewards[n] for n in part])
        figures = card["by_category"][category]
        assert (figures["acc"], figures["acc_plus"]) == pytest.approx(expected)


# ---- intervals -------------------------------------------------------------------------------


def test_resamples_of_two_clusters_by_hand():
    # Sums (1 of 1) and (0 of 3): both drawn once 1/2 of the time, one of them twice 1/4 each.
    drawn = resampled_sums(np.array([[1.0, 1.0], [0.0, 3.0]]), Resampling(resamples=40_000))
    values, counts = np.unique(drawn, axis=0, return_counts=True)
    assert values.tolist() == [[0, 6], [1, 4], [2, 2]]
    np.testing.assert_allclose(counts / 40_000, [0.25, 0.5, 0.25], atol=0.01)


def test_intervals_are_those_of_clusters_drawn_one_by_one():
    chance = np.random.default_rng(5)
    pairs = chance.integers(1, 6, 60)
    right = np.minimum(pairs, chance.integers(0, 6, 60))
    naive = bootstrap_ratios(right.tolist(), pairs.tolist(), 4000, seed=1)
    sums = np.column_stack([right, pairs]).astype(float)
    found = ratio("acc", sums, Resampling(resamples=4000))
    np.testing.assert_allclose(found["acc_interval"], np.quantile(naive, [0.025, 0.975]), atol=0.01)
    wide = ratio("acc", sums, Resampling(resamples=4000, level=0.5))["acc_interval"]
    assert wide[1] - wide[0] < 0.5 * (found["acc_interval"][1] - found["acc_interval"][0])


def test_distinct_clusters_are_drawn_like_equal_ones():
    chance = np.random.default_rng(6)
    values = chance.normal(size=80)
    sums = np.column_stack([values, np.ones(80)])
    low, high = ratio("mean", sums, Resampling(resamples=4000))["mean_interval"]
    # The bootstrap of a mean: the standard error of the mean, with the variance over n.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 80**0.5, rel=0.06)


def test_rows_of_one_cluster_make_the_interval_wide():
    hits = np.tile([1.0, 0.0], 50)
    alone = cluster_sums(np.arange(100), hits, np.ones(100))
    together = cluster_sums(cluster_numbers(hits), hits, np.ones(100))
    narrow, wide = (ratio("x", sums, Resampling())["x_interval"] for sums in (alone, together))
    assert wide == [0, 1]
    assert narrow[1] - narrow[0] < 0.25


def test_a_paired_difference_is_narrower_than_two_figures():
    chance = np.random.default_rng(7)
    first = chance.integers(0, 2, 200).astype(float)
    second = np.where(chance.random(200) < 0.05, 1 - first, first)
    ones = np.ones(200)
    found = difference_of_ratios("d", np.stack([first, ones, second, ones], 1), Resampling())
    assert found["d"] == pytest.approx(first.mean() - second.mean())
    low, high = found["d_interval"]
    assert high - low < 0.08
    alone = ratio("a", np.stack([first, ones], 1), Resampling())["a_interval"]
    assert alone[1] - alone[0] > 0.12


def test_a_figure_of_nothing_has_none():
    nothing = {"x": None, "x_interval": None}
    assert ratio("x", np.empty((0, 2)), Resampling()) == nothing
    assert ratio("x", np.zeros((3, 2)), Resampling()) == nothing


def test_intervals_are_those_of_seed_and_number():
    first = scorecard(ROWS, REWARDS)
    assert scorecard(ROWS, REWARDS) == first
    other = scorecard(ROWS, REWARDS, Resampling(seed=1, resamples=500, level=0.5))
    assert other["interval"] == {
        "method": "percentile bootstrap over queries",
        **{"resamples": 500, "seed": 1, "level": 0.5},
    }
    assert other["overall"]["acc_interval"] != first["overall"]["acc_interval"]


# ---- faults ----------------------------------------------------------------------------------

SCORES = [{"row": row, "rewards": values} for row, values in enumerate(REWARDS)]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (SCORES[:3], "1 of 4 rows have no rewards: 3"),
        ([*SCORES, SCORES[1]], "s.jsonl:5: row 1 was scored in line 2 already"),
        ([*SCORES[:3], {"row": 4, "rewards": [1, 0]}], "s.jsonl:4: row: found 4, expected 0 to 3"),
        ([{"row": -1, "rewards": [1, 0]}], "s.jsonl:1: row: found -1"),
        ([{"row": True, "rewards": [1, 0]}], "row: found true, expected the number of a row"),
        ([{"row": 0, "rewards": [1, float("nan")]}], "s.jsonl:1: rewards: found [1, NaN]"),
        ([{"row": 0, "rewards": [1, 10**400]}], "expected 2 finite numbers"),
        ([{"row": 0, "rewards": [1]}], "rewards: found [1], expected 2 finite numbers"),
        ([{"row": 0, "rewards": ["1", "2"]}], "expected 2 finite numbers"),
        ([{"row": 0, "reward": 1}], "s.jsonl:1: found reward, row, expected rewards"),
        ([{"rewards": [1, 0]}], "s.jsonl:1: found rewards, expected row"),
        ([[1, 0]], "s.jsonl:1: found list, expected a JSON object"),
        ([], "s.jsonl: found no row"),
    ],
)
def test_scores_that_do_not_fit(scores, message, tmp_path):
    done, out = bench(tmp_path, scores=scores)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert done.stdout == ""
    assert not (out / "scorecard.json").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "?", "response": ["a", "b"]}, "found query, response, expected id, image or"),
        ({**ROWS[0], "chosen": 3}, "b.jsonl:1: chosen: found 3, expected a text"),
        ({**ROWS[0], "id": 1.5}, "b.jsonl:1: id: found 1.5, expected a text or a whole number"),
        ({**ROWS[0], "image": [1]}, "b.jsonl:1: image: found [1]"),
    ],
)
def test_a_benchmark_with_other_fields(row, message, tmp_path):
    done, _ = bench(tmp_path, rows=[row])
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_files_that_cannot_be_read(tmp_path):
    done, out = bench(tmp_path)
    before = (out / "scorecard.json").read_text()
    (tmp_path / "s.jsonl").write_text('{"row": 0, "rewards": [1, 2]}\n\n{broken\n')
    words = ["evaluate", "reward-bench", tmp_path / "b.jsonl", "--out", out, "--scores"]
    done = engine(*words, tmp_path / "s.jsonl")
    assert (done.returncode, "s.jsonl:3: not valid JSON" in done.stderr) == (1, True)
    done = engine(*words, tmp_path / "absent.jsonl")
    assert (done.returncode, "absent.jsonl: no such file" in done.stderr) == (1, True)
    done = engine(*words, tmp_path)
    assert (done.returncode, "found a folder" in done.stderr) == (1, True)
    # What was refused has not removed the section that was there.
    write_lines(tmp_path / "s.jsonl", SCORES)
    assert engine(*words, tmp_path / "s.jsonl").returncode == 0
    assert (out / "scorecard.json").read_text() == before


def test_options_have_an_effect_and_a_repeated_command_is_skipped(tmp_path):
    _, out = bench(tmp_path)
    words = ["evaluate", "reward-bench", tmp_path / "b.jsonl", "--out", out, "--scores"]
    again = engine(*words, tmp_path / "s.jsonl")
    assert "finished and unchanged" in again.stderr
    done = engine(*words, tmp_path / "s.jsonl", "--resamples", 50, "--seed", 3)
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "scorecard.json").read_text())["reward_bench"]
    assert (card["interval"]["resamples"], card["interval"]["seed"]) == (50, 3)


def test_the_page_says_what_was_measured(tmp_path):
    _, out = bench(tmp_path, rows=[*ROWS[:3], pair("<b>", "x.png")])
    page = (out / "report.html").read_text()
    for text in (
        "Reward benchmark",
        "longer answer",
        "ACC+",
        "no category in their path: 1 of 4",
        "mcq",
    ):
        assert text in page
    assert page.count("<svg") == 2 * 7
    assert "Equal rewards, which are wrong: 1 of 4 pairs." in page
    assert all(0 <= float(place) <= 1000 for place in _places(page))


def _places(page):
    return [part.split('"')[0] for part in page.split('x1="')[1:]]


def test_every_outcome_of_two_pairs(tmp_path):
    rows = [pair("q", "mcq/0"), pair("q", "mcq/0")]
    for first, second in product([0, 1, 2], repeat=2):
        card = scorecard(rows, [[first, 1], [second, 1]])["overall"]
        assert card["acc"] == ((first > 1) + (second > 1)) / 2
        assert card["acc_plus"] == float(first > 1 and second > 1)
