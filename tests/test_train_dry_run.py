"""The dry run of training, against slow counts over real batches, real models and real tensors."""

import copy
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from mmrlhf_engine import PreferenceLoader, attention_mask, open_dataset, plan_json
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.models.layout import answer_rows
from mmrlhf_engine.train.costs import head_plans, work_of_epoch
from mmrlhf_engine.train.dry_run import Device, describe_training
from mmrlhf_engine.train.epoch_counts import count_epoch, plan_of
from mmrlhf_engine.train.memory import layer_bytes, memory_of_step, optimizer_bytes, total
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.model_sizes import build_on_meta, read_sizes
from model_families import MAKERS, WITH_VIDEOS, processor_folder, prompts
from pack_data import picture, put, write_lines
from paper_data import model_folder, paper_shards
from test_families import packed
from test_model_inputs import SIDES, tiny_model

CONFIGS = Path(__file__).parents[1] / "configs"


def settings_of(folder, shards, **changes):
    own = changes.pop("data", {})
    data = {"tokens": 500, "too_large": "alone", "packs_per_step": 3, **own}
    return MMDPOConfig(shards=str(shards), model=str(folder), data=data, threads=1, **changes)


def both_pairs(prompt, number):
    """Rows of two pairs that share the chosen answer."""
    third = [{"role": "assistant", "content": f"Perhaps a dog, or {number} of them."}]
    return [prompt.row, {**prompt.row, "rejected": third}]


