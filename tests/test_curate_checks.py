"""What ``curate`` refuses is refused before anything is touched, by ``--dry-run`` as well."""

import json
import os
import shutil
import tarfile

import polars as pl
import pytest

from command import engine
from mmrlhf_engine import run_curate
from mmrlhf_engine.curate import checks
from mmrlhf_engine.curate.sizes import size_of_source
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.sources.samples.resolve import SourceConfig, resolve
from pack_data import picture, put, write_lines

ROWS = [
    {"prompt": f"What is the number {n} called in the language of place {n}?"} for n in range(9)
]


@pytest.fixture
def place(tmp_path):
    """A folder with small corpora, and the finished run ``RUN`` of ``a.jsonl``."""
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_lines(tmp_path / "b.jsonl", ROWS[:2])
    write_lines(tmp_path / "bad.jsonl", [*ROWS, {"x": 1}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    done = engine("curate", "a.jsonl", *RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


RUN = ("--out", "RUN", "--encoder", "lite0", "--progress", "silent")


def files(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


REFUSED = [
    ([], "no source given; RUN is a run of"),
    (["absent.jsonl"], "no such file or folder"),
    (["empty.jsonl"], "the file is empty"),
    (["noise.bin"], "of no known format"),
    (["b.jsonl"], "is a run of another corpus"),
    (["a.jsonl", "b.jsonl"], "--add extends the run by them"),
    (["b.jsonl", "--add", "--out", "new"], "--add extends a finished run, and found none"),
    (["--add"], "--add was given no source"),
    (["b.jsonl", "--from", "dedup"], "is a run of another corpus"),
    (["a.jsonl", "--encoder", "nonsense"], "embed.encoder: found 'nonsense'"),
    (["a.jsonl", "--memory", "lots"], "expected a size"),
    (["a.jsonl", "--max-bad", "many"], "expected a share"),
    (["a.jsonl", "--text-threshold", "2"], "dedup.text_threshold: found 2"),
    (["a.jsonl", "--set", "select.source={c: {floor: 1}}"], "no sample is of the source c"),
    (["a.jsonl", "--set", "select.modality={text: {floor: 9, cap: 1}}"], "is above cap"),
    (["a.jsonl", "--seed", "3", "--encoder", "transformers:./no"], "found no such folder"),
    (["a.jsonl", "--seed", "3", "--encoder", "open_clip:ViT-B-32/opnai"], "did you mean openai?"),
    (["a.jsonl", "--seed", "3", "--encoder", "precomputed:no.npy"], "no.npy: no such file"),
]


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry-run"])
@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refused_command_leaves_a_finished_run_alone(arguments, message, dry, place):
    before = files(place)
    done = engine("curate", *RUN, *arguments, *(["--dry-run"] if dry else []), cwd=place)
    assert (done.returncode in (1, 2), message in done.stderr) == (True, True), done.stderr
    assert done.stdout == ""
    assert files(place) == before


def test_a_refused_command_makes_no_folder(place):
    done = engine("curate", "a.jsonl", "--out", "new", "--encoder", "lite1", cwd=place)
    assert (done.returncode, (place / "new").exists()) == (2, False)
    for out in ("a.jsonl/run", "a.jsonl"):
        for dry in ([], ["--dry-run"]):
            done = engine("curate", "a.jsonl", "--out", out, "--encoder", "lite0", *dry, cwd=place)
            assert (done.returncode, "is not a folder" in done.stderr) == (1, True), done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(place):
    (place / "closed").mkdir(mode=0o500)
    done = engine("curate", "a.jsonl", "--out", "closed/run", "--dry-run", cwd=place)
    assert "no permission" in done.stderr


def test_a_stricter_share_of_bad_rows_is_checked_against_the_finished_ingest(place):
    arguments = ("curate", "bad.jsonl", *RUN, "--out", "other", "--to", "dedup")
    assert engine(*arguments, cwd=place).returncode == 0
    before = files(place)
    done = engine(*arguments, "--max-bad", "1%", cwd=place)
    assert (done.returncode, "1 of 10 rows are bad" in done.stderr) == (1, True), done.stderr
    assert files(place) == before
    assert engine(*arguments, "--max-bad", "0.2", cwd=place).returncode == 0


def test_more_sources_extend_a_run(place):
    run = Run(place / "RUN")
    dry = engine("curate", "b.jsonl", *RUN, "--add", "--dry-run", cwd=place).stdout
    assert "unchanged   1 sources, which are not read again" in dry
    done = engine("curate", "b.jsonl", *RUN, "--add", cwd=place)
    assert done.returncode == 0, done.stderr
    assert run.report("ingest")["rows_reused"] == 9
    assert run.report("select")["rows_in"] == 9
    assert set(run.report("ingest")["sources"]) == {"a", "b"}
    assert len(checks.sources_of(run)) == 2
    # Now it is a run of both; one alone is another corpus.
    done = engine("curate", "a.jsonl", *RUN, cwd=place)
    assert "these of its sources were not given" in done.stderr


def test_the_same_sources_under_other_settings_run_again(place):
    done = engine("curate", "a.jsonl", *RUN, "--select", 3, cwd=place)
    assert done.returncode == 0, done.stderr
    assert Run(place / "RUN").report("select")["rows_out"] == 3
    # The same files from elsewhere are the same sources.
    (place / "sub").mkdir()
    before = files(place / "RUN" / "01_ingest")
    out = ("--out", "../RUN", *RUN[2:])
    done = engine("curate", "../a.jsonl", *out, "--select", 3, cwd=place / "sub")
    assert done.returncode == 0, done.stderr
    assert files(place / "RUN" / "01_ingest") == before


def test_what_an_unfinished_ingest_has_left_belongs_to_no_corpus(place):
    (place / "RUN" / "01_ingest" / "manifest.json").unlink()
    assert engine("curate", "b.jsonl", *RUN, cwd=place).returncode == 0


def test_a_later_first_stage_needs_no_sources_but_its_tables(place):
    done = engine("curate", *RUN, "--from", "cluster", "--clusters", 2, cwd=place)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(place / "RUN" / "03_embed")
    done = engine("curate", *RUN, "--from", "cluster", cwd=place)
    assert (done.returncode, "cluster needs embeddings.npy" in done.stderr) == (1, True)
    assert "leave out --from" in done.stderr
    assert engine("curate", *RUN, "--from", "embed", cwd=place).returncode == 0


def test_a_setting_of_a_stage_that_is_left_out_is_said(place):
    arguments = ("curate", *RUN, "--from", "embed", "--dry-run")
    assert "leaves it as it is" not in engine(*arguments, cwd=place).stdout
    said = engine(*arguments, "--policy", "exact", cwd=place).stdout
    assert "dedup: its settings or inputs have changed since it ran, and --from embed" in said


def test_a_disk_that_is_nearly_full_is_refused(place, monkeypatch):
    usage = shutil.disk_usage(place)._replace(free=2_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    done = engine("curate", "a.jsonl", *RUN, "--out", "new", cwd=place)
    assert "are free" in done.stderr
    assert not (place / "new").exists()
    # A finished run needs no room.
    assert engine("curate", "a.jsonl", *RUN, cwd=place).returncode == 0


def test_the_python_function_refuses_and_adds_as_the_command_does(place):
    sources = [place / "a.jsonl", place / "b.jsonl"]
    settings = {"embed.encoder": "lite0"}
    with pytest.raises(ConfigError, match="--add extends"):
        run_curate(sources, place / "RUN", settings)
    run = run_curate(sources, place / "RUN", settings, add=True, last="ingest")
    assert run.report("ingest")["rows_out"] == 11


def test_weights_that_are_not_here_stop_a_run_once_there_are_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    put(tmp_path / "a.png", picture(40, 40, seed=1))
    write_lines(tmp_path / "p.jsonl", [{"image": "a.png", "prompt": "What is this?"}])
    write_lines(tmp_path / "t.jsonl", ROWS)
    done = engine("curate", "t.jsonl", "--out", "text", cwd=tmp_path)
    assert (done.returncode, "the run stops after ingest" in done.stderr) == (0, True), done.stderr
    done = engine("curate", "p.jsonl", "--out", "run", cwd=tmp_path)
    assert (done.returncode, "cannot be downloaded now" in done.stderr) == (1, True)
    assert Run(tmp_path / "run").manifest("ingest") is not None
    assert Run(tmp_path / "run").manifest("dedup") is None


def size(path):
    (source,) = resolve([SourceConfig(path=str(path))])
    return size_of_source(source)


def test_the_size_of_a_corpus_is_near_to_what_is_there(tmp_path):
    rows = [{"prompt": f"{n:05d} " * 40} for n in range(60_000)]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    assert size(lines).rows == pytest.approx(60_000, rel=0.1)
    (tmp_path / "array.json").write_text(json.dumps(rows[:500]))
    assert size(tmp_path / "array.json").rows == 500
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    assert size(tmp_path / "a.parquet").rows == 60_000
    for number in range(5):
        put(tmp_path / "album" / f"{number}.png", picture(20, 20, seed=number))
    (tmp_path / "album" / "1.txt").write_text("What?")
    assert size(tmp_path / "album").rows == 5
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(1_000):
            tar.add(tmp_path / "album" / "1.png", f"{number:05d}.png")
            tar.add(tmp_path / "album" / "1.txt", f"{number:05d}.txt")
    assert size(tmp_path / "a.tar").rows == pytest.approx(1_000, rel=0.1)
    assert (size(tmp_path / "a.tar").files, size(lines).bytes) == (1, lines.stat().st_size)
