"""The commands that train, from a shell: exit codes, no traceback, and what lies in their way."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager, nullcontext

import pytest

from command import INSTALLED, engine, installed
from mmrlhf_engine import run_mm_dpo, run_reference
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.train.checkpoint import Checkpoints
from train_data import metrics_of, start, text_shards

SETTINGS = {
    "data.tokens": 300,
    "data.packs_per_step": 1,
    "gradient_checkpointing": False,
    "threads": 1,
}
SMALL = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    model, shards = text_shards(folder, queries=16)
    run_reference(shards, model, folder / "run", {"tokens": 400})
    return model, shards


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_run_says_where_the_model_is(prepared, tmp_path):
    model, shards = prepared
    words = ["--out", tmp_path, "--steps", 2, "--progress", "silent", *SMALL]
    found = engine("mm-dpo", shards, "--model", model, *words)
    assert (found.returncode, found.stderr) == (0, "")
    folder = tmp_path / "13_mm_dpo"
    assert found.stdout == f"{folder}/model: 2 steps; the page is {folder}/report.html\n"
    found = engine("sft", shards, "--model", model, *words)
    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "extra" / "sft" / "model" / "config.json").exists()
    words = ["--out", tmp_path, "--tokens", 400, "--progress", "silent"]
    found = engine("reference", shards, "--model", model, "--name", "again", *words)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "reflogp/again: 48 responses have log-probabilities\n"


@pytest.mark.parametrize("command", ["mm-dpo", "sft", "reference"])
@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--set", "thrads=1"], 2, "error: thrads: unknown setting", "did you mean threads?"),
        (["--set", "threads"], 2, "override 'threads': expected key=value", "for example --set"),
        (["--set", "precision=half"], 2, "precision: found 'half': input should be", None),
        (["--threads", "-1"], 2, "Invalid value for '--threads'", None),
        (["--model", "some-organisation/absent"], 2, "some-organisation/absent: ", "on the hub"),
        (["--tokens", "20"], 1, "above it, the largest query", "tokens=61 holds every unit"),
    ],
    ids=["unknown", "no value", "wrong", "click", "model", "too large"],
)
@pytest.mark.usefixtures("offline")
def test_what_is_wrong_is_said_in_a_line(command, words, code, message, hint, prepared, tmp_path):
    model, shards = prepared
    found = engine(command, shards, "--model", model, "--out", tmp_path, *words)
    assert found.returncode == code
    assert message in found.stderr
    assert hint is None or hint in found.stderr.partition("hint: ")[2]
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("command", ["mm-dpo", "sft", "reference"])
def test_shards_and_a_model_are_needed(command, prepared, tmp_path):
    model, shards = prepared
    for words, message in (
        (["--model", model], "shards: not given"),
        ([shards], "model: not given"),
        ([tmp_path / "absent", "--model", model], "absent: found no folder _mmrlhf in it"),
    ):
        found = engine(command, *words, "--out", tmp_path)
        assert found.returncode == (1 if "absent" in message else 2)
        assert message in found.stderr
        assert "hint: " in found.stderr


def test_as_installed_a_missing_model_is_one_error(prepared, tmp_path):
    """In a process of its own, where nothing is set to be offline."""
    found = installed("sft", prepared[1], "--model", "/no/such-model", "--out", tmp_path)
    assert found.returncode == 2
    assert found.stderr.count("error: ") == 1
    assert "hint: a folder, or a name on the hub" in found.stderr
    assert "Traceback" not in found.stderr


def state_of(*folders):
    files = (file for folder in folders for file in folder.rglob("*"))
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


@pytest.mark.parametrize("command", ["mm-dpo", "sft"])
def test_a_dry_run_changes_nothing(command, prepared, tmp_path):
    model, shards = prepared
    before = state_of(model, shards, tmp_path)
    words = ["--out", tmp_path / "run", "--dry-run", *SMALL]
    found = engine(command, shards, "--model", model, *words)
    assert (found.returncode, found.stderr) == (0, "")
    assert "no weight loaded, no picture decoded" in found.stdout
    assert state_of(model, shards, tmp_path) == before
    assert not (tmp_path / "run").exists()


# ---- the run folder --------------------------------------------------------------------------


@contextmanager
def without_rights():
    """As another user, where this one may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("command", ["mm-dpo", "sft", "reference"])
def test_a_run_folder_that_cannot_be_one_is_refused(command, prepared, tmp_path):
    model, shards = prepared
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "closed").mkdir(mode=0o555)
    for name, reason in (("file", "Not a directory"), ("closed", "Permission denied")):
        with without_rights() if name == "closed" else nullcontext():
            found = engine(command, shards, "--model", model, "--out", tmp_path / name)
        assert found.returncode == 1
        assert f"cannot be written: {reason}" in found.stderr
        assert "hint: another --out" in found.stderr
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_second_process_in_the_folder_is_refused(prepared, tmp_path):
    model, shards = prepared
    process = start(model, shards, tmp_path, {**SETTINGS, "epochs": 50, "checkpoint.every": 1})
    try:
        wait_for_steps(process, tmp_path, 1)
        with pytest.raises(InputError, match="another process is working in this folder"):
            run_mm_dpo(shards, model, tmp_path, SETTINGS)
    finally:
        process.kill()
        process.join()
    report = run_mm_dpo(shards, model, tmp_path, {**SETTINGS, "steps": 2}, restart=True)
    assert report["steps"] == 2


def wait_for_steps(process, out, steps):
    metrics = out / "13_mm_dpo" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        ended = process.exitcode if hasattr(process, "exitcode") else process.poll()
        assert ended is None, "the run ended too early"
        time.sleep(0.01)


def test_sigterm_leaves_a_checkpoint_of_the_last_step(prepared, tmp_path):
    model, shards = prepared
    settings = {**SETTINGS, "epochs": 500, "checkpoint.every": 1_000_000}
    process = start(model, shards, tmp_path, settings)
    wait_for_steps(process, tmp_path, 2)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 130
    assert_stopped_whole(tmp_path)


def test_ctrl_c_ends_the_command_with_130(prepared, tmp_path):
    model, shards = prepared
    more = ["--epochs", "500", "--save-every", "1000000", "--out", tmp_path]
    words = [INSTALLED, "mm-dpo", shards, "--model", model, *SMALL, *more]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True)
    wait_for_steps(process, tmp_path, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted: what was kept is there" in err
    assert "Traceback" not in err
    assert_stopped_whole(tmp_path)


def assert_stopped_whole(out):
    folder = out / "13_mm_dpo"
    newest = Checkpoints(folder / "checkpoints", 1).newest()
    assert newest is not None
    assert newest.name == f"step_{metrics_of(folder)[-1]['step']:06d}"
    assert (newest / "model.safetensors").exists()
    assert not (folder / "manifest.json").exists()
