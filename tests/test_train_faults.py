"""What a user can get wrong in training: one error that says where, what and what to do about it.

Each is refused before the run folder has a checkpoint, and most before any weight is read.
"""

import json
import math
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from mmrlhf_engine import open_dataset, run_mm_dpo, run_reference, run_sft
from mmrlhf_engine.errors import ConfigError, CorruptDataError, InputError, StageError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.train.checkpoint import Checkpoints
from pack_data import CHATML, tokenizer_folder
from tiny_models import TEXT
from train_data import metrics_of, pack_rows, text_model, text_rows, text_shards

SMALL = {
    "data.tokens": 300,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 3e-3,
    "gradient_checkpointing": False,
    "steps": 2,
    "threads": 1,
}
PAIRS, RESPONSES = 36, 36
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model, and shards with its log-probabilities and with columns of all kinds."""
    folder = tmp_path_factory.mktemp("faults")
    model, shards = text_shards(folder)
    run_reference(shards, model, folder / "run", {"tokens": 400})
    entries = json.loads(sorted((shards / "_mmrlhf").glob("manifest-*.json"))[-1].read_text())
    (made,) = [one["provenance"] for one in entries["columns"] if one["set"] == "reflogp/model"]
    # Of another model: a run takes them by their names alone.
    made["model"] = {"name": "other", "weights": "sha256:0"}
    first = {"nan": NAN, "inf": INF, "null": None, "zero": 0.0, "negative": -1.0}
    for name, value in first.items():
        add_column(shards, name, "pairs", [value, *[1.0] * (PAIRS - 1)])
        logps = [value, *[-9.0] * (RESPONSES - 1)]
        add_column(shards, f"reflogp/{name}", "responses", logps, made)
    add_column(shards, "reflogp/of-pairs", "pairs", [1.0] * PAIRS, made)
    other = {**made, "tokenizer": {**made["tokenizer"], "sha256": "0" * 64}}
    add_column(shards, "reflogp/other-tokenizer", "responses", [1.0] * RESPONSES, other)
    return model, shards


def add_column(shards, column_set, table, values, provenance=None):
    frame = pl.DataFrame({"logp": values}, {"logp": pl.Float32})
    open_dataset(shards).add_column(
        frame, table=table, column_set=column_set, provenance=provenance or {}
    )


def copied(model, folder, change=None):
    """A copy of a model's folder, with its weights changed by a function."""
    copy = Path(shutil.copytree(model, folder))
    if change is not None:
        weights = load_file(copy / "model.safetensors")
        change(weights)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def refused(kind, pattern, prepared, out, changes=None, run=run_mm_dpo):
    """The error, which says what to do; nothing was trained."""
    model, shards = prepared
    settings = {} if run is run_reference else SMALL
    with pytest.raises(kind, match=pattern) as raised:
        run(shards, model, out, {**settings, **(changes or {})})
    assert type(raised.value) is kind
    assert not list(out.glob("*/checkpoints/step_*"))
    return raised.value


# ---- columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_a_margin_that_is_not_finite_is_refused(name, prepared, tmp_path):
    pattern = rf"{name}/logp: 1 of 36 pairs have a margin that is not finite"
    assert refused(InputError, pattern, prepared, tmp_path, {"margin": f"{name}/logp"}).hint


