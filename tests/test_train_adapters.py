"""Training adapters: they begin as the base, leave it alone, open elsewhere, and resume."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from mmrlhf_engine import open_dataset, run_mm_dpo, run_reference, run_sft
from mmrlhf_engine.models.policy import weights_hash
from mmrlhf_engine.train import loop
from train_data import metrics_of, text_shards
from train_pictures import picture_shards

SETTINGS = {
    "epochs": 3,
    "data.tokens": 300,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 3e-2,
    "lora.rank": 4,
    "lora.dropout": 0.1,
    "checkpoint.every": 1,
    "gradient_checkpointing": False,
    "threads": 1,
}
OF_TIME = ("seconds", "tokens_per_second", "pictures_per_second", "memory_bytes")


@pytest.fixture(scope="module", params=["text", "pictures"])
def prepared(request, tmp_path_factory):
    """A model and shards of a kind, with its log-probabilities."""
    folder = tmp_path_factory.mktemp(request.param)
    model, shards = (text_shards if request.param == "text" else picture_shards)(folder)
    run_reference(shards, model, folder / "run", {"tokens": 900})
    more = {} if request.param == "text" else {"data.tokens": 900}
    return model, shards, {**SETTINGS, **more}


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """The folder of an undisturbed run."""
    model, shards, settings = prepared
    out = tmp_path_factory.mktemp("trained")
    run_mm_dpo(shards, model, out, settings)
    return out / "13_mm_dpo"


def adapter_of(folder):
    return load_file(folder / "model" / "adapter_model.safetensors")


def test_it_begins_at_ln_2_and_learns(trained):
    losses = [line["loss"] for line in metrics_of(trained)]
    facts = json.loads((trained / "facts.json").read_text())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01
    assert facts["parameters_trained"] < facts["parameters_total"] / 2


def test_the_base_is_as_it_was_and_the_adapter_alone_is_kept(prepared, trained):
    model, _, _ = prepared
    checkpoint = (trained / "model").resolve()
    assert not (checkpoint / "model.safetensors").exists()
    moved = [
        name for name, value in adapter_of(trained).items() if "lora_B" in name and value.any()
    ]
    assert len(moved) == 14  # the seven linear layers of two layers
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model)
    assert weights_hash(str(checkpoint)) != weights_hash(str(model))


# peft asks by a name that transformers is about to drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_checkpoint_opens_with_transformers_and_with_peft(prepared, trained):
    model, _, _ = prepared
    sees = (model / "processor_config.json").exists()
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    checkpoint = (trained / "model").resolve()
    base = kind.from_pretrained(model)
    ids = torch.arange(20, 40)[None]
    plain = base(ids).logits
    opened = kind.from_pretrained(checkpoint)(ids).logits
    by_peft = PeftModel.from_pretrained(base, checkpoint)(ids).logits
    assert torch.allclose(opened, by_peft, atol=1e-5)
    assert (opened - plain).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template


def test_a_checkpoint_is_a_model_of_other_commands(prepared, trained, tmp_path):
    """It can be the reference, and the model to begin with."""
    _, given, settings = prepared
    shards = Path(shutil.copytree(given, tmp_path / "shards"))
    checkpoint = (trained / "model").resolve()
    run_reference(shards, checkpoint, tmp_path / "run", {"tokens": 900, "name": "tuned"})
    tuned, base = (
        open_dataset(shards).column(f"reflogp/{name}", "logp").to_numpy()
        for name in ("tuned", "model")
    )
    assert abs(tuned - base).max() > 1e-2
    report = run_mm_dpo(
        shards, checkpoint, tmp_path / "next", {**settings, "steps": 1, "reference": "tuned"}
    )
    (line,) = metrics_of(Path(report["folder"]))
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_interrupted_it_ends_at_the_same_bits(steps, prepared, trained, tmp_path, monkeypatch):
    model, shards, settings = prepared
    log = loop.log

    def interrupted(run, values):
        log(run, values)
        if run.step == steps + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_mm_dpo(shards, model, tmp_path, settings)
    run_mm_dpo(shards, model, tmp_path, settings)
    found, wanted = adapter_of(tmp_path / "13_mm_dpo"), adapter_of(trained)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    lines = [
        [{name: v for name, v in line.items() if name not in OF_TIME} for line in metrics]
        for metrics in (metrics_of(tmp_path / "13_mm_dpo"), metrics_of(trained))
    ]
    assert lines[0] == lines[1]


def test_checkpointed_activations_change_no_loss(prepared, tmp_path):
    """Of adapters and of all weights; without dropout, whose draws are as many as its calls."""
    model, shards, settings = prepared
    whole = {name: value for name, value in settings.items() if not name.startswith("lora.")}
    for number, given in enumerate(({**whole, "lora.rank": 4}, whole)):
        found = []
        for checkpointing in (False, True):
            out = tmp_path / f"{number}-{checkpointing}"
            changes = {"gradient_checkpointing": checkpointing}
            run_mm_dpo(shards, model, out, {**given, "optimizer.learning_rate": 3e-3, **changes})
            found.append([line["loss"] for line in metrics_of(out / "13_mm_dpo")])
        assert found[0] == pytest.approx(found[1], abs=1e-6)
        assert len({*found[0]}) == len(found[0])


def test_training_goes_on_from_an_adapter_with_another_or_with_all_weights(tmp_path):
    model, shards = text_shards(tmp_path, queries=6)
    out = tmp_path / "run"
    small = {**SETTINGS, "epochs": 1, "evaluation.shards": str(shards)}
    run_sft(shards, model, out, small)
    tuned = out / "extra" / "sft" / "model"
    run_reference(shards, tuned, out, {"tokens": 400})
    whole = {key: value for key, value in small.items() if not key.startswith("lora")}
    for number, settings in enumerate((small, whole)):
        place = tmp_path / str(number)
        report = run_mm_dpo(shards, tuned, place, settings)
        assert report["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
        # The policy that is kept is the one that was evaluated, what it began with included.
        run_reference(shards, place / "13_mm_dpo" / "model", place, {"name": f"after{number}"})
        stored = open_dataset(shards)
        chosen = stored.pairs.collect()["chosen"]
        logp = stored.column(f"reflogp/after{number}", "logp")[chosen]
        assert logp.mean() == pytest.approx(report["after"]["eval_logps/chosen"], abs=1e-4)
