"""Sizes, work and memory of training, against real models, tensors and torch's own counts."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from dry_run_data import FAMILIES, batches_of, settings_of, tiny_family
from mmrlhf_engine import answer_rows
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.train.dry_run.costs import head_plans, work_of_epoch
from mmrlhf_engine.train.dry_run.epoch_counts import count_epoch
from mmrlhf_engine.train.dry_run.memory import layer_bytes, optimizer_bytes
from mmrlhf_engine.train.dry_run.model_sizes import build_on_meta, read_sizes
from mmrlhf_engine.train.mm_dpo import MMDPOConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return tiny_family(request.param, tmp_path_factory.mktemp(request.param))


def test_parameters_are_those_of_the_real_model(family):
    name, folder, shards, model = family
    settings = settings_of(folder, shards, freeze=("tower", "head"))
    sizes = read_sizes(build_on_meta(str(folder)), settings)
    assert sizes == read_sizes(copy.deepcopy(model), settings)
    assert sum(sizes.parameters.values()) == sum(p.numel() for p in model.parameters())
    base = model.model
    tower = base.visual if name.startswith("qwen") else base.vision_tower
    projector = tower.merger if name.startswith("qwen") else base.multi_modal_projector
    within = count(tower) - (count(projector) if name.startswith("qwen") else 0)
    assert sizes.parameters["tower"] == within
    newline = getattr(base, "image_newline", torch.empty(0)).numel()
    assert sizes.parameters["projector"] == count(projector) + newline
    assert sizes.parameters["embeddings"] == count(model.get_input_embeddings())
    assert sizes.parameters["head"] == (0 if sizes.tied else count(model.lm_head))
    # A weight that is head and embeddings is frozen with either.
    shared = set() if name == "internvl" else {"embeddings"}
    assert sizes.trained == {"projector", "text"} | shared
    assert sum(map(np.prod, sizes.shapes)) == sizes.count(trained=True)
    assert sizes.tied == (name == "internvl")
    assert not sizes.head_trains


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_adapters_are_those_of_peft(family):
    peft = pytest.importorskip("peft")
    _, folder, shards, model = family
    for targets in (("all-linear",), ("q_proj", "down_proj")):
        settings = settings_of(folder, shards, lora={"rank": 3, "targets": targets})
        sizes = read_sizes(copy.deepcopy(model), settings)
        text = build_on_meta(str(folder)).model.language_model
        chosen = "all-linear" if targets == ("all-linear",) else list(targets)
        adapted = peft.get_peft_model(text, peft.LoraConfig(r=3, target_modules=chosen))
        trained = [p for p in adapted.parameters() if p.requires_grad]
        assert sizes.parameters["adapters"] == sum(p.numel() for p in trained)
        assert sorted(sizes.shapes) == sorted(tuple(p.shape) for p in trained)
        assert sizes.trained == {"adapters"}
    with pytest.raises(ConfigError, match="found no linear module"):
        read_sizes(
            copy.deepcopy(model), settings_of(folder, shards, lora={"targets": ("nothing",)})
        )


@pytest.mark.parametrize(
    ("freeze", "checkpointing"),
    [(("tower",), False), (("tower",), True), ((), True), (("tower", "projector", "head"), False)],
)
def test_work_is_what_torch_counts(family, freeze, checkpointing):
    _, folder, shards, model = family
    settings = settings_of(
        folder,
        shards,
        gradient_checkpointing=checkpointing,
        freeze=freeze,
    )
    sizes = read_sizes(copy.deepcopy(model), settings)
    counts = count_epoch(settings, window=sizes.tower.window)
    # torch's formula for attention takes it that every token sees every other.
    dense = counts.packs.head(2).with_columns(seen=pl.col("tokens") ** 2)
    counts = type(counts)(**{**vars(counts), "packs": dense})
    expected = work_of_epoch(sizes, counts, settings, 4)
    head = sum(plan.rows for plan in head_plans(sizes, counts, settings, 4))
    product = sizes.text.hidden * sizes.text.vocabulary
    assert expected["head"].total == (6 if sizes.head_trains else 4) * head * product
    found = counted_by_torch(model, settings, packs=2)
    assert sum(work.total for work in expected.values()) == pytest.approx(found, rel=0.02)


def counted_by_torch(model, settings, packs):
    """Operations of forward and backward over some packs; the head on the rows of answers."""
    model = copy.deepcopy(model)
    for part in settings.freeze:
        for name, parameter in model.named_parameters():
            in_projector = "projector" in name or "merger" in name or "newline" in name
            own = {
                "tower": ("visual" in name or "vision_tower" in name) and not in_projector,
                "projector": in_projector,
                "head": name.startswith("lm_head"),
            }
            if own[part]:
                parameter.requires_grad_(False)
    if settings.gradient_checkpointing:
        model.train()
        base = model.model
        # Of the whole model it would send gradients through a tower that is frozen.
        for part in [base.language_model] if "tower" in settings.freeze else [base]:
            part.gradient_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        for batch in batches_of(settings)[:packs]:
            states = model.model(**batch.model_inputs(), use_cache=False).last_hidden_state[0]
            model.lm_head(states[answer_rows(batch).row]).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_the_state_of_an_optimizer_is_what_it_holds(name):
    shapes = [(7,), (5, 3), (2, 4, 3)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    kind = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor, "sgd": torch.optim.SGD}
    optimizer = kind[name](parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [
        value for state in optimizer.state.values() for key, value in state.items() if key != "step"
    ]
    assert optimizer_bytes(name, shapes) == sum(
        value.nbytes for value in held if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("weights", [True, False])
def test_a_layer_keeps_what_autograd_saves(element, weights):
    config = hf.Qwen2Config(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    kind = torch.bfloat16 if element == 2 and not weights else torch.float32
    model.to(kind).requires_grad_(weights)
    tokens = 48
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    states = torch.randn(1, tokens, 64, dtype=kind, requires_grad=True)
    positions = model.model.rotary_emb(states, torch.arange(tokens)[None])
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *positions)}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # Weights and their copies, and the mask, belong to other parts of the account.
        own = tokens in tensor.shape and tensor.shape[-2:] != mask.shape[-2:]
        if storage.data_ptr() not in known and own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=element == 2),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        kept = model.model.layers[0](states, attention_mask=mask, position_embeddings=positions)
    assert kept.shape == states.shape
    sizes = read_sizes(copy.deepcopy(model), MMDPOConfig())
    expected = layer_bytes(sizes.text, weights=weights, inputs=weights, element=element)
    assert sum(saved.values()) == expected * tokens


def test_features_that_are_kept_are_computed_once(family):
    _, folder, shards, model = family
    settings = settings_of(folder, shards, data={"unit": "pair"})
    counts = count_epoch(settings)
    assert counts.total("first_blocks") < counts.total("blocks")
    sizes = read_sizes(copy.deepcopy(model), settings)
    again = work_of_epoch(sizes, counts, settings, 4)
    cached = settings.model_copy(update={"cache_features": "FOLDER"})
    once = work_of_epoch(sizes, counts, cached, 4)
    assert once["tower"].total < again["tower"].total
    assert once["projector"] == again["projector"]
