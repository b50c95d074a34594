"""Training with pictures that cannot be decoded, and with models that do not fit the pictures."""

import json
import math
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from mmrlhf_engine import open_dataset, run_mm_dpo, run_reference, run_sft
from mmrlhf_engine.errors import InputError, StageError
from test_families import packed
from tiny_models import TEXT
from train_data import metrics_of, pack_rows, text_rows, text_shards
from train_pictures import picture_model, picture_rows

SMALL = {
    "data.tokens": 900,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 3e-3,
    "gradient_checkpointing": False,
    "threads": 1,
}
QUERIES = 8


def broken(content):
    """A PNG whose header is whole and whose pixels cannot be decoded."""
    start = content.index(b"IDAT") + 10
    return content[:start] + bytes(30) + content[start + 30 :]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model that sees, and shards of 8 pairs of which one shows a broken picture."""
    folder = tmp_path_factory.mktemp("pictures")
    model = picture_model(folder / "model")
    rows = picture_rows(folder, QUERIES)
    (broken_row,) = [row for row in rows if len(row["images"]) == 3]
    broken_row["images"][1]["bytes"] = broken(broken_row["images"][1]["bytes"])
    packed(model, rows, folder / "shards")
    report = run_reference(folder / "shards", model, folder / "run", {"tokens": 900})
    assert report["pictures_blank"] == 1
    return model, folder / "shards"


def test_a_pair_that_shows_a_broken_picture_has_no_weight_and_is_named(prepared, tmp_path, capfd):
    model, shards = prepared
    settings = {**SMALL, "epochs": 2}
    report = run_mm_dpo(shards, model, tmp_path, settings, progress="human")
    assert report["dropped"] == {"unreadable": 1}
    assert report["rows_out"] == QUERIES - 1
    assert report["pictures_blank"] == 2  # once an epoch
    said = [line for line in capfd.readouterr().err.splitlines() if "stays blank" in line]
    assert len(said) == 1
    assert "png" in said[0]
    lines = metrics_of(tmp_path / "13_mm_dpo")
    assert [line["num_pairs"] for line in lines] == [QUERIES - 1] * len(lines)
    assert lines[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert run_sft(shards, model, tmp_path, SMALL)["dropped"] == {"unreadable": 1}


def test_too_many_broken_pictures_stop_the_run(prepared, tmp_path):
    model, shards = prepared
    settings = {**SMALL, "epochs": 9}
    with pytest.raises(
        StageError, match=r"\d of 1\d\d pictures so far cannot be decoded"
    ) as raised:
        run_mm_dpo(shards, model, tmp_path / "a", settings)
    assert "mmrlhf-engine verify" in raised.value.hint
    report = run_mm_dpo(shards, model, tmp_path / "b", {**settings, "data.max_unreadable": "20%"})
    assert report["pictures_blank"] == 9


def text_model_with_the_tokenizer_of(model, folder):
    tokenizer = AutoTokenizer.from_pretrained(model)
    Qwen2ForCausalLM(Qwen2Config(**TEXT, vocab_size=len(tokenizer))).save_pretrained(folder)
    for file in model.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(model / "chat_template.jinja", folder / "chat_template.jinja")
    return folder


@pytest.mark.parametrize("run", [run_mm_dpo, run_sft, run_reference])
def test_a_model_of_text_alone_is_refused_for_shards_with_pictures(run, prepared, tmp_path):
    model = text_model_with_the_tokenizer_of(prepared[0], tmp_path / "model")
    pattern = "processor: found that of qwen2_vl, but the model reads text alone"
    with pytest.raises(InputError, match=pattern) as raised:
        run(prepared[1], model, tmp_path / "run", {})
    assert "pack with --model of this model" in raised.value.hint


def test_a_model_that_sees_trains_on_shards_of_text_if_the_tokens_are_its_own(prepared, tmp_path):
    model, _ = prepared
    same = text_model_with_the_tokenizer_of(model, tmp_path / "same")
    shards = pack_rows(same, text_rows(4), tmp_path / "shards")
    assert open_dataset(shards).processor is None
    run_reference(shards, model, tmp_path / "run", {"tokens": 900})
    run_mm_dpo(shards, model, tmp_path / "run", SMALL)
    (line, *_) = metrics_of(tmp_path / "run" / "13_mm_dpo")
    assert line["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    _, others = text_shards(tmp_path / "others", queries=3)
    with pytest.raises(InputError, match="expected by the model: chat_template: found"):
        run_sft(others, model, tmp_path / "run", SMALL)


@pytest.mark.parametrize("run", [run_mm_dpo, run_sft, run_reference])
def test_another_image_rule_is_named(run, prepared, tmp_path):
    model = Path(shutil.copytree(prepared[0], tmp_path / "model"))
    file = model / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["size"]["longest_edge"] //= 2
    config["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    file.write_text(json.dumps(config))
    pattern = (
        r"processor.image_rule.max_pixels: found 23520, expected 11760; .*"
        r"processor.pictures.mean: found \[0.4, 0.5, 0.6\], expected \[0.5, 0.5, 0.5\]"
    )
    with pytest.raises(InputError, match=pattern):
        run(prepared[1], model, tmp_path / "run", {})
