"""The built wheel with the extra ``pack`` in an environment of its own, which has no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_engine import open_dataset
from pack_data import picture, put, tokenizer_folder, words, write_lines

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not UV.exists(), reason="uv, which `make develop` installs, is not here"),
]


def run(*words, cwd=None):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """The folder of the commands of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("mmrlhf_engine-*.whl")
    run(UV, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    into = ["--python", folder / "venv" / "bin" / "python"]
    pins = ["--constraint", ROOT / "constraints.txt"]
    run(UV, "pip", "install", "--quiet", *into, *pins, f"{wheel}[pack]")
    return folder / "venv" / "bin"


def test_curate_pack_and_inspect_work_without_torch(binaries, corpus, tmp_path):
    probe = "import importlib.util as u; print([n for n in ('torch', 'faiss') if u.find_spec(n)])"
    assert run(binaries / "python", "-c", probe).stdout == "[]\n"
    engine = binaries / "mmrlhf-engine"
    curated = run(
        engine, "curate", corpus / "photos.tar", "--out", tmp_path / "run", "--to", "dedup"
    )
    assert "rows in =" in curated.stdout
    put(tmp_path / "a.png", picture(900, 700))
    rows = [
        {"images": ["a.png"], "prompt": f"<image>{words(n)}", "chosen": "a", "rejected": "b"}
        for n in range(3)
    ]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    # A picture that is too long is made smaller, which needs Pillow.
    options = ["--image-rule", "qwen2_vl", "--max-length", 300, "--over-long", "shrink_image"]
    shards = tmp_path / "shards"
    packed = run(engine, "pack", source, "--out", shards, "--tokenizer", tokenizer, *options)
    assert "torch" not in packed.stderr.lower()
    (report,) = (json.loads(file.read_text()) for file in shards.glob("reports/*/report.json"))
    assert report["rows_out"] == 3
    (width,) = open_dataset(shards).blobs.collect()["w"]
    assert width < 900
    assert "pairs         3\n" in run(engine, "inspect", shards).stdout
    trl = ["--to", "trl", "--tokenizer", tokenizer]
    run(engine, "export", shards, tmp_path / "trl.parquet", *trl)
    assert "text_jaccard" in run(engine, "inspect", tmp_path / "run/02_dedup/duplicates").stdout
