"""The page of a training run, read as HTML."""

import json
from html.parser import HTMLParser

import pytest

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.config import to_yaml
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.train.metrics import MetricsWriter
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.report.measures import Measures, charts_of
from mmrlhf_engine.train.report.page import write_training_page

FACTS = {
    "command": "mm-dpo",
    "model": "a/model",
    "family": "llava",
    "parameters_total": 1000,
    "parameters_trained": 250,
    "shards": "data/shards",
    "pairs": 1200,
    "pairs_held_out": 40,
    "queries": 300,
    "steps": 4,
    "packs_per_step": 8,
    "tokens_per_pack": 16384,
    "precision": "bfloat16",
    "devices": ["GPU", "GPU"],
    "reference": {"set": "reference", "model": "a/model"},
    "resumed_at": [2],
}


class Page(HTMLParser):
    """Tags, attributes and text of a page, and whether its tags are closed in order."""

    EMPTY = frozenset({"meta", "wbr", "br"})

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.text.append(" ".join(data.split()))

    def after(self, text, count=1):
        place = self.text.index(text)
        return self.text[place + 1 : place + 1 + count]

    def titles(self):
        """Of the charts."""
        return [a["aria-label"].removesuffix(" over steps") for tag, a in self.tags if tag == "svg"]


def training(step, **more):
    return {
        "loss": 0.7 - 0.1 * step,
        "rewards/chosen": 0.1 * step,
        "rewards/rejected": -0.1 * step,
        "rewards/margins": 0.2 * step,
        "rewards/accuracies": 0.5 + 0.1 * step,
        "beta/mean": 0.12,
        "beta/min": 0.1,
        "beta/max": 0.15,
        "learning_rate": 1e-6,
        "tokens_per_second": 5000 + step,
        "memory_bytes": 2**30 * step,
        "seconds": 30.0,
        "epoch": step / 4,
        **more,
    }


def write_run(folder, *lines, facts=FACTS):
    """``lines`` are (step, values)."""
    metrics = MetricsWriter(
        folder, run_name="r", config={}, progress=Progress("silent"), command="mm-dpo"
    )
    for step, values in lines:
        metrics.log(step, 4, values)
    metrics.close()
    (folder / "config.yaml").write_text(to_yaml(MMDPOConfig(shards="data/shards")))
    if facts is not None:
        (folder / "facts.json").write_text(json.dumps(facts))


def page_of(folder):
    write_training_page(folder, folder / "page.html")
    return Page((folder / "page.html").read_text("utf-8"))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a run"
    evaluations = [(step, {"eval_loss": 0.7 - 0.05 * step}) for step in (0, 4)]
    steps = [(step, training(step)) for step in range(1, 5)]
    write_run(folder, evaluations[0], *steps, evaluations[1])
    return folder


def test_a_finished_run(run):
    page = page_of(run)
    assert page.after("finished") == ["4 steps"]
    assert page.after("mmrlhf-engine 0.1.0 · mm-dpo") == ["a run"]
    # A large figure is of the evaluation where there are two of them.
    assert page.after("Loss", 2) == ["0.5", "evaluation, at first 0.7"]
    assert page.after("Accuracy", 2) == ["90.0 %", "training, at first 60.0 %"]
    assert page.after("evaluation, step 4", 5) == ["Loss", "0.6", "0.3", "0.7", "0.5"]
    assert page.after("command") == ["mm-dpo"]
    assert page.after("pairs") == ["1,200, and 40 held out"]
    assert page.after("devices") == ["2 x GPU"]
    assert page.after("reference") == ["set: reference, model: a/model"]
    assert page.after("parameters") == ["1,000, 250 of them trained (25.00 %)"]
    assert page.after("time in steps") == ["2 min 00 s"]
    assert page.after("largest memory") == ["4 GiB"]
    assert any("resumed after step 2." in text for text in page.text)
    assert any("beta_rule: paper" in text for text in page.text)


def test_the_page_needs_no_script_and_no_other_file(run):
    page = page_of(run)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe"})
    for _, attributes in page.tags:
        assert not {"src", "href"} & set(attributes)
    assert "url(" not in (run / "page.html").read_text()


def test_every_measure_has_one_chart_and_pairs_of_measures_share_one(run):
    assert page_of(run).titles() == [
        "Loss",
        "Accuracy",
        "Reward margin",
        "Rewards",
        "Beta",
        "Learning rate",
        "Tokens per second",
        "Memory",
        "Time of a step",
    ]


