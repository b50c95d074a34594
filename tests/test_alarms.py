"""Alarms: each is raised by what it is for, and none by what is in order."""

import json

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw

from command import engine
from mmrlhf_engine.curate import report
from mmrlhf_engine.curate.alarms import (
    as_text,
    collapsed_rows,
    crowded_removals,
    differing_answers,
    find_alarms,
    frequent_reasons,
    marks_and_media,
    unread_fields,
)
from mmrlhf_engine.models.encoder import load_encoder
from mmrlhf_engine.run.folder import Run
from pack_data import write_lines


def removals(*rows):
    return pl.LazyFrame(rows, schema=["id", "kept_id", "kind"], orient="row")


def rejected(*rows):
    names = ["source", "position", "reason", "detail"]
    return pl.LazyFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


@pytest.mark.parametrize(
    ("count", "kind", "raised"), [(20, "near", 0), (21, "near", 1), (99, "exact", 0)]
)
def test_a_sample_that_removes_many_near_duplicates(count, kind, raised):
    rows = [(f"b{n:02d}", "a", kind) for n in range(count)] + [("x", "y", "near")]
    alarms = list(crowded_removals(removals(*rows)))
    assert len(alarms) == raised
    if raised:
        assert alarms[0].count == 1
        assert alarms[0].example == "a removed 21, among them b00"


ANSWERS = pl.LazyFrame(
    {
        "id": ["a", "b", "c", "d", "e", "f", "g", "h"],
        "answer": [
            "14",
            "12",
            "14.",
            None,
            "a long answer of more than five words",
            "Yes",
            " yes ",
            "14.0",
        ],
    }
)


@pytest.mark.parametrize(
    ("removed", "kept", "kind", "raised"),
    [
        ("b", "a", "near", True),
        ("b", "a", "exact", True),
        ("e", "a", "near", False),  # a long answer may say the same otherwise
        ("a", "e", "near", True),
        ("c", "a", "near", False),
        ("f", "g", "near", False),
        ("h", "a", "near", False),
        ("d", "a", "near", False),
        ("a", "d", "near", False),
        ("b", "a", "max_per_image", False),
    ],
)
def test_short_answers_that_differ(removed, kept, kind, raised):
    alarms = list(differing_answers(removals((removed, kept, kind)), ANSWERS))
    assert bool(alarms) == raised
    if raised:
        assert alarms[0].count == 1
        assert alarms[0].example.startswith(f"{removed} (")


def test_a_few_differing_answers_among_many_equal_ones_are_no_alarm():
    same = pl.LazyFrame({"id": [f"s{n}" for n in range(300)], "answer": "12"})
    samples = pl.concat([ANSWERS, same])
    rows = [(f"s{n}", "b", "near") for n in range(300)]
    assert list(differing_answers(removals(*rows, ("a", "b", "near")), samples)) == []
    (alarm,) = differing_answers(removals(*rows[:50], ("a", "b", "near")), samples)
    assert "1 sample of 51 with a short answer" in alarm.text


def test_marks_that_disagree_with_pictures():
    rows = rejected(
        ("s", "s:1", "marks_and_media_differ", "2 marks, 1 picture"), ("s", "s:2", "no_text", "x")
    )
    (alarm,) = marks_and_media(rows, 100)
    assert (alarm.count, alarm.example) == (1, "s:1: 2 marks, 1 picture")
    assert list(marks_and_media(rows, 101)) == []
    assert list(marks_and_media(rows.tail(1), 2)) == []


def test_unread_fields_of_many_rows():
    fields = {
        "lecture": {"rows": 900, "kind": "text", "example": "A long text"},
        "rare": {"rows": 9, "kind": "text", "example": "b"},
        "plain": 20,
    }
    (alarm,) = unread_fields(fields, 1_000)
    assert alarm.text.endswith("lecture (900), plain (20)")
    assert (alarm.count, alarm.example) == (900, 'lecture: "A long text"')
    assert list(unread_fields({"rare": fields["rare"]}, 1_000)) == []
    assert list(unread_fields({}, 0)) == []


def test_a_reason_that_takes_much_of_a_source():
    sources = {
        "a": {"samples": 94, "rejected": 6},
        "b": {"samples": 95, "rejected": 5},
        "c": {"samples": 3},
    }
    rows = [
        (name, f"{name}:{n}", "no_text", "empty")
        for name, count in (("a", 6), ("b", 5))
        for n in range(count)
    ]
    # One row is not much, however small the source is.
    rows.append(("c", "c:1", "no_text", "empty"))
    (alarm,) = frequent_reasons(rejected(*rows), sources)
    assert alarm.text == "6 of 100 rows of a (6 %) were rejected: no_text"
    assert (alarm.count, alarm.example) == (6, "a:0: empty")
    differ = [("a", "a:1", "marks_and_media_differ", "")] * 50  # has an alarm of its own
    assert list(frequent_reasons(rejected(*differ), sources)) == []


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def ids(count):
    return pl.LazyFrame({"id": [f"s{n}" for n in range(count)], "row": range(count)})


