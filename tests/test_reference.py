"""Log-probabilities of a reference model: resumed to the same bits, added to, as of a forward."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmrlhf_engine import (
    Budget,
    PlanSettings,
    PreferenceDataset,
    PreferenceLoader,
    answer_rows,
    open_dataset,
    plan_json,
    run_mm_dpo,
    run_reference,
)
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.train import reference
from mmrlhf_engine.train.reference import ReferenceConfig
from pack_data import write_lines
from test_train_options import leaves
from train_data import start_reference, text_model, text_rows, text_shards
from train_pictures import picture_shards

TOKENS = {"tokens": 130, "threads": 1}


def column_of(shards, name="reflogp/model"):
    return open_dataset(shards).column(name, "logp").to_numpy()


def counted(monkeypatch):
    """The responses that are scored, pack by pack."""
    scored = []
    add = reference._Scores.add

    def counting(scores, responses, values, batch):
        scored.append(sorted(responses.tolist()))
        add(scores, responses, values, batch)

    monkeypatch.setattr(reference._Scores, "add", counting)
    return scored


# ---- interrupted -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A model, and shards that fill many packs; the column of an undisturbed run."""
    folder = tmp_path_factory.mktemp("many")
    model, shards = text_shards(folder, queries=60)
    undisturbed = Path(shutil.copytree(shards, folder / "undisturbed"))
    run_reference(undisturbed, model, folder / "run", TOKENS)
    return model, shards, column_of(undisturbed)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_at_the_same_column(many, tmp_path, times):
    model, given, wanted = many
    shards = Path(shutil.copytree(given, tmp_path / "shards"))
    moments = random.Random(times)
    for _ in range(times):
        process = start_reference(model, shards, tmp_path / "run", TOKENS)
        time.sleep(moments.uniform(0.05, 0.8))
        process.kill()
        process.join()
    process = start_reference(model, shards, tmp_path / "run", TOKENS)
    process.join()
    assert process.exitcode == 0
    assert np.array_equal(column_of(shards), wanted)


@pytest.mark.parametrize("packs", [1, 5, 14])
def test_what_was_scored_before_an_interruption_is_not_scored_again(
    packs, many, tmp_path, monkeypatch
):
    model, given, wanted = many
    shards = Path(shutil.copytree(given, tmp_path / "shards"))
    monkeypatch.setattr(reference, "_KEEP_EVERY", 3)
    scored = counted(monkeypatch)
    progress = reference.StageContext.progress

    def interrupted(context, task, done, total=None):
        progress(context, task, done, total)
        if done == packs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reference.StageContext, "progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_reference(shards, model, tmp_path / "run", TOKENS)
    assert open_dataset(shards).column_sets == []
    before = len(scored)
    run_reference(shards, model, tmp_path / "run", TOKENS)
    data = PreferenceDataset(shards, TOKENS["tokens"], threads=1)
    packs_of_all = len(data)
    kept = (packs - 1) // 3 * 3
    assert scored[before:][: packs - kept] == scored[kept:before]
    assert len(scored) - before == packs_of_all - kept
    assert np.array_equal(column_of(shards), wanted)


# ---- added to --------------------------------------------------------------------------------


def test_of_appended_shards_only_the_new_responses_are_scored(tmp_path, monkeypatch):
    model, shards = text_shards(tmp_path)
    run_reference(shards, model, tmp_path / "run", TOKENS)
    before = column_of(shards)
    source = write_lines(tmp_path / "more.jsonl", text_rows(5, seed=70))
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(model), append=True)
    pack.pack_dataset(config, shards)
    with pytest.raises(InputError, match="15 of 51 responses have no value") as raised:
        run_mm_dpo(shards, model, tmp_path / "run", {"data.tokens": 300})
    assert f"mmrlhf-engine reference {shards} --model {model}" in raised.value.hint
    scored = counted(monkeypatch)
    report = run_reference(shards, model, tmp_path / "run", TOKENS)
    assert report["rows_out"] == 51
    # A pack is scored as a whole, and its old responses keep the values that they had.
    assert {*range(36, 51)} <= {row for rows in scored for row in rows}
    assert all(max(rows) >= 36 for rows in scored)
    after = column_of(shards)
    assert np.array_equal(after[:36], before)
    whole = Path(shutil.copytree(shards, tmp_path / "whole"))
    run_reference(whole, model, tmp_path / "whole_run", {**TOKENS, "name": "whole"})
    assert abs(column_of(whole, "reflogp/whole") - after).max() < 1e-5


