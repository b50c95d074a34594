"""The command line: exit codes, what goes where, and errors one can act on."""

import json
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from command import engine, installed
from load_data import write
from mmrlhf_engine import __version__, open_dataset
from mmrlhf_engine.cli import cli
from mmrlhf_engine.shards.dataset import add_column
from test_shard import crc32c


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of files that are good or bad in some way; tests write nothing into it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty.jsonl").write_text("")
    (folder / "noise.bin").write_bytes(b"\x00\x01\x02" * 300)
    (folder / "a.jsonl").write_text("{broken\n")
    (folder / "bad.yaml").write_text("select: [")
    (folder / "run").mkdir()
    shards = write(folder / "shards", queries=10, kinds=["plain"] * 3)
    shutil.copytree(shards, folder / "damaged")
    victim = next((folder / "damaged" / "data").glob("s00000-r-*.arrow"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    shutil.copytree(shards, folder / "foreign")
    manifest = folder / "foreign" / "_mmrlhf" / "manifest-0000000001.json"
    body = manifest.read_bytes().replace(b'"profile":1', b'"profile":99')
    body = body[: body.rindex(b',\n"self_crc32c"')]
    manifest.write_bytes(body + f',\n"self_crc32c":"{crc32c(body):08x}"}}\n'.encode())
    return folder


# A command of each kind of outcome. What is written goes to OUT, a folder of the test's own.
OUTCOMES = [
    (["curate"], 2, "Missing option '--out'"),
    (["curate", "--out", "OUT/run"], 1, "no source given"),
    (["curate", "absent.jsonl", "--out", "OUT/run"], 1, "absent.jsonl: no such file"),
    (["curate", "empty.jsonl", "--out", "OUT/run"], 1, "empty.jsonl: the file is empty"),
    (["curate", "noise.bin", "--out", "OUT/run"], 1, "of no known format"),
    (["curate", "a.jsonl", "--out", "OUT/r", "--set", "select.cuont=1"], 2, "did you mean count"),
    (["curate", "a.jsonl", "--out", "OUT/r", "--max-bad", "lots"], 2, "expected a share"),
    (["curate", "a.jsonl", "--out", "OUT/r", "--from", "select", "--to", "ingest"], 2, "after"),
    (["curate", "a.jsonl", "--out", "OUT/r", "--to", "ingest"], 1, "none of 1 rows can be used"),
    (["curate", "a.jsonl", "--out", "OUT/r", "--config", "bad.yaml"], 2, "not valid YAML"),
    (["pair", "a.jsonl"], 2, "Missing option '--out'"),
    (["pair", "--out", "OUT/run"], 1, "no source given"),
    (["pair", "absent.jsonl", "--out", "OUT/run"], 1, "absent.jsonl: no such file"),
    (["pair", "a.jsonl", "--out", "OUT/run"], 1, "none of 1 rows can be used: 1 broken_record"),
    (["pair", "a.jsonl", "--out", "OUT/run", "--field", "rank"], 2, "expected PART=FIELD"),
    (["pair", "a.jsonl", "--out", "OUT/run", "--field", "rang=x"], 2, "no part 'rang'"),
    (["pair", "a.jsonl", "--out", "OUT/run", "--hold-out", "1"], 2, "is not in the range"),
    (["contaminants", "build", "OUT/index"], 2, "Missing argument 'BENCHMARKS...'"),
    (["contaminants", "build", "OUT/index", "absent.jsonl"], 1, "absent.jsonl: no such file"),
    (["contaminants", "build", "run", "a.jsonl"], 1, "none of 1 rows can be used"),
    (["explain", "run", "nothing"], 1, "no sample 'nothing'"),
    (["explain", "absent", "nothing"], 2, "'absent' does not exist"),
    (["explain", "run", "nothing", "either"], 1, "no sample 'nothing'"),
    (["disagree", "run", "nothing", "either"], 1, "has no finished dedup"),
    (["disagree", "run", "nothing"], 2, "Missing argument 'KEPT_ID'"),
    (["config"], 0, ""),
    (["config", "--of", "pair"], 0, ""),
    (["config", "bad.yaml"], 2, "not valid YAML"),
    (["config", "--set", "sleect.count=5"], 2, "did you mean select"),
    (["import-checkpoint", "absent", "--out", "OUT/m"], 1, "absent: no such folder"),
    (["import-checkpoint", "run", "--out", "OUT/m"], 2, "run: found no weights"),
    (["inspect", "shards"], 0, ""),
    (["inspect", "run"], 1, "no Parquet part"),
    (["inspect", "absent"], 2, "'absent' does not exist"),
    (["verify", "shards"], 0, ""),
    (["verify", "damaged"], 1, ""),
    (["verify", "damaged", "--deep"], 1, ""),
    (["verify", "foreign"], 2, ""),
    (["verify", "run"], 1, "No such file"),
    (["verify", "shards", "--version", "9"], 1, "version 9"),
    (["verify", "absent"], 2, "'absent' does not exist"),
    (["diff", "shards", "shards"], 0, ""),
    (["diff", "shards", "--second", "9"], 1, "manifest-0000000009.json"),
    (["diff", "shards", "--first", "0"], 2, "is not in the range"),
    (["gc", "shards", "--dry-run"], 0, ""),
    (["gc", "run"], 1, "run: no dataset of preference shards"),
    (["gc", "shards", "--keep", "0"], 2, "is not in the range"),
    (["rekey", "shards", "shards", "--set", "reflogp/m"], 1, "reflogp/m"),
    (["rekey", "shards", "shards"], 2, "Missing option '--set'"),
    (["export", "shards", "OUT/tables", "--to", "parquet"], 0, ""),
    (["export", "shards", "a.jsonl", "--to", "webdataset"], 1, "--overwrite replaces it"),
    (["export", "shards", "OUT/t", "--to", "csv"], 2, "'csv' is not one of"),
    (["export", "shards", "OUT/t", "--to", "trl", "--tokenizer", "./absent"], 2, "no such folder"),
    (["demo", "--out", "a.jsonl"], 1, "a.jsonl"),
    (["demo", "--select", "0"], 2, "is not in the range"),
    (["praise"], 2, "No such command"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), OUTCOMES)
def test_exit_codes_and_errors_that_say_what_to_do(arguments, code, message, place, tmp_path):
    words = [word.replace("OUT", str(tmp_path)) for word in arguments]
    done = engine(*words, cwd=place)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    if message:
        assert done.stdout == ""
    else:
        assert done.stdout != ""
        assert done.stderr == ""


def test_every_command_has_its_codes_tested():
    tested = {arguments[0] for arguments, *_ in OUTCOMES}
    # See test_pack_command.py, test_train_command.py, test_score.py and test_evaluate_command.py.
    trained = {"reward", "score", "reference", "mm-dpo", "sft", "sample"}
    assert set(cli.commands) - tested == {"pack", "evaluate", *trained}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["verify", "shards"], 0),
        (["verify", "damaged"], 1),
        (["verify", "foreign"], 2),
        *(([command, "--absent"], 2) for command in sorted(cli.commands)),
    ],
)
def test_the_installed_command_ends_with_these_codes(arguments, code, place):
    done = installed(*arguments, cwd=place)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command_without_control_characters():
    done = engine("--help")
    assert done.returncode == 0
    for text in (done.stdout, *(engine(name, "--help").stdout for name in cli.commands)):
        assert "\\b" not in text
        assert text.replace("\n", "").isprintable()
    for name, command in cli.commands.items():
        assert f"  {name} " in done.stdout
        assert not command.get_short_help_str(60).endswith("..."), name
    assert __version__ in engine("--version").stdout


