"""``evaluate``: sections of one scorecard, lmms-eval as a process, and the function from Python."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mmrlhf_engine
from command import engine, installed
from mmrlhf_engine.cli.measure import evaluate
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.measure import lmms_eval
from mmrlhf_engine.measure.evaluations import _MODULES, stage_of
from mmrlhf_engine.measure.lmms_eval import KINDS, BenchmarksConfig, paper_benchmarks
from mmrlhf_engine.models.families import FAMILIES
from pack_data import write_lines

VQA = [{"id": 1, "question": "?", "answer": "x", "prediction": "x"}]
GAME = [{"id": 1, "a": "new", "b": "old", "verdict": "a"}]


def card_of(out):
    return json.loads((out / "scorecard.json").read_text())


def test_commands_add_sections_and_replace_their_own(tmp_path):
    out = tmp_path / "run"
    questions, games = (
        write_lines(tmp_path / "q.jsonl", VQA),
        write_lines(tmp_path / "g.jsonl", GAME),
    )
    assert engine("evaluate", "vqa", questions, "--out", out).returncode == 0
    assert engine("evaluate", "win-rate", games, "--out", out).returncode == 0
    first = card_of(out)
    assert list(first) == ["vqa", "win_rate"]
    write_lines(questions, [{**VQA[0], "prediction": "y"}])
    assert engine("evaluate", "vqa", questions, "--out", out).returncode == 0
    second = card_of(out)
    assert (first["vqa"]["overall"]["acc"], second["vqa"]["overall"]["acc"]) == (1, 0)
    assert second["win_rate"] == first["win_rate"]
    page = (out / "report.html").read_text()
    assert page.index("Win rates") < page.index("Visual questions")
    assert "http" not in page.replace("http-equiv", "")
    assert sorted(entry.name for entry in (out / "14_evaluate").iterdir()) == [
        ".lock",
        "vqa",
        "win_rate",
    ]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("vqa", VQA[0], {"kind": "k\ud83d"}),
        ("win-rate", GAME[0], {"a": "m\udc00"}),
        ("safety", {"task": "nsfw_text", "id": 1, "response": "x"}, {"note": "\ud83d"}),
    ],
)
def test_half_of_a_character_leaves_the_section_that_is_there(name, good, bad, tmp_path):
    file = write_lines(tmp_path / "x.jsonl", [{**good, "id": "\U0001f600"}])
    words = ["evaluate", name, file, "--out", tmp_path / "out"]
    assert engine(*words).returncode == 0
    before = card_of(tmp_path / "out")
    file.write_text("\n" + json.dumps({**good, **bad}))
    done = engine(*words)
    assert (done.returncode, "x.jsonl:2: found half of a character" in done.stderr) == (1, True)
    assert card_of(tmp_path / "out") == before
    again = write_lines(tmp_path / "x.jsonl", [{**good, "id": "\U0001f600"}])
    assert engine("evaluate", name, again, "--out", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("name", ["scorecard.json", "report.html"])
def test_a_folder_in_place_of_a_file_is_refused_before_the_work(name, tmp_path):
    (tmp_path / "out" / name).mkdir(parents=True)
    file = write_lines(tmp_path / "q.jsonl", VQA)
    done = engine("evaluate", "vqa", file, "--out", tmp_path / "out")
    assert (done.returncode, f"{name}: found a folder" in done.stderr) == (1, True)
    assert not (tmp_path / "out" / "14_evaluate").exists()


def test_help_of_every_evaluation():
    for name in evaluate.commands:
        done = engine("evaluate", name, "--help")
        assert (done.returncode, done.stdout.replace("\n", "").isprintable()) == (0, True)
        assert not evaluate.commands[name].get_short_help_str(60).endswith("..."), name
    assert engine("evaluate", "nothing").returncode == 2


def test_it_starts_without_torch_and_ends_without_a_traceback(tmp_path):
    done = installed("evaluate", "vqa", tmp_path / "absent.jsonl", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert "absent.jsonl: no such file" in done.stderr
    assert "Traceback" not in done.stderr
    program = (
        "import sys\nfrom mmrlhf_engine.measure.evaluations import _MODULES, stage_of\n"
        "for name in _MODULES: stage_of(name)\nassert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_function_of_each_evaluation(tmp_path):
    file = write_lines(tmp_path / "q.jsonl", VQA)
    section = mmrlhf_engine.run_evaluate("vqa", tmp_path / "out", {"file": file, "resamples": 10})
    assert section == card_of(tmp_path / "out")["vqa"]
    assert section["interval"]["resamples"] == 10
    with pytest.raises(ConfigError, match="expected one of reward_bench, preferences"):
        mmrlhf_engine.run_evaluate("praise", tmp_path / "out", {})
    with pytest.raises(ConfigError, match="did you mean resamples"):
        mmrlhf_engine.run_evaluate("vqa", tmp_path / "out", {"file": "q", "resample": 3})
    with pytest.raises(InputError, match="no such file"):
        mmrlhf_engine.run_evaluate("vqa", tmp_path / "out", {"file": tmp_path / "absent"})
    assert [stage_of(name).name for name in _MODULES] == list(_MODULES)


# ---- lmms-eval -------------------------------------------------------------------------------

RUNNER = """
import json, pathlib, sys
words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
if given["--tasks"] == "broken":
    sys.exit(3)
