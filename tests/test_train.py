"""Training by MM-DPO: the same losses as the formula pair by pair, and what a run leaves behind."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import naive_train
from mmrlhf_engine import PreferenceDataset, open_dataset, run_mm_dpo, run_reference, run_sft
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.train.loop import steps_of
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from train_data import metrics_of, text_shards

SMALL = {
    "data.tokens": 300,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 3e-3,
    "gradient_checkpointing": False,
    "threads": 1,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model, and shards with its log-probabilities."""
    folder = tmp_path_factory.mktemp("train")
    model, shards = text_shards(folder)
    run_reference(shards, model, folder / "run", {"tokens": 400})
    return model, shards


def model_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "13_mm_dpo" / "model")


def rows_of_steps(shards, steps, **settings):
    data = PreferenceDataset(shards, 300, packs_per_step=2, threads=1, **settings)
    return [
        [int(row) for batch in batches for row in batch.pair_row]
        for batches in steps_of(data, steps)
    ]


def largest_difference(left, right):
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"sft_weight": 0.25},
        {"beta_rule": "constant", "beta": 0.3, "schedule.name": "constant"},
        {"gradient_checkpointing": True, "schedule.warmup": 0.5},
        {"loss_type": "ipo", "sft_weight": 0.25},
    ],
    ids=["paper", "constant", "checkpointed", "ipo"],
)
def test_losses_are_those_of_each_pair_alone(prepared, tmp_path, settings):
    model, shards = prepared
    report = run_mm_dpo(shards, model, tmp_path / "run", {**SMALL, "epochs": 3, **settings})
    found = [line["loss"] for line in metrics_of(tmp_path / "run" / "13_mm_dpo")]
    config = load_config(
        MMDPOConfig, overrides=[f"{key}={value}" for key, value in {**SMALL, **settings}.items()]
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    steps = rows_of_steps(shards, len(found))
    wanted = naive_train.losses(policy, reference, shards, steps, report["steps"], config)
    assert len(found) == report["steps"] > 4
    assert largest_difference(found, wanted) < 1e-5
    trained = model_of(tmp_path / "run").state_dict()
    for name, parameter in policy.state_dict().items():
        assert torch.allclose(trained[name], parameter, atol=1e-4), name


def test_a_run_begins_at_ln_2_and_learns(prepared, tmp_path):
    model, shards = prepared
    report = run_mm_dpo(shards, model, tmp_path, {**SMALL, "epochs": 6, "evaluation.share": 0.3})
    lines = metrics_of(tmp_path / "13_mm_dpo")
    training = [line for line in lines if "loss" in line]
    assert training[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert training[-1]["loss"] < 0.5
    assert report["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    held_out = report["dropped"]["held_out"]
    assert 0 < held_out < 36
    assert report["rows_out"] == 36 - held_out
    assert training[0]["beta/min"] >= 0.1
    assert training[0]["beta/max"] <= 0.15


def test_supervised_training_is_the_mean_over_chosen_tokens(prepared, tmp_path):
    model, shards = prepared
    run_sft(shards, model, tmp_path, {**SMALL, "epochs": 2})
    (first, *_, last) = metrics_of(tmp_path / "extra" / "sft")
    pairs = naive_train.Pairs(shards)
    policy = AutoModelForCausalLM.from_pretrained(model)
    chosen = {pairs.pairs[row]["chosen"]: row for row in rows_of_steps(shards, 1)[0]}
    answers = [pairs.tokens(row)[:2] for row in chosen.values()]
    with torch.no_grad():
        total = sum(float(naive_train.answer_logp(policy, *answer)) for answer in answers)
    assert first["loss"] == pytest.approx(-total / sum(len(ids) for _, ids in answers), abs=1e-5)
    assert last["loss"] < first["loss"]


def test_the_reference_column_is_the_models_log_probability(prepared):
    model, shards = prepared
    stored = open_dataset(shards).column("reflogp/model", "logp")
    policy = AutoModelForCausalLM.from_pretrained(model)
    pairs = naive_train.Pairs(shards)
    with torch.no_grad():
        for row, response in enumerate(pairs.responses):
            prompt = pairs.queries[response["q"]]["prompt"]
            logp = float(naive_train.answer_logp(policy, prompt, response["tokens"]))
            assert stored[row] == pytest.approx(logp, abs=2e-5)