def test_a_run_that_is_finished_is_not_repeated(tmp_path, monkeypatch):
    model, shards = text_shards(tmp_path, queries=4)
    first = run_reference(shards, model, tmp_path / "run", TOKENS)
    scored = counted(monkeypatch)
    assert run_reference(shards, model, tmp_path / "run", TOKENS) == first
    assert run_reference(shards, model, tmp_path / "elsewhere", TOKENS)["rows_out"] == 12
    assert scored == []


def test_another_model_of_the_same_name_has_a_column_of_its_own(tmp_path):
    model, shards = text_shards(tmp_path, queries=4)
    other = text_model(tmp_path / "other" / "model", seed=1)
    run_reference(shards, model, tmp_path / "run", TOKENS)
    first = column_of(shards)
    report = run_reference(shards, other, tmp_path / "other_run", TOKENS)
    assert report["column_set"].startswith("reflogp/model-")
    run_reference(shards, model, tmp_path / "half", {**TOKENS, "precision": "bfloat16"})
    assert len(open_dataset(shards).column_sets) == 3
    assert np.array_equal(column_of(shards), first)
    for given in (model, other):
        run_mm_dpo(shards, given, tmp_path / given.parent.name, {"data.tokens": 300})


def test_a_name_that_is_given_is_that_of_the_newest_model(tmp_path):
    model, shards = text_shards(tmp_path, queries=4)
    other = text_model(tmp_path / "other" / "model", seed=1)
    named = {**TOKENS, "name": "chosen"}
    run_reference(shards, model, tmp_path / "run", named)
    (entry,) = open_dataset(shards).column_sets
    run_reference(shards, other, tmp_path / "other_run", named)
    (replaced,) = open_dataset(shards).column_sets
    assert (replaced.name, replaced.filled) == (entry.name, entry.filled)
    assert replaced.revision > entry.revision
    # The first run is finished, but its column is gone: what mm-dpo advises makes it again.
    with pytest.raises(InputError, match="no log-probabilities of the model that trains"):
        run_mm_dpo(shards, model, tmp_path / "run", {"data.tokens": 300})
    run_reference(shards, model, tmp_path / "run", named)
    assert open_dataset(shards).column_sets[0].revision > replaced.revision


def test_a_copy_of_the_shards_gets_a_column_of_its_own(tmp_path):
    model, shards = text_shards(tmp_path, queries=4)
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    run_reference(shards, model, tmp_path / "run", TOKENS)
    assert open_dataset(copy).column_sets == []
    run_reference(copy, model, tmp_path / "run", TOKENS)
    assert np.array_equal(column_of(copy), column_of(shards))


def test_references_of_several_names_lie_beside_one_another(tmp_path):
    model, shards = text_shards(tmp_path, queries=4)
    other = text_model(tmp_path / "Other_Model 7B", seed=1)
    for given, name in ((model, None), (other, None), (other, "reflogp-2")):
        settings = {**TOKENS, **({"name": name} if name else {})}
        report = run_reference(shards, given, tmp_path / "run", settings)
        assert report["column_set"].startswith("reflogp/")
    names = {entry.name for entry in open_dataset(shards).column_sets}
    assert names == {"reflogp/model", "reflogp/other_model-7b", "reflogp/reflogp-2"}
    assert np.array_equal(
        column_of(shards, "reflogp/other_model-7b"), column_of(shards, "reflogp/reflogp-2")
    )


# ---- as a forward ----------------------------------------------------------------------------


