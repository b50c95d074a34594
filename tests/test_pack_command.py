"""The command pack: results on stdout, progress on stderr, exit codes, settings from a file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command import engine
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.prepare import Packer
from pack_data import stored, tokenizer_folder, words, write_lines


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


def test_fields_and_splits_are_chosen_on_the_command_line(folder, tmp_path):
    rows = [{"question": "Which?", "options": ["a", "b"], "chosen": "a", "rejected": "b"}]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    arguments = ("pack", source, "--out", tmp_path / "ds", "--tokenizer", folder)
    done = engine(*arguments)
    assert (done.returncode, "--ignore-field options" in done.stderr) == (1, True)
    done = engine(*arguments, "--ignore-field", "options", "--ignore-field", "note")
    assert (done.returncode, "options (1)" in done.stdout) == (0, True), done.stderr
    for name in ("train", "test"):
        table = pa.Table.from_pylist([{"prompt": name, "chosen": "b", "rejected": "c"}])
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / f"hub/data/{name}-00000-of-00001.parquet")
    for split in ("train", "test"):
        out = tmp_path / split
        done = engine(
            "pack", tmp_path / "hub", "--out", out, "--tokenizer", folder, "--split", split
        )
        assert done.returncode == 0, done.stderr
        (pair,) = stored(out)
        assert f"\n{split}<" in pair["query"]["prompt_text"]


def test_an_interrupted_pack_leaves_no_dataset_and_starts_again(folder, tmp_path, monkeypatch):
    rows = [{"prompt": words(n), "chosen": "b", "rejected": "c"} for n in range(600)]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(folder), shard_pairs=100)
    whole = pack.pack_dataset(config, tmp_path / "whole")
    packed, calls = Packer.pack, []

    def interrupted(packer, queries):
        calls.append(len(queries))
        if len(calls) == 2:
            raise KeyboardInterrupt
        packed(packer, queries)

    with monkeypatch.context() as patch:
        patch.setattr(Packer, "pack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack.pack_dataset(config, tmp_path / "ds")
    assert not list((tmp_path / "ds").rglob("*.arrow"))
    again = pack.pack_dataset(config, tmp_path / "ds")
    assert (again["pairs_out"], again["version"]) == (whole["pairs_out"], 1)
    ids = [[pair["pid"] for pair in stored(tmp_path / name)] for name in ("whole", "ds")]
    assert ids[0] == ids[1]
