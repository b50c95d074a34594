"""The files in ``configs``: each is valid for the command that its launch line names."""

import re
from pathlib import Path

import pytest
import yaml

from mmrlhf_engine.pipeline import CurateConfig
from mmrlhf_engine.run.config import load_config, to_yaml
from mmrlhf_engine.train.mm_dpo import MMDPOConfig

FILES = sorted(Path(__file__).parents[1].glob("configs/*.yaml"))
KINDS = {"curate": CurateConfig, "mm-dpo": MMDPOConfig}


def read(file):
    """The command of a file, and its settings."""
    launch = re.search(r"mmrlhf-engine (\S+) .*--config (\S+)", file.read_text())
    assert launch, f"{file.name} has no launch line"
    command, named = launch.groups()
    assert named == f"configs/{file.name}"
    return command, load_config(KINDS[command], file)


def test_there_is_a_file_for_every_command():
    assert {read(file)[0] for file in FILES} == set(KINDS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_valid(file):
    command, config = read(file)
    assert KINDS[command].model_validate(yaml.safe_load(to_yaml(config))) == config


def test_the_recipe_of_the_paper():
    settings = [load_config(MMDPOConfig, file) for file in FILES if read(file)[0] == "mm-dpo"]
    assert len(settings) == 2
    for found in settings:
        assert (found.beta, found.beta_w, found.beta_k) == (0.1, 0.5, 0.5)
        assert (found.beta_rule, found.ties) == ("paper", "leave_out")
        assert found.optimizer.learning_rate == 1e-6
        assert (found.schedule.name, found.schedule.warmup, found.epochs) == ("cosine", 0.1, 1)
        assert found.freeze == ("tower",)
    large, small = sorted(settings, key=lambda found: found.model, reverse=True)
    assert large.model.replace("7b", "0.5b") == small.model
    assert large.model_copy(update={"model": small.model}) == small
