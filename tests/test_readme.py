"""Every shell and Python block of the README runs, in the order of the page, offline.

They run in one folder that has the files they name, made from the demo's corpus and a few pairs.
What would need a hub or a large corpus is replaced as ``REPLACED`` says; the rest is as it stands.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import polars as pl
import pytest

from command import INSTALLED
from mmrlhf_engine import open_dataset
from model_families import processor_folder
from pack_data import picture, put, words, write_lines
from tiny_models import tiny_model

PAGE = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.S | re.M)

FILES = {
    "llava.jsonl": "shapes.jsonl",
    "questions.parquet": "shapes.parquet",
    "web.tar": "photos.tar",
    "photos": "album",
}
REPLACED = {
    # Names on a hub, and what stands for them here.
    "open_clip:ViT-B-32/openai": "ENCODER",
    "Qwen/Qwen2.5-VL-7B-Instruct": "MODEL",
    # The demo's corpus has a thousand samples.
    "--select 30000": "--select 60",
    # A random model writes every critique to its limit.
    "--name judge": "--name judge --max-new-tokens 8",
    "--reward-model RUN": "--critiques packed --reward-model RUN",
    '"select.count": 30_000': '"select.count": 60',
}
# Blocks that cannot run inside of a test.
LEFT_OUT = {"make demo": "installs an environment, and runs this test"}


def test_blocks_that_are_left_out_are_known():
    shell = [block for language, block in BLOCKS if language == "sh"]
    left = [block for block in shell if any(start in block for start in LEFT_OUT)]
    assert (len(shell), len(left)) == (5, 1)
    assert sum(language == "python" for language, _ in BLOCKS) == 4
    assert all(text in PAGE for text in REPLACED)


def test_python_blocks_use_the_public_api_alone():
    for language, block in BLOCKS:
        if language == "python":
            imports = re.findall(r"^(?:from|import) (\S+)", block, re.M)
            assert set(imports) <= {"polars", "mmrlhf_engine"}


@pytest.fixture
def folder(corpus, tmp_path):
    """Where the blocks run: with the corpora and the pairs that they name."""
    for name, source in FILES.items():
        (tmp_path / name).symlink_to(corpus / source)
    rows = []
    for number in range(12):
        put(tmp_path / f"{number}.png", picture(seed=number))
        answers = {"chosen": words(100 + number), "rejected": words(200 + number)}
        prompt = f"<image>{words(number)}"
        reasons = {f"{side}_reason": words(300 + number) for side in answers}
        row = {"id": number, "image": f"{number}.png", "prompt": prompt, **answers, **reasons}
        rows.append(row)
    write_lines(tmp_path / "dpo_pairs.jsonl", [{**row, "margin": 0.5} for row in rows])
    write_lines(tmp_path / "mm_reward_bench.jsonl", rows)
    return tmp_path


def test_every_block_runs_in_the_order_of_the_page(folder, tiny_encoder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model").mkdir()
    tiny_model("qwen2_5_vl", processor_folder("qwen2_5_vl", folder / "model")).save_pretrained(
        "model"
    )
    environment = {**os.environ, "PATH": f"{INSTALLED.parent}:{os.environ['PATH']}"}
    names: dict[str, object] = {}
    for language, block in BLOCKS:
        if any(start in block for start in LEFT_OUT):
            continue
        for text, stand_in in REPLACED.items():
            block = block.replace(text, stand_in)
        block = block.replace("ENCODER", tiny_encoder).replace("MODEL", "model")
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)
            continue
        # The one command whose argument is known only when the run is there.
        block = block.replace("RUN ID", "RUN $(cat id)")
        done = subprocess.run(
            ["bash", "-ec", _with_id(block)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    assert names["run"].report("select")["rows_out"] == 60
    assert not (folder / "OTHER").exists()  # --dry-run
    exported = pl.read_parquet("dpo.parquet")
    assert exported.height == open_dataset("SHARDS").rows("pairs") == 12
    assert exported["images"].list.len().to_list() == [1] * 12
    assert names["report"]["rows_out"] == len(names["margins"]) == 12
    assert len(names["batch"].pair_row) > 0
    assert json.dumps(names["state"])
    assert (folder / "RUN" / "13_mm_dpo" / "report.html").exists()
    card = json.loads((folder / "RUN" / "scorecard.json").read_text())
    assert card["reward_bench"]["overall"]["pairs"] == 12
    answers = pl.read_parquet("RUN/extra/sample/responses/*.parquet")
    assert answers["sample"].to_list() == [0, 1] * 12


def _with_id(block: str) -> str:
    """The block, with the id of some sample written to a file before it is asked for."""
    program = (
        "import polars as pl; print(pl.read_parquet('RUN/01_ingest/samples/*.parquet')['id'][0])"
    )
    explain = "mmrlhf-engine explain"
    return block.replace(explain, f'python -c "{program}" > id\n{explain}')
