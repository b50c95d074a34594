"""``evaluate win-rate``: counts, consistency and position by hand, ratings, and files."""

import json
import math

import numpy as np
import pytest

from command import engine
from mmrlhf_engine.measure.bootstrap import Resampling
from mmrlhf_engine.measure.bradley_terry import has_maximum, ratings
from mmrlhf_engine.measure.win_rate import Game, read_verdict, win_rates
from pack_data import write_lines


def rated(wins):
    return ratings(np.array(wins, float)).tolist()


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        *(("[[A>>B]]", 2), ("[[A>B]]", 1), ("[[A=B]]", 0), ("[[B>A]]", -1), ("[[B>>A]]", -2)),
        *(("A > B", 1), (" [[a=b]] ", 0), ("a", 1), ("B", -1), ("Tie", 0), ("[[A<<B]]", -2)),
        *(("[[A]]", 1), ("[[B]]", -1), ("[[C]]", 0), ("[[ c ]]", 0)),
        *(("", None), ("C", None), ("both", None), ("[[A>C]]", None)),
    ],
)
def test_verdicts(text, verdict):
    assert read_verdict(text) == verdict


# ---- ratings ---------------------------------------------------------------------------------


def test_two_models_by_hand():
    # Three wins of four are odds of 3: 400 * log10(3) points, around a mean of 1000.
    gap = 400 * math.log10(3)
    assert rated([[0, 3], [1, 0]]) == pytest.approx([1000 + gap / 2, 1000 - gap / 2])
    # A win and two ties are two wins and one loss.
    gap = 400 * math.log10(2)
    assert rated([[0, 2], [1, 0]]) == pytest.approx([1000 + gap / 2, 1000 - gap / 2])


def test_three_models_by_hand():
    assert rated([[0, 5, 1], [1, 0, 5], [5, 1, 0]]) == pytest.approx([1000, 1000, 1000])
    # Odds of 4 between neighbours and of 16 between the ends fit exactly.
    found = rated([[0, 4, 16], [1, 0, 4], [1, 1, 0]])
    gap = 400 * math.log10(4)
    assert found == pytest.approx([1000 + gap, 1000, 1000 - gap])


def test_the_maximum_is_where_expected_wins_are_those_counted():
    wins = np.random.default_rng(0).integers(0, 9, (5, 5)) * (1 - np.eye(5))
    found = ratings(wins)
    expected = 1 / (1 + 10 ** ((found[None, :] - found[:, None]) / 400))
    played = wins + wins.T
    np.testing.assert_allclose((played * expected).sum(1), wins.sum(1), atol=1e-6)
    assert found.mean() == pytest.approx(1000)


def test_a_stack_of_problems_is_each_alone():
    wins = np.random.default_rng(1).integers(0, 4, (50, 3, 3)) * (1 - np.eye(3))
    together = ratings(wins)
    alone = np.stack([ratings(one) for one in wins])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.isnan(together).any()
    assert np.isfinite(together).any()


@pytest.mark.parametrize(
    "wins",
    [
        [[0, 3], [0, 0]],  # has won everything
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],  # was never compared
        [[0, 1, 1], [1, 0, 1], [0, 0, 0]],  # has lost everything
    ],
)
def test_no_rating_where_the_likelihood_has_no_maximum(wins):
    assert not has_maximum(np.array(wins, float))
    assert np.isnan(rated(wins)).all()


def test_a_chain_of_many_models_has_a_maximum():
    wins = np.roll(np.eye(9), 1, axis=1)  # each beats the next, the last beats the first
    assert has_maximum(wins)
    np.testing.assert_allclose(ratings(wins), 1000)


# ---- the section -----------------------------------------------------------------------------

GAMES = [
    Game("1", "new", "old", 2),
    Game("1", "old", "new", -1),  # new wins again
    Game("2", "new", "old", 1),
    Game("2", "old", "new", 1),  # whoever is first wins
    Game("3", "new", "old", 0),
    Game("4", "old", "new", -2),
]


def test_a_hand_case():
    card = win_rates(GAMES)
    new = card["models"]["new"]
    assert (new["wins"], new["ties"], new["losses"], new["verdicts"]) == (4, 1, 1, 6)
    assert (new["much_better"], new["much_worse"]) == (2, 0)
    assert new["win_rate"] == pytest.approx(4.5 / 6)
    assert card["models"]["old"]["win_rate"] == pytest.approx(1.5 / 6)
    assert new["elo"] - card["models"]["old"]["elo"] == pytest.approx(400 * math.log10(3))
    assert card["both_orders"]["shown_in_both"] == 2
    assert card["both_orders"]["shown_in_one"] == 2
    assert card["both_orders"]["consistency"] == 0.5
    # First ones win in games 1, 3 and 4 of the five that are no ties; 3 of 4 in both orders.
    assert card["position"]["first_wins"] == pytest.approx(3 / 5)
    assert card["position"]["first_wins_in_both_orders"] == pytest.approx(3 / 4)
    assert [(one["model"], one["against"]) for one in card["pairs_of_models"]] == [("new", "old")]


