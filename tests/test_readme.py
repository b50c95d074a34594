"""The Python blocks of the README that read shards run as they stand."""

import re
from pathlib import Path

import pytest

from load_data import write

PAGE = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "SHARDS" in block]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("readme") / "SHARDS",
        queries=20,
        kinds=["plain"] * 8,
        vocabulary=151_936,
    )


def test_there_is_one_for_polars_alone_and_one_for_the_loader():
    assert ["mmrlhf_engine" in block for block in BLOCKS] == [False, True]
    assert BLOCKS[0].count("\n") == 4  # An import, a blank line, and two.


@pytest.mark.parametrize("block", BLOCKS, ids=["polars", "loader"])
def test_a_block_runs(block, shards, monkeypatch):
    monkeypatch.chdir(shards.parent)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "pairs" in names:
        assert len(names["pairs"]) > 20
    else:
        assert len(names["batch"].pair_row) > 0
        assert names["state"]["v"] == 1
