"""Every Python example of docs/training.md runs, and what its commands name is there."""

import re
import shlex
from pathlib import Path

import pytest

from mmrlhf_engine.cli import cli
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from test_options import leaves
from train_data import judged_rows, pack_rows, text_model, text_shards

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
OF_REWARDS = (ROOT / "docs" / "reward-model.md").read_text(encoding="utf-8")


def blocks_of(page):
    return re.findall(r"^```(sh|python)\n(.*?)^```", page, re.S | re.M)


BLOCKS = blocks_of(PAGE)


def test_python_blocks_of_the_reward_model_run(tmp_path, monkeypatch):
    model = text_model(tmp_path / "MODEL")
    pack_rows(model, judged_rows(6), tmp_path / "SHARDS")
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, block in blocks_of(OF_REWARDS):
        if language == "python":
            exec(compile(block, "docs/reward-model.md", "exec"), names)
    assert names["report"]["column"] == "margin/judge/margin"


def test_python_blocks_run(tmp_path, monkeypatch):
    model, shards = text_shards(tmp_path)
    model.rename(tmp_path / "MODEL")
    shards.rename(tmp_path / "SHARDS")
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/training.md", "exec"), names)
    assert names["report"]["steps"] > 1
    assert names["report"]["after"]["eval_loss"] > 0


def test_commands_and_options_exist():
    both = [*BLOCKS, *blocks_of(OF_REWARDS)]
    lines = [line for language, block in both if language == "sh" for line in commands(block)]
    assert len(lines) >= 11
    for name, *arguments in lines:
        command = cli.commands[name]
        known = {text for option in command.params for text in option.opts + option.secondary_opts}
        assert {word for word in arguments if word.startswith("--")} <= known, name


def commands(block):
    """The words after the program's name, of each command of a shell block."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for program in ("mmrlhf-engine", "mmrlhf_engine"):
            if program in words:
                yield words[words.index(program) + 1 :]


def test_settings_that_are_named_exist():
    known = leaves(MMDPOConfig)
    named = set(re.findall(r"`((?:data|evaluation|checkpoint|lora)\.\w+)", PAGE))
    assert named
    assert {name for name in named if name not in known and not name.startswith("lora.")} == set()


@pytest.mark.parametrize("stage", [2, 3])
def test_files_that_are_named_exist(stage):
    assert (ROOT / "configs" / "deepspeed" / f"zero{stage}.json").is_file()
    assert len((ROOT / "python/mmrlhf_engine/train/loop.py").read_text().splitlines()) <= 250