def test_swapped_ties_agree():
    card = win_rates([Game("1", "x", "y", 0), Game("1", "y", "x", 0), Game("2", "x", "y", 1)])
    assert card["both_orders"]["consistency"] == 1
    assert card["position"]["first_wins_in_both_orders"] is None


def test_both_orders_of_an_id_are_one_cluster():
    # Ten ids, each shown in both orders with the same winner.
    games = []
    for number in range(10):
        verdict = 1 if number % 2 else -1
        games += [Game(str(number), "x", "y", verdict), Game(str(number), "y", "x", -verdict)]
    low, high = win_rates(games)["models"]["x"]["win_rate_interval"]
    single = win_rates(games[::2])["models"]["x"]["win_rate_interval"]
    assert [low, high] == pytest.approx(single)


def test_no_rating_says_why():
    card = win_rates([Game("1", "x", "y", 1)])
    assert card["models"]["x"]["elo"] is None
    assert "no finite rating" in card["elo"]["none_because"]


def test_resamples_without_a_rating_are_counted():
    games = [Game(str(n), "x", "y", 1 if n else -1) for n in range(4)]
    card = win_rates(games, Resampling(resamples=2000))
    # The only loss is not in a resample of four with probability (3/4)^4.
    lost = card["elo"]["resamples_without_rating"] / 2000
    assert lost == pytest.approx(0.75**4 + 0.25**4, abs=0.04)
    assert card["models"]["x"]["elo_interval"][0] < card["models"]["x"]["elo_interval"][1]


# ---- the command -----------------------------------------------------------------------------


def evaluated(folder, rows, *options):
    file, out = write_lines(folder / "v.jsonl", rows), folder / "out"
    return engine("evaluate", "win-rate", file, "--out", out, *options), out


def test_labels_of_mt_bench_white_space_and_null(tmp_path):
    row = {"a": "m ", "b": "n", "order": None}
    rows = [{**row, "id": n, "verdict": f"[[{label}]]"} for n, label in enumerate("ABC")]
    _, out = evaluated(tmp_path, [*rows, {**row, "a": "m", "id": 3, "verdict": "a"}])
    card = json.loads((out / "scorecard.json").read_text())["win_rate"]
    found = {
        name: [one[key] for key in ("wins", "ties", "losses")]
        for name, one in card["models"].items()
    }
    assert found == {"m": [2, 1, 1], "n": [1, 1, 2]}


def test_the_command_reads_both_orders(tmp_path):
    row = {"id": 1, "a": "new", "b": "old", "verdict": "[[A>>B]]"}
    rows = [row, {**row, "verdict": "a", "order": "ba"}, {**row, "id": 2, "verdict": "b"}]
    done, out = evaluated(tmp_path, rows, "--resamples", 200, "--seed", 4)
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "scorecard.json").read_text())["win_rate"]
    assert card["both_orders"] == {
        **{"shown_in_both": 1, "shown_in_one": 1, "consistency": 1},
        "consistency_interval": [1, 1],
    }
    assert card["position"]["first_wins"] == pytest.approx(1 / 3)
    assert (card["interval"]["resamples"], card["interval"]["seed"]) == (200, 4)
    assert "new: win rate 0.667" in done.stdout
    assert "Win rates" in (out / "report.html").read_text()


ROW = {"id": "1", "a": "x", "b": "y", "verdict": "tie"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "verdict": "C"}], 'v.jsonl:1: verdict: found "C", expected a, b, tie'),
        ([{**ROW, "verdict": 1}], "verdict: found 1, expected a text"),
        ([{**ROW, "order": "b"}], 'order: found "b", expected ab or ba'),
        ([{**ROW, "b": "x"}], "v.jsonl:1: a and b are both x"),
        ([{**ROW, "b": "x "}], "v.jsonl:1: a and b are both x"),
        ([{**ROW, "b": " "}], 'b: found " ", expected the name of a model'),
        ([ROW, ROW], "v.jsonl:2: id 1 of x (shown first) and y has a verdict in line 1 already"),
        ([ROW, {**ROW, "a": "y", "b": "x", "order": "ba"}], "in line 1 already"),
        ([{"id": "1", "a": "x"}], "found a, id, expected b"),
        ([{"a": "x", "b": "y", "verdict": "a"}], "expected id"),
    ],
)
def test_files_that_do_not_fit(rows, message, tmp_path):
    done, out = evaluated(tmp_path, rows)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not (out / "scorecard.json").exists()