def test_the_charts_hold_what_was_logged(run):
    sections = charts_of(Measures.of([{"step": 1, **training(1)}]), marks=[])
    charts = {chart.title: chart for section in sections for chart in section.charts}
    assert [(c.name, c.kind) for c in charts["Beta"].curves] == [
        ("least to greatest", "band"),
        ("mean", "line"),
    ]
    assert [(c.name, c.color) for c in charts["Rewards"].curves] == [("chosen", 0), ("rejected", 1)]
    assert charts["Accuracy"].hovers[0].text == "step 1\ntraining: 60 %"
    assert charts["Memory"].hovers[0].text == "step 1\ntraining: 1 GiB"


def test_resumes_are_lines_in_every_chart(run):
    page = page_of(run)
    marks = [a for tag, a in page.tags if tag == "line" and a["class"] == "mark"]
    assert len(marks) == len(page.titles())
    assert {mark["x1"] for mark in marks} == {"500.0"}


def test_a_run_that_is_running_and_one_that_stopped(tmp_path):
    write_run(tmp_path, (1, training(1)), (2, training(2)))
    assert page_of(tmp_path).after("running") == ["at step 2 of 4 when this page was written"]
    facts = {**FACTS, "stopped": "2 % of the pictures cannot be decoded"}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    reason = "at step 2 of 4: 2 % of the pictures cannot be decoded"
    assert page_of(tmp_path).after("stopped") == [reason]


def test_a_run_that_has_not_made_a_step(tmp_path):
    write_run(tmp_path)
    page = page_of(tmp_path)
    assert page.after("running") == ["at step 0 of 4 when this page was written"]
    assert page.titles() == []


def test_a_supervised_run_with_names_that_nobody_knows(tmp_path):
    values = {"loss": 2.0, "mean_token_accuracy": 0.25, "new/chosen": 1.0, "new/rejected": 2.0}
    write_run(
        tmp_path,
        (1, {**values, "odd": 3.0}),
        (2, {"eval_loss": 1.5, "eval_odder": 5.0, "eval_seconds": 9.0}),
        facts={"command": "sft", "something new": [1, 1, 2]},
    )
    page = page_of(tmp_path)
    assert page.titles() == [
        "Loss", "Token accuracy", "Time of an evaluation", "new", "odd", "odder",
    ]  # fmt: skip
    assert page.after("running") == ["at step 2 when this page was written"]
    assert page.after("something new") == ["2 x 1, 2"]
    # An evaluation that is the only one is at first; there is none at last.
    assert page.after("evaluation, step 2", 1) == ["evaluation, step 2"]
    assert page.after("Token accuracy", 2) == ["25.0 %", "training, at first 25.0 %"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "facts.json"])
def test_one_file_of_the_folder_is_enough(run, name):
    for file in run.iterdir():
        if file.name != name:
            file.unlink()
    assert "running" in page_of(run).text


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="has none of"):
        write_training_page(tmp_path, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_what_is_unusual_is_told(tmp_path):
    nan = float("nan")
    write_run(
        tmp_path,
        (1, training(1, grad_norm=1.0, unreadable_pictures=0)),
        (2, training(2, grad_norm=nan, unreadable_pictures=2)),
        (3, training(3, grad_norm=nan, unreadable_pictures=1)),
        (6, training(6, grad_norm=1.0, unreadable_pictures=0)),
        facts={**FACTS, "notes": ["3 pairs show a picture that cannot be decoded."]},
    )
    page = page_of(tmp_path)
    for note in (
        "3 pairs show a picture that cannot be decoded.",
        "grad_norm is not a finite number in 2 of 4 steps, first in step 2.",
        "unreadable_pictures: 3 in all steps, first in step 2.",
        "Places where steps have no metrics: 1, the first between step 3 and step 6.",
    ):
        assert note in page.text


def test_a_run_without_anything_unusual_has_no_note(run):
    assert not [a for _, a in page_of(run).tags if a.get("class") == "note"]


def test_measures_that_were_never_finite(tmp_path):
    write_run(tmp_path, (1, dict.fromkeys(training(1), float("nan"))))
    page = page_of(tmp_path)
    assert page.titles() == []
    assert page.after("Loss", 2) == ["not finite", "training, at first not finite"]


def test_names_and_settings_are_text_and_not_html(tmp_path):
    write_run(tmp_path, (1, {"<b>bold": 1.0}), facts={"model": "<i>x</i>"})
    page = page_of(tmp_path)
    assert page.titles() == ["<b>bold"]
    assert page.after("model") == ["<i>x</i>"]


def test_a_long_run_has_a_small_page(tmp_path):
    lines = (
        json.dumps({"step": step, **training(step % 97), "grad_norm": step % 89})
        for step in range(1, 20_001)
    )
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    page = page_of(tmp_path)
    assert len(page.titles()) == 10
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert any("There are more than 400 steps" in text for text in page.text)