def test_rows_that_are_nearly_equal():
    random = np.random.default_rng(0)
    spread = unit(random.normal(size=(2_000, 64)))
    assert list(collapsed_rows(spread, ids(2_000))) == []
    # All rows near to one direction.
    (alarm,) = collapsed_rows(unit(np.ones(64) + 0.01 * random.normal(size=(50, 64))), ids(50))
    assert alarm.count == 50
    assert "100 % of the pictures" in alarm.text
    # Two kinds of rows: each has an equal one, though random pairs differ.
    two = unit(np.repeat(random.normal(size=(2, 64)), 20, axis=0))
    (alarm,) = collapsed_rows(two, ids(40))
    assert "cosine 1.0000" in alarm.example
    # A third that have a copy do not make an alarm; neither do a handful of rows.
    third = np.concatenate([spread[:40], spread[:8]])
    assert list(collapsed_rows(third, ids(48))) == []
    assert list(collapsed_rows(two[:5], ids(5))) == []
    assert list(collapsed_rows(np.empty((0, 0), np.float16), ids(0))) == []


def photographs():
    """Different views of real photographs, 224 pixels square."""
    from sklearn.datasets import load_sample_images

    for image in load_sample_images().images:
        for y in (0, 200):
            for x in (0, 100, 200, 300, 400):
                yield image[y : y + 224, x : x + 224]


def invoices():
    """White pages of one layout on which only numbers differ."""
    for number in range(20):
        page = Image.new("RGB", (224, 224), "white")
        lines = ["INVOICE", "ACME Ltd", f"Pens {number * 7}", f"Total {number * 37 + 11}"]
        for line, text in enumerate(lines):
            ImageDraw.Draw(page).text((20, 20 + 45 * line), text, fill="black", font_size=20)
        yield np.asarray(page)


@pytest.mark.parametrize("pictures", [photographs, invoices])
def test_different_pictures_are_no_alarm_under_a_real_encoder(pictures):
    rows = unit(load_encoder("lite0").encode(np.stack(list(pictures()))))
    assert len(rows) == 20
    assert list(collapsed_rows(rows, ids(len(rows)))) == []


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory):
    """A run in which a tenth of the rows is rejected."""
    folder = tmp_path_factory.mktemp("alarmed")
    rows = [{"prompt": f"What is the {n}th word of the {n + 7}th page?"} for n in range(18)]
    rows += [{"x": 1}, {"x": '<b>"2"</b>'}]
    write_lines(folder / "in.jsonl", rows)
    return folder


RUN = ("curate", "in.jsonl", "--out", "RUN", "--to", "dedup")


def test_alarms_are_on_the_page_in_the_funnel_and_said_at_the_end(alarmed):
    done = engine(*RUN, cwd=alarmed)
    sentence = "2 of 20 rows of in (10 %) were rejected: no_text"
    assert f"alarm: {sentence}" in done.stdout
    assert "hint: `mmrlhf-engine inspect RUN/01_ingest/rejected`" in done.stdout
    last = "1 alarm: look at the top of RUN/report.html before the queries are used"
    assert done.stderr.splitlines()[-1] == last
    page = (alarmed / "RUN" / "report.html").read_text()
    assert page.index('id="alarms"') < page.index(sentence) < page.index('id="funnel"')
    assert page.count('class="alarm"') == 1
    # Also where progress is silent, and as JSON for machines.
    assert engine(*RUN, "--progress", "silent", cwd=alarmed).stderr == last + "\n"
    events = engine(*RUN, "--progress", "jsonl", cwd=alarmed).stderr.splitlines()
    warning = json.loads(events[-1])
    assert (warning["event"], warning["alarms"][0]["count"]) == ("warning", 2)


def test_a_run_without_alarms_shows_nothing(alarmed):
    write_lines(alarmed / "good.jsonl", [{"prompt": f"What is {n} times {n}?"} for n in range(9)])
    done = engine("curate", "good.jsonl", "--out", "G", "--to", "dedup", cwd=alarmed)
    assert "alarm" not in done.stdout + done.stderr
    run = Run(alarmed / "G")
    assert find_alarms(run) == []
    assert as_text([]) == ""
    assert 'id="alarms"' not in report.write(run).read_text()


def test_a_run_that_has_not_begun_has_no_alarms(tmp_path):
    assert find_alarms(Run(tmp_path)) == []
