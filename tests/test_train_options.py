"""Every setting of ``mm-dpo``, ``sft`` and ``reference`` has an effect that can be seen.

A few steps on texts are run once with the settings of ``BASE``. For each setting they are run again
with another value; metrics then differ, or the run is refused for the reason given, or a test of
its own says what is different. A setting that is in a config and in no list fails a test.
"""

import math
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from mmrlhf_engine import open_dataset, run_mm_dpo, run_reference, run_sft
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.train import reference, setup
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.settings import TrainSettings
from mmrlhf_engine.train.sft import SupervisedConfig
from pack_data import CHATML
from train_data import metrics_of, pack_rows, text_model, text_rows
from train_pictures import picture_shards

BASE = {
    "epochs": 2,
    "data.tokens": 300,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 3e-3,
    "gradient_checkpointing": False,
    "threads": 1,
}
LORA = {"lora.rank": 4, "lora.alpha": 8, "optimizer.learning_rate": 3e-2}
OF_TIME = ("seconds", "tokens_per_second", "pictures_per_second", "memory_bytes")
DIFFERENT = "the metrics differ"


def leaves(kind: type[Section], prefix: str = "") -> set[str]:
    """Dotted names of all settings; a section within a section, also one or null, gives its own."""
    found = set()
    for name, field in kind.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = [one for one in kinds if isinstance(one, type) and issubclass(one, Section)]
        found |= leaves(inner[0], f"{prefix}{name}.") if inner else {prefix + name}
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model, and shards with log-probabilities of it and of another one, margins and betas."""
    folder = tmp_path_factory.mktemp("options")
    model = text_model(folder / "model")
    made = [{**row, "is_tie": n % 7 == 0} for n, row in enumerate(text_rows(12))]
    shards = pack_rows(model, made, folder / "shards")
    for reference_model in (model, text_model(folder / "other", seed=1)):
        run_reference(shards, reference_model, folder / "run", {"tokens": 400})
    add_to_pairs(shards, "given", value=2.0)
    return model, shards


def add_to_pairs(shards, column_set, **fields):
    """A sidecar column of pairs: the same number in each row, or a list of them."""
    dataset = open_dataset(shards)
    rows = dataset.rows("pairs")
    whole = {
        name: given if isinstance(given, list) else [given] * rows for name, given in fields.items()
    }
    schema = dict.fromkeys(whole, pl.Float32)
    dataset.add_column(
        pl.DataFrame(whole, schema), table="pairs", column_set=column_set, provenance={}
    )


def trained(prepared, out, changes, *, supervised=False):
    """Metrics of the steps of a run, without those of time."""
    model, shards = prepared
    run, folder = (run_sft, "extra/sft") if supervised else (run_mm_dpo, "13_mm_dpo")
    run(shards, model, out, {**BASE, **changes})
    return [
        {name: value for name, value in line.items() if name not in OF_TIME}
        for line in metrics_of(out / folder)
    ]


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


# ---- settings of both commands that train ----------------------------------------------------

CHANGED = {
    "shards": ("absent", "absent"),
    "model": ("absent", "absent"),
    "seed": (1, DIFFERENT),
    "epochs": (1, DIFFERENT),
    "steps": (1, DIFFERENT),
    "frozen_weights": ("bfloat16", "the weights of the text model train"),
    "freeze": (["head"], DIFFERENT),
    "data.tokens": (150, DIFFERENT),
    "data.packs_per_step": (1, DIFFERENT),
    "data.unit": ("pair", DIFFERENT),
    "data.pairs_per_query": (1, DIFFERENT),
    "data.max_unreadable": ("many", "expected a share such as 1% or 0.01"),
    "optimizer.name": ("sgd", DIFFERENT),
    "optimizer.learning_rate": (1e-3, DIFFERENT),
    "optimizer.betas": ([0.5, 0.999], DIFFERENT),
    "optimizer.epsilon": (1.0, DIFFERENT),
    "optimizer.weight_decay": (0.5, DIFFERENT),
    "optimizer.max_grad_norm": (0.01, DIFFERENT),
    "schedule.name": ("constant", DIFFERENT),
    "schedule.warmup": (0.6, DIFFERENT),
    "evaluation.share": (0.3, DIFFERENT),
}
LORA_CHANGED = {
    "lora.rank": 2,
    "lora.alpha": 80,
    "lora.dropout": 0.5,
    "lora.targets": ["q_proj"],
}
# Each has a test of its own below.
APART = {
    *("precision", "gradient_checkpointing", "other_template", "compile", "cache_features"),
    *(
        "data.too_large",
        "evaluation.shards",
        "evaluation.seed",
        "evaluation.every",
        "track",
        "threads",
    ),
    *("checkpoint.every", "checkpoint.keep"),
}

OWN_CHANGED = {
    "beta": (0.3, DIFFERENT),
    "beta_rule": ("given/value", DIFFERENT),
    "beta_w": (5.0, DIFFERENT),
    "beta_k": (5.0, DIFFERENT),
    "margin": ("given/value", DIFFERENT),
    "reference": ("other", DIFFERENT),
    "loss_type": ("hinge", DIFFERENT),
    "label_smoothing": (0.2, DIFFERENT),
    "sft_weight": (0.25, DIFFERENT),
    "ties": ("fair_coin", DIFFERENT),
}
OWN_APART = {"missing_margin", "sft_mean"}


def test_no_setting_of_training_is_without_a_test():
    shared = set(CHANGED) | set(LORA_CHANGED) | APART
    assert leaves(TrainSettings) == shared
    assert leaves(MMDPOConfig) == shared | set(OWN_CHANGED) | OWN_APART
    assert leaves(SupervisedConfig) == shared


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory):
    """Metrics of both commands with the settings of ``BASE``."""
    return {
        supervised: trained(prepared, tmp_path_factory.mktemp("base"), {}, supervised=supervised)
        for supervised in (False, True)
    }


@pytest.mark.parametrize("supervised", [False, True], ids=["mm_dpo", "sft"])
@pytest.mark.parametrize("setting", CHANGED)
def test_a_setting_of_training_has_an_effect(setting, supervised, base, prepared, tmp_path):
    value, effect = CHANGED[setting]
    if setting in ("shards", "model"):
        place = ("model", "shards").index(setting)
        prepared = tuple(
            tmp_path / value if n == place else given for n, given in enumerate(prepared)
        )
        changes = {}
    else:
        changes = {setting: value}
    if effect is DIFFERENT:
        assert trained(prepared, tmp_path, changes, supervised=supervised) != base[supervised]
    else:
        with pytest.raises((ConfigError, InputError), match=effect):
            trained(prepared, tmp_path, changes, supervised=supervised)


@pytest.mark.parametrize("setting", OWN_CHANGED)
def test_a_setting_of_mm_dpo_has_an_effect(setting, base, prepared, tmp_path):
    value, _ = OWN_CHANGED[setting]
    assert trained(prepared, tmp_path, {setting: value}) != base[False]


def test_a_run_is_repeated_to_the_bit(base, prepared, tmp_path):
    """Without this, that metrics differ would say nothing."""
    assert trained(prepared, tmp_path / "a", {}) == base[False]
    assert trained(prepared, tmp_path / "b", {}, supervised=True) == base[True]


@pytest.fixture(scope="module")
def with_adapters(prepared, tmp_path_factory):
    return trained(prepared, tmp_path_factory.mktemp("lora"), LORA)


@pytest.mark.parametrize("setting", LORA_CHANGED)
def test_a_setting_of_adapters_has_an_effect(setting, with_adapters, base, prepared, tmp_path):
    assert with_adapters != base[False]
    changed = trained(prepared, tmp_path, {**LORA, setting: LORA_CHANGED[setting]})
    assert losses(changed) != losses(with_adapters)


def test_each_loss_and_rule_is_one_of_its_own(base, prepared, tmp_path):
    kinds = [{"loss_type": kind} for kind in ("ipo", "hinge", "robust", "bco_pair")]
    kinds += [{"beta_rule": rule} for rule in ("constant", "released")]
    found = [losses(base[False])]
    for number, changes in enumerate(kinds):
        smooth = {"label_smoothing": 0.1} if "robust" in changes.values() else {}
        found.append(losses(trained(prepared, tmp_path / f"{number}", {**changes, **smooth})))
    assert all(math.isfinite(loss) for each in found for loss in each)
    assert len({tuple(each) for each in found}) == len(found)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_optimizers_and_schedules_are_those_of_their_names(name, schedule):
    from mmrlhf_engine.train.optimizer import make_optimizer, make_schedule
    from mmrlhf_engine.train.settings import OptimizerSettings, ScheduleSettings

    model = nn.Linear(3, 2)
    optimizer = make_optimizer(OptimizerSettings(name=name, weight_decay=0.1), model)
    assert type(optimizer).__name__.lower() == name
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    moved = make_schedule(ScheduleSettings(name=schedule, warmup=0.2), optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(moved.get_last_lr()[0] / 1e-6)
        optimizer.step()
        moved.step()
    wanted = {
        "constant": [0, 0.5, *[1.0] * 8],
        "linear": [0, 0.5, *(1 - n / 8 for n in range(8))],
        "cosine": [0, 0.5, *((1 + math.cos(math.pi * n / 8)) / 2 for n in range(8))],
        "inverse_sqrt": [0, 0.5, *(math.sqrt(2 / (2 + n)) for n in range(8))],
    }
    assert rates == pytest.approx(wanted[schedule])


def test_the_supervised_loss_is_a_mean_over_tokens_or_over_answers(prepared, tmp_path):
    found = [
        trained(prepared, tmp_path / mean, {"sft_weight": 0.25, "sft_mean": mean})
        for mean in ("token", "sequence")
    ]
    (token, *_), (sequence, *_) = found
    assert token["loss/dpo"] == sequence["loss/dpo"]
    assert abs(token["loss/sft"] - sequence["loss/sft"]) > 1e-3


def test_pairs_without_a_margin_are_refused_or_have_beta(prepared, tmp_path):
    model, _ = prepared
    made = text_rows(6)
    for row in made[::2]:
        del row["margin"]
    shards = pack_rows(model, made, tmp_path / "shards")
    run_reference(shards, model, tmp_path / "run", {"tokens": 400})
    with pytest.raises(InputError, match="9 of 18 pairs that are no ties have no margin"):
        trained((model, shards), tmp_path / "a", {})
    (line, *_) = trained((model, shards), tmp_path / "b", {"missing_margin": "constant"})
    assert line["beta/min"] == pytest.approx(0.1)
    assert line["beta/max"] > 0.11


def test_a_query_above_the_budget_is_an_error_or_alone_or_left_out(prepared, tmp_path):
    small = {"data.tokens": 58, "epochs": 1}
    with pytest.raises(InputError, match=r"found \d of 12 units \(query\) above it"):
        trained(prepared, tmp_path / "a", small)
    pairs = {}
    for choice in ("alone", "drop"):
        changes = {**small, "data.too_large": choice}
        lines = trained(prepared, tmp_path / choice, changes)
        pairs[choice] = sum(line["num_pairs"] for line in lines)
    assert pairs["alone"] > pairs["drop"] > 0


def test_in_bfloat16_a_run_begins_within_a_thousandth_of_ln_2(base, prepared, tmp_path):
    model, shards = prepared
    with pytest.raises(
        InputError, match=r'precision.products: found "float32", expected "bfloat16"'
    ):
        trained(prepared, tmp_path / "a", {"precision": "bfloat16"})
    own = Path(shutil.copytree(shards, tmp_path / "shards"))
    settings = {"tokens": 400, "precision": "bfloat16", "name": "half"}
    run_reference(own, model, tmp_path / "run", settings)
    found = trained((model, own), tmp_path / "b", {"precision": "bfloat16"})
    assert found[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-3)
    assert losses(found) != losses(base[False])
    # The other column of the same weights is still there, and is the one of a run in float32.
    assert trained((model, own), tmp_path / "c", {"precision": "float32"}) == base[False]


def test_frozen_weights_in_bfloat16_are_those_that_do_not_train(prepared, tmp_path):
    model, shards = prepared
    own = Path(shutil.copytree(shards, tmp_path / "shards"))
    run_reference(
        own, model, tmp_path / "run", {"tokens": 400, "frozen_weights": "bfloat16", "name": "half"}
    )
    halved = {"frozen_weights": "bfloat16"}
    found = trained((model, own), tmp_path / "a", {**LORA, **halved})
    whole = trained((model, own), tmp_path / "b", LORA)
    assert found[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[0]["logps/chosen"] != whole[0]["logps/chosen"]


def test_checkpointed_activations_are_computed_again(base, prepared, tmp_path, monkeypatch):
    calls = []
    forward = Qwen2MLP.forward

    def counting(layer, hidden):
        calls.extend([layer] * torch.is_grad_enabled())
        return forward(layer, hidden)

    monkeypatch.setattr(Qwen2MLP, "forward", counting)
    found = {}
    for checkpointing in (False, True):
        changes = {"gradient_checkpointing": checkpointing, "epochs": 1}
        found[checkpointing] = trained(prepared, tmp_path / f"{checkpointing}", changes), len(calls)
        calls.clear()
    assert found[True][1] == 2 * found[False][1] > 0
    assert losses(found[True][0]) == pytest.approx(losses(found[False][0]), abs=1e-6)


def test_another_template_is_refused_or_allowed(base, prepared, tmp_path):
    model, shards = prepared
    own = Path(shutil.copytree(model, tmp_path / "model"))
    (own / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|im_end|> "))
    with pytest.raises(InputError, match="expected by the model: chat_template: found"):
        trained((own, shards), tmp_path / "a", {})
    assert trained((own, shards), tmp_path / "b", {"other_template": True}) == base[False]
    with pytest.raises(InputError, match="expected by the model: chat_template: found"):
        run_reference(shards, own, tmp_path / "c", {})
    run_reference(shards, own, tmp_path / "c", {"other_template": True})


# Dynamo looks at a tensor in a way that torch warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_layers_are_compiled(base, prepared, tmp_path, monkeypatch):
    """By dynamo alone, as inductor takes minutes."""
    compiled = []
    compile_module = nn.Module.compile

    def without_inductor(module, **options):
        compiled.append(module)
        compile_module(module, **options, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", without_inductor)
    changes = {"epochs": 1, "steps": 2, "schedule.name": "constant", "schedule.warmup": 0}
    plain = trained(prepared, tmp_path / "a", changes)
    assert not compiled
    assert losses(trained(prepared, tmp_path / "b", {**changes, "compile": True})) == pytest.approx(
        losses(plain), abs=1e-5
    )
    assert compiled


def test_other_shards_are_evaluated_on_as_often_as_asked(base, prepared, tmp_path):
    model, _ = prepared
    held_out = pack_rows(model, text_rows(4, seed=50), tmp_path / "held_out")
    run_reference(held_out, model, tmp_path / "run", {"tokens": 400})
    steps = len(base[False])
    for every, wanted in ((1, [*range(steps + 1)]), (3, [0, 3, steps]), (99, [0, steps])):
        changes = {"evaluation.shards": str(held_out), "evaluation.every": every}
        lines = trained(prepared, tmp_path / f"{every}", changes)
        evaluations = [line for line in lines if "eval_loss" in line]
        assert [line["step"] for line in evaluations] == wanted
        assert evaluations[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
        # Training is as without it.
        assert [line for line in lines if "loss" in line] == base[False]
    with pytest.raises(ConfigError, match="found share and shards, expected one of them"):
        trained(prepared, tmp_path / "both", {**changes, "evaluation.share": 0.3})


def test_checkpoints_are_made_and_kept_as_asked(base, prepared, tmp_path):
    steps = len(base[False])
    assert steps == 4
    for every, keep, wanted in ((1, 2, [3, 4]), (3, 9, [3, 4]), (1, 1, [4]), (9, 9, [4])):
        out = tmp_path / f"{every}-{keep}"
        changes = {"checkpoint.every": every, "checkpoint.keep": keep}
        assert trained(prepared, out, changes) == base[False]
        found = sorted(entry.name for entry in (out / "13_mm_dpo" / "checkpoints").iterdir())
        assert found == [f"step_{step:06d}" for step in wanted]


def test_metrics_go_to_trackers_too(base, prepared, tmp_path):
    assert trained(prepared, tmp_path, {"track": ["tensorboard"]}) == base[False]
    assert list((tmp_path / "13_mm_dpo" / "tensorboard").glob("events.*"))
    with pytest.raises(ConfigError, match=r"track.0: found 'tensorbord'"):
        trained(prepared, tmp_path / "b", {"track": ["tensorbord"]})


@pytest.mark.parametrize("module", [setup, reference], ids=["training", "reference"])
def test_threads_reach_the_loader(module, base, prepared, tmp_path, monkeypatch):
    asked = set()
    dataset = module.PreferenceDataset

    def counting(*arguments, **settings):
        asked.add(settings["threads"])
        return dataset(*arguments, **settings)

    monkeypatch.setattr(module, "PreferenceDataset", counting)
    if module is setup:
        assert trained(prepared, tmp_path, {"threads": 3}) == base[False]
    else:
        run_reference(prepared[1], prepared[0], tmp_path, {"threads": 3, "tokens": 400})
    assert asked == {3}


# ---- pictures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_pictures(tmp_path_factory):
    model, shards = picture_shards(tmp_path_factory.mktemp("pictures"))
    run_reference(shards, model, shards.parent / "run", {"tokens": 900})
    return model, shards


OF_PARTS = {"tower": "visual.blocks", "projector": "visual.merger", "head": "lm_head"}
OF_PARTS["text"] = "layers"
SEEING = {"data.tokens": 900, "schedule.warmup": 0, "schedule.name": "constant"}


@pytest.mark.parametrize(
    "freeze", [[], ["tower"], ["projector"], ["text", "head"], ["tower", "projector", "head"]]
)
def test_frozen_parts_stay_as_they_are_and_others_move(freeze, with_pictures, tmp_path):
    trained(with_pictures, tmp_path, {**SEEING, "freeze": freeze})
    before = load_file(with_pictures[0] / "model.safetensors")
    after = load_file(tmp_path / "13_mm_dpo" / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for part, place in OF_PARTS.items():
        names = {name for name in before if place in name and name.endswith("weight")}
        assert names
        assert (names & moved == set()) if part in freeze else (names & moved), part


def test_the_outputs_of_a_frozen_tower_are_kept(with_pictures, tmp_path):
    cache = tmp_path / "cache"
    plain = trained(with_pictures, tmp_path / "a", SEEING)
    for again in ("b", "c"):
        changes = {**SEEING, "cache_features": str(cache)}
        assert losses(trained(with_pictures, tmp_path / again, changes)) == pytest.approx(
            losses(plain), abs=1e-6
        )
    assert any(file.is_file() for file in cache.rglob("*"))
    with pytest.raises(ConfigError, match="tower"):
        trained(with_pictures, tmp_path / "d", {**changes, "freeze": []})


def test_another_seed_holds_other_queries_out(prepared, tmp_path):
    first, second = (
        trained(prepared, tmp_path / f"{seed}", {"evaluation.share": 0.3, "evaluation.seed": seed})
        for seed in (0, 1)
    )
    assert losses(first) != losses(second)
