"""Every Python block of the package's page runs as it stands."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmrlhf_kernels
from heads import readme

BLOCKS = readme.blocks()


def test_the_page_has_a_first_example_a_loop_and_a_trainer():
    assert len(BLOCKS) == 3
    assert ["DPOTrainer" in block for block in BLOCKS] == [False, False, True]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.count(chr(10))} lines")
def test_a_block_runs(block, tmp_path):
    if "from trl" in block and not importlib.util.find_spec("trl"):
        pytest.skip("TRL is not among the requirements of this project")
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    package = str(Path(mmrlhf_kernels.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert done.returncode == 0, done.stderr
