"""Training a reward model: losses of each answer alone, checkpoints, what is left out."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mmrlhf_engine import PreferenceDataset, open_dataset, run_reward
from mmrlhf_engine.models.judge_turn import INSTRUCTION
from mmrlhf_engine.models.reward_model import judge_of, load_reward_model
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.train.critiques import Critiques
from mmrlhf_engine.train.loop import steps_of
from mmrlhf_engine.train.reward import RewardConfig
from mmrlhf_engine.train.settings import TrainSettings
from naive_reward import NaiveReward
from test_options import leaves
from train_data import judged_rows, metrics_of, pack_rows, text_model

SMALL = {
    "data.tokens": 700,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 5e-4,
    "gradient_checkpointing": False,
    "threads": 1,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A policy, and shards with critiques and ties."""
    folder = tmp_path_factory.mktemp("reward")
    model = text_model(folder / "model")
    return model, pack_rows(model, judged_rows(12), folder / "shards", ties="keep")


def rows_of_steps(shards, steps, critiques):
    data = PreferenceDataset(
        shards, 700, packs_per_step=2, threads=1, added_tokens=critiques.lengths
    )
    return [
        [int(row) for batch in batches for row in batch.pair_row]
        for batches in steps_of(data, steps)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"critique_loss": "sum", "critique_weight": 0.1, "margin": "packed", "score_weight": 2.0},
        {"critiques": "none", "head.activation": "silu", "tie_weight": 0.0},
        {"head.activation": "linear", "centring": 0.3, "gradient_checkpointing": True},
    ],
    ids=["released", "paper", "scores alone", "linear"],
)
def test_the_first_loss_is_that_of_each_answer_alone(prepared, tmp_path, settings):
    model, shards = prepared
    settings = {**SMALL, "epochs": 2, **settings}
    run_reward(shards, model, tmp_path, settings)
    lines = metrics_of(tmp_path / "10_reward")
    config = load_config(
        RewardConfig, overrides=[f"{key}={value}" for key, value in settings.items()]
    )
    torch.manual_seed(config.seed)
    fresh = load_reward_model(str(model), new_head=config.head)
    dataset = open_dataset(shards)
    critiques = Critiques(dataset, config.critiques, str(model))
    texts = [critiques.text(row) for row in range(dataset.rows("responses"))]
    naive = NaiveReward(fresh.model, model, shards, texts, INSTRUCTION)
    fresh.model.set_attn_implementation("eager")
    (rows,) = rows_of_steps(shards, 1, critiques)
    with torch.no_grad():
        wanted = float(naive.loss(rows, config))
    assert lines[0]["loss"] == pytest.approx(wanted, abs=2e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_checkpoint_goes_on_to_the_same_weights(prepared, tmp_path):
    model, shards = prepared
    settings = {**SMALL, "epochs": 2, "checkpoint.every": 1, "checkpoint.keep": 99}
    report = run_reward(shards, model, tmp_path / "whole", settings)
    assert report["steps"] > 3
    whole, rest = (tmp_path / name / "10_reward" for name in ("whole", "rest"))
    (rest / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints/step_000002", rest / "checkpoints/step_000002")
    run_reward(shards, model, tmp_path / "rest", settings)
    ends = [load_file(folder / "model" / "model.safetensors") for folder in (whole, rest)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert {"rm_head.dense.weight", "rm_head.out_proj.bias"} <= ends[0].keys()
    assert judge_of(rest / "model") == INSTRUCTION


def test_adapters_keep_the_base_and_save_the_head(prepared, tmp_path):
    model, shards = prepared
    settings = {**SMALL, "lora.rank": 4, "steps": 2, "optimizer.learning_rate": 1e-2}
    run_reward(shards, model, tmp_path, settings)
    trained = load_reward_model(str(tmp_path / "10_reward" / "model")).model
    before = AutoModelForCausalLM.from_pretrained(model)
    changed = {
        name
        for name, parameter in before.named_parameters()
        if not torch.equal(parameter, trained.get_parameter(name))
    }
    assert changed
    assert all("proj" in name for name in changed)
    # A reward model goes on as one, its head not drawn again.
    again = tmp_path / "10_reward" / "model"
    run_reward(shards, again, tmp_path / "again", {**settings, "steps": 1})


def test_ties_and_answers_without_critiques_are_counted(prepared, tmp_path):
    model, shards = prepared
    report = run_reward(shards, model, tmp_path / "a", {**SMALL, "epochs": 1})
    assert report["rows_in"] == report["rows_out"] == 36
    report = run_reward(shards, model, tmp_path / "b", {**SMALL, "epochs": 1, "tie_weight": 0})
    assert report["dropped"] == {"tie": 9}
    (first, *_) = metrics_of(tmp_path / "a" / "10_reward")
    assert first["rewards/tie_gaps"] >= 0
    assert 0 <= first["rewards/accuracies"] <= 1
    critiques = Critiques(open_dataset(shards), "packed", str(model))
    # Queries 0, 5 and 10 have no reasons.
    assert critiques.count == 27
    assert critiques.unused == 0


def test_evaluation_is_the_loss_over_held_out_pairs(prepared, tmp_path):
    model, shards = prepared
    settings = {**SMALL, "steps": 1, "evaluation.shards": str(shards), "data.tokens": 900}
    report = run_reward(shards, model, tmp_path, settings)
    config = load_config(RewardConfig, overrides=[f"{k}={v}" for k, v in SMALL.items()])
    torch.manual_seed(config.seed)
    fresh = load_reward_model(str(model), new_head=config.head)
    dataset = open_dataset(shards)
    critiques = Critiques(dataset, "packed", str(model))
    texts = [critiques.text(row) for row in range(dataset.rows("responses"))]
    naive = NaiveReward(fresh.model, model, shards, texts, INSTRUCTION)
    fresh.model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = float(naive.loss(range(36), config))
    assert report["before"]["eval_loss"] == pytest.approx(wanted, abs=2e-5)


OWN = {
    "head.activation": "silu",
    "critiques": "none",
    "instruction": "Is it right?",
    "critique_weight": 0.5,
    "critique_loss": "sum",
    "score_weight": 0.5,
    "tie_weight": 0.5,
    "centring": 1.0,
    "margin": "packed",
}


def test_every_setting_of_its_own_changes_the_loss(prepared, tmp_path):
    assert set(OWN) == leaves(RewardConfig) - leaves(TrainSettings)
    model, shards = prepared

    def first_loss(number, settings):
        run_reward(shards, model, tmp_path / str(number), {**SMALL, "steps": 1, **settings})
        return metrics_of(tmp_path / str(number) / "10_reward")[0]["loss"]

    losses = [first_loss(0, {})]
    losses += [first_loss(n, {name: value}) for n, (name, value) in enumerate(OWN.items(), 1)]
    assert len({round(loss, 6) for loss in losses}) == len(losses)
