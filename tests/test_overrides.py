"""Removals that a person takes back: the file, the command, and that dedup runs again."""

import json

import polars as pl
import pytest

from command import engine
from mmrlhf_engine.curate.explain import told_before
from mmrlhf_engine.curate.overrides import OVERRIDES, read_overrides
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.folder import Run
from pack_data import picture, put, write_lines

OPTIONS = ("--out", "RUN", "--to", "dedup", "--progress", "silent")


@pytest.fixture
def place(tmp_path):
    """A run of five samples: two are equal, and one is over the cap of its picture."""
    put(tmp_path / "a.png", picture(64, 64, seed=1))
    questions = ["What colour is the sky?", "How many dogs are there?", "Where is the red car now?"]
    rows = [{"id": str(n), "image": "a.png", "prompt": text} for n, text in enumerate(questions)]
    rows.append({"id": "again", "image": "a.png", "prompt": questions[0]})
    write_lines(tmp_path / "in.jsonl", rows)
    done = engine("curate", "in.jsonl", *OPTIONS, "--max-per-image", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def pair_of(place, kind):
    rows = pl.read_parquet(place / "RUN" / "02_dedup" / "duplicates" / "*.parquet")
    return rows.filter(pl.col("kind") == kind).select("id", "kept_id").row(0)


def test_disagree_writes_a_line_and_dedup_runs_again(place):
    removed, kept = pair_of(place, "exact")
    done = engine("disagree", "RUN", removed, kept, cwd=place)
    assert (done.returncode, f"{removed} stays beside {kept}" in done.stdout) == (0, True)
    (line,) = (place / "RUN" / OVERRIDES).read_text().splitlines()
    row = json.loads(line)
    assert row == {"id": removed, "kept_id": kept, "keep": True, "time": row["time"]}
    again = engine("disagree", "RUN", removed, kept, cwd=place)
    assert "has this pair already" in again.stdout
    assert (place / "RUN" / OVERRIDES).read_text().splitlines() == [line]

    arguments = ("curate", "in.jsonl", "--out", "RUN", "--to", "dedup", "--max-per-image", 2)
    said = engine(*arguments, cwd=place).stderr
    assert "ingest: finished and unchanged" in said
    assert "dedup: running" in said
    assert "dedup: finished and unchanged" in engine(*arguments, cwd=place).stderr
    (place / "RUN" / OVERRIDES).unlink()
    assert "dedup: running" in engine(*arguments, cwd=place).stderr


def test_what_is_no_removal_is_refused_with_what_is(place):
    removed, kept = pair_of(place, "exact")
    capped, _ = pair_of(place, "max_per_image")
    other = next(f"in:{n}" for n in range(3) if f"in:{n}" not in (removed, kept, capped))
    for arguments, message in [
        ((removed, other), f"in favour of {kept}, not of {other}"),
        ((removed, other), f"hint: mmrlhf-engine disagree RUN {removed} {kept}"),
        ((kept, removed), "name them the other way round"),
        ((other, kept), f"{other} was not removed as a duplicate"),
        (("in:none", kept), "ids look like"),
        ((removed, "in:none"), "ids look like"),
        ((capped, pair_of(place, "max_per_image")[1]), "--max-per-image allows more"),
    ]:
        done = engine("disagree", "RUN", *arguments, cwd=place)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not (place / "RUN" / OVERRIDES).exists()


def test_pairs_are_read_once_each_and_in_order(tmp_path):
    file = tmp_path / OVERRIDES
    assert read_overrides(None) == []
    pairs = [("b", "a"), ("a", "c"), ("b", "a")]
    lines = [json.dumps({"id": one, "kept_id": other, "keep": True}) for one, other in pairs]
    file.write_text("\n\n".join(lines))
    assert read_overrides(file) == [("a", "c"), ("b", "a")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"overrides\.jsonl:2: not valid JSON"),
        ("[]", "expected an object with id and kept_id"),
        ('{"id": "a"}', "expected an object with id and kept_id"),
        ('{"id": "a", "kept_id": "b"}', "found keep: null, expected true"),
        ('{"id": "a", "kept_id": "b", "keep": false}', "remove the line"),
    ],
)
def test_a_line_that_is_wrong_is_named(line, message, tmp_path):
    file = tmp_path / OVERRIDES
    file.write_text('{"id": "a", "kept_id": "b", "keep": true}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_overrides(file)


def test_explain_of_a_pair_says_why_one_removed_the_other_or_not(place):
    removed, kept = pair_of(place, "exact")
    for pair in ((removed, kept), (kept, removed)):
        text = engine("explain", "RUN", *pair, cwd=place).stdout
        assert f"{removed} was removed: exact duplicate" in text
        assert f"mmrlhf-engine disagree RUN {removed} {kept}" in text
        assert text.count("What colour is the sky?") == 2
        assert "64x64" in text
        assert "stays because it comes first in keep order" in text
    other = next(f"in:{n}" for n in range(3) if f"in:{n}" not in (removed, kept))
    text = engine("explain", "RUN", removed, other, cwd=place).stdout
    assert "neither was removed in favour of the other" in text
    assert f"{removed} was removed: exact duplicate" in text
    assert "kept apart by their texts" in text
    assert "policy joint, judge true, text_rule prompts" in text
    assert "was given twice" in engine("explain", "RUN", kept, kept, cwd=place).stderr
    # An id of the source is enough where it is of one sample.
    assert removed in engine("explain", "RUN", removed.removeprefix("in:"), kept, cwd=place).stdout
    engine("disagree", "RUN", removed, kept, cwd=place)
    assert Run(place / "RUN").manifest("dedup") is not None


def test_what_a_person_kept_stays_where_a_new_sample_becomes_the_kept_one(place):
    removed, kept = pair_of(place, "exact")
    engine("disagree", "RUN", removed, kept, cwd=place)
    # The same question, with an answer: it comes first in keep order.
    row = {"id": "new", "image": "a.png", "prompt": "What colour is the sky?", "answer": "Blue."}
    write_lines(place / "more.jsonl", [row])
    options = (*OPTIONS, "--add", "--max-per-image", 32)
    done = engine("curate", "in.jsonl", "more.jsonl", *options, cwd=place)
    assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(place / "RUN" / "02_dedup" / "duplicates" / "*.parquet")
    assert rows.select("id", "kept_id").rows() == [(kept, "more:new")]
    text = engine("explain", "RUN", removed, "more:new", cwd=place).stdout
    assert "neither was removed in favour of the other" in text
    assert f"{OVERRIDES} keeps {removed} apart from {kept}, for which more:new stands" in text
    text = engine("explain", "RUN", kept, removed, cwd=place).stdout
    assert f"{OVERRIDES} keeps {removed} apart from {kept}" in text
    # The pair counts in whichever order it is named.
    again = engine("disagree", "RUN", kept, removed, cwd=place)
    assert "has this pair already" in again.stdout


def test_turns_before_a_question_are_shown():
    turns = [
        {"role": "user", "text": "What is on the left?"},
        {"role": "assistant", "text": "A  cat"},
    ]
    assert told_before({"history": turns}) == "assistant: A cat (and 1 before it)"
    assert told_before({"history": []}) == told_before({}) == ""


def test_explain_of_two_kept_samples_has_the_distance_of_their_pictures(tmp_path):
    for number in range(2):
        put(tmp_path / f"{number}.png", picture(64, 64, seed=number))
    rows = [{"image": f"{n}.png", "prompt": f"What is shown in number {n}?"} for n in range(2)]
    write_lines(tmp_path / "in.jsonl", rows)
    engine("curate", "in.jsonl", *OPTIONS, cwd=tmp_path)
    text = engine("explain", "RUN", "in:1", "in:2", cwd=tmp_path).stdout
    assert text.count("was kept") == 2
    assert "kept apart by their" in text
    assert "of 64 bits, near up to 4" in text
