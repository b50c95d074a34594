"""Training a reward model: losses of each answer alone, checkpoints, what is left out."""

import pytest
import torch

from mmrlhf_engine import PreferenceDataset, open_dataset, run_reward
from mmrlhf_engine.models.judge_turn import INSTRUCTION
from mmrlhf_engine.models.reward_model import load_reward_model
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.train.critiques import Critiques
from mmrlhf_engine.train.loop import steps_of
from mmrlhf_engine.train.reward import RewardConfig
from naive_reward import NaiveReward
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
