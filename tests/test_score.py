"""Scores of answers: against each alone, resumed, and what the columns say."""

import hashlib
import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from command import engine
from mmrlhf_engine import open_dataset, run_mm_dpo, run_reference, run_reward, run_score
from mmrlhf_engine.benchmark_rewards import rewards_of_rows, scores_file
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.judge_turn import INSTRUCTION
from mmrlhf_engine.models.reward_model import load_reward_model
from mmrlhf_engine.pack import pack
from mmrlhf_engine.train import score, scorer
from mmrlhf_engine.train.score_settings import ScoreConfig
from mmrlhf_engine.train.settings import ModelSettings
from naive_reward import NaiveReward
from pack_data import write_lines
from test_options import leaves
from train_data import judged_rows, pack_rows, text_model, text_rows

TRAINING = {
    "data.tokens": 2000,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 1e-3,
    "gradient_checkpointing": False,
    "threads": 1,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A reward model that was trained with critiques, and shards."""
    folder = tmp_path_factory.mktemp("score")
    policy = text_model(folder / "policy")
    shards = pack_rows(policy, judged_rows(10), folder / "shards")
    run_reward(shards, policy, folder / "run", TRAINING)
    return folder / "run" / "10_reward" / "model", shards


@pytest.fixture(scope="module")
def policy(prepared):
    return prepared[1].parent / "policy"


def naive_rewards(model, shards, texts):
    loaded = load_reward_model(str(model)).model
    loaded.set_attn_implementation("eager")
    naive = NaiveReward(loaded, model, shards, texts, INSTRUCTION)
    with torch.no_grad():
        return naive, np.array([float(naive.answer(row)[0]) for row in range(len(texts))])


@pytest.mark.parametrize("critiques", ["packed", "none"])
def test_rewards_are_those_of_each_answer_alone(prepared, tmp_path, critiques):
    model, shards = prepared
    settings = {"critiques": critiques, "name": critiques, "tokens": 2000, "threads": 1}
    report = run_score(shards, model, tmp_path, settings)
    dataset = open_dataset(shards)
    found = dataset.column(f"reward/{critiques}", "reward").to_numpy()
    texts = dataset.column(f"reward/{critiques}", "critique").to_list()
    assert (critiques == "packed") == any(text is not None for text in texts)
    _, wanted = naive_rewards(model, shards, texts)
    assert np.abs(found - wanted).max() < 2e-5
    pairs = dataset.pairs.collect()
    margins = dataset.column(f"margin/{critiques}", "margin").to_numpy()
    assert np.abs(margins - (found[pairs["chosen"]] - found[pairs["rejected"]])).max() < 1e-6
    ranked = margins[(pairs["flags"] & 1).to_numpy() == 0]
    assert report["agreement"] == pytest.approx((ranked > 0).mean())


def test_critiques_are_written_greedily_and_scored(prepared, tmp_path):
    model, shards = prepared
    settings = {"name": "own", "sampling.max_new_tokens": 9, "threads": 1, "batch": 4}
    report = run_score(shards, model, tmp_path, settings)
    dataset = open_dataset(shards)
    rewards = dataset.column("reward/own", "reward").to_numpy()
    loaded = load_reward_model(str(model)).model.eval()
    loaded.set_attn_implementation("eager")
    naive, _ = naive_rewards(model, shards, [None] * len(rewards))
    stop = set(naive.turn.closing[:1].tolist()) | {loaded.generation_config.eos_token_id}
    for row, reward in enumerate(rewards):
        response = naive.pairs.responses[row]
        prompt = naive.pairs.queries[response["q"]]["prompt"]
        ids = [*prompt, *response["tokens"], *naive.turn.opening.tolist()]
        written = []
        with torch.no_grad():
            while len(written) < 9:
                logits = loaded(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits
                token = int(logits[0, -1].argmax())
                if token in stop:
                    break
                written.append(token)
            whole = torch.tensor([[*ids, *written, *naive.turn.closing.tolist()]])
            states = loaded(input_ids=whole, output_hidden_states=True).hidden_states[-1]
            assert reward == pytest.approx(float(loaded.rm_head(states[0, -1:])[0]), abs=5e-5)
    assert sum(report["finish"].values()) == len(rewards)


def test_the_mean_of_several_critiques(prepared, tmp_path):
    model, shards = prepared
    settings = {"name": "mean", "sampling.samples": 3, "sampling.temperature": 1.0, "threads": 1}
    report = run_score(shards, model, tmp_path, settings | {"sampling.max_new_tokens": 5})
    table = pl.read_parquet(tmp_path / "11_score" / "critiques" / "*.parquet")
    assert table.height == 3 * report["rows_in"]
    means = table.group_by("response").agg(pl.col("reward").mean()).sort("response")["reward"]
    found = open_dataset(shards).column("reward/mean", "reward")
    assert np.allclose(found.to_numpy(), means.to_numpy())
    assert table["critique"].n_unique() > report["rows_in"]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_killed_run_goes_on_to_the_same_values(prepared, tmp_path, monkeypatch):
    model, shards = prepared
    settings = {"name": "whole", "sampling.max_new_tokens": 4, "threads": 1, "batch": 1}
    run_score(shards, model, tmp_path / "whole", settings)
    monkeypatch.setattr(score, "_GROUPS_PER_PART", 2)
    untouched, calls = scorer.Scorer.rows, []

    def rows(self, batches):
        calls.append(len(batches))
        if len(calls) == 6:
            raise Killed
        return untouched(self, batches)

    monkeypatch.setattr(scorer.Scorer, "rows", rows)
    with pytest.raises(Killed):
        run_score(shards, model, tmp_path / "run", settings | {"name": "parts"})
    run_score(shards, model, tmp_path / "run", settings | {"name": "parts"})
    # Four queries were kept, the fifth was done and not kept.
    assert len(calls) == 6 + 6
    dataset = open_dataset(shards)
    for field in ("reward", "critique"):
        assert dataset.column("reward/parts", field).equals(dataset.column("reward/whole", field))


def test_scores_of_a_file_are_the_same_columns(prepared, tmp_path, policy):
    _, shards = prepared
    pairs = open_dataset(shards).rows("pairs")
    lines = [{"row": row, "rewards": [row % 5, 2.0]} for row in range(pairs)]
    file = tmp_path / "judge.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = run_score(shards, None, tmp_path, {"scores": str(file)})
    assert report["column"] == "margin/judge/margin"
    margins = open_dataset(shards).column("margin/judge", "margin").to_list()
    assert margins == [row % 5 - 2.0 for row in range(pairs)]
    run_reference(shards, policy, tmp_path, {"tokens": 2000})
    settings = {"margin": report["column"], "data.tokens": 2000, "threads": 1, "steps": 1}
    run_mm_dpo(shards, policy, tmp_path, settings)
    lines[0]["rewards"] = [9.0, 2.0]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = run_score(
        shards, None, tmp_path, {"scores": str(file), "normalise": "std"}, restart=True
    )
    # The columns of the earlier scores stay; those of others have their hash in the name.
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert report["column"] == f"margin/judge-{digest[:8]}/margin"
    assert open_dataset(shards).column("margin/judge", "margin").to_list() == margins
    changed = open_dataset(shards).column(f"margin/judge-{digest[:8]}", "margin")
    assert changed[0] == pytest.approx(7 / report["normalise"]["standard_deviation"])
    file.write_text('{"row": 4000, "rewards": [1, 2]}\n')
    with pytest.raises(InputError, match="4000"):
        run_score(shards, None, tmp_path / "other", {"scores": str(file)})


# ---- a dataset has the columns of what counts as finished --------------------------------------


def judge_file(folder, values):
    """A margin a pair, in a file that is called as those of other judges are."""
    folder.mkdir()
    lines = [{"pair": row, "margin": value} for row, value in enumerate(values)]
    return write_lines(folder / "judge.jsonl", lines)


def test_files_of_one_name_have_columns_of_their_own(prepared, tmp_path):
    shards = shutil.copytree(prepared[1], tmp_path / "shards")
    pairs = open_dataset(shards).rows("pairs")
    files = [judge_file(tmp_path / f"j{n}", [n + 1.0] * pairs) for n in range(2)]
    for _ in range(2):
        for number, file in enumerate(files):
            report = run_score(shards, None, tmp_path / f"r{number}", {"scores": str(file)})
            column = report["column"].rpartition("/")[0]
            assert set(open_dataset(shards).column(column, "margin")) == {number + 1.0}
    assert len(open_dataset(shards).column_sets) == 2 + len(open_dataset(prepared[1]).column_sets)


def test_models_of_one_name_have_columns_of_their_own(prepared, policy, tmp_path):
    shards = pack_rows(policy, text_rows(3), tmp_path / "shards")
    run_reward(prepared[1], policy, tmp_path / "other", {**TRAINING, "steps": 1})
    models = (prepared[0], tmp_path / "other" / "10_reward" / "model")
    settings = {"critiques": "none", "tokens": 2000, "threads": 1}
    reports, values = [], []
    for number, model in [*enumerate(models)] * 2:
        reports.append(run_score(shards, model, tmp_path / f"r{number}", settings))
        values.append(open_dataset(shards).column(*reports[-1]["column"].rsplit("/", 1)).to_list())
    columns = [report["column"] for report in reports]
    assert columns[:2] == columns[2:]
    assert columns[0] == "margin/model/margin"
    assert columns[1].startswith("margin/model-")
    assert values[:2] == values[2:]
    assert values[0] != values[1]
    assert len(open_dataset(shards).column_sets) == 4


def test_a_finished_run_writes_the_columns_that_are_gone(prepared, tmp_path):
    model, shards = prepared[0], shutil.copytree(prepared[1], tmp_path / "shards")
    pairs = open_dataset(shards).rows("pairs")
    file = judge_file(tmp_path / "j", [0.5] * pairs)
    own = {"critiques": "packed", "name": "one", "tokens": 2000, "threads": 1}
    given = {"scores": str(file), "name": "one"}
    scored = run_score(shards, model, tmp_path / "r", own)
    wanted = open_dataset(shards).column("margin/one", "margin")
    texts = open_dataset(shards).column("reward/one", "critique")
    # Replaced by another run, whose columns are the newest ones then.
    run_score(shards, None, tmp_path / "g", given)
    assert open_dataset(shards).column("margin/one", "margin").to_list() == [0.5] * pairs
    again = run_score(shards, model, tmp_path / "r", own)
    assert again["seconds"] == scored["seconds"]  # it was not scored again
    assert open_dataset(shards).column("margin/one", "margin").equals(wanted)
    version = open_dataset(shards).version
    run_score(shards, model, tmp_path / "r", own)
    assert open_dataset(shards).version == version
    run_score(shards, None, tmp_path / "g", given)
    assert open_dataset(shards).column("margin/one", "margin").to_list() == [0.5] * pairs
    # A copy of the shards as they were has none of them.
    copy = shutil.copytree(prepared[1], tmp_path / "copy")
    run_score(copy, model, tmp_path / "r", own)
    assert open_dataset(copy).column("margin/one", "margin").equals(wanted)
    assert open_dataset(copy).column("reward/one", "critique").equals(texts)


def test_rows_that_were_added_get_their_scores(policy, prepared, tmp_path):
    model = prepared[0]
    rows = text_rows(6, seed=3)
    shards = pack_rows(policy, rows[:9], tmp_path / "shards")
    settings = {"critiques": "none", "tokens": 2000, "threads": 1, "name": "one"}
    run_score(shards, model, tmp_path / "a", settings)
    before = open_dataset(shards).column("margin/one", "margin")
    source = write_lines(tmp_path / "more.jsonl", rows[9:])
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(policy), append=True)
    pack.pack_dataset(config, shards)
    run_score(shards, model, tmp_path / "b", settings)
    after = open_dataset(shards).column("margin/one", "margin")
    assert (len(before), len(after), after.null_count()) == (9, 18, 0)
    assert after[:9].equals(before)


def test_pairs_without_a_score_are_counted(prepared, tmp_path):
    shards = shutil.copytree(prepared[1], tmp_path / "shards")
    pairs = open_dataset(shards).rows("pairs")
    file = judge_file(tmp_path / "j", [1.0])
    words = ["score", shards, "--scores", file, "--name", "few", "--out", tmp_path / "run"]
    done = engine(*words, "--progress", "silent")
    assert done.stdout.startswith(f"margin/few/margin: margins of 1 of {pairs} pairs, 100.0%")
    alone = write_lines(tmp_path / "alone.jsonl", [{"response": 0, "reward": 1.0}])
    with pytest.raises(InputError, match=rf"alone.jsonl: none of the {pairs} pairs"):
        run_score(shards, None, tmp_path / "other", {"scores": str(alone)})
    assert not any(entry.name.endswith("/alone") for entry in open_dataset(shards).column_sets)


def test_what_does_not_fit_is_refused(prepared, policy, tmp_path):
    model, shards = prepared
    with pytest.raises(ConfigError, match=r"a policy .*expected a reward model"):
        run_score(shards, policy, tmp_path)
    with pytest.raises(ConfigError, match=r"a reward model .*expected a language model"):
        run_reference(shards, model, tmp_path)
    with pytest.raises(ConfigError, match="expected one"):
        run_score(shards, model, tmp_path, {"scores": "x.jsonl"})
    with pytest.raises(ConfigError, match="expected packed, none or SET/FIELD"):
        run_score(shards, model, tmp_path, {"critiques": "all"})
    bare = pack_rows(policy, text_rows(3), tmp_path / "bare")
    with pytest.raises(InputError, match="no query has a critique"):
        run_reward(bare, policy, tmp_path, TRAINING)
    run_reward(bare, policy, tmp_path, {**TRAINING, "critiques": "none", "steps": 1})
    alone = tmp_path / "10_reward" / "model"
    with pytest.raises(ConfigError, match="trained without critiques"):
        run_score(bare, alone, tmp_path, {"critiques": "generate"})
    assert run_score(bare, alone, tmp_path)["critiques"] == "none"


def test_the_commands(prepared, policy, tmp_path):
    model, shards = prepared
    small = ["--set", "threads=1", "--tokens", "2000", "--progress", "silent"]
    words = [shards, "--model", policy, "--out", tmp_path, *small, "--packs-per-step", "2"]
    dry = engine("reward", *words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "critiques and requests" in dry.stdout
    done = engine("reward", *words, "--head", "silu", "--steps", "1", "--critique-loss", "sum")
    assert done.returncode == 0, done.stderr
    assert "10_reward/model: 1 steps" in done.stdout
    assert "was not reached" not in done.stderr
    many = engine("reward", *words[:3], "--out", tmp_path / "e", *words[5:], "--steps", "500")
    assert many.returncode == 0, many.stderr
    assert re.search(r"steps=500 was not reached: epochs=1 has \d+; another value", many.stderr)
    words = [shards, "--model", model, "--out", tmp_path, *small, "--max-new-tokens", "3"]
    dry = engine("score", *words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "tokens written, at most" in dry.stdout
    done = engine("score", *words, "--name", "shell", "--normalise", "rank", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("margin/shell/margin: margins of 30 pairs, ")
    assert open_dataset(shards).column("margin/shell", "margin").abs().max() == 1.0
    done = engine("score", shards, "--model", policy, "--out", tmp_path / "b", *small)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a reward model" in done.stderr
    assert engine("score", "--out", tmp_path / "c").returncode == 2


CRITIQUE = {"critiques": "packed", "threads": 1, "tokens": 2000}
GENERATE = {"sampling.max_new_tokens": 6, "threads": 1}
DRAWN = GENERATE | {"sampling.samples": 2, "sampling.temperature": 1.0}
OWN = {
    # Setting: what it is laid over, and another value that changes rewards or margins.
    "critiques": (CRITIQUE, "none"),
    "sampling.samples": (DRAWN, 3),
    "sampling.temperature": (DRAWN, 0.3),
    "sampling.top_p": (DRAWN, 0.1),
    "sampling.top_k": (DRAWN, 1),
    "sampling.max_new_tokens": (GENERATE, 2),
    "sampling.seed": (DRAWN, 1),
    "normalise": (CRITIQUE, "std"),
}
ELSEWHERE = {
    "scores": "test_scores_of_a_file_are_the_same_columns",
    "name": "test_the_commands",
    "batch": "test_a_killed_run_goes_on_to_the_same_values",
    "tokens": "test_packs_are_as_large_as_tokens_says",
}


def test_every_setting_of_its_own_is_tested(prepared, tmp_path):
    own = leaves(ScoreConfig) - leaves(ModelSettings)
    assert own == set(OWN) | set(ELSEWHERE)
    assert all(name in globals() for name in ELSEWHERE.values())
    model, shards = prepared
    bases = {}
    for number, (setting, (base, value)) in enumerate(OWN.items()):
        key = json.dumps(base)
        if key not in bases:
            run_score(shards, model, tmp_path / f"base{number}", {**base, "name": "base"})
            bases[key] = open_dataset(shards).column("margin/base", "margin")
        run_score(shards, model, tmp_path / str(number), {**base, setting: value, "name": "other"})
        assert not open_dataset(shards).column("margin/other", "margin").equals(bases[key]), setting


def test_packs_are_as_large_as_tokens_says(prepared, tmp_path):
    model, shards = prepared
    with pytest.raises(InputError, match="above it"):
        run_score(shards, model, tmp_path, {**CRITIQUE, "tokens": 100})


def test_a_benchmark_is_scored_by_the_model_itself(prepared, tmp_path):
    model, _ = prepared
    rows = [
        {
            "id": row["prompt"],
            "prompt": row["prompt"],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for row in text_rows(4, seed=77)
    ]
    rows.append(dict(rows[0]))  # a pair that is there twice
    rows.append(rows[1] | {"chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]})
    file = write_lines(tmp_path / "bench.jsonl", rows)
    words = [file, "--reward-model", model, "--critiques", "none", "--out", tmp_path / "out"]
    done = engine("evaluate", "reward-bench", *words, "--resamples", "50", "--progress", "silent")
    assert done.returncode == 0, done.stderr
    scores = tmp_path / "out" / "reward_bench" / "scores.jsonl"
    found = [json.loads(line)["rewards"] for line in scores.read_text().splitlines()]
    assert found[-2] == found[0]
    assert found[-1] == found[1][::-1]
    card = json.loads((tmp_path / "out" / "scorecard.json").read_text())["reward_bench"]
    right = [chosen > rejected for chosen, rejected in found]
    assert card["overall"]["acc"] == pytest.approx(sum(right) / len(right))
    shards = tmp_path / "out" / "reward_bench" / "shards"
    _, wanted = naive_rewards(model, shards, [None] * open_dataset(shards).rows("responses"))
    own = {round(float(value), 4) for value in wanted}
    assert {round(value, 4) for both in found for value in both} <= own
    (tmp_path / "bench.jsonl").write_text('{"id": 1, "prompt": "a", "chosen": "", "rejected": "b"}')
    done = engine("evaluate", "reward-bench", *words, "--progress", "silent")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def bench_row(prompt, chosen, rejected):
    return {"id": prompt, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_another_model_or_benchmark_replaces_the_one_before(prepared, policy, tmp_path):
    model = prepared[0]
    run_reward(prepared[1], policy, tmp_path / "other", {**TRAINING, "steps": 1})
    other = tmp_path / "other" / "10_reward" / "model"
    files = [
        write_lines(tmp_path / f"{n}.jsonl", [bench_row(f"{n} it?", "yes it is", "no it is not")])
        for n in range(2)
    ]
    found = []
    for file, judge in ((0, model), (0, other), (1, other), (0, model)):
        scores = scores_file(files[file], str(judge), tmp_path / "out", {"critiques": "none"})
        found.append(scores.read_text())
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_pairs_that_pack_would_refuse_have_rewards(prepared, tmp_path):
    model = prepared[0]
    rows = [
        bench_row("what is it", "a dog", "a cat"),
        bench_row("what is it ", "a dog", "a cat"),
        bench_row("what is it", "a cat", "a cat"),
        bench_row("what is it", "-", "-"),
    ]
    # With the mark of the encoding in front, and an empty line.
    file = tmp_path / "bench.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, rows)).encode())
    rewards = rewards_of_rows(file, str(model), tmp_path / "out", {"critiques": "none"})
    assert rewards[0].tolist() == rewards[1].tolist()
    assert rewards[2].tolist() == [rewards[0][1]] * 2
    assert rewards[3][0] == rewards[3][1]
    assert np.isfinite(rewards).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "bench.jsonl:1: found list, expected a JSON object"),
        ('{"id": 1', "bench.jsonl:1: not valid JSON"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "bench.jsonl:1: found chosen, prompt"),
        (None, "bench.jsonl: no such file"),
    ],
)
def test_a_benchmark_is_checked_before_it_is_scored(content, message, tmp_path):
    if content is not None:
        (tmp_path / "bench.jsonl").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        rewards_of_rows(tmp_path / "bench.jsonl", "no-model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
