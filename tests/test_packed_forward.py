"""The packed, shared forward against each answer alone by transformers."""

from dataclasses import replace

import pytest
import torch

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.parts import part_of
from mmrlhf_engine.models.policy import load_policy
from model_families import WITH_VIDEOS
from tiny_models import make_case

FAMILIES = [*WITH_VIDEOS, "llava", "llava_next"]
FRAMES = {"qwen3_vl": 3}
"""Of every video, where the number decides whether a processor resizes the frames."""


def log_probs(hidden, head, pack):
    """[N], of the targets."""
    return head.logits(hidden).log_softmax(-1).gather(1, pack.targets[:, None])[:, 0]


def by_response(values, pack, batch):
    """The part [tokens] of each response, by its row."""
    ends = pack.cu_rows.tolist()
    return {
        response: values[ends[place] : ends[place + 1]]
        for place, response in enumerate(batch.sequence_response.tolist())
        if response >= 0
    }


def weight_of(response):
    """A factor of the loss, of either sign."""
    return (-1) ** response * (0.5 + response % 5)


def loss_of(scores):
    return sum(weight_of(response) * own.sum() for response, own in scores.items())


def packed_scores(policy, batches, dtype=torch.float32, **changes):
    """Log-probabilities of each response, detached; gradients are added to the weights."""
    scores = {}
    for batch in batches:
        pack = replace(ModelPack.of(batch, dtype=dtype), **changes)
        own = by_response(policy(pack, log_probs), pack, batch)
        if torch.is_grad_enabled():
            loss_of(own).backward()
        scores |= {response: value.detach() for response, value in own.items()}
    return scores


def alone_scores(model, case, lengths):
    """The same of each answer alone; ``lengths`` are the tokens of each."""
    scores = {}
    for kind in ("chosen", "rejected"):
        for response, inputs in case.alone(kind):
            known = inputs["input_ids"][0, 1:]
            logits = model(**inputs, use_cache=False).logits[0, :-1]
            every = logits.log_softmax(-1).gather(1, known[:, None])[:, 0]
            own = {response: every[-lengths[response] :]}
            loss_of(own).backward()
            scores[response] = own[response].detach()
    return scores