@pytest.mark.parametrize("name", ["nan", "inf", "null", "zero", "negative"])
def test_a_beta_that_is_no_number_above_0_is_refused(name, prepared, tmp_path):
    pattern = rf"{name}/logp: 1 of 36 pairs have a beta that is no finite number above 0"
    assert refused(InputError, pattern, prepared, tmp_path, {"beta_rule": f"{name}/logp"}).hint


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("nan", "1 of 36 responses have a log-probability that is not finite, .* is nan of respon"),
        ("inf", "1 of 36 responses have a log-probability that is not finite, .* is inf of respon"),
        ("null", "1 of 36 responses have no value"),
        ("of-pairs", "a column of pairs, expected one of responses"),
        ("other-tokenizer", r'tokenizer.sha256: found "0+", expected "'),
        ("absent", "no log-probabilities of reflogp/absent as the reference; there are: reflogp/"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(name, pattern, prepared, tmp_path):
    refused(InputError, pattern, prepared, tmp_path, {"reference": name})


@pytest.mark.parametrize("setting", ["margin", "beta_rule"])
@pytest.mark.parametrize(
    ("value", "kind", "pattern"),
    [
        ("reflogp/model/logp", InputError, "a column of responses, expected one of pairs"),
        ("absent/logp", InputError, "absent/logp: no such column, expected one of inf/logp, nan/l"),
        ("nan/absent", InputError, "nan/absent: no such column, expected one of inf/logp, nan/log"),
        ("papre", ConfigError, "found 'papre', expected .*SET/FIELD, a sidecar column"),
    ],
)
def test_a_column_that_is_not_there_is_named(setting, value, kind, pattern, prepared, tmp_path):
    refused(kind, pattern, prepared, tmp_path, {setting: value})


def test_a_margin_that_no_rule_reads_is_refused(prepared, tmp_path):
    changes = {"margin": "zero/logp", "beta_rule": "constant"}
    refused(ConfigError, "beta_rule 'constant' reads no margins", prepared, tmp_path, changes)


def test_shards_without_margins_are_refused_by_the_rule_that_needs_them(prepared, tmp_path):
    model, _ = prepared
    shards = pack_rows(model, text_rows(4, margins=False), tmp_path / "shards")
    run_reference(shards, model, tmp_path / "run", {"tokens": 400})
    found = refused(InputError, "12 of 12 pairs .* have no margin", (model, shards), tmp_path / "a")
    assert "beta_rule=constant" in found.hint
    run_mm_dpo(shards, model, tmp_path / "b", {**SMALL, "beta_rule": "constant"})


def test_shards_without_a_reference_name_the_command_that_makes_it(prepared, tmp_path):
    model, shards = prepared
    own = pack_rows(model, text_rows(4), tmp_path / "shards")
    found = refused(InputError, "there are: none", (model, own), tmp_path / "a")
    assert found.hint == f"make them once: mmrlhf-engine reference {own} --model {model}"
    other = text_model(tmp_path / "other", seed=1)
    found = refused(InputError, "there are: reflogp/", (other, shards), tmp_path / "b")
    assert found.hint == f"make them once: mmrlhf-engine reference {shards} --model {other}"


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"precision": "bfloat16"}, 'precision.products: found "float32", expected "bfloat16"'),
        (
            {"frozen_weights": "bfloat16", "lora.rank": 2},
            'precision.weights: found "float32", expected "bfloat16"',
        ),
    ],
)
def test_a_reference_of_another_precision_is_refused(changes, pattern, prepared, tmp_path):
    assert refused(InputError, pattern, prepared, tmp_path, changes).hint


def test_shards_of_ties_alone_are_refused_or_a_coin_decides(prepared, tmp_path):
    model, _ = prepared
    made = [{**row, "is_tie": True} for row in text_rows(4)]
    shards = pack_rows(model, made, tmp_path / "shards")
    run_reference(shards, model, tmp_path / "run", {"tokens": 400})
    found = refused(InputError, "all of 12 pairs are ties", (model, shards), tmp_path / "a")
    assert "ties=fair_coin" in found.hint
    report = run_mm_dpo(shards, model, tmp_path / "b", {**SMALL, "ties": "fair_coin"})
    assert report["rows_out"] == 12


def test_columns_that_have_changed_are_no_part_of_a_finished_run(prepared, tmp_path):
    model, given = prepared
    shards = Path(shutil.copytree(given, tmp_path / "shards"))
    settings = {**SMALL, "margin": "own/logp"}
    add_column(shards, "own", "pairs", [0.0] * PAIRS, {"made": 1})
    run_mm_dpo(shards, model, tmp_path / "run", settings)
    add_column(shards, "own", "pairs", [4.0] * PAIRS, {"made": 2})
    with pytest.raises(ConfigError, match="their columns or the model are others"):
        run_mm_dpo(shards, model, tmp_path / "run", settings)
    run_mm_dpo(shards, model, tmp_path / "run", settings, restart=True)
    (first, *_) = metrics_of(tmp_path / "run" / "13_mm_dpo")
    assert first["beta/mean"] == pytest.approx(0.1 * (1.5 - 0.5 * math.exp(-2)), abs=1e-6)


