"""``evaluate preferences``: implicit rewards by hand, held-out parts, ties, and columns."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from command import engine
from mmrlhf_engine import PreferenceDataset, open_dataset, run_pack
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.preferences import preference_accuracy
from mmrlhf_engine.shards.plan import HoldOut
from pack_data import write_lines
from train_data import pack_rows, text_model, text_rows, text_shards


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A model and shards: eight queries of three answers each, all pairs of them."""
    return text_shards(tmp_path_factory.mktemp("packed"), queries=8)


@pytest.fixture
def shards(packed, tmp_path):
    return shutil.copytree(packed[1], tmp_path / "shards")


def add(shards, name, values, **provenance):
    values = pl.DataFrame({"logp": pl.Series(values, dtype=pl.Float32)})
    options = {"table": "responses", "column_set": name, "provenance": provenance}
    open_dataset(shards).add_column(values, **options)


def columns(shards, seed=0):
    """Random log-probabilities of a policy and a reference, and the rows of the pairs."""
    dataset = open_dataset(shards)
    chance = np.random.default_rng(seed)
    policy, reference = chance.normal(-20, 3, (2, dataset.rows("responses"))).astype(np.float32)
    add(shards, "reflogp/policy", policy)
    add(shards, "reflogp/base", reference)
    return policy, reference, dataset.pairs.collect()


def test_figures_are_those_of_every_pair_by_hand(shards):
    policy, reference, pairs = columns(shards)
    change = (policy.astype(float) - reference) * 0.2
    margins = [change[row["chosen"]] - change[row["rejected"]] for row in pairs.to_dicts()]
    found = preference_accuracy(open_dataset(shards), "reflogp/policy", "reflogp/base", beta=0.2)
    overall = found["overall"]
    assert (overall["pairs"], overall["queries"]) == (24, 8)
    assert overall["acc"] == pytest.approx(np.mean([margin > 0 for margin in margins]))
    assert overall["mean_margin"] == pytest.approx(np.mean(margins), abs=1e-6)
    low, high = overall["mean_margin_interval"]
    assert low < overall["mean_margin"] < high
    tokens = open_dataset(shards).responses.collect()["n_tok"]
    longer = [tokens[row["chosen"]] > tokens[row["rejected"]] for row in pairs.to_dicts()]
    assert found["baselines"]["longer_answer"]["acc"] == pytest.approx(np.mean(longer))
    alone = [policy[row["chosen"]] > policy[row["rejected"]] for row in pairs.to_dicts()]
    assert found["baselines"]["policy_alone"]["acc"] == pytest.approx(np.mean(alone))
    assert list(found["by_source"].values()) == [overall]
    assert found["ties"] == {"pairs": 0, "mean_size_of_margin": None}


def test_a_hand_case_with_equal_rewards(shards):
    dataset = open_dataset(shards)
    # The first answer of each query gains 1, the others nothing: right, right, equal (wrong).
    gains = np.tile([1.0, 0.0, 0.0], 8).astype(np.float32)
    add(shards, "reflogp/policy", gains)
    add(shards, "reflogp/base", np.zeros(24, np.float32))
    found = preference_accuracy(open_dataset(shards), "reflogp/policy", "reflogp/base")
    assert dataset.rows("responses") == 24
    assert found["overall"]["acc"] == pytest.approx(2 / 3)
    assert found["overall"]["acc_interval"] == pytest.approx([2 / 3, 2 / 3])
    assert found["overall"]["equal_rewards"] == 8
    assert found["overall"]["mean_margin"] == pytest.approx(0.1 * 2 / 3)


def test_ties_missing_values_and_deleted_pairs_are_counted_apart(packed, tmp_path):
    rows = [{**row, "is_tie": n == 0} for n, row in enumerate(text_rows(6, answers=2))]
    shards = pack_rows(packed[0], rows, tmp_path / "tied")
    policy = np.arange(12, dtype=np.float32)
    add(shards, "reflogp/base", np.zeros(12, np.float32))
    add(shards, "reflogp/policy", [None if row == 3 else value for row, value in enumerate(policy)])
    dataset = open_dataset(shards)
    flags = dataset.pairs.collect()["flags"]
    found = preference_accuracy(dataset, "reflogp/policy", "reflogp/base")
    assert (flags.sum(), found["ties"]["pairs"]) == (1, 1)
    assert found["ties"]["mean_size_of_margin"] == pytest.approx(0.1)
    assert found["left_out"] == {"no_log_probability": 1}
    assert found["overall"]["pairs"] == 4
    dataset.add_column(
        pl.DataFrame({"deleted": [False] * 5 + [True]}),
        table="pairs",
        column_set="deleted",
        provenance={},
    )
    found = preference_accuracy(open_dataset(shards), "reflogp/policy", "reflogp/base")
    assert found["overall"]["pairs"] == 3


