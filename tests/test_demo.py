"""The demo from end to end, on a few dozen pictures and steps; and the command."""

import dataclasses
import html
import re

import pytest
from click.testing import CliRunner

from mmrlhf_engine import demo
from mmrlhf_engine.cli import cli
from mmrlhf_engine.demo import curate_demo, vqa_pipeline, vqa_report
from mmrlhf_engine.demo.vqa_curated import curated_questions
from mmrlhf_engine.demo.vqa_margins import Margins, examples, read_margins
from mmrlhf_engine.demo.vqa_questions import questions_of
from mmrlhf_engine.demo.vqa_rows import Sizes

SMALL = vqa_pipeline.Recipe(
    sizes=Sizes(20, 20, 15, 6, 10, 10), flip=0.4, supervised_steps=4, reward_steps=3, policy_steps=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def curated(folder):
    settings = {"select.count": 1_500, "select.question_types": {"short": 1}}
    return curate_demo.curate_corpus(folder, settings, progress="silent")[0]


def prepared_in(folder, questions=None, **changes):
    questions = questions or [one for one in questions_of("train") if one.picture < 30]
    recipe = dataclasses.replace(SMALL, **changes)
    return vqa_pipeline.prepare(folder, questions, seed=0, recipe=recipe)


def results_of(prepared):
    results = {"base": vqa_pipeline.evaluate_model(prepared, "base", prepared.base)}
    for name in vqa_pipeline.VARIANTS:
        report = vqa_pipeline.train_variant(prepared, name)
        prepared.reports[name] = report
        results[name] = vqa_pipeline.evaluate_model(prepared, name, folder_of(report) / "model")
    return results


def folder_of(report):
    return vqa_pipeline.Path(report["folder"])


def written(folder):
    return {
        file: file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


@pytest.mark.slow
def test_every_stage_runs_once_and_the_second_run_skips_all(folder, curated):
    questions = curated_questions(curated)
    known = {one.id: one for one in questions_of("train")}
    assert len(questions) > 1_000
    assert all(known[one.id] == one for one in questions)
    prepared = prepared_in(folder / "training", questions)
    assert {one.picture for one in prepared.parts.policy} <= {one.picture for one in questions}
    results = results_of(prepared)
    assert results["dpo"]["questions"] == 18
    assert set(results["dpo"]["by_kind"]) == {"shape", "colour", "yes/no"}
    assert "before" in results["mm_dpo"]
    assert "blind" in results["base"]["baselines"]
    margins = read_margins(prepared)
    assert len(margins.margin) == prepared.reports["pair_policy"]["pairs"] > 20
    assert 0 < margins.flipped.sum() < len(margins.flipped) / 2
    assert [one.annotation.flipped for one in examples(prepared, 4)] == [False, False, True, True]
    page = vqa_report.write(folder / "report.html", curated, questions, prepared, results)
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 6
    assert f'<td>preference pairs</td><td class="number">{len(margins.margin)}</td>' in text
    assert vqa_report.findings(margins, results)[0] in html.unescape(text)
    assert "http" not in text.replace("http://www.w3.org", "")
    before = written(folder / "training")
    again = prepared_in(folder / "training", questions)
    assert results_of(again) == results
    after = written(folder / "training")
    changed = {file.name for file, time in after.items() if before.get(file) != time}
    assert changed <= {"report.html", "scorecard.json"}


@pytest.mark.slow
def test_what_another_recipe_has_left_is_replaced(folder):
    prepared_in(folder / "other")
    prepared = prepared_in(folder / "other", supervised_steps=5)
    assert prepared.reports["sft"]["steps"] == 5
    assert vqa_pipeline.train_variant(prepared, "dpo")["steps"] == 2


def section(accuracy, change, blind=0.4):
    def figure(value, width=0.02):
        return {"acc": value, "acc_interval": [value - width, value + width]}

    return {
        "balanced": figure(accuracy),
        "by_kind": {"shape": figure(accuracy), "yes/no": figure(0.6)},
        "baselines": {
            "blind": {
                "balanced": figure(blind),
                "by_kind": {"shape": figure(blind), "yes/no": figure(blind)},
            }
        },
        "before": {"difference": {"balanced": figure(change)}},
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (0.1, "MM-DPO answers more questions rightly (+10.0 points, 95 % interval +8.0 to +12.0)"),
        (-0.1, "MM-DPO answers fewer questions rightly (-10.0 points"),
        (0.01, "MM-DPO and the base model do not differ for certain (+1.0 points"),
    ],
)
def test_a_change_is_said_to_be_one_where_its_interval_excludes_zero(change, sentence):
    results = {"mm_dpo": section(0.8, change), "dpo": section(0.8, 0.1)}
    assert sentence in " ".join(vqa_report.findings(margins_of(True), results))


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        (0.81, "MM-DPO and plain DPO do not differ here (+1.0 points"),
        (0.9, "MM-DPO answers more questions rightly than plain DPO (+10.0 points)"),
        (0.7, "MM-DPO answers fewer questions rightly than plain DPO (-10.0 points)"),
    ],
)
def test_the_two_policies_differ_where_one_is_outside_of_the_interval(ours, sentence):
    results = {"mm_dpo": section(ours, 0.1), "dpo": section(0.8, 0.1)}
    assert sentence in " ".join(vqa_report.findings(margins_of(True), results))


