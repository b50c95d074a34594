"""The options of ``curate``: each reaches its setting, and the help says what it does."""

import os
import subprocess
import sys

import pytest

from command import engine
from intake import lines
from mmrlhf_engine.api import run_curate
from mmrlhf_engine.cli import cli
from mmrlhf_engine.cli.curate import _SETTINGS
from mmrlhf_engine.cli.curate import curate as command
from mmrlhf_engine.pipeline import CurateConfig, settings_of
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.folder import Run

OTHER = {
    "ingest.max_bad": "3%",
    "ingest.max_pixels": 12345,
    "dedup.policy": "exact",
    "dedup.judge": False,
    "dedup.text_rule": "auto",
    "dedup.text_threshold": 0.77,
    "dedup.hash": "exact",
    "dedup.cache": "/elsewhere/kept",
    "dedup.unverified_images": True,
    "dedup.image_radius": 3,
    "dedup.max_per_image": 7,
    "dedup.against": ["/elsewhere/index"],
    "dedup.against_by": "either",
    "embed.encoder": "lite0",
    "embed.frames": 5,
    "embed.batch": 3,
    "cluster.clusters": 9,
    "select.count": 11,
    "select.order": "farthest",
    "select.semantic_threshold": 0.25,
    "seed": 42,
    "threads": 3,
    "memory": "3G",
}


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_every_named_option_has_a_value_to_be_tested_with():
    assert {key for _, key, *_ in _SETTINGS} == set(OTHER) == set(command.settings.values())


@pytest.mark.parametrize(("name", "key"), [entry[:2] for entry in _SETTINGS])
def test_a_named_option_reaches_its_setting(name, key, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "mmrlhf_engine.pipeline.describe_plan", lambda config, *_, **__: given.append(config) or ""
    )
    option = [name, *OTHER[key]] if isinstance(OTHER[key], list) else [name, OTHER[key]]
    done = engine("curate", "--out", tmp_path / "r", "--dry-run", *option)
    assert done.returncode == 0, done.stderr
    assert value_of(given[0], key) == OTHER[key] != value_of(CurateConfig(), key)
    # It lies over the setting of the same name.
    engine("curate", "--out", tmp_path / "r", "--dry-run", "--set", f"{key}=null", *option)
    assert given[1] == given[0]


@pytest.mark.parametrize(("name", "key", "shown"), [(e[0], e[1], e[5]) for e in _SETTINGS])
def test_the_default_in_the_help_is_that_of_the_setting(name, key, shown):
    default = value_of(CurateConfig(), key)
    if isinstance(default, bool):
        default = "on" if default else "off"
    assert shown == ("" if default in (None, []) else str(default)), name


@pytest.mark.parametrize("width", [80, 100])
def test_the_help_fits_and_has_headings(width):
    done = subprocess.run(
        [sys.executable, "-m", "mmrlhf_engine", "curate", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": str(width)},
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    headings = [line for line in lines if line and not line.startswith(" ") and line[-1] == ":"]
    assert headings == [
        "The run:",
        "What is read:",
        "What counts as a duplicate:",
        "What is chosen:",
        "The machine:",
        "Other:",
    ]
    for option in cli.commands["curate"].params:
        if option.opts[0].startswith("--"):
            assert f"  {option.opts[0]} " in done.stdout


def test_the_funnel_shows_no_stage_of_other_settings(tmp_path):
    rows = [{"prompt": f"What is the {n}th word of page {n % 9}?"} for n in range(40)]
    lines(tmp_path / "in.jsonl", *rows, {"x": 1})
    command = ("curate", "in.jsonl", "--out", "run", "--encoder", "lite0", "--progress", "silent")

    def stages(*arguments):
        done = engine(*command, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        words = [line.split()[0] for line in done.stdout.splitlines() if line]
        page = (tmp_path / "run/report.html").read_text()
        assert ('id="chosen"' in page) == ("select" in words)
        return [word for word in words if word in everything]

    everything = ["ingest", "dedup", "embed", "cluster", "select"]
    assert stages() == everything
    # Nothing has changed: what comes after is of these settings.
    assert stages("--to", "dedup") == everything
    assert stages("--to", "dedup", "--select", "7") == everything[:4]
    lines(tmp_path / "in.jsonl", *rows[:30], {"x": 1})
    assert stages("--to", "dedup") == ["ingest", "dedup"]
    assert stages() == everything


def test_adding_is_explained_where_it_is_offered(tmp_path):
    lines(tmp_path / "a.jsonl", {"prompt": "What?"})
    lines(tmp_path / "b.jsonl", {"prompt": "Why?"})
    command = ("curate", "--out", "run", "--to", "ingest", "--progress", "silent")
    assert engine(*command, "a.jsonl", cwd=tmp_path).returncode == 0
    refused = engine(*command, "b.jsonl", cwd=tmp_path)
    assert refused.returncode != 0
    assert "--add extends this run by other sources" in refused.stderr
    assert engine(*command, "--add", "b.jsonl", cwd=tmp_path).returncode == 0
    told = " ".join(engine("curate", "--help").stdout.split())
    assert "--add Extend the finished run by SOURCES, with its settings" in told


def test_what_is_added_is_curated_as_the_run_was(tmp_path):
    lines(tmp_path / "a.jsonl", *({"prompt": f"What is number {n}?"} for n in range(30)))
    lines(tmp_path / "b.jsonl", *({"prompt": f"Where is number {n}?"} for n in range(30)))
    chosen = ("--seed", "7", "--select", "9", "--text-rule", "documents", "--cache", "cache")
    engine("curate", "a.jsonl", "--out", "run", *chosen, cwd=tmp_path)
    run = Run(tmp_path / "run")
    before = settings_of(run)
    assert before["seed"] == 7
    assert before["select"]["count"] == 9
    assert before["dedup"]["cache"] == str(tmp_path / "cache")
    again = ("curate", tmp_path / "b.jsonl", "--out", "run", "--add")
    done = engine(*again, "--set", "select.order=farthest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before["select"]["order"] = "farthest"
    assert settings_of(run) == before
    assert run.report("select")["rows_out"] == 9
    # Another command begins with the defaults, as ever; from Python it is the same.
    (tmp_path / "few.yaml").write_text("select: {count: 4}\n", encoding="utf-8")
    for config in (tmp_path / "few.yaml", load_config(CurateConfig, tmp_path / "few.yaml")):
        run_curate(tmp_path / "b.jsonl", tmp_path / "run", config=config, add=True)
        assert settings_of(run) == before | {"select": {**before["select"], "count": 4}}
    (run.stage_folder("select") / "config.yaml").unlink()  # as a kill may leave it
    assert "select" not in settings_of(run)
    sources = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    run_curate(sources, tmp_path / "run", {"select.count": 5})
    assert settings_of(run)["seed"] == 0