if given["--tasks"] != "silent":
    out = pathlib.Path(given["--output_path"]) / "model"
    out.mkdir(parents=True)
    results = {"results": {"mme": {"alias": "mme", "score,none": 12.5, "score_stderr,none": "N/A"}}}
    (out / "20260101_results.json").write_text(json.dumps({**results, "words": words}))
print("said on the way")
"""


@pytest.fixture
def lmms(tmp_path, monkeypatch):
    """A package of that name which only writes a file of results, and a checkpoint's folder."""
    package = tmp_path / "packages" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(RUNNER)
    monkeypatch.syspath_prepend(package.parent)
    paths = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    return model


def benchmark(model, out, tasks, *options):
    words = ["evaluate", "lmms-eval", "--model", model, "--tasks", tasks, "--out", out]
    return engine(*words, *options)


def test_results_of_the_process_are_a_section(lmms, tmp_path):
    out = tmp_path / "out"
    done = benchmark(lmms, out, "mme, ai2d", "--batch-size", 4, "--limit", 8)
    assert done.returncode == 0, done.stderr
    section = card_of(out)["benchmarks"]
    assert section["tasks"] == {
        "mme": {
            **{"benchmark": "MME", "dimension": "general", "better": "higher"},
            "metrics": {"score": 12.5},
        }
    }
    report = json.loads((out / "14_evaluate" / "benchmarks" / "report.json").read_text())
    assert (report["rows_in"], report["dropped"]) == (2, {"no_result": 1})
    assert "mme: score 12.5" in done.stdout
    assert "said on the way" not in done.stdout
    assert "mme: score" in (out / "report.html").read_text()
    (written,) = (out / "14_evaluate").rglob("*_results.json")
    words = json.loads(written.read_text())["words"]
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given == {
        "--model": "qwen2_vl",
        "--model_args": f"pretrained={lmms}",
        "--tasks": "mme,ai2d",
        "--batch_size": "4",
        "--limit": "8",
        "--output_path": str(out / "14_evaluate" / "benchmarks" / "results"),
    }


def test_a_process_that_fails(lmms, tmp_path):
    done = benchmark(lmms, tmp_path / "out", "broken")
    assert (done.returncode, "lmms-eval ended with exit code 3" in done.stderr) == (1, True)
    done = benchmark(lmms, tmp_path / "out", "silent")
    assert (done.returncode, "ended without results" in done.stderr) == (1, True)


def test_dry_run_prints_the_command_and_does_nothing(tmp_path):
    out = tmp_path / "out"
    done = benchmark("org/name", out, "paper", "--kind", "vllm", "--dry-run")
    words = shlex.split(done.stdout)
    assert words[1:5] == ["-m", "lmms_eval", "--model", "vllm"]
    assert "pretrained=org/name" in words
    tasks = words[words.index("--tasks") + 1].split(",")
    assert {"ai2d", "pope_adv", "videomme"} <= set(tasks)
    assert not out.exists()


def test_what_is_refused_before_it_starts(lmms, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (lmms / "config.json").write_text('{"model_type": "bert"}')
    for words, code, message in (
        ((lmms, out, "mme"), 2, "model_type: found bert, expected one of llava"),
        ((tmp_path / "absent", out, "mme"), 2, "config.json: no such file"),
        ((tmp_path / "a,b", out, "mme", "--kind", "vllm"), 2, "reads a comma as the end"),
        ((lmms, out, " , ", "--kind", "vllm"), 2, "tasks: found none"),
        ((lmms / "config.json", out, "mme", "--kind", "vllm"), 1, "expected a checkpoint"),
    ):
        done = benchmark(*words)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    monkeypatch.setattr(lmms_eval.importlib.util, "find_spec", lambda _: None)
    done = benchmark(lmms, out, "mme", "--kind", "vllm")
    assert (done.returncode, "mmrlhf-engine[evaluate]" in done.stderr) == (1, True)


def test_every_family_has_a_model_of_lmms_eval():
    assert set(KINDS) == set(FAMILIES)


def test_the_benchmarks_of_the_paper():
    found = paper_benchmarks()
    assert len({one.name for one in found}) == len(found) == 27
    dimensions = [one.dimension for one in found]
    sizes = [dimensions.count(name) for name in dict.fromkeys(dimensions)]
    assert sizes == [4, 3, 3, 2, 5, 3, 2, 3, 2]
    assert [one.name for one in found if not one.tasks] == ["MMHal-Bench", "Object-Hal"]
    assert {one.better for one in found} == {"higher", "lower"}
    config = BenchmarksConfig(model="m", tasks=("paper", "mme"), kind="vllm")
    words = lmms_eval.command_text(config, Path("out")).split()
    tasks = words[words.index("--tasks") + 1].split(",")
    assert len(tasks) == len(set(tasks)) == sum(len(one.tasks) for one in found)