def largest_difference(mine, theirs):
    assert mine.keys() == theirs.keys()
    return max(float((mine[key] - theirs[key]).abs().max()) for key in theirs)


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def largest_relative_difference(mine, theirs):
    """Of the norm of the difference of each gradient to the norm of the gradient.

    A millionth of the largest norm is added to that: where positions do not turn keys, their bias
    changes nothing, and its gradient is nothing but rounding.
    """
    assert mine.keys() == theirs.keys()
    least = 1e-6 * max(float(gradient.norm()) for gradient in theirs.values())
    return max(
        float((mine[key] - theirs[key]).norm() / (theirs[key].norm() + least)) for key in theirs
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_answers_score_and_train_as_each_alone(name, tmp_path):
    case = make_case(name, tmp_path, frames=FRAMES.get(name))
    policy = load_policy(str(case.folder)).train()
    batches = list(case.batches())
    assert any((batch.prefix_sequence >= 0).any() for batch in batches)
    if name in WITH_VIDEOS and name not in FRAMES:
        assert any(len(set(batch.image_frames[batch.image_frames > 0])) > 1 for batch in batches)
    found = packed_scores(policy, batches)
    assert len(found) == 24
    trained = gradients(policy.model)
    case.model.load_state_dict(policy.model.state_dict())
    for own, theirs in zip(policy.model.parameters(), case.model.parameters(), strict=True):
        theirs.requires_grad_(own.requires_grad)
    lengths = {response: len(own) for response, own in found.items()}
    expected = alone_scores(case.model, case, lengths)
    assert largest_difference(found, expected) < 1e-5
    assert largest_relative_difference(trained, gradients(case.model)) < 1e-4


@pytest.mark.parametrize("unit", ["query", "pair"])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_float64_nothing_but_the_mask_is_different(name, unit, tmp_path):
    """All weights trained; norms of transformers are in float32 nevertheless."""
    case = make_case(name, tmp_path, count=6, frames=3)
    policy = load_policy(str(case.folder), dtype=torch.float64, freeze=()).train()
    batches = list(case.batches(unit))
    found = packed_scores(policy, batches, torch.float64)
    trained = gradients(policy.model)
    expected, oracle = {}, case.model.double()
    for batch in batches:
        pack = ModelPack.of(batch, dtype=torch.float64)
        logits = oracle(**batch.model_inputs(dtype=torch.float64), use_cache=False).logits[0]
        every = logits[pack.rows].log_softmax(-1).gather(1, pack.targets[:, None])[:, 0]
        own = by_response(every, pack, batch)
        loss_of(own).backward()
        expected |= {response: value.detach() for response, value in own.items()}
    assert largest_difference(found, expected) < 1e-9
    assert largest_relative_difference(trained, gradients(oracle)) < 1e-7


@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_every_picture_is_encoded_once_and_frozen_parts_are_not_trained(name, tmp_path):
    case = make_case(name, tmp_path, count=6, frames=3)
    policy = load_policy(str(case.folder)).train()
    tower = getattr(policy.model.base_model, "visual", None)
    tower = policy.model.base_model.vision_tower if tower is None else tower
    seen = []
    tower.register_forward_pre_hook(
        lambda _, given, named: seen.append(len(given[0] if given else named["pixel_values"])),
        with_kwargs=True,
    )
    batches = list(case.batches("pair"))
    assert any(len(batch.placeholder_image) > len(batch.image_blob) for batch in batches)
    packed_scores(policy, batches)
    assert seen == [len(batch.pixel_values) for batch in batches if len(batch.pixel_values)]
    trained = gradients(policy.model)
    parts = {name: part_of(name, policy.model, policy.vision) for name in trained}
    assert set(parts.values()) - {"head"} == {"projector", "text"}


@pytest.mark.parametrize("name", FAMILIES)
def test_without_pictures_the_projector_runs_where_other_ranks_see(name, tmp_path):
    case = make_case(name, tmp_path, count=12, frames=3)
    batches = [
        batch
        for batch in case.batches(tokens=1, too_large="alone")
        if not len(batch.placeholder_start)
    ]
    assert batches
    policy = load_policy(str(case.folder), freeze=()).train()
    alone = packed_scores(policy, batches, needs_vision=False)
    text = gradients(policy.model)
    policy.zero_grad()
    together = packed_scores(policy, batches, needs_vision=True)
    every = gradients(policy.model)
    assert largest_difference(together, alone) == 0
    added = every.keys() - text.keys()
    named = [key for key, parameter in policy.model.named_parameters() if parameter.requires_grad]

    assert every.keys() == set(named)
    assert {part_of(key, policy.model, policy.vision) for key in added} == {"tower", "projector"}
    assert all(not every[key].any() for key in added)
    assert all(torch.equal(every[key], text[key]) for key in text)


def test_an_empty_pack_runs_the_model_as_well(tmp_path):
    case = make_case("qwen2_vl", tmp_path, count=3, frames=3)
    batches = [list(case.batches(rank=rank, world_size=2)) for rank in range(2)]
    (empty,) = [own for both in batches for own in both if not len(own.input_ids)]
    pack = ModelPack.of(empty)
    assert pack.needs_vision
    assert (pack.input_ids.shape, pack.position_ids.shape) == ((1, 1), (3, 1, 1))
    assert (len(pack.rows), len(pack.targets), pack.cu_rows.tolist()) == (0, 0, [0])
    policy = load_policy(str(case.folder)).train()
    policy(pack, log_probs).sum().backward()
    trained = gradients(policy.model)
    assert trained.keys() == {
        key for key, parameter in policy.model.named_parameters() if parameter.requires_grad
    }
    assert all(not gradient.any() for gradient in trained.values())


@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_gradient_checkpointing_and_adapters_compute_the_same(name, tmp_path):
    case = make_case(name, tmp_path, count=4, frames=3)
    batches = list(case.batches())
    lora = {"rank": 4, "targets": ["q_proj", "down_proj"]}
    found = []
    for checkpointing in (False, True):
        policy = load_policy(
            str(case.folder), lora=lora, gradient_checkpointing=checkpointing
        ).train()
        torch.manual_seed(0)
        with torch.no_grad():
            for key, parameter in policy.model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(std=0.1)
        calls = []
        layer = policy.model.get_base_model().base_model.get_decoder().layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        scores = packed_scores(policy, batches)
        found.append((scores, gradients(policy.model)))
        assert len(calls) == len(batches) * (1 + checkpointing)
    (plain, trained), (again, trained_again) = found
    assert largest_difference(again, plain) < 1e-6
    assert largest_relative_difference(trained_again, trained) < 1e-5
    assert all("language_model" in key and "lora_" in key for key in trained)
    assert largest_difference(plain, packed_scores(load_policy(str(case.folder)), batches)) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_bfloat16_is_near(name, tmp_path):
    case = make_case(name, tmp_path, count=4, frames=3, sharpness=1.0)
    batches = list(case.batches())
    exact = packed_scores(load_policy(str(case.folder)), batches)
    policy = load_policy(str(case.folder))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = packed_scores(policy, batches)
    whole = packed_scores(load_policy(str(case.folder), dtype=torch.bfloat16), batches)
    assert 0 < largest_difference(autocast, exact) < 0.1
    assert 0 < largest_difference(whole, exact) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # within torch.compile
def test_compiled_layers_compute_the_same(tmp_path):
    case = make_case("qwen2_vl", tmp_path, count=4, frames=3)
    batches = list(case.batches())
    trained = []
    for compiled in (False, True):
        policy = load_policy(
            str(case.folder), compile=compiled, gradient_checkpointing=True
        ).train()
        layers = policy.model.base_model.get_decoder().layers
        assert all((layer.mlp._compiled_call_impl is not None) == compiled for layer in layers)
        scores = packed_scores(policy, batches)
        trained.append((scores, gradients(policy.model)))
    assert largest_difference(trained[1][0], trained[0][0]) < 1e-5
    assert largest_relative_difference(trained[1][1], trained[0][1]) < 1e-4


def test_a_dataset_for_another_model_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    case = make_case("llava", tmp_path / "one", count=6)
    other = make_case("llava_next", tmp_path / "other", count=6)
    batch = next(batch for batch in case.batches() if len(batch.placeholder_start))
    with pytest.raises(InputError, match="features of pictures that have"):
        load_policy(str(other.folder))(ModelPack.of(batch), log_probs)