@pytest.mark.parametrize(
    ("called", "arguments", "sentence"),
    [
        ("pipeline.curate", ["curate", "a.jsonl", "--out", "OUT"], "same command resumes the run"),
        ("demo.run", ["demo", "--out", "OUT"], "the same command resumes the run"),
        (
            "pack.pack.pack_dataset",
            ["pack", "a.jsonl", "--out", "OUT", "--tokenizer", "t"],
            "pack does not resume, and a dataset appears only when complete; run it again",
        ),
        ("shards.maintenance.gc", ["gc", "shards"], "interrupted"),
    ],
)
def test_ctrl_c_ends_with_130_and_says_what_became_of_the_work(
    called, arguments, sentence, place, tmp_path, monkeypatch
):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mmrlhf_engine.{called}", interrupted)
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    done = engine(*words, cwd=place)
    assert (done.returncode, done.stdout) == (130, "")
    assert sentence in done.stderr
    assert ("resume" in done.stderr) == (arguments[0] != "gc")


def test_rekey_carries_columns_and_diff_sees_them(place, tmp_path):
    shards = shutil.copytree(place / "shards", tmp_path / "shards")
    rows = open_dataset(shards).rows("pairs")
    values = pl.DataFrame({"margin": np.ones(rows, np.float32)})
    add_column(shards, values, table="pairs", column_set="rm", provenance={})
    done = engine("rekey", shards, shutil.copytree(place / "shards", tmp_path / "o"), "--set", "rm")
    assert (done.returncode, f"{rows} of {rows} rows" in done.stdout) == (0, True), done.stderr
    assert json.loads(engine("diff", shards).stdout)["columns_changed"]
    assert "column set    rm rev 1 of pairs" in engine("inspect", shards, "--rows", 0).stdout
    assert engine("gc", shards, "--keep", 1).returncode == 0
    assert engine("verify", shards, "--version", 1).returncode == 1


def test_results_go_to_stdout_and_progress_to_stderr(corpus, tmp_path):
    run = tmp_path / "run"
    options = ("--out", run, "--to", "dedup", "--progress", "jsonl")
    done = engine("curate", corpus / "shapes.jsonl", corpus / "album", *options)
    assert done.returncode == 0, done.stderr
    assert "rows in =" in done.stdout
    assert "page: " in done.stdout
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} <= {"message", "progress", "warning"}
    again = engine("curate", corpus / "shapes.jsonl", corpus / "album", *options)
    assert "finished and unchanged" in again.stderr
    sample = pl.read_parquet(run / "02_dedup" / "kept" / "*.parquet")["id"][0]
    assert "ingest" in engine("explain", run, sample).stdout
    assert "rows in 1 file" in engine("inspect", run / "02_dedup" / "kept").stdout


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
        done = installed(
            "curate", corpus / "photos.tar", "--out", tmp_path / "run", "--to", "ingest"
        )
    assert done.returncode == 1
    assert "another process is working in this folder" in done.stderr