@torch.no_grad()
def test_with_pictures_the_column_is_that_of_the_models_own_forward(tmp_path):
    model, shards = picture_shards(tmp_path)
    run_reference(shards, model, tmp_path / "run", {"tokens": 900})
    stored = column_of(shards)
    policy = AutoModelForImageTextToText.from_pretrained(model).eval()
    dataset = open_dataset(shards)
    plan = plan_json(
        PlanSettings(budget=Budget(tokens=900), packs_per_step=1, unit="pair"),
        dataset.processor["image_rule"],
    )
    found = np.full(len(stored), np.nan)
    for batch in PreferenceLoader(shards, plan, threads=1):
        logits = policy(**batch.model_inputs(), use_cache=False).logits[0].double()
        answers = answer_rows(batch)
        logp = logits[answers.row].log_softmax(-1).gather(1, torch.tensor(answers.target)[:, None])
        ends = answers.cu_seqlens.tolist()
        for place, response in enumerate(batch.sequence_response.tolist()):
            if response >= 0:
                found[response] = float(logp[ends[place] : ends[place + 1]].sum())
    assert len(stored) == 16
    assert abs(found - stored).max() < 1e-5 * max(1.0, abs(stored).max())


SCORE = """
import sys
from pathlib import Path
from mmrlhf_engine import run_reference
run_reference(*sys.argv[1:4], {"tokens": 130, "threads": 1})
"""


@pytest.mark.slow
def test_two_processes_make_the_same_column(many, tmp_path):
    model, given, wanted = many
    shards = Path(shutil.copytree(given, tmp_path / "shards"))
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(29_500 + os.getpid() % 1000), "ACCELERATE_USE_CPU": "1"}
    words = [sys.executable, "-c", SCORE, str(shards), str(model), str(tmp_path / "run")]
    ranks = [
        subprocess.Popen(
            words,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert abs(column_of(shards) - wanted).max() < 1e-5


# ---- settings ------------------------------------------------------------------------------

REFERENCE = {"shards", "model", "name", "precision", "frozen_weights", "other_template"}
REFERENCE |= {"tokens", "too_large", "threads", "cache_features"}


def test_no_setting_of_reference_is_without_a_test():
    """``other_template`` and ``threads`` are tested with those of training, ``cache_features`` with
    those of ``sample``.
    """
    assert leaves(ReferenceConfig) == REFERENCE


@pytest.fixture
def own_shards(tmp_path):
    """A model, and shards without any column."""
    return text_shards(tmp_path)


def test_a_reference_needs_shards_and_a_model(own_shards, tmp_path):
    model, shards = own_shards
    with pytest.raises(InputError, match="absent"):
        run_reference(tmp_path / "absent", model, tmp_path / "run", {})
    with pytest.raises(ConfigError, match="absent"):
        run_reference(shards, tmp_path / "absent", tmp_path / "run", {})


def test_name_precision_and_weights_of_a_reference(own_shards, tmp_path):
    model, shards = own_shards
    columns = {}
    for name, changes in {
        "float": {},
        "products": {"precision": "bfloat16"},
        "weights": {"frozen_weights": "bfloat16"},
    }.items():
        report = run_reference(
            shards, model, tmp_path / name, {"tokens": 400, "name": name, **changes}
        )
        assert report["column_set"] == f"reflogp/{name}"
        columns[name] = open_dataset(shards).column(report["column_set"], "logp").to_numpy()
    for name in ("products", "weights"):
        difference = abs(columns[name] - columns["float"])
        assert 0 < difference.max() < 1


def test_packs_of_a_reference_are_of_so_many_tokens(own_shards, tmp_path, monkeypatch):
    model, shards = own_shards
    packs = counted(monkeypatch)
    found = {}
    for tokens in (70, 400):
        run_reference(
            shards, model, tmp_path / f"{tokens}", {"tokens": tokens, "name": f"of-{tokens}"}
        )
        found[tokens] = len(packs)
        packs.clear()
    assert found[70] > 2 * found[400]


def test_a_query_above_the_budget_of_a_reference(own_shards, tmp_path):
    model, shards = own_shards
    with pytest.raises(InputError, match=r"found \d of 12 units \(query\) above it"):
        run_reference(shards, model, tmp_path / "a", {"tokens": 58})
    report = run_reference(shards, model, tmp_path / "b", {"tokens": 58, "too_large": "drop"})
    assert report["dropped"]["not_scored"] > 0
    report = run_reference(shards, model, tmp_path / "c", {"tokens": 58, "too_large": "alone"})
    assert report["rows_out"] == report["rows_in"]
