"""A run that was killed, stopped or out of disk goes on to the same bits."""

import errno
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf_engine import run_mm_dpo, run_reference
from mmrlhf_engine.errors import ConfigError, CorruptDataError, StageError
from mmrlhf_engine.train import checkpoint
from train_data import metrics_of, start, text_shards

SETTINGS = {
    "epochs": 4,
    "data.tokens": 300,
    "data.packs_per_step": 2,
    "optimizer.learning_rate": 3e-3,
    "checkpoint.every": 1,
    "checkpoint.keep": 2,
    "gradient_checkpointing": False,
    "evaluation.share": 0.3,
    "evaluation.every": 3,
    "threads": 1,
}
OF_TIME = ("seconds", "tokens_per_second", "pictures_per_second", "memory_bytes")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    model, shards = text_shards(folder, queries=16)
    run_reference(shards, model, folder / "run", {"tokens": 400})
    return model, shards


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run_mm_dpo(prepared[1], prepared[0], out, SETTINGS)
    return out / "13_mm_dpo"


def assert_same(found, wanted):
    """Weights, optimizer and metrics are equal to the bit; times are not."""
    left, right = (load_file(folder / "model" / "model.safetensors") for folder in (found, wanted))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    states = [
        checkpoint.Checkpoints(folder / "checkpoints", 1).read_state((folder / "model").resolve())
        for folder in (found, wanted)
    ]
    assert states[0]["cursor"] == states[1]["cursor"]
    moments = [state["optimizer"]["state"] for state in states]
    for number, values in moments[0].items():
        for name, value in values.items():
            assert torch.equal(value, moments[1][number][name]), (number, name)
    lines = [
        [{key: value for key, value in line.items() if key not in OF_TIME} for line in metrics]
        for metrics in (metrics_of(found), metrics_of(wanted))
    ]
    assert lines[0] == lines[1]


def killed(prepared, out, times, seed):
    """Kill a run so many times at random moments, then let it end."""
    moments = random.Random(seed)
    for _ in range(times):
        process = start(*prepared, out, SETTINGS)
        time.sleep(moments.uniform(0.1, 1.6))
        process.kill()
        process.join()
    process = start(*prepared, out, SETTINGS)
    process.join()
    assert process.exitcode == 0
    return out / "13_mm_dpo"


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_at_the_same_bits(prepared, undisturbed, tmp_path, times):
    assert_same(killed(prepared, tmp_path, times, seed=times), undisturbed)


def test_ctrl_c_leaves_a_checkpoint_of_the_last_step(prepared, undisturbed, tmp_path):
    settings = {**SETTINGS, "checkpoint.every": 1000}
    process = start(*prepared, tmp_path, settings)
    metrics = tmp_path / "13_mm_dpo" / "metrics.jsonl"
    while process.is_alive() and (
        not metrics.exists() or len(metrics.read_text().splitlines()) < 4
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    code = process.exitcode
    kept = checkpoint.Checkpoints(tmp_path / "13_mm_dpo" / "checkpoints", 1).newest()
    assert kept is not None
    steps = metrics_of(tmp_path / "13_mm_dpo")[-1]["step"]
    assert code == (0 if steps == metrics_of(undisturbed)[-1]["step"] else 130)
    assert kept.name == f"step_{steps:06d}"
    # Where checkpoints are kept does not change what is trained.
    run_mm_dpo(prepared[1], prepared[0], tmp_path, SETTINGS)
    assert_same(tmp_path / "13_mm_dpo", undisturbed)


def test_a_full_disk_ends_the_run_and_loses_nothing(prepared, undisturbed, tmp_path, monkeypatch):
    saved = torch.save
    calls = []

    def fails_once(state, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return saved(state, path, *arguments, **options)

    monkeypatch.setattr(torch, "save", fails_once)
    with pytest.raises(StageError, match=r"disk is full; the checkpoint of step 3 .* step_000002"):
        run_mm_dpo(prepared[1], prepared[0], tmp_path, SETTINGS)
    folder = tmp_path / "13_mm_dpo" / "checkpoints"
    assert sorted(entry.name for entry in folder.iterdir()) == ["step_000001", "step_000002"]
    run_mm_dpo(prepared[1], prepared[0], tmp_path, SETTINGS)
    assert_same(tmp_path / "13_mm_dpo", undisturbed)


def test_other_settings_do_not_destroy_checkpoints(prepared, undisturbed, tmp_path):
    run_mm_dpo(prepared[1], prepared[0], tmp_path, {**SETTINGS, "steps": 2})
    kept = tmp_path / "13_mm_dpo" / "checkpoints" / "step_000002"
    other = {**SETTINGS, "steps": 2, "optimizer.learning_rate": 0.1}
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: found 0.003, expected 0.1"):
        run_mm_dpo(prepared[1], prepared[0], tmp_path, other)
    assert kept.is_dir()
    run_mm_dpo(prepared[1], prepared[0], tmp_path, SETTINGS, restart=True)
    assert not kept.is_dir()
    assert_same(tmp_path / "13_mm_dpo", undisturbed)


def test_a_damaged_checkpoint_is_named(prepared, tmp_path):
    run_mm_dpo(prepared[1], prepared[0], tmp_path, {**SETTINGS, "steps": 2})
    folder = tmp_path / "13_mm_dpo"
    (folder / "manifest.json").unlink()
    (folder / "checkpoints" / "step_000002" / "trainer_state.pt").write_bytes(b"no state")
    with pytest.raises(CorruptDataError, match="step_000002"):
        run_mm_dpo(prepared[1], prepared[0], tmp_path, {**SETTINGS, "steps": 2})
