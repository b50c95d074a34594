"""Every Python block of the package's README runs unchanged."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmrlhf_kernels
from heads import readme

BLOCKS = readme.blocks()


def test_the_readme_has_a_first_example_a_loop_parts_and_a_trainer():
    assert ["DPOTrainer" in block for block in BLOCKS] == [False, False, False, True]


@pytest.mark.parametrize("block", BLOCKS[:3], ids=["first example", "loop", "parts"])
def test_a_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_block_with_a_trainer_runs(tmp_path):
    if not importlib.util.find_spec("trl"):
        pytest.skip("TRL is not among the requirements of this project")
    # A process of its own: TRL and datasets warn, and pickle what the script defines.
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[3], encoding="utf-8")
    package = str(Path(mmrlhf_kernels.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert done.returncode == 0, done.stderr