@pytest.fixture(scope="module", params=["llava_onevision", "qwen2_5_vl", "internvl"])
def family(request, tmp_path_factory):
    """A tiny model of a family, its folder, and a dataset with pictures, videos and two pairs."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    folder = root / "model"
    folder.mkdir()
    processor = processor_folder(name, folder)
    model = tiny_model(name, processor)
    model.config.save_pretrained(folder)
    clips = {"videos": name in WITH_VIDEOS, "frames": 3, "side": SIDES.get(name, 28)}
    made = prompts(12, root / "frames", seed=5, **clips)
    rows = [row for n, prompt in enumerate(made) for row in both_pairs(prompt, n)]
    packed(folder, rows, root / "shards")
    return name, folder, root / "shards", model


def batches_of(settings, **changes):
    """Real batches with pixels, of the plan of these settings."""
    dataset = open_dataset(settings.shards)
    plan = plan_of(settings).model_copy(update=changes)
    plan = plan_json(plan, dataset.processor and dataset.processor["image_rule"])
    return list(PreferenceLoader(settings.shards, plan, threads=1))


def test_batches_without_pixels_are_the_same_but_for_them(family):
    _, folder, shards, _ = family
    settings = settings_of(folder, shards)
    plan = plan_json(plan_of(settings), open_dataset(shards).processor["image_rule"])
    without = PreferenceLoader(shards, plan, threads=1, pixels=False)
    found = list(without)
    for batch, bare in zip(batches_of(settings), found, strict=True):
        assert len(bare.pixel_values) == 0
        assert bare.pixel_values.shape[1:] == batch.pixel_values.shape[1:]
        assert len(batch.pixel_values) == batch.image_blocks[-1]
        for name in ("input_ids", "position_ids", "cu_seqlens", "prefix_sequence", "pair_chosen"):
            assert np.array_equal(getattr(bare, name), getattr(batch, name)), name
        for name in ("image_blocks", "image_grid_thw", "placeholder_length", "pair_weight"):
            assert np.array_equal(getattr(bare, name), getattr(batch, name)), name
        assert (bare.step, bare.cursor) == (batch.step, batch.cursor)


def test_what_packs_hold_is_what_batches_hold(family):
    _, folder, shards, _ = family
    settings = settings_of(folder, shards, epochs=3)
    counts = count_epoch(settings)
    batches = [batch for batch in batches_of(settings) if len(batch.input_ids)]
    assert len(batches) == len(counts.packs) > 2
    for row, batch in zip(counts.packs.iter_rows(named=True), batches, strict=True):
        assert row["step"] == batch.step
        assert row["tokens"] == len(batch.input_ids)
        assert row["image_tokens"] == sum(batch.placeholder_length.tolist())
        assert row["seen"] == attention_mask(batch).sum()
        answers = answer_rows(batch)
        assert row["rows"] == row["answer_tokens"] == len(answers.row)
        assert row["prompt_tokens"] + row["image_tokens"] + row["rows"] == row["tokens"]
        assert (row["pairs"], row["ties"]) == (len(batch.pair_row), 0)
        assert row["pictures"] == len(batch.image_blob)
        assert row["pixel_bytes"] == batch.pixel_values.nbytes
        assert row["blocks"] == len(batch.pixel_values)
        lengths = np.diff(answers.cu_seqlens)
        sides = zip(batch.pair_chosen, batch.pair_rejected, strict=True)
        assert row["pair_rows"] == [lengths[one] + lengths[other] for one, other in sides]
    assert counts.packs["shares_answers"].any()
    assert counts.steps_of_epoch == -(-len(batches) // 3)
    all_epochs = {
        batch.step
        for batch in PreferenceLoader(
            shards,
            plan_json(plan_of(settings), open_dataset(shards).processor["image_rule"]),
            epochs=3,
            threads=1,
        )
    }
    assert counts.steps == len(all_epochs)
    assert count_epoch(settings.model_copy(update={"steps": 2})).steps == 2


def test_what_a_trainer_repeats_is_what_pairs_alone_hold(family):
    _, folder, shards, _ = family
    settings = settings_of(folder, shards)
    counts = count_epoch(settings)
    pairs = batches_of(settings, unit="pair")
    assert counts.total("repeated_tokens") == sum(len(batch.input_ids) for batch in pairs)
    assert counts.total("repeated_seen") == sum(attention_mask(batch).sum() for batch in pairs)
    shown = blocks = 0
    for batch in pairs:
        for image, offset in zip(batch.placeholder_image, batch.placeholder_offset, strict=True):
            if offset == 0:
                shown += 1
                blocks += batch.image_blocks[image + 1] - batch.image_blocks[image]
    assert (counts.total("repeated_pictures"), counts.total("repeated_blocks")) == (shown, blocks)


def test_ties_are_counted_and_left_out(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor = processor_folder("llava_onevision", folder)
    tiny_model("llava_onevision", processor).config.save_pretrained(folder)
    image = put(tmp_path / "red.png", picture(50, 40))
    row = {"prompt": "How many?", "image": image, "chosen": "Two dogs.", "is_tie": False}
    answers = ["One.", "Three dogs.", "None at all."]
    rows = [{**row, "rejected": answer, "is_tie": answer == "One."} for answer in answers]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    pack.pack_dataset(
        pack.PackConfig(sources=[str(source)], model=str(folder)), tmp_path / "shards"
    )
    settings = settings_of(folder, tmp_path / "shards")
    flags = open_dataset(settings.shards).pairs.collect()["flags"].to_list()
    assert sorted(flags) == [0, 0, 1]
    assert "2 of 3, 1 ties left out" in describe_training(settings)
    everything = settings.model_copy(update={"ties": "fair_coin"})
    assert "3 of 3, 0 ties left out" in describe_training(everything)
    left, kept = count_epoch(settings), count_epoch(everything)
    assert left.total("tokens") == kept.total("tokens")
    assert left.total("repeated_tokens") < kept.total("repeated_tokens")


def test_parameters_are_those_of_the_real_model(family):
    name, folder, shards, model = family
    settings = settings_of(folder, shards, freeze=("tower", "head"))
    sizes = read_sizes(build_on_meta(str(folder)), settings)
    assert sizes == read_sizes(model, settings)
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
    assert sizes.trained == {"projector", "text", "embeddings"}
    assert sum(map(np.prod, sizes.shapes)) == sizes.count(trained=True)
    assert sizes.head_trains == sizes.tied == (name == "internvl")


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_adapters_are_those_of_peft(family):
    peft = pytest.importorskip("peft")
    _, folder, shards, model = family
    for targets in (("all-linear",), ("q_proj", "down_proj")):
        settings = settings_of(folder, shards, lora={"rank": 3, "targets": targets})
        sizes = read_sizes(model, settings)
        text = build_on_meta(str(folder)).model.language_model
        chosen = "all-linear" if targets == ("all-linear",) else list(targets)
        adapted = peft.get_peft_model(text, peft.LoraConfig(r=3, target_modules=chosen))
        trained = [p for p in adapted.parameters() if p.requires_grad]
        assert sizes.parameters["adapters"] == sum(p.numel() for p in trained)
        assert sorted(sizes.shapes) == sorted(tuple(p.shape) for p in trained)
        assert sizes.trained == {"adapters"}
    with pytest.raises(ConfigError, match="expected names of linear layers"):
        read_sizes(model, settings_of(folder, shards, lora={"targets": ("nothing",)}))


@pytest.mark.parametrize(
    ("freeze", "checkpointing"),
    [(("tower",), False), (("tower",), True), ((), True), (("tower", "projector", "head"), False)],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_work_is_what_torch_counts(family, freeze, checkpointing):
    _, folder, shards, model = family
    settings = settings_of(
        folder,
        shards,
        gradient_checkpointing=checkpointing,
        freeze=freeze,
    )
    sizes = read_sizes(model, settings)
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
    sizes = read_sizes(model, MMDPOConfig())
    expected = layer_bytes(sizes.text, weights=weights, inputs=weights, element=element)
    assert sum(saved.values()) == expected * tokens


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Both model folders and 1,000 pairs in the paper's shape."""
    root = tmp_path_factory.mktemp("paper")
    folders = {}
    for size in ("7b", "0.5b"):
        folders[size] = root / size
        folders[size].mkdir()
        model_folder(folders[size], size)
    return folders, paper_shards(folders["7b"], root / "shards", 250)


