"""A checkpoint in LLaVA-NeXT's format: names both ways, and what the new folder gives."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from command import engine
from mmrlhf_engine.errors import ConfigError, CorruptDataError, InputError
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import load_policy, weights_hash
from mmrlhf_engine.models.released_names import released_name, transformers_name
from mmrlhf_engine.models.reward_model import RewardHeadSettings, load_reward_model
from mmrlhf_engine.train.import_checkpoint import import_checkpoint
from test_reward_model import all_rewards, by_hand
from tiny_models import make_case

LAYER = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
NAMES = {
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.layers.3.self_attn.q_proj.bias": "model.language_model.layers.3.self_attn.q_proj.bias",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "model.image_newline": "model.image_newline",
    "model.mm_projector.0.bias": "model.multi_modal_projector.linear_1.bias",
    "model.mm_projector.2.weight": "model.multi_modal_projector.linear_2.weight",
    LAYER: "model.vision_tower.encoder.layers.1.mlp.fc1.weight",
    "rm_head.dense.weight": "rm_head.dense.weight",
    "rm_head.out_proj.bias": "rm_head.out_proj.bias",
}


def test_names_there_and_back():
    assert {name: transformers_name(name) for name in NAMES} == NAMES
    assert {released_name(own): name for name, own in NAMES.items()} == {n: n for n in NAMES}
    assert transformers_name("model.mm_projector.1.weight") is None
    assert released_name("model.visual.merger.weight") is None


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case("llava_onevision", tmp_path_factory.mktemp("case"), count=4, frames=3)


@pytest.fixture(scope="module")
def reward(case):
    """A reward model of transformers, whose weights the released checkpoint has as well."""
    torch.manual_seed(4)
    return load_reward_model(str(case.folder), new_head=RewardHeadSettings())


@pytest.fixture(scope="module")
def original(case, reward, tmp_path_factory):
    """A folder as LLaVA-NeXT's code writes it, in one file; tests write nothing into it."""
    folder = tmp_path_factory.mktemp("released")
    vision, text = reward.model.config.vision_config, reward.model.config.text_config
    # The tower as it is published has one layer more.
    tower = vision.to_dict() | {"num_hidden_layers": vision.num_hidden_layers + 1}
    (folder / "siglip").mkdir()
    (folder / "siglip" / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": tower})
    )
    settings = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "is_rm": True,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_parameters["rope_theta"],
        "vocab_size": text.vocab_size,
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": reward.model.config.image_grid_pinpoints[::-1],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "siglip",
        "mm_vision_select_layer": -2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    weights = {released_name(name): value for name, value in reward.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def released(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "released"))


