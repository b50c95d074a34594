"""Scores of answers: against each alone, resumed, and what the columns say."""

import numpy as np
import pytest
import torch

from mmrlhf_engine import open_dataset, run_reward, run_score
from mmrlhf_engine.models.judge_turn import INSTRUCTION
from mmrlhf_engine.models.reward_model import load_reward_model
from naive_reward import NaiveReward
from train_data import judged_rows, pack_rows, text_model

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
    model = text_model(folder / "model")
    shards = pack_rows(model, judged_rows(10), folder / "shards")
    run_reward(shards, model, folder / "run", TRAINING)
    return folder / "run" / "10_reward" / "model", shards


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
