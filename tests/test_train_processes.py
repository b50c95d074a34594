"""Two processes train as one does: data parallel, and by DeepSpeed's ZeRO where it is installed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_engine import run_mm_dpo, run_reference
from model_families import processor_folder, prompts
from test_families import packed
from tiny_models import tiny_model
from train_data import metrics_of, text_shards

pytestmark = pytest.mark.slow

SETTINGS = {
    "epochs": 2,
    "data.packs_per_step": 2,
    "data.too_large": "alone",
    "optimizer.learning_rate": 3e-3,
    "evaluation.share": 0.3,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
    "gradient_checkpointing": False,
    "threads": 1,
}
TOKENS = {"text": 300, "pictures": 900}
deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@pytest.fixture(scope="module", params=["text", "pictures"])
def prepared(request, tmp_path_factory):
    """Shards with reference log-probabilities, a model, settings, and the run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    if request.param == "text":
        model, shards = text_shards(folder)
    else:
        model, shards = folder / "model", folder / "shards"
        model.mkdir()
        tiny_model("llava_onevision", processor_folder("llava_onevision", model)).save_pretrained(
            model
        )
        # Some without a picture, so that a process may have none in a step.
        rows = [
            prompt.row | {"margin": 1.0} for prompt in prompts(16, folder, videos=False, seed=3)
        ]
        packed(model, rows, shards)
    run_reference(shards, model, folder / "run", {"tokens": 2500})
    settings = {**SETTINGS, "data.tokens": TOKENS[request.param]}
    run_mm_dpo(shards, model, folder / "run", settings)
    return shards, model, settings, metrics_of(folder / "run" / "13_mm_dpo")


def two_processes(shards, model, settings, out, stage):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    worker = str(Path(__file__).parent / "train_worker.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = [str(shards), str(model), str(out), str(stage), json.dumps(settings)]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", worker, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics_of(out / "13_mm_dpo")


@pytest.mark.parametrize(
    "stage", [0, pytest.param(2, marks=deepspeed), pytest.param(3, marks=deepspeed)]
)
def test_two_processes_train_as_one(prepared, tmp_path, stage):
    shards, model, settings, alone = prepared
    together = two_processes(shards, model, settings, tmp_path, stage)
    names = ("loss", "rewards/margins", "eval_loss")
    for left, right in zip(alone, together, strict=True):
        for name in names:
            if name in left:
                assert right[name] == pytest.approx(left[name], abs=1e-5), (left["step"], name)
    # It goes on from the middle to the same numbers.
    folder = tmp_path / "13_mm_dpo"
    (folder / "manifest.json").unlink()
    for kept in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(kept)
    resumed = two_processes(shards, model, settings, tmp_path, stage)
    for left, right in zip(together, resumed, strict=True):
        for name in names:
            if name in left:
                assert right[name] == pytest.approx(left[name], abs=1e-6), (left["step"], name)