def change(folder, change_weights=None, **settings):
    if settings:
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
    if change_weights is not None:
        weights = load_file(folder / "model.safetensors")
        change_weights(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def imported(case):
    """Import with the processor of the case."""
    return partial(import_checkpoint, processor=str(case.folder))


def test_the_imported_model_gives_the_rewards_of_the_original(
    case, reward, original, imported, tmp_path
):
    out = tmp_path / "model"
    found = imported(original, out)
    assert (found.kind, found.activation) == ("LlavaOnevisionRewardModel", "tanh")
    assert (found.weights, found.left_out) == (len(reward.model.state_dict()), ())
    model = load_reward_model(str(out))
    batches = list(case.batches())
    rewards = all_rewards(model, batches)
    assert torch.equal(rewards, all_rewards(reward, batches))
    assert model.model.config.image_grid_pinpoints == reward.model.config.image_grid_pinpoints
    # By the forward of transformers and the formula of the head, from the original's weights.
    weights = load_file(original / "model.safetensors")
    expected, oracle = {}, hf.LlavaOnevisionForConditionalGeneration(case.model.config).eval()
    named = {transformers_name(n): value for n, value in weights.items() if "rm_head" not in n}
    oracle.load_state_dict(named)
    for kind in ("chosen", "rejected"):
        for response, inputs in case.alone(kind):
            with torch.no_grad():
                states = oracle.base_model(**inputs, use_cache=False).last_hidden_state[0, -1]
                expected[response] = float(by_hand(reward.model.rm_head, states))
    responses = [row for batch in batches for row in batch.sequence_response.tolist()]
    mine = {row: float(own) for row, own in zip(responses, rewards, strict=True) if row >= 0}
    assert mine == pytest.approx(expected, abs=2e-5)
    # What a trained model needs of its folder is there: packs of this processor fit it.
    assert hf.AutoTokenizer.from_pretrained(out).get_vocab()
    assert (out / "processor_config.json").is_file()


def test_there_and_back_every_tensor_is_the_same(original, imported, tmp_path):
    imported(original, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    back = {released_name(name): value for name, value in weights.items()}
    before = load_file(original / "model.safetensors")
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "bin parts", "safetensors parts"])
def test_every_form_of_files_gives_the_same(kind, released, original, imported, tmp_path):
    weights = load_file(released / "model.safetensors")
    (released / "model.safetensors").unlink()
    suffix = kind.split()[0]
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    halves = [dict(list(weights.items())[start::2]) for start in (0, 1)]
    parts = halves if "parts" in kind else [weights]
    weight_map = {}
    for number, part in enumerate(parts):
        file = name if len(parts) == 1 else name.replace(".", f"-{number}.")
        weight_map |= dict.fromkeys(part, file)
        if suffix == "bin":
            torch.save(part, released / file)
        else:
            save_file(part, released / file)
    if len(parts) > 1:
        (released / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = imported(released, tmp_path / "model", shard_bytes=20_000)
    assert found.weights == len(weights)
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 2
    imported(original, tmp_path / "one")
    assert weights_hash(str(tmp_path / "model")) == weights_hash(str(tmp_path / "one"))
    load_reward_model(str(tmp_path / "model"))
    (released / next(iter(weight_map.values()))).write_bytes(b"damaged")
    with pytest.raises(CorruptDataError, match="no file of weights"):
        imported(released, tmp_path / "again")
    (released / next(iter(weight_map.values()))).unlink()
    with pytest.raises(ConfigError, match=r"is not there|found no weights"):
        imported(released, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_types_are_kept_but_the_head_is_float32(released, imported, tmp_path):
    def halve(weights):
        weights.update({name: value.bfloat16() for name, value in weights.items()})
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    change(released, halve, torch_dtype="bfloat16")
    found = imported(released, tmp_path / "model")
    assert found.left_out == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    types = {name.startswith("rm_head."): value.dtype for name, value in weights.items()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    before = load_file(released / "model.safetensors")
    assert torch.equal(weights["rm_head.dense.weight"], before["rm_head.dense.weight"].float())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_without_a_head_it_is_a_policy(case, released, imported, tmp_path):
    def remove(weights):
        for name in [name for name in weights if name.startswith("rm_head.")]:
            del weights[name]

    change(released, remove)
    with pytest.raises(ConfigError, match="says is_rm, but there are no weights of rm_head"):
        imported(released, tmp_path / "model")
    change(released, is_rm=False, image_grid_pinpoints="(1x1),...,(3x3)")
    found = imported(released, tmp_path / "model")
    assert (found.kind, found.activation) == ("LlavaOnevisionForConditionalGeneration", None)
    policy = load_policy(str(tmp_path / "model"))
    side = policy.model.config.vision_config.image_size
    sizes = [[side * down, side * across] for down in (1, 2, 3) for across in (1, 2, 3)]
    assert policy.model.config.image_grid_pinpoints == sizes
    batch = next(case.batches())
    with torch.no_grad():
        found, expected = (
            one(ModelPack.of(batch), lambda hidden, head, _: head.logits(hidden))
            for one in (policy, load_policy(str(case.folder)))
        )
    assert torch.equal(found, expected)


def test_a_head_of_one_layer_is_linear_and_a_tied_output_head_is_left_out(
    released, imported, tmp_path
):
    def change_both(weights):
        del weights["rm_head.dense.weight"], weights["rm_head.dense.bias"]
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    change(released, change_both, tie_word_embeddings=True)
    found = imported(released, tmp_path / "model")
    assert found.activation == "linear"
    model = load_reward_model(str(tmp_path / "model")).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    change(released, lambda weights: weights["lm_head.weight"].add_(1))
    with pytest.raises(ConfigError, match=r"lm_head.weight differs from model.embed_tokens"):
        imported(released, tmp_path / "other")
    change(released, lambda weights: weights.pop("lm_head.weight"), tie_word_embeddings=False)
    with pytest.raises(ConfigError, match=r"1 weights are missing: lm_head.weight"):
        imported(released, tmp_path / "other")


def _rename(name, other):
    return lambda weights: weights.update({other: weights.pop(name)})


@pytest.mark.parametrize(
    ("change_weights", "settings", "message"),
    [
        (
            lambda weights: weights.update({"x.a": torch.ones(1), "x.b": torch.ones(1)}),
            {},
            "2 weights have names that are unknown: x.a, x.b",
        ),
        (
            _rename(LAYER, LAYER.replace("layers.1", "layers.2")),
            {},
            r"1 weights have no place in the model: .*vision_model.encoder.layers.2.mlp",
        ),
        (lambda weights: weights.pop(LAYER), {}, rf"1 weights are missing: {LAYER}"),
        (
            lambda weights: weights.update({"rm_head.dense.bias": torch.ones(3)}),
            {},
            r"another shape: rm_head.dense.bias \[3\], expected \[32\]",
        ),
        (
            lambda weights: weights.update({"rm_head.dense.bias": torch.ones(32).double()}),
            {},
            "neither float32, float16 nor bfloat16: rm_head.dense.bias",
        ),
        (None, {"model_type": "llava_llama", "architectures": []}, "expected llava_qwen"),
        (None, {"vocab_size": None}, "has no vocab_size"),
        (None, {"mm_vision_tower": "openai/clip-vit"}, "expected siglip-so400m-patch14-384, or a"),
        (None, {"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad', expected anyres_max_N"),
        (None, {"mm_projector_type": "linear"}, "expected mlp2x_gelu"),
        (None, {"mm_patch_merge_type": "flat"}, "expected spatial_unpad"),
        (None, {"mm_spatial_pool_mode": "average"}, "expected bilinear"),
        (None, {"mm_newline_position": "grid"}, "expected one_token"),
        (None, {"mm_resampler_type": "spatial_pool"}, "mm_resampler_type is 'spatial_pool'"),
        (None, {"mm_use_im_start_end": True}, "mm_use_im_start_end is True, expected false"),
        (None, {"add_faster_video": True}, "add_faster_video is True, expected false"),
        (None, {"image_grid_pinpoints": None}, "image_grid_pinpoints is None"),
        (None, {"image_grid_pinpoints": [[28]]}, "a setting of another type or value"),
        (None, {"hidden_size": "32"}, "a setting of another type or value: .*hidden_size"),
        (None, {"num_attention_heads": 0}, "no model can be made of its config.json"),
        (None, {"architectures": 5, "model_type": None}, r"model_type None \(5\), expected"),
    ],
)
def test_what_does_not_fit_is_refused(
    change_weights, settings, message, released, imported, tmp_path
):
    change(released, change_weights, **settings)
    with pytest.raises(ConfigError, match=message):
        imported(released, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_processor_of_another_model_is_refused(original, released, imported, tmp_path):
    change(released, image_aspect_ratio="anyres_max_9")
    with pytest.raises(ConfigError, match=r"divides pictures otherwise.*max_tiles 4, not 9"):
        imported(released, tmp_path / "model")
    (tmp_path / "other").mkdir()
    other = make_case("qwen2_vl", tmp_path / "other", count=2, frames=3)
    with pytest.raises(ConfigError, match="that of qwen2_vl, not llava_onevision"):
        imported(original, tmp_path / "model", processor=str(other.folder))


def test_the_tower_of_the_released_models_by_its_name(original):
    from mmrlhf_engine.models.released_config import released_config

    settings = json.loads((original / "config.json").read_text())
    settings["mm_vision_tower"] = "google/siglip-so400m-patch14-384"
    config = released_config(settings, "x", image_token=1, video_token=2)
    default = hf.LlavaOnevisionConfig().vision_config
    assert config.vision_config.to_dict() == default.to_dict()
    # Width and height there, height and width here.
    settings["image_grid_pinpoints"] = [[28, 56], [28, 84]]
    config = released_config(settings, "x", image_token=1, video_token=2)
    assert config.image_grid_pinpoints == [[56, 28], [84, 28]]


def test_without_a_processor_the_ids_are_those_of_the_released_tokenizer(released, tmp_path):
    with pytest.raises(ConfigError, match=r"vocab_size 418, but the token of an image .* 151,647"):
        import_checkpoint(released, tmp_path / "model")

    def more_tokens(weights):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = torch.zeros(152_064, 32, dtype=torch.bfloat16)

    change(released, more_tokens, vocab_size=152_064)
    import_checkpoint(released, tmp_path / "model")
    config = load_reward_model(str(tmp_path / "model")).model.config
    assert (config.image_token_id, config.video_token_id) == (151_646, 151_647)
    assert not (tmp_path / "model" / "tokenizer.json").exists()


def test_the_command(case, original, tmp_path):
    given = ["import-checkpoint", original, "--processor", case.folder, "--out", tmp_path / "m"]
    done = engine(*given)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'm'}: LlavaOnevisionRewardModel, reward head tanh, " in done.stdout
    again = engine(*given)
    assert again.returncode == 1
    assert "is there, expected a new folder" in again.stderr
    assert engine("import-checkpoint", tmp_path, "--out", tmp_path / "n").returncode == 2


def test_a_folder_without_a_configuration_is_refused(released, imported, tmp_path):
    (released / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        imported(released, tmp_path / "model")
    (released / "config.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        imported(released, tmp_path / "model")


@pytest.mark.parametrize(
    "content", ["{", "[1]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_named(content, released, imported, tmp_path):
    (released / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptDataError, match=r"model\.safetensors\.index\.json: "):
        imported(released, tmp_path / "model")


def test_what_is_no_such_checkpoint_is_said(case, original, released, tmp_path):
    words = ["import-checkpoint", original, "--out"]
    (tmp_path / "af").touch()
    done = engine(*words, tmp_path / "af" / "x", "--processor", case.folder)
    assert (done.returncode, f"{tmp_path / 'af'} is a file" in done.stderr) == (1, True)
    done = engine(*words, tmp_path / "m", "--processor", tmp_path / "nothing")
    assert "--model" not in done.stderr
    assert (done.returncode, f"--processor {tmp_path / 'nothing'}: no such" in done.stderr) == (
        2,
        True,
    )
    done = engine("import-checkpoint", case.folder, "--out", tmp_path / "m")
    assert (done.returncode, "transformers' format already" in done.stderr) == (2, True)
    (released / "config.json").write_text("[1]")
    done = engine("import-checkpoint", released, "--out", tmp_path / "m")
    assert (done.returncode, "found list, expected a JSON object" in done.stderr) == (1, True)
    assert not (tmp_path / "m").exists()
