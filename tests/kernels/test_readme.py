"""Every Python block of the package's README runs unchanged; its figures are those of records."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmrlhf_kernels
from heads import figures, readme
from mmrlhf_kernels import dynamic_beta

BLOCKS = readme.blocks()
BEFORE_THE_TRAINER = """
import trl_models

model, processor = trl_models.qwen2_vl()
"""
"""The two names that the block with a trainer is given, according to the text before it."""


def test_the_readme_has_a_first_example_a_loop_parts_and_a_trainer():
    assert ["MMDPOTrainer" in block for block in BLOCKS] == [False, False, False, True]


def test_the_figures_are_those_of_the_newest_records():
    page = readme.README.read_text(encoding="utf-8")
    hint = "hint: python benches/heads/figures.py writes them"
    assert page == figures.with_figures(page), hint
    assert all(f"<!-- figures: {part} -->" in page for part in figures.PARTS)


def test_the_betas_beside_the_first_example_are_right():
    (line,) = (line for line in BLOCKS[0].splitlines() if line.startswith("beta = "))
    betas = dynamic_beta(torch.tensor([0.5, 4.0]), beta=0.1)
    assert line.split("#")[1].startswith(" {:.4f} and {:.4f}:".format(*betas.tolist()))


def test_the_table_of_arguments_has_the_names_and_defaults_of_the_function():
    page = readme.README.read_text(encoding="utf-8")
    table = page.split("| argument | default | |\n|---|---|---|\n")[1].split("\n\n")[0]
    arguments = inspect.signature(mmrlhf_kernels.fused_linear_mm_dpo).parameters
    found = {}
    for line in table.splitlines():
        names, defaults = (cell.strip() for cell in line.split("|")[1:3])
        names = re.findall(r"`(\w+)`", names)
        values = [] if defaults == "one of them" else defaults.replace("`", "").split(", ")
        found |= dict(zip(names, [*values, *[None] * (len(names) - len(values))], strict=True))
    keywords = {name for name, one in arguments.items() if one.kind is one.KEYWORD_ONLY}
    assert set(found) == keywords
    for name, default in found.items():
        declared = arguments[name].default
        wanted = f"{declared:g}" if isinstance(declared, int | float) else str(declared)
        assert default in (wanted, None), name


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
    script.write_text(BEFORE_THE_TRAINER + BLOCKS[3], encoding="utf-8")
    folders = [Path(mmrlhf_kernels.__file__).parents[1], Path(__file__).parents[1]]
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    assert done.returncode == 0, done.stderr
    assert "loss/sft" in done.stdout
