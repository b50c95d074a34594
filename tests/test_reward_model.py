"""A reward model: what is saved and read again, its rewards against transformers, what trains."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from load_data import plan, write
from mmrlhf_engine import PreferenceLoader
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.parts import part_of
from mmrlhf_engine.models.policy import load_policy, weights_hash
from mmrlhf_engine.models.reward_model import RewardHeadSettings, load_reward_model
from test_packed_forward import gradients, largest_relative_difference, weight_of
from test_policy import change_config, change_weights, saved, trained_parts
from tiny_models import make_case

ACTIVATIONS = ("tanh", "silu", "linear")
FAMILIES = ("llava_onevision", "qwen2_vl", "text")
CLASSES = {
    "llava_onevision": "LlavaOnevisionRewardModel",
    "qwen2_vl": "Qwen2VLRewardModel",
    "qwen2_5_vl": "Qwen2_5_VLRewardModel",
    "text": "Qwen2RewardModel",
}
FRESH = RewardHeadSettings()


@dataclass
class Problem:
    """A policy in a folder, and packs for it."""

    folder: str
    batches: list[Any]
    case: Any = None


def problem(name, folder, count=4):
    if name == "text":
        data = write(folder / "set", queries=6, text_only=True)
        batches = PreferenceLoader(data, plan("none"), threads=1)
        return Problem(saved("Qwen2", folder / "policy"), [b for b in batches if len(b.input_ids)])
    case = make_case(name, folder, count=count, frames=3)
    return Problem(str(case.folder), list(case.batches()), case)


def rewards_of(model, batch):
    return model(ModelPack.of(batch), lambda *given: given[-1])


@torch.no_grad()
def all_rewards(model, batches):
    return torch.cat([rewards_of(model, batch) for batch in batches])


def by_hand(head, hidden):
    """The formula of a head, from its weights."""
    named = dict(head.named_parameters())
    if head.activation != "linear":
        hidden = hidden @ named["dense.weight"].T + named["dense.bias"]
        hidden = hidden.tanh() if head.activation == "tanh" else hidden * hidden.sigmoid()
    return (hidden @ named["out_proj.weight"].T + named["out_proj.bias"])[..., 0]


def names_in(folder):
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_are_equal_after_saving_and_reading(name, activation, tmp_path):
    given = problem(name, tmp_path)
    torch.manual_seed(5)
    settings = RewardHeadSettings(activation=activation)
    model = load_reward_model(given.folder, new_head=settings)
    found = all_rewards(model, given.batches)
    assert len(set(found.tolist())) > 4
    model.model.save_pretrained(tmp_path / "reward")
    again = load_reward_model(str(tmp_path / "reward"))
    assert torch.equal(all_rewards(again, given.batches), found)
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["architectures"] == [CLASSES[name]]
    assert (config["is_rm"], config["reward_head"]) == (True, {"activation": activation})
    layers = ("out_proj",) if activation == "linear" else ("dense", "out_proj")
    heads = {f"rm_head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert names_in(tmp_path / "reward") == names_in(given.folder) | heads
    torch.manual_seed(5)
    same = load_reward_model(given.folder, new_head=settings)
    assert torch.equal(all_rewards(same, given.batches), found)
    other = load_reward_model(given.folder, new_head=settings)
    assert not torch.equal(all_rewards(other, given.batches), found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "qwen2_5_vl"])
def test_packed_rewards_and_gradients_are_those_of_each_answer_alone(name, activation, tmp_path):
    given = problem(name, tmp_path, count=6)
    settings = RewardHeadSettings(activation=activation)
    model = load_reward_model(given.folder, new_head=settings).train()
    assert any((batch.prefix_sequence >= 0).any() for batch in given.batches)
    assert any(len(batch.placeholder_start) for batch in given.batches)
    found = {}
    for batch in given.batches:
        rewards = rewards_of(model, batch)
        assert rewards.dtype == torch.float32
        own = {
            response: rewards[place]
            for place, response in enumerate(batch.sequence_response.tolist())
            if response >= 0
        }
        sum(weight_of(response) * reward for response, reward in own.items()).backward()
        found |= {response: float(reward.detach()) for response, reward in own.items()}
    trained = gradients(model.model)
    model.zero_grad()
    oracle = given.case.model
    pairs = [each.base_model.parameters() for each in (model.model, oracle)]
    for own, theirs in zip(*pairs, strict=True):
        theirs.requires_grad_(own.requires_grad)
    expected = {}
    for kind in ("chosen", "rejected"):
        for response, inputs in given.case.alone(kind):
            states = oracle.base_model(**inputs, use_cache=False).last_hidden_state
            reward = by_hand(model.model.rm_head, states[0, -1])
            (weight_of(response) * reward).backward()
            expected[response] = float(reward.detach())
    assert len(found) == 12
    assert found == pytest.approx(expected, abs=2e-5)
    alone = gradients(oracle) | gradients(model.model)
    assert largest_relative_difference(trained, alone) < 1e-4
    parts = {part_of(key, model.model, model.vision) for key in trained}
    assert parts == {"projector", "text", "reward_head"}


@torch.no_grad()
def test_rewards_of_prompts_and_the_output_head_are_given_as_well(tmp_path):
    given = problem("text", tmp_path)
    model = load_reward_model(given.folder, new_head=FRESH)
    policy = load_policy(given.folder)
    for batch in given.batches:
        pack = ModelPack.of(batch)
        hidden, head, same, rewards = model(pack, lambda *all_of_it: all_of_it)
        assert same is pack
        assert rewards.shape == (len(batch.cu_seqlens) - 1,)
        assert pack.ends.tolist() == (batch.cu_seqlens[1:] - 1).tolist()
        logits = policy(pack, lambda hidden, head, _: head.logits(hidden))
        assert torch.equal(head.logits(hidden), logits)


def test_an_empty_pack_has_one_sequence_and_trains_nothing(tmp_path):
    given = problem("qwen2_vl", tmp_path, count=3)
    batches = [b for rank in range(2) for b in given.case.batches(rank=rank, world_size=2)]
    (empty,) = [batch for batch in batches if not len(batch.input_ids)]
    model = load_reward_model(given.folder, new_head=FRESH).train()
    rewards = rewards_of(model, empty)
    assert rewards.shape == (1,)
    (0.0 * rewards.sum()).backward()
    trained = gradients(model.model)
    assert any(key.startswith("rm_head") for key in trained)
    assert not any(gradient.any() for gradient in trained.values())


def test_a_sequence_without_tokens_ends_with_its_prompt():
    from types import SimpleNamespace

    from mmrlhf_engine.models.layout import sequence_ends

    batch = SimpleNamespace(cu_seqlens=[0, 3, 3, 5, 7], prefix_sequence=[-1, 0, 0, -1])
    assert sequence_ends(batch).tolist() == [2, 2, 4, 6]


@pytest.mark.parametrize("name", ["llava_onevision", "text"])
def test_the_head_is_always_trained(name, tmp_path):
    folder = problem(name, tmp_path).folder
    sees = {"projector"} if name != "text" else set()
    model = load_reward_model(folder, new_head=FRESH)
    assert trained_parts(model) == sees | {"text", "head", "reward_head"}
    model = load_reward_model(folder, new_head=FRESH, freeze=("tower", "projector", "text", "head"))
    assert trained_parts(model) == {"reward_head"}
    with pytest.raises(ConfigError, match="found reward_head, expected any of tower"):
        load_reward_model(folder, new_head=FRESH, freeze=("reward_head",))


def test_gradient_checkpointing_computes_the_same(tmp_path):
    given = problem("llava_onevision", tmp_path)
    trained = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = load_reward_model(
            given.folder, new_head=FRESH, gradient_checkpointing=checkpointing
        ).train()
        for batch in given.batches:
            (rewards_of(model, batch) * torch.arange(1, len(batch.cu_seqlens))).sum().backward()
        trained.append(gradients(model.model))
    assert largest_relative_difference(trained[1], trained[0]) < 1e-5


@torch.no_grad()
def test_the_head_is_in_float32_where_the_model_is_not(tmp_path):
    given = problem("qwen2_vl", tmp_path)
    model = load_reward_model(given.folder, new_head=FRESH)
    model.model.save_pretrained(tmp_path / "reward")
    exact = all_rewards(model, given.batches)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = all_rewards(model, given.batches)
        states = torch.randn(3, 32)
        assert torch.allclose(model.model.rm_head(states), by_hand_outside(model, states))
    half = load_reward_model(str(tmp_path / "reward"), dtype=torch.bfloat16)
    assert half.model.rm_head.dense.weight.dtype == torch.float32
    assert torch.equal(half.model.rm_head.dense.weight, model.model.rm_head.dense.weight)
    assert half.model.base_model.language_model.norm.weight.dtype == torch.bfloat16
    half = all_rewards(half, given.batches)
    assert autocast.dtype == half.dtype == torch.float32
    assert 0 < float((autocast - exact).abs().max()) < 1
    assert 0 < float((half - exact).abs().max()) < 1


def by_hand_outside(model, states):
    with torch.autocast("cpu", enabled=False):
        return by_hand(model.model.rm_head, states)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "text"])
def test_an_adapter_is_saved_with_the_head_and_merged(name, tmp_path):
    given = problem(name, tmp_path)
    settings = RewardHeadSettings(activation="silu")
    model = load_reward_model(given.folder, new_head=settings, lora={"rank": 2}).train()
    for key, parameter in model.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in key or "rm_head.modules_to_save" in key)
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    rewards_of(model, given.batches[0]).sum().backward()
    assert any("rm_head" in key for key in gradients(model.model))
    assert any("lora_B" in key for key in gradients(model.model))
    found = all_rewards(model, given.batches)
    adapter = str(tmp_path / "adapter")
    model.model.save_pretrained(adapter)
    merged = load_reward_model(adapter)
    assert merged.model.rm_head.activation == "silu"
    assert torch.allclose(all_rewards(merged, given.batches), found, rtol=1e-3, atol=1e-3)
    merged.model.save_pretrained(tmp_path / "merged")
    again = load_reward_model(str(tmp_path / "merged"))
    assert torch.equal(all_rewards(again, given.batches), all_rewards(merged, given.batches))
    # An adapter on top of a reward model keeps that one's head where it is not trained.
    over = load_reward_model(str(tmp_path / "merged"), lora={"rank": 2})
    over.model.save_pretrained(tmp_path / "over")
    over = load_reward_model(str(tmp_path / "over"))
    assert torch.equal(all_rewards(over, given.batches), all_rewards(merged, given.batches))
    with pytest.raises(ConfigError, match=r"a reward model .an adapter with a reward head"):
        load_policy(adapter)
    with pytest.raises(ConfigError, match=r"a reward model .an adapter with a reward head"):
        load_reward_model(adapter, new_head=settings)
    with pytest.raises(ConfigError, match=r"'rm_head\.out_proj' is the reward head"):
        load_reward_model(given.folder, new_head=settings, lora={"targets": ["rm_head.out_proj"]})


def test_layers_of_the_text_model_that_are_called_as_the_heads_can_have_adapters(tmp_path):
    model = load_reward_model(saved("Phi", tmp_path), new_head=FRESH, lora={"targets": ["dense"]})
    adapted = {key for key, _ in model.model.named_parameters() if "lora_A" in key}
    assert len(adapted) == 2
    assert all("self_attn.dense" in key for key in adapted)


def test_an_adapter_without_its_head_is_refused(tmp_path):
    given = problem("text", tmp_path)
    model = load_reward_model(given.folder, new_head=FRESH, lora={"rank": 2})
    adapter = tmp_path / "adapter"
    model.model.save_pretrained(adapter)
    hashed = weights_hash(str(adapter))
    file = adapter / "adapter_model.safetensors"
    file.rename(adapter / "model.safetensors")
    change_weights(
        adapter, lambda weights: weights["base_model.model.rm_head.out_proj.bias"].add_(1)
    )
    (adapter / "model.safetensors").rename(file)
    assert weights_hash(str(adapter)) != hashed
    file.rename(adapter / "model.safetensors")
    change_weights(adapter, lambda weights: weights.pop("base_model.model.rm_head.dense.bias"))
    (adapter / "model.safetensors").rename(file)
    with pytest.raises(ConfigError, match=r"1 weights are missing, .* rm_head.dense.bias"):
        load_reward_model(str(adapter))
    load_policy(given.folder, lora={"rank": 2}).model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"a policy .Qwen2ForCausalLM., expected a reward model"):
        load_reward_model(str(tmp_path / "plain"))


@pytest.fixture
def reward_folder(tmp_path):
    model = load_reward_model(saved("Qwen2", tmp_path / "policy"), new_head=FRESH)
    model.model.save_pretrained(tmp_path / "reward")
    return str(tmp_path / "reward")


def test_policies_and_reward_models_are_told_apart(reward_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"a policy .Qwen2ForCausalLM.") as raised:
        load_reward_model(str(tmp_path / "policy"))
    assert raised.value.hint == "train one: mmrlhf-engine reward"
    with pytest.raises(
        ConfigError, match=r"a reward model .Qwen2RewardModel., expected a language"
    ):
        load_policy(reward_folder)
    with pytest.raises(
        ConfigError, match=r"a reward model .Qwen2RewardModel., expected a language"
    ):
        load_reward_model(reward_folder, new_head=FRESH)
    # Without what config.json says, its weights still do.
    change_config(reward_folder, architectures=["Qwen2ForCausalLM"], is_rm=False)
    with pytest.raises(ConfigError, match=r"has the weight rm_head"):
        load_policy(reward_folder)
    change_config(reward_folder, architectures=["Qwen2ForSequenceClassification"])
    with pytest.raises(ConfigError, match=r"another reward model .Qwen2ForSequenceClassification"):
        load_reward_model(reward_folder)


@pytest.mark.parametrize("own", ["dense.weight", "out_proj.bias"])
def test_a_missing_weight_of_the_head_is_refused(own, reward_folder):
    change_weights(reward_folder, lambda weights: weights.pop(f"rm_head.{own}"))
    with pytest.raises(ConfigError, match=rf"1 weights are missing .* rm_head.{own}"):
        load_reward_model(reward_folder)


def test_a_head_of_another_form_is_refused(reward_folder):
    change_config(reward_folder, reward_head={"activation": "linear"})
    with pytest.raises(ConfigError, match=r"weight rm_head.dense.bias, which a reward head of"):
        load_reward_model(reward_folder)
    change_config(reward_folder, reward_head={"activation": "relu"})
    with pytest.raises(ConfigError, match=r"'relu'.*expected activation tanh, silu or linear"):
        load_reward_model(reward_folder)
    change_config(reward_folder, reward_head=None)
    with pytest.raises(ConfigError, match=r"is None, expected activation") as raised:
        load_reward_model(reward_folder)
    assert "import-checkpoint" in raised.value.hint


def test_the_hash_of_weights_is_of_the_head_as_well(reward_folder):
    found = weights_hash(reward_folder)
    change_weights(reward_folder, lambda weights: weights["rm_head.out_proj.bias"].add_(1))
    assert weights_hash(reward_folder) != found


def test_transformers_own_class_reads_the_weights_that_both_have(reward_folder):
    model = hf.Qwen2ForCausalLM.from_pretrained(reward_folder, output_loading_info=True)[1]
    assert not model["missing_keys"]
    assert all(key.startswith("rm_head.") for key in model["unexpected_keys"])


def test_models_of_equal_weights_and_another_head_have_another_hash(tmp_path):
    policy = problem("text", tmp_path)
    load_reward_model(policy.folder, new_head=FRESH).model.save_pretrained(tmp_path / "reward")
    before = weights_hash(str(tmp_path / "reward"))
    change_config(tmp_path / "reward", reward_head={"activation": "silu"})
    assert weights_hash(str(tmp_path / "reward")) != before