def recipe(paper, size, *overrides):
    folders, shards = paper
    file = CONFIGS / f"mm_rlhf_{size}.yaml"
    own = [f"shards={shards}", f"model={folders[size]}", *overrides]
    return load_config(MMDPOConfig, file, own)


def test_the_recipe_for_7b(paper):
    settings = recipe(paper, "7b")
    told = describe_training(settings, device=Device("a GPU", 80 * 2**30))
    assert "1,000 of 1,000, 0 ties left out" in told
    sizes = read_sizes(build_on_meta(settings.model), settings)
    counts = count_epoch(settings)
    # Counts of LLaVA-OneVision 7B: 28 layers of Qwen2, SigLIP with 26 layers, two projections.
    layer = 3584 * (3584 + 2 * 512 + 3584 + 3 * 18_944) + 3584 + 2 * 512 + 2 * 3584
    assert sizes.parameters["text"] == 28 * layer + 3584
    assert sizes.parameters["head"] == sizes.parameters["embeddings"] == 152_064 * 3584
    assert f"{sizes.count(trained=True):,} of 8,030,348,832" in told
    assert f"{counts.total('tokens'):,}" in told
    assert counts.total("image_tokens") == sum(
        pair for pair in image_tokens_by_rule(settings.shards)
    )
    assert 0.9 < counts.total("tokens") / (len(counts.packs) * 16_384) <= 1
    parts = {part.name: part.bytes for part in memory_of_step(sizes, counts, settings, 2)}
    assert parts["gradients"] == 4 * sizes.count(trained=True)
    assert parts["optimizer state (adamw)"] == 8 * sizes.count(trained=True)
    assert parts["frozen weights"] == 2 * sizes.parameters["tower"]
    for line in (
        "too large, or tight, for one device; instead",
        "lora (rank 64)",
        "DeepSpeed ZeRO-3",
    ):
        assert line in told
    assert "instead" not in describe_training(settings, device=Device("a GPU", 200 * 2**30))


