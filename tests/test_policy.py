"""Loading models as policies: what is trained, what is read of the head, and what is refused."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from load_data import plan, write
from mmrlhf_engine import PreferenceLoader, open_dataset
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.packed_attention import Segments
from mmrlhf_engine.models.parts import part_of
from mmrlhf_engine.models.policy import head_of, load_policy, processor_record, weights_hash
from model_families import WITH_VIDEOS, processor_folder
from tiny_models import TEXT, make_case, tiny_model

SMALL = TEXT | {"vocab_size": 1000, "head_dim": 8}


def saved(kind, folder, **settings):
    """A random text model in a folder, as a string."""
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(**(SMALL | settings))
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(folder)
    return str(folder)


def change_weights(folder, change):
    """Rewrite ``model.safetensors`` of a folder."""
    weights = load_file(f"{folder}/model.safetensors")
    change(weights)
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})


def change_config(folder, **settings):
    file = Path(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def trained_parts(policy):
    return {
        part_of(name, policy.model, policy.vision)
        for name, parameter in policy.model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
@pytest.mark.parametrize("unit", ["query", "response"])
def test_a_model_of_text_alone_reads_shared_prompts(unit, tmp_path):
    data = write(tmp_path / "set", queries=12, text_only=True)
    policy = load_policy(saved("Qwen2", tmp_path / "model"))
    assert policy.family is None
    alone = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    dataset = open_dataset(data)
    prompts, queries = dataset.queries.collect()["prompt"], dataset.responses.collect()["q"]
    scored = 0
    for batch in PreferenceLoader(data, plan("none", unit=unit), threads=1):
        pack = ModelPack.of(batch)
        found = policy(pack, lambda hidden, head, _: head.logits(hidden).log_softmax(-1)).gather(
            1, pack.targets[:, None]
        )[:, 0]
        ends = pack.cu_rows.tolist()
        for place, response in enumerate(batch.sequence_response.tolist()):
            if response < 0:
                continue
            answer = pack.targets[ends[place] : ends[place + 1]]
            prompt = torch.tensor(prompts[queries[response]].to_list())
            ids = torch.cat([prompt, answer])[None]
            logits = alone(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logits.gather(1, answer[:, None])[:, 0]
            assert torch.allclose(found[ends[place] : ends[place + 1]], expected, atol=1e-5)
            scored += 1
    assert scored == len(queries)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "settings", "softcap", "scale"),
    [
        ("Qwen2", {}, None, 1.0),
        ("Qwen2", {"tie_word_embeddings": True}, None, 1.0),
        ("Gemma2", {"attn_logit_softcapping": None}, 30.0, 1.0),
        ("Cohere", {"logit_scale": 0.25}, None, 0.25),
        ("Granite", {"logits_scaling": 4.0}, None, 0.25),
        ("Phi", {}, None, 1.0),
    ],
)
def test_the_head_gives_the_models_own_logits(kind, settings, softcap, scale, tmp_path):
    policy = load_policy(saved(kind, tmp_path, **settings))
    head = head_of(policy.model)
    assert (head.softcap, head.logit_scale) == (softcap, scale)
    assert (head.bias is not None) == (kind == "Phi")
    ids = torch.arange(9)[None]
    pack = ModelPack(
        input_ids=ids,
        position_ids=ids,
        segments=Segments.of([0, 9], [-1]),
        rows=ids[0],
        targets=ids[0],
        cu_rows=torch.tensor([0, 9]),
        ends=torch.tensor([8]),
        pictures=None,
        needs_vision=False,
    )
    found = policy(pack, lambda hidden, head, _: head.logits(hidden))
    expected = hf.AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits[0]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", [*WITH_VIDEOS, "llava", "llava_next"])
def test_parts_are_frozen_by_name(name, tmp_path):
    processor = processor_folder(name, tmp_path)
    tiny_model(name, processor).save_pretrained(tmp_path)
    tied = name == "internvl"
    every = {"tower", "projector", "text"} | (set() if tied else {"head"})
    assert trained_parts(load_policy(str(tmp_path))) == every - {"tower"}
    assert trained_parts(load_policy(str(tmp_path), freeze=())) == every
    assert trained_parts(load_policy(str(tmp_path), freeze=("text",))) == every - {"text"}
    policy = load_policy(str(tmp_path), freeze=("head", "projector"))
    assert trained_parts(policy) == every - {"head", "projector"}
    embeddings = policy.model.get_input_embeddings().weight
    assert embeddings.requires_grad == (not tied)
    with pytest.raises(ConfigError, match="found vision, expected any of tower, projector"):
        load_policy(str(tmp_path), freeze=("vision",))


def test_dropout_is_off_but_for_an_adapters_own(tmp_path):
    folder = saved("Phi", tmp_path, attention_dropout=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    policy = load_policy(folder, lora={"dropout": 0.25}).train()
    rates = {
        name: module.p
        for name, module in policy.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert {rate for name, rate in rates.items() if "lora" in name} == {0.25}
    assert {rate for name, rate in rates.items() if "lora" not in name} == {0.0}
    layers = policy.model.get_base_model().base_model.layers
    assert {layer.self_attn.attention_dropout for layer in layers} == {0.0}


def test_adapters_are_put_where_they_are_asked_for(tmp_path):
    processor = processor_folder("qwen2_5_vl", tmp_path)
    tiny_model("qwen2_5_vl", processor).save_pretrained(tmp_path)
    folder = str(tmp_path)

    def adapted(**lora):
        policy = load_policy(folder, lora=lora)
        names = {
            name.partition(".lora_")[0].removeprefix("base_model.model.model.")
            for name, parameter in policy.model.named_parameters()
            if parameter.requires_grad
        }
        return policy, names

    policy, names = adapted(rank=3, alpha=6.0)
    assert {name.rpartition(".")[2] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert all(name.startswith("language_model.layers") for name in names)
    layer = policy.model.get_base_model().base_model.language_model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape[0] == 3
    assert layer.scaling["default"] == 2.0
    # The tower has layers of this name as well.
    _, names = adapted(targets=["down_proj"])
    assert all(name.startswith("language_model") for name in names)
    _, names = adapted(targets=["mlp.down_proj", "visual.merger.mlp.0"])
    assert {name.partition(".")[0] for name in names} == {"language_model", "visual"}
    with pytest.raises(ConfigError, match="'lm_head' is the output head"):
        adapted(targets=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="no linear module 'c_attn', expected one of down_proj"):
        adapted(targets=["c_attn"])
    with pytest.raises(ConfigError, match=r"lora: found \['r'\], expected some of"):
        adapted(r=8)
    with pytest.raises(ConfigError, match="expected rank >= 1"):
        adapted(rank=0)


def test_an_adapter_is_merged_into_its_base(tmp_path):
    base = saved("Qwen2", tmp_path / "base")
    policy = load_policy(base, lora={"rank": 2})
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    policy.model.save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    merged = load_policy(adapter)
    ids = torch.arange(7)[None]
    arguments = {"input_ids": ids, "segments": Segments.of([0, 7], [-1])}
    with torch.no_grad():
        expected = policy.model(**arguments).logits
        assert torch.allclose(merged.model(**arguments).logits, expected, atol=1e-4)
        assert not torch.allclose(load_policy(base).model(**arguments).logits, expected, atol=0.1)
    assert len({weights_hash(adapter), weights_hash(base)}) == 2
    assert processor_record(adapter) is None
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"whose base model .* is not there"):
        load_policy(adapter)


def test_saved_weights_are_an_ordinary_checkpoint(tmp_path):
    (tmp_path / "case").mkdir()
    case = make_case("qwen3_vl", tmp_path / "case", count=2, frames=3)
    policy = load_policy(str(case.folder))
    policy.model.save_pretrained(tmp_path / "out")
    again, found = hf.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    (_, inputs), *_ = case.alone("chosen")
    with torch.no_grad():
        expected = case.model(**inputs).logits
        assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", [*WITH_VIDEOS, "llava", "llava_next"])
def test_the_record_of_a_processor_is_that_of_a_dataset(name, tmp_path):
    case = make_case(name, tmp_path, count=2, frames=3)
    assert processor_record(str(case.folder)) == open_dataset(case.dataset).processor


def test_the_record_of_a_processor_that_is_missing(tmp_path):
    assert processor_record(saved("Qwen2", tmp_path / "text")) is None
    processor_folder("llava", tmp_path)
    tiny = hf.LlavaConfig()
    tiny.save_pretrained(tmp_path / "sees")
    with pytest.raises(ConfigError, match="neither processor_config"):
        processor_record(str(tmp_path / "sees"))
    with pytest.raises(ConfigError, match="its processor cannot be read"):
        processor_record(str(tmp_path / "nothing"))


def test_the_hash_of_weights(tmp_path):
    folder = saved("Qwen2", tmp_path / "one")
    found = weights_hash(folder)
    assert found.startswith("sha256:")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert weights_hash(str(tmp_path / "shards")) == found
    change_weights(folder, lambda weights: weights["model.norm.weight"][3:4].add_(1e-3))
    changed = weights_hash(folder)
    assert changed != found
    model.half().save_pretrained(tmp_path / "half")
    assert weights_hash(str(tmp_path / "half")) not in (found, changed)
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert weights_hash(str(tmp_path / "bin")).startswith("sha256:")
    next((tmp_path / "shards").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(ConfigError, match="is not there"):
        weights_hash(str(tmp_path / "shards"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="found no weights"):
        weights_hash(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            hf.PaliGemmaConfig,
            r"model_type 'paligemma' \(an unknown family\), expected one of qwen2",
        ),
        (hf.CLIPConfig, r"model_type 'clip' \(an unknown family\)"),
        (hf.Gemma3Config, r"'gemma3' \(the tokens of an image attend to each other"),
    ],
)
def test_other_families_are_refused_with_the_list_of_the_known(config, message, tmp_path):
    config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message) as raised:
        load_policy(str(tmp_path))
    assert "internvl" in str(raised.value)
    assert "gemma3," not in str(raised.value)


def test_reward_models_are_refused(tmp_path):
    folder = saved("Qwen2", tmp_path / "one")
    change_config(folder, architectures=["Qwen2RewardModel"])
    with pytest.raises(ConfigError, match=r"a reward model .Qwen2RewardModel."):
        load_policy(folder)
    change_config(folder, architectures=["Qwen2ForCausalLM"], is_rm=True)
    with pytest.raises(ConfigError, match=r"a reward model .Qwen2ForCausalLM."):
        load_policy(folder)
    change_config(folder, is_rm=False)
    change_weights(folder, lambda weights: weights.update({"rm_head.dense.weight": torch.ones(2)}))
    with pytest.raises(ConfigError, match=r"has the weight rm_head.dense.weight"):
        load_policy(folder)
    classifier = hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**SMALL))
    classifier.save_pretrained(tmp_path / "two")
    with pytest.raises(ConfigError, match="Qwen2ForSequenceClassification"):
        load_policy(str(tmp_path / "two"))


def test_weights_that_would_be_random_are_refused(tmp_path):
    folder = saved("Qwen2", tmp_path)
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ConfigError, match=r"1 weights are missing.*layers.1.mlp.up_proj"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Gemma2", {}, "the model's attention has softcap"),
        ("Qwen3Next", {}, "linear_attention, which would mix the sequences"),
        ("StableLm", {}, "attention of its own"),
        ("HyperCLOVAX", {"logits_scaling": 4.0}, "not those of a linear head"),
    ],
)
def test_what_cannot_read_packs_is_refused(kind, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as raised:
        load_policy(saved(kind, tmp_path, **settings))
    assert str(tmp_path) in str(raised.value)
    assert raised.value.hint


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy(str(tmp_path / "nothing"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="an adapter that does not name its base"):
        load_policy(str(tmp_path))


@torch.no_grad()
def test_windows_that_are_shorter_than_a_sequence_are_kept(tmp_path):
    data = write(tmp_path / "set", queries=4, text_only=True)
    settings = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    folder = saved("Qwen2", tmp_path / "model", **settings)
    policy, alone = load_policy(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = next(PreferenceLoader(data, plan("none"), threads=1))
    found = policy.states(ModelPack.of(batch))
    for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        ids = torch.from_numpy(batch.input_ids[start:end]).long()[None]
        expected = alone(ids, output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(found[start:end], expected, atol=1e-5)


def test_pictures_are_not_given_to_a_model_of_text_alone(tmp_path):
    case = make_case("qwen2_vl", tmp_path, count=6, frames=3)
    policy = load_policy(saved("Qwen2", tmp_path / "text"))
    batch = next(batch for batch in case.batches() if len(batch.placeholder_start))
    with pytest.raises(InputError, match="Qwen2ForCausalLM reads text alone"):
        policy(ModelPack.of(batch), lambda hidden, *_: hidden)


@pytest.mark.parametrize(("freeze", "kept"), [(("tower",), False), ((), True)])
def test_checkpointing_leaves_a_frozen_tower_alone(freeze, kept, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_model("internvl", processor_folder("internvl", folder)).save_pretrained(folder)
    policy = load_policy(str(folder), freeze=freeze, gradient_checkpointing=True).train()
    found = []
    base = policy.model.base_model
    base.vision_tower.register_forward_hook(
        lambda *call: found.append(call[-1].last_hidden_state.requires_grad)
    )
    pixels = torch.zeros(1, 3, 28, 28)
    base.get_image_features(pixels)
    assert found == [kept]