# ---- models ----------------------------------------------------------------------------------


def _reward_class(folder):
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = Qwen2Config(**TEXT, vocab_size=size, num_labels=1)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)


def _marked(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_rm": True}))


def _weight(name):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] = torch.zeros(1, 32)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _without(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50_000])


BROKEN_MODELS = {
    "reward class": (_reward_class, ConfigError, "a reward model .Qwen2ForSequenceClassification"),
    "is_rm": (_marked, ConfigError, "a reward model"),
    "rm_head": (_weight("rm_head.0.weight"), ConfigError, "a reward model, as it has the weight"),
    "v_head": (_weight("v_head.summary.weight"), ConfigError, "a reward model, as it has the wei"),
    "score": (_weight("score.weight"), ConfigError, "a reward model, as it has the weight score"),
    "missing weight": (_without, ConfigError, "1 weights are missing .*: lm_head.weight"),
    "cut weights": (_cut, CorruptDataError, "50,000 bytes that are no file of weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ConfigError, "found no weights"),
    "no config": (lambda f: (f / "config.json").unlink(), ConfigError, "cannot be loaded"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), ConfigError, "not a valid JS"),
}


@pytest.mark.parametrize("run", [run_sft, run_reference])
@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_folder_that_is_no_whole_language_model_is_refused(name, run, prepared, tmp_path):
    change, kind, pattern = BROKEN_MODELS[name]
    model = copied(prepared[0], tmp_path / "model")
    change(model)
    assert refused(kind, pattern, (model, prepared[1]), tmp_path / "run", run=run).hint