def image_tokens_by_rule(shards):
    """Of each query, by the core's rule."""
    from mmrlhf_engine.shards.image_rule import ImageRule

    dataset = open_dataset(shards)
    rule = ImageRule(dataset.processor["image_rule"])
    sizes = {blob: (w, h) for blob, w, h in dataset.blobs.select("id", "w", "h").collect().rows()}
    for media in dataset.queries.collect()["media"].to_list():
        yield sum(rule.count([sizes[blob] for blob in media]))


def test_the_recipe_for_half_a_billion_fits_one_gpu(paper):
    settings = recipe(paper, "0.5b")
    told = describe_training(settings, device=Device("a GPU", 80 * 2**30))
    assert "is the embeddings" in told
    assert "instead" not in told
    sizes = read_sizes(build_on_meta(settings.model), settings)
    assert sizes.tied
    assert sizes.head_trains
    assert sizes.parameters["head"] == 0


def test_settings_change_what_they_promise(paper):
    def memory(*overrides):
        settings = recipe(paper, "7b", *overrides)
        sizes = read_sizes(build_on_meta(settings.model), settings)
        parts = memory_of_step(sizes, count_epoch(settings), settings, 2)
        return {part.name: part.bytes for part in parts}, sizes, parts

    plain, sizes, parts = memory()
    kept, _, _ = memory("gradient_checkpointing=false")
    assert kept["activations of the text"] > 5 * plain["activations of the text"]
    adapted, small, _ = memory("lora={rank: 64}")
    assert small.count(trained=True) < 0.03 * sizes.count(trained=True)
    assert sum(adapted.values()) < 0.3 * sum(plain.values())
    factored, _, _ = memory("optimizer.name=adafactor")
    assert factored["optimizer state (adafactor)"] < 0.01 * plain["optimizer state (adamw)"]
    halved, _, _ = memory("data.tokens=8192")
    assert halved["activations of the text"] < 0.6 * plain["activations of the text"]
    on_one, on_eight = (total(parts, sizes, devices, 2) for devices in (1, 8))
    assert on_one == sum(plain.values())
    assert on_eight < 0.3 * on_one


def test_features_that_are_kept_are_computed_once(family):
    _, folder, shards, model = family
    settings = settings_of(folder, shards, data={"unit": "pair"})
    counts = count_epoch(settings)
    assert counts.total("first_blocks") < counts.total("blocks")
    sizes = read_sizes(model, settings)
    again = work_of_epoch(sizes, counts, settings, 4)
    cached = settings.model_copy(update={"cache_features": "FOLDER"})
    once = work_of_epoch(sizes, counts, cached, 4)
    assert once["tower"].total < again["tower"].total
    assert once["projector"] == again["projector"]


def test_a_model_of_text_alone(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    MAKERS["llava"]().tokenizer.save_pretrained(folder)
    config = hf.Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=600,
    )
    config.save_pretrained(folder)
    rows = [
        {"prompt": f"How many, {n}?", "chosen": "Two dogs.", "rejected": f"{n} cats."}
        for n in range(9)
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    pack.pack_dataset(
        pack.PackConfig(sources=[str(source)], tokenizer=str(folder), strings="plain"),
        tmp_path / "shards",
    )
    told = describe_training(settings_of(folder, tmp_path / "shards"))
    assert "9 of 9" in told
    assert "pictures" not in told
    assert "tower" not in told


def test_mistakes_are_explained(family, tmp_path):
    _, folder, shards, _ = family
    with pytest.raises(InputError, match="model: found none"):
        describe_training(MMDPOConfig(shards=str(shards)))
    with pytest.raises(InputError, match="shards: found none"):
        describe_training(MMDPOConfig(model=str(folder)))
    with pytest.raises(ConfigError, match="its configuration cannot be read"):
        describe_training(MMDPOConfig(shards=str(shards), model=str(tmp_path)))
    with pytest.raises(InputError, match="budget"):
        describe_training(settings_of(folder, shards, data={"tokens": 40, "too_large": "error"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ConfigError, match="its configuration cannot be read"):
        describe_training(MMDPOConfig(shards=str(shards), model=str(tmp_path)))
