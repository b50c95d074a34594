"""The command line: exit codes, what goes where, and errors one can act on."""

import json
import subprocess
import sys

import pytest

from mmrlhf_engine import __version__


def engine(*arguments, cwd=None):
    """Run the command in a process of its own."""
    program = "from mmrlhf_engine.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


def test_version_and_help():
    assert __version__ in engine("--version").stdout
    assert "curate" in engine("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["curate"], 2, "Missing option '--out'"),
        (["curate", "--out", "run"], 1, "no source given"),
        (["curate", "absent.jsonl", "--out", "run"], 1, "absent.jsonl: no such file"),
        (["curate", "empty.jsonl", "--out", "run"], 1, "empty.jsonl: the file is empty"),
        (["curate", "noise.bin", "--out", "run"], 1, "of no known format"),
        (["curate", "a.jsonl", "--out", "run", "--set", "select.cuont=1"], 2, "did you mean count"),
        (["curate", "a.jsonl", "--out", "run", "--max-bad", "lots"], 2, "expected a share"),
        (["curate", "a.jsonl", "--out", "run", "--from", "select", "--to", "ingest"], 2, "after"),
        (["curate", "a.jsonl", "--out", "run", "--to", "ingest"], 1, "none of 1 rows can be used"),
        (["explain", "run", "nothing"], 1, "no sample 'nothing'"),
    ],
)
def test_errors_say_what_was_found_and_what_to_do(arguments, code, message, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "noise.bin").write_bytes(b"\x00\x01\x02" * 300)
    (tmp_path / "a.jsonl").write_text("{broken\n")
    (tmp_path / "run").mkdir()
    done = engine(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_results_go_to_stdout_and_talk_to_stderr(corpus, tmp_path):
    options = ("--out", tmp_path / "run", "--to", "dedup", "--progress", "jsonl")
    done = engine("curate", corpus / "shapes.jsonl", corpus / "album", *options)
    assert done.returncode == 0, done.stderr
    assert "rows in =" in done.stdout
    assert "page: " in done.stdout
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} <= {"message", "progress"}
    again = engine("curate", corpus / "shapes.jsonl", corpus / "album", *options)
    assert "finished and unchanged" in again.stderr


def test_dry_run_says_what_would_run_and_does_nothing(corpus, tmp_path):
    done = engine("curate", corpus / "photos.tar", "--out", tmp_path / "run", "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("ingest", "select", "runs", "disk", "memory", "Jaccard"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()


def test_base_stages_start_without_torch(corpus, tmp_path):
    program = (
        "import sys\n"
        "from mmrlhf_engine.cli import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'faiss', 'transformers', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = ["curate", corpus / "photos.tar", "--out", tmp_path / "run", "--to", "dedup"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_second_process_is_kept_out(corpus, tmp_path):
    from mmrlhf_engine.run.folder import Run

    with Run(tmp_path / "run").locked():
        done = engine("curate", corpus / "photos.tar", "--out", tmp_path / "run", "--to", "ingest")
    assert done.returncode == 1
    assert "another process is working in this folder" in done.stderr