@pytest.mark.parametrize(
    ("telling", "sentence"),
    [
        (True, "The reward model agrees with the truth in 100.0 % of the pairs"),
        (False, "The margins do not tell flipped pairs from others (area under the curve 0.50"),
    ],
)
def test_margins_that_tell_nothing_are_said_to(telling, sentence):
    results = {"mm_dpo": section(0.8, 0.1), "dpo": section(0.8, 0.1)}
    assert sentence in " ".join(vqa_report.findings(margins_of(telling), results))


@pytest.mark.parametrize(
    ("blind", "sentence"),
    [
        (0.4, "40.0 % rightly: what is above that comes from looking."),
        (0.59, "59.0 % rightly. On yes/no questions it is not better than that for certain"),
        (0.9, "90.0 % rightly. On shape and yes/no questions it is not better than that"),
    ],
)
def test_kinds_of_questions_that_need_no_picture_are_named(blind, sentence):
    results = {"mm_dpo": section(0.8, 0.1, blind), "dpo": section(0.8, 0.1)}
    assert sentence in " ".join(vqa_report.findings(margins_of(True), results))


def margins_of(telling):
    import numpy as np

    flipped = np.array([False, False, True, True])
    margin = np.array([2.0, 1.0, -1.0, -2.0]) if telling else np.array([1.0, -1.0, 1.0, -1.0])
    return Margins(margin, flipped)


def test_the_command_says_which_part_it_runs_and_with_which_seed(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(demo, "run", lambda *given, **options: calls.append((given, options)) or "")
    runner = CliRunner()
    for arguments in ([], ["--curate-only", "--seed", "3", "--select", "9"]):
        done = runner.invoke(cli, ["demo", "--out", str(tmp_path), *arguments])
        assert done.exit_code == 0, done.output
    (whole, first), (part, second) = calls
    assert whole == (tmp_path, None)
    assert (first["curate_only"], first["seed"]) == (False, None)
    assert part == (tmp_path, 9)
    assert (second["curate_only"], second["seed"]) == (True, 3)
    assert re.search("--curate-only", runner.invoke(cli, ["demo", "--help"]).output)


def test_a_relative_folder_is_the_same_folder_for_every_part(monkeypatch, tmp_path):
    """Rows name their pictures from the root on, and would lose them."""
    folders = []

    def record(folder, *_, **__):
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(curate_demo, "curate_corpus", record)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        demo.run(vqa_pipeline.Path("demo_run"))
    assert folders == [tmp_path.resolve() / "demo_run"]
