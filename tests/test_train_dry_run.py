"""What the dry run counts, against slow counts over real batches."""

import copy
import json

import numpy as np
import pytest
import transformers as hf

from dry_run_data import FAMILIES, batches_of, settings_of, tiny_family
from mmrlhf_engine import PreferenceLoader, answer_rows, attention_mask, open_dataset, plan_json
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.train.dry_run.costs import head_plans
from mmrlhf_engine.train.dry_run.describe import describe_training
from mmrlhf_engine.train.dry_run.epoch_counts import count_epoch
from mmrlhf_engine.train.dry_run.model_sizes import build_on_meta, read_sizes
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.plan import plan_of
from mmrlhf_engine.train.sft import SupervisedConfig
from model_families import MAKERS, processor_folder
from pack_data import picture, put, write_lines
from tiny_models import tiny_model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return tiny_family(request.param, tmp_path_factory.mktemp(request.param))


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


def test_supervised_training_reads_chosen_answers_alone(family):
    _, folder, shards, model = family
    common = settings_of(folder, shards)
    fields = {name: getattr(common, name) for name in SupervisedConfig.model_fields}
    settings = SupervisedConfig(**fields)
    counts = count_epoch(settings)
    expected = 0
    for batch in batches_of(settings):
        answers = np.diff(answer_rows(batch).cu_seqlens)
        expected += sum(int(answers[one]) for one in set(batch.pair_chosen.tolist()))
    assert counts.total("rows") == expected < counts.total("answer_tokens")
    plans = head_plans(read_sizes(copy.deepcopy(model), settings), counts, settings, 4)
    assert sum(plan.rows for plan in plans) == expected
    assert "head, by schedule" in describe_training(settings)


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
    with pytest.raises(ConfigError, match="model: not given"):
        describe_training(MMDPOConfig(shards=str(shards)))
    with pytest.raises(ConfigError, match="shards: not given"):
        describe_training(MMDPOConfig(model=str(folder)))
    with pytest.raises(ConfigError, match="its configuration cannot be read"):
        build_on_meta(str(tmp_path))
    with pytest.raises(InputError, match="budget"):
        describe_training(settings_of(folder, shards, data={"tokens": 40, "too_large": "error"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ConfigError, match="its configuration cannot be read"):
        build_on_meta(str(tmp_path))