@pytest.mark.parametrize("run", [run_mm_dpo, run_sft, run_reference])
@pytest.mark.parametrize("name", ["some-organisation/absent", "/absent/folder", "absent"])
def test_a_model_that_is_not_there_is_refused(name, run, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = refused(ConfigError, name, (name, prepared[1]), tmp_path, run=run)
    assert "a folder, or a name on the hub" in found.hint


@pytest.mark.parametrize("run", [run_sft, run_reference])
def test_shards_of_another_tokenizer_or_template_are_refused(run, prepared, tmp_path):
    model, given = prepared
    other = tokenizer_folder(tmp_path / "tokenizer", CHATML + " ", ["<other>"])
    config = pack.PackConfig(sources=[f"{given}.jsonl"], tokenizer=str(other))
    pack.pack_dataset(config, tmp_path / "shards")
    pattern = "chat_template: found .*, expected .*; tokenizer: found .*, expected"
    found = refused(InputError, pattern, (model, tmp_path / "shards"), tmp_path / "run", run=run)
    assert "other_template=true" in found.hint
    changes = {"other_template": True}
    pattern = "expected by the model: tokenizer: found"
    refused(InputError, pattern, (model, tmp_path / "shards"), tmp_path / "run", changes, run=run)


# ---- values ----------------------------------------------------------------------------------


def with_infinite_head(model, folder):
    def change(weights):
        weights["lm_head.weight"][5, 0] = INF

    return copied(model, folder, change)


def test_a_loss_that_is_no_number_stops_before_the_weights_move(prepared, tmp_path):
    model = with_infinite_head(prepared[0], tmp_path / "model")
    found = refused(
        StageError,
        rf"step 1: rewards/chosen of pair \d+ of {prepared[1]} is not a finite number",
        (model, prepared[1]),
        tmp_path / "a",
        {"reference": "model"},
    )
    assert "reference log-probabilities" in found.hint
    pattern = "step 1: loss is not a finite number"
    refused(StageError, pattern, (model, prepared[1]), tmp_path / "b", run=run_sft)
    pattern = r"response \d+: the model's log-probability is nan"
    refused(ConfigError, pattern, (model, prepared[1]), tmp_path / "c", run=run_reference)


def test_a_run_that_diverges_keeps_its_newest_checkpoint(prepared, tmp_path):
    model, shards = prepared
    settings = {"optimizer.learning_rate": 1e30, "schedule.warmup": 0, "checkpoint.every": 1}
    with pytest.raises(StageError, match=r"step 2: .* of pair \d+ of .* is not a finite number"):
        run_mm_dpo(shards, model, tmp_path, {**SMALL, **settings, "epochs": 3, "steps": 5})
    folder = tmp_path / "13_mm_dpo"
    newest = Checkpoints(folder / "checkpoints", 1).newest()
    assert newest.name == "step_000001"
    assert [line["step"] for line in metrics_of(folder)] == [1]
    assert (folder / "report.html").exists()


# ---- settings and data -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pattern", "hint"),
    [
        ({"optimizer.lerning_rate": 1}, "optimizer.lerning_rate: unknown", "did you mean learning"),
        ({"bta": 1}, "bta: unknown setting", "did you mean beta?"),
        ({"beta": 0}, "beta: found 0: input should be greater than 0", None),
        (
            {"optimizer.betas": [0.9, 1.5]},
            "optimizer.betas.1: found 1.5: input should be less",
            None,
        ),
        ({"data.max_unreadable": "many"}, "data.max_unreadable: found 'many', expected a sh", None),
        ({"evaluation.share": 1}, "evaluation.share: found 1: input should be less than 1", None),
        ({"freeze": ["text", "head"]}, "every part is frozen, so that nothing trains", None),
        ({"lora.targets": ["q_prj"]}, "found no linear module 'q_prj', expected one of", None),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_setting_that_is_wrong_is_refused(changes, pattern, hint, prepared, tmp_path):
    found = refused(ConfigError, pattern, prepared, tmp_path, changes)
    assert hint is None or hint in found.hint


@pytest.mark.parametrize(("share", "part"), [(0.001, "held_out"), (0.999, "train")])
def test_a_share_that_leaves_a_part_empty_is_refused(share, part, prepared, tmp_path):
    pattern = f'found none of 12 queries in part "{part}"'
    assert refused(InputError, pattern, prepared, tmp_path, {"evaluation.share": share}).hint


@pytest.mark.parametrize("run", [run_mm_dpo, run_reference])
def test_a_query_that_fits_no_pack_is_refused_with_the_budget_that_holds_it(
    run, prepared, tmp_path
):
    setting = "tokens" if run is run_reference else "data.tokens"
    pattern = r"found 12 of 12 units \(query\) above it, the largest query \d+ with 61 tokens"
    found = refused(InputError, pattern, prepared, tmp_path, {setting: 20}, run=run)
    assert "tokens=61 holds every unit" in found.hint


@pytest.mark.parametrize("run", [run_mm_dpo, run_sft, run_reference])
def test_shards_that_are_not_there_are_refused(run, prepared, tmp_path):
    model, _ = prepared
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no shards")
    for name in ("absent", "folder", "file"):
        given = (model, tmp_path / name)
        assert refused(InputError, "expected a dataset", given, tmp_path / "run", run=run).hint


def test_an_evaluation_of_other_shards_is_held_to_the_same(prepared, tmp_path):
    model, given = prepared
    own = pack_rows(model, text_rows(3, seed=9), tmp_path / "own")
    changes = {"evaluation.shards": str(own)}
    found = refused(InputError, "there are: none", prepared, tmp_path / "run", changes)
    assert f"mmrlhf-engine reference {own} --model" in found.hint
    # A column of the same name, made by another model.
    other = text_model(tmp_path / "other", seed=1)
    run_reference(own, other, tmp_path / "made", {"tokens": 400, "name": "model"})
    refused(InputError, "there are: reflogp/model", prepared, tmp_path / "run", changes)
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", special=["<other>"])
    config = pack.PackConfig(sources=[f"{given}.jsonl"], tokenizer=str(tokenizer))
    pack.pack_dataset(config, tmp_path / "foreign")
    changes = {"evaluation.shards": str(tmp_path / "foreign")}
    for run in (run_mm_dpo, run_sft):
        pattern = "foreign: packed for another model"
        refused(InputError, pattern, prepared, tmp_path / "run", changes, run=run)


def test_damage_of_the_shards_is_no_traceback(prepared, tmp_path):
    model, given = prepared
    shards = Path(shutil.copytree(given, tmp_path / "shards"))
    largest = max(shards.rglob("*.arrow"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    largest.write_bytes(content)
    with pytest.raises((CorruptDataError, InputError), match="arrow"):
        run_sft(shards, model, tmp_path / "run", SMALL)