def test_held_out_queries_are_those_of_the_loader(shards):
    columns(shards)
    hold_out = HoldOut(share=0.4, seed=3, part="held_out")
    data = PreferenceDataset(
        shards, 4000, unit="pair", hold_out={"share": 0.4, "seed": 3, "part": "held_out"}
    )
    seen = {int(row) for batch in data for row in batch.pair_row}
    found = preference_accuracy(
        open_dataset(shards), "reflogp/policy", "reflogp/base", hold_out=hold_out
    )
    assert 0 < len(seen) < 24
    assert found["overall"]["pairs"] == len(seen)


def test_sources_by_name(packed, tmp_path):
    model = packed[0]
    files = [
        write_lines(tmp_path / f"{name}.jsonl", text_rows(2, answers=2, seed=seed))
        for name, seed in (("good", 0), ("bad", 50))
    ]
    run_pack(files, tmp_path / "two", {"tokenizer": str(model)})
    shards = tmp_path / "two"
    sources = open_dataset(shards).queries.select("source").collect()["source"].to_list()
    chosen = [1.0 if number == sources[0] else -1.0 for number in sources for _ in range(2)]
    gains = [gain if row % 2 == 0 else 0.0 for row, gain in enumerate(chosen)]
    add(shards, "reflogp/policy", gains)
    add(shards, "reflogp/base", np.zeros(len(gains), np.float32))
    found = preference_accuracy(open_dataset(shards), "reflogp/policy", "reflogp/base")
    by_source = {name: part["acc"] for name, part in found["by_source"].items()}
    assert sorted(by_source.values()) == [0, 1]
    assert any("good" in name for name in by_source)


def test_columns_that_do_not_fit_together(shards):
    columns(shards)
    add(shards, "reflogp/other", np.zeros(24, np.float32), precision={"products": "bfloat16"})
    add(shards, "reflogp/nan", np.full(24, np.nan, np.float32))
    dataset = open_dataset(shards)
    for policy, reference, message in (
        ("reflogp/absent", "reflogp/base", "there are: reflogp/base, reflogp/nan, reflogp/other"),
        ("reflogp/base", "reflogp/base", "every implicit reward is 0"),
        ("reflogp/other", "reflogp/base", "made under other conditions than reflogp/base"),
        ("reflogp/nan", "reflogp/base", "none of 24 pairs can be measured: 24 lack"),
    ):
        with pytest.raises(InputError, match=message):
            preference_accuracy(dataset, policy, reference)
    with pytest.raises(InputError, match="found none of 8 queries in part"):
        preference_accuracy(
            dataset,
            "reflogp/policy",
            "reflogp/base",
            hold_out=HoldOut(share=1e-6, part="held_out"),
        )


def test_the_command_computes_the_column_of_a_model(packed, shards, tmp_path):
    other = text_model(tmp_path / "other", seed=5)
    out = tmp_path / "out"
    words = ["evaluate", "preferences", shards, "--model", other, "--reference-model", packed[0]]
    done = engine(*words, "--precision", "float32", "--out", out)
    assert done.returncode == 0, done.stderr
    section = json.loads((out / "scorecard.json").read_text())["preferences"]
    made = {entry.name for entry in open_dataset(shards).column_sets}
    assert {section["policy_column"], section["reference_column"]} <= made
    assert "24 pairs: accuracy" in done.stdout
    assert "Preference pairs" in (out / "report.html").read_text()
    # The same by names, and of a part; a new column of the same name is measured again.
    names = ["--policy-column", "reflogp/other", "--reference-column", "reflogp/model"]
    done = engine("evaluate", "preferences", shards, *names, "--out", out, "--beta", 1)
    again = json.loads((out / "scorecard.json").read_text())["preferences"]
    assert again["overall"]["acc"] == section["overall"]["acc"]
    margin = section["overall"]["mean_margin"]
    assert again["overall"]["mean_margin"] == pytest.approx(10 * margin)
    part = ["--held-out", 0.4, "--held-out-seed", 3]
    done = engine("evaluate", "preferences", shards, *names, "--out", out, *part)
    part = json.loads((out / "scorecard.json").read_text())["preferences"]
    assert part["held_out"] == {"share": 0.4, "seed": 3}
    assert part["overall"]["pairs"] < 24


def test_options_that_exclude_each_other(shards, tmp_path):
    words = ["evaluate", "preferences", shards, "--out", tmp_path / "out"]
    done = engine(*words)
    assert (done.returncode, "expected one of --policy-column" in done.stderr) == (2, True)
    both = ["--policy-column", "a", "--reference-column", "b", "--reference-model", "m"]
    done = engine(*words, *both)
    assert (done.returncode, "expected one of --reference-column" in done.stderr) == (2, True)
