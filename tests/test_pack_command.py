"""The command pack: results on stdout, progress on stderr, exit codes, settings from a file."""

import json

import pytest

from command import engine
from pack_data import tokenizer_folder, write_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def source(tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, "{broken"]
    return write_lines(tmp_path / "pairs.jsonl", rows)


def test_settings_come_from_a_file_and_results_go_to_stdout(folder, source, tmp_path):
    (tmp_path / "pack.yaml").write_text(json.dumps({"tokenizer": str(folder), "ties": "drop"}))
    options = ["--config", tmp_path / "pack.yaml", "--threads", 1, "--progress", "jsonl"]
    done = engine("pack", source, "--out", tmp_path / "ds", *options)
    assert done.returncode == 0, done.stderr
    assert "rows in = out + dropped: 2 = 1 + 1" in done.stdout
    assert "broken_record" in done.stdout
    assert [json.loads(line) for line in done.stderr.splitlines()]
    (record,) = (tmp_path / "ds/reports").iterdir()
    resolved = (record / "config.yaml").read_text()
    assert "ties: drop" in resolved
    assert "threads: 1" in resolved
    report = json.loads((record / "report.json").read_text())
    assert report["tokenizer"]["name"] == folder.name
    assert (report["rows_in"], report["rows_out"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing option '--out'"),
        (["pairs.jsonl", "--out", "ds"], 2, "no model given"),
        (["pairs.jsonl", "--out", "ds", "--tokenizer", "./absent"], 2, "no such folder"),
        (["pairs.jsonl", "--out", "ds", "--set", "shard_pair=1"], 2, "did you mean shard_pairs"),
        (["pairs.jsonl", "--out", "ds", "--over-long", "cut"], 2, "'cut' is not one of"),
        (["pairs.jsonl", "--out", "ds", "--max-bad", "lots"], 2, "expected a share"),
        (["pairs.jsonl", "--out", ".", "--tokenizer", "T"], 1, "already there"),
        (["--out", "ds", "--tokenizer", "T"], 1, "no source given"),
    ],
)
def test_errors_say_what_to_do(folder, source, tmp_path, arguments, code, message):
    words = [str(folder) if word == "T" else word for word in arguments]
    done = engine("pack", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ds").exists()
