"""Outputs of a frozen tower on disk: the same scores, and never those of another tower."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.feature_cache import FeatureCache
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import load_policy
from model_families import WITH_VIDEOS
from test_packed_forward import gradients, largest_difference, packed_scores
from tiny_models import make_case


def run(case, cache, unit="query", **settings):
    """Scores, gradients, and how many blocks the tower has seen."""
    policy = load_policy(str(case.folder), features=cache, **settings).train()
    base, seen = policy.model.base_model, []
    tower = base.visual if hasattr(base, "visual") else base.vision_tower
    tower.register_forward_pre_hook(
        lambda _, given, named: seen.append(len(given[0] if given else named["pixel_values"])),
        with_kwargs=True,
    )
    scores = packed_scores(policy, case.batches(unit))
    return scores, gradients(policy.model), sum(seen)


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", [*WITH_VIDEOS, "llava", "llava_next"])
def test_what_is_kept_is_what_the_tower_says(name, tmp_path):
    case = make_case(name, tmp_path, count=6, frames=3)
    cache = FeatureCache(tmp_path / "cache")
    plain, trained, blocks = run(case, None)
    first, trained_first, blocks_first = run(case, cache)
    again, trained_again, blocks_again = run(case, cache)
    assert largest_difference(first, plain) < 1e-6
    assert (blocks_first, blocks_again) == (blocks, 0)
    assert largest_difference(again, first) == 0
    assert trained_again.keys() == trained.keys()
    assert all(torch.equal(trained_again[key], trained_first[key]) for key in trained)
    pictures = sum(len(batch.image_blob) for batch in case.batches())
    assert 0 < len(entries(tmp_path / "cache")) <= pictures
    assert not list((tmp_path / "cache").rglob("*.partial"))
    # A pack of other pictures finds them as well.
    assert run(case, cache, unit="pair")[2] == 0


@pytest.fixture
def case(tmp_path):
    return make_case("llava_onevision", tmp_path, count=8, frames=3)


def change(case, end):
    """Of the weight whose name ends so."""
    weights = load_file(case.folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith(end)]
    weights[name] += 0.1
    save_file(weights, case.folder / "model.safetensors", {"format": "pt"})


def test_entries_are_of_one_tower_and_type(case, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    _, _, blocks = run(case, cache)
    count = len(entries(tmp_path / "cache"))
    change(case, "multi_modal_projector.linear_1.weight")
    change(case, "lm_head.weight")
    assert run(case, cache)[2] == 0
    change(case, "patch_embedding.weight")
    assert run(case, cache)[2] == blocks
    assert len(entries(tmp_path / "cache")) == 2 * count
    assert run(case, cache, dtype=torch.bfloat16)[2] == blocks
    with torch.autocast("cpu", torch.bfloat16):
        assert run(case, cache)[2] == blocks
    assert len(entries(tmp_path / "cache")) == 4 * count


def test_weights_that_are_cast_after_loading_are_another_tower(case, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    run(case, cache)
    count = len(entries(tmp_path / "cache"))
    policy = load_policy(str(case.folder), features=cache)
    policy.to(torch.bfloat16)
    with torch.no_grad():
        packed_scores(policy, case.batches())
    assert len(entries(tmp_path / "cache")) == 2 * count


def test_statistics_of_a_batch_norm_are_part_of_the_tower(case, tmp_path):
    policy = load_policy(str(case.folder))
    tower = policy.model.base_model.vision_tower
    tower.add_module("norm", torch.nn.BatchNorm2d(2).requires_grad_(False))
    vision, cache = policy.vision, FeatureCache(tmp_path / "cache")
    before = cache.of_tower(policy.model, vision)._identity
    assert cache.of_tower(policy.model, vision)._identity == before
    tower.norm.running_mean += 1
    assert cache.of_tower(policy.model, vision)._identity != before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_computed_again(damage, case, tmp_path, caplog):
    cache = FeatureCache(tmp_path / "cache")
    expected, _, _ = run(case, cache)
    file = entries(tmp_path / "cache")[0]
    whole = file.read_bytes()
    changed = bytearray(whole[:-5] if damage == "cut" else whole)
    if damage == "flip":
        changed[-5] ^= 1
    file.write_bytes(b"" if damage == "empty" else changed)
    with caplog.at_level(logging.WARNING):
        found, _, blocks = run(case, cache)
    assert blocks > 0
    assert largest_difference(found, expected) < 1e-6
    assert [str(file) in record.message for record in caplog.records if "again" in record.message]
    assert len(file.read_bytes()) == len(whole)
    assert run(case, cache)[2] == 0


def test_several_may_write_at_once(case, tmp_path):
    policies = [
        load_policy(str(case.folder), features=FeatureCache(tmp_path / "cache")) for _ in range(4)
    ]
    batches = list(case.batches())

    @torch.no_grad()
    def scored(policy):
        return packed_scores(policy, batches)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(scored, policies))
    assert all(largest_difference(one, found[0]) < 1e-6 for one in found)
    assert run(case, FeatureCache(tmp_path / "cache"))[2] == 0


def test_a_pack_without_pictures_reads_none(tmp_path):
    case = make_case("llava_onevision", tmp_path, frames=3)
    policy = load_policy(str(case.folder), features=FeatureCache(tmp_path / "cache")).train()
    batches = case.batches(tokens=1, too_large="alone")
    batch = next(batch for batch in batches if not len(batch.placeholder_start))
    packed_scores(policy, [batch], needs_vision=True)
    assert "model.multi_modal_projector.linear_1.weight" in gradients(policy.model)
    assert not entries(tmp_path / "cache")
    assert ModelPack.of(batch).pictures is None


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": ()},
        {"freeze": ("text",)},
        {"lora": {"targets": ["vision_tower.encoder.layers.0.self_attn.q_proj"]}},
    ],
)
def test_a_tower_that_is_trained_is_refused(settings, case, tmp_path):
    with pytest.raises(ConfigError, match="features: the tower is trained") as raised:
        load_policy(str(case.folder), features=FeatureCache(tmp_path / "cache"), **settings)
    assert "freeze the tower" in raised.value.hint
