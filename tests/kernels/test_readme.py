"""Every Python block of the package's README runs unchanged."""

import importlib.util

import pytest
import torch

from heads import readme

BLOCKS = readme.blocks()


def test_the_readme_has_a_first_example_a_loop_and_a_trainer():
    assert len(BLOCKS) == 3
    assert ["DPOTrainer" in block for block in BLOCKS] == [False, False, True]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.count(chr(10))} lines")
def test_a_block_runs(block, tmp_path, monkeypatch):
    if "from trl" in block and not importlib.util.find_spec("trl"):
        pytest.skip("TRL is not among the requirements of this project")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
