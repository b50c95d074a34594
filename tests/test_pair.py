"""Annotations to pairs: every rule with values worked by hand, and what is refused or dropped."""

import json
import shlex
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from mmrlhf_engine import run_pair
from mmrlhf_engine.cli import cli
from mmrlhf_engine.collect.pair import PairConfig, describe
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.config import load_config
from pack_data import write_lines
from pair_data import compared, lines, paired, row, table


@pytest.fixture
def pair(tmp_path):
    return lambda *rows, **settings: paired(tmp_path, list(rows), settings)


# ---- ranks to pairs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ([1, 2, 3], ["a>b", "a>c", "b>c"]),
        ([2, 1, 2], ["b>a", "a=c", "b>c"]),
        ("3>1=2", ["a=b", "c>a", "c>b"]),
        ([None, 2, 1], ["c>b"]),
        ([0, 7, -2], ["a>b", "c>a", "c>b"]),
    ],
)
def test_ranks_are_all_pairs_with_ties(pair, rank, expected):
    report = pair(row(rank))
    assert compared(report) == expected
    assert report["pairs"] == len(expected)
    assert report["ties"] == sum("=" in one for one in expected)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ([1, 2, 3], ["a>b"]),
        ([3, 1, 2], ["b>c"]),
        ([1, 1, 2], ["a>c", "b>c"]),
        ([1, 2, 2], ["a>b", "a>c"]),
    ],
)
def test_the_hardest_pairs_are_the_first_rank_with_the_next(pair, rank, expected):
    assert compared(pair(row(rank), pairs="hardest")) == expected


def test_ties_can_be_dropped_and_are_counted(pair):
    report = pair(row([1, 2, 2]), row([1, 1, 1], prompt="another?"), ties="drop")
    assert compared(report) == ["a>b", "a>c"]
    assert (report["ties"], report["ties_dropped"], report["queries"]) == (0, 4, 1)
    assert report["dropped"] == {"no_pairs": 1}
    assert table(report, "rejected")[0][1:3] == ("rows.jsonl:2", "no_pairs")


def test_answers_without_a_rank_are_counted(pair):
    report = pair(row([None, 2, 1]), row([1, None, None], prompt="another?"))
    assert report["answers_without_rank"] == 1
    assert report["dropped"] == {"no_ranks": 1}


def test_rows_without_ranks_are_ranked_by_mean_scores(pair):
    # Means 3, 4, 3: b is the best one, a and c are a tie.
    scores = {"helpfulness": [1, 4, 3], "faithfulness": [5, 4, 3]}
    report = pair(row(scores=scores), row([1, 2, 3], scores=scores, prompt="another?"))
    assert compared(report)[:3] == ["b>a", "a=c", "b>c"]
    assert report["ranks_from_scores"] == 1


def test_ranks_from_scores_can_be_refused(pair):
    report = pair(row(scores=[1, 2, 3]), row([1, 2, 3], prompt="b?"), rank_from_scores=False)
    assert compared(report) == ["a>b", "a>c", "b>c"]
    assert (report["ranks_from_scores"], report["dropped"]) == (0, {"no_ranks": 1})
    assert "scores are not used" in table(report, "rejected")[0][3]


# ---- contradictions --------------------------------------------------------------------------

AGAINST = row([1, 2, 3], scores=[3, 4, 1], id="q")
"""a is ranked above b, and b scored above a."""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("keep", ["a>b", "a>c", "b>c"]),
        ("drop", ["a>c", "b>c"]),
        ("by_score", ["b>a", "a>c", "b>c"]),
    ],
)
def test_a_rank_against_the_scores(pair, rule, expected):
    report = pair(AGAINST, contradictions=rule)
    assert compared(report) == expected
    assert report["contradictions"] == {"rank_against_scores": 1}
    ((name, kind, detail),) = table(report, "contradictions")
    assert (name, kind) == ("q", "rank_against_scores")
    assert detail == (
        "rows.jsonl:1 (rows.jsonl): answers 1 and 2 have ranks 1 and 2, and mean scores 3 and 4"
    )


@pytest.mark.parametrize("scores", [[4, 4, 1], [3, None, 1]])
def test_equal_and_missing_scores_contradict_nothing(pair, scores):
    assert pair(row([1, 2, 3], scores=scores))["contradictions"] == {}


@pytest.mark.parametrize(
    ("rank", "expected", "found"),
    [
        ([1, 1, 2], ["a>b"], {}),
        ([1, 2, 3], ["a>b"], {"equal_answers": 1}),
        ([1, 3, 2], ["a=b"], {"equal_answers": 1}),
        ([1, 2, 2], ["a>b"], {"equal_answers": 1}),
    ],
)
def test_equal_answers_are_one(pair, rank, expected, found):
    # a has two copies; what is said of it is the majority of what is said of them.
    report = pair(row(rank, answers=["a", " a\n", "b"]))
    assert compared(report) == expected
    assert (report["merged"], report["contradictions"]) == (1, found)


# ---- several annotators ----------------------------------------------------------------------


def test_annotators_vote_on_every_two_answers(pair):
    report = pair(
        row([1, 2, 3], annotator="x", id="q", reasons=[None, "short", " "]),
        row([2, 1, 3], annotator="y", reasons=["long", "wide", "thin"]),
        row("3>1=2", annotator="z"),
    )
    # a and b: 1, -1, 0; a and c: 1, 1, -1; b and c: 1, 1, -1.
    assert compared(report) == ["a=b", "a>c", "b>c"]
    # Of three verdicts on each two answers, none of the first and one of the others are equal.
    assert report["agreement"] == {"equal": 2, "compared": 9, "share": 2 / 9}
    assert (report["queries"], report["rows_out"]) == (1, 3)
    first = lines(report)[0]
    assert (first["id"], first["chosen_reason"], first["rejected_reason"]) == ("q", "long", "short")


def test_annotators_may_list_the_answers_in_another_order(pair):
    report = pair(row([1, 2, 3]), row([1, 2, 3], answers=["c ", "b", "a"]), row("2>3>1"))
    # a and b: 1, -1, -1; a and c: 1, -1, -1; b and c: 1, -1, 1.
    assert compared(report) == ["b>a", "c>a", "b>c"]
    assert report["queries"] == 1


ROUND = [
    row([1, 2, 3, 4], annotator="x", answers="abcd", id="q"),
    row([3, 1, 2, 4], annotator="y", answers="abcd"),
    row([2, 3, 1, 4], annotator="z", answers="abcd"),
]
"""Majorities a over b, b over c, c over a; all over d."""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["a=b", "a=c", "a>d", "b=c", "b>d", "c>d"]),
        ({"cycles": "drop"}, ["a>d", "b>d", "c>d"]),
        ({"pairs": "hardest"}, ["a>d", "b>d", "c>d"]),
    ],
)
def test_majorities_that_go_round(pair, settings, expected):
    report = pair(*ROUND, **settings)
    assert compared(report) == expected
    assert report["contradictions"] == {"cycle": 1}
    ((name, _, detail),) = table(report, "contradictions")
    assert name == "q"
    assert "answers 1, 2, 3 (as numbered in the first row)" in detail


def test_only_the_annotators_that_are_named_are_read(pair):
    report = pair(*ROUND, row([2, 1, 3, 4], answers="abcd"), annotators=["z", "y"])
    assert compared(report) == ["a=b", "c>a", "a>d", "b=c", "b>d", "c>d"]
    assert report["dropped"] == {"unknown_annotator": 2}
    assert report["rows_in"] == report["rows_out"] + 2
    details = [one[3] for one in table(report, "rejected")]
    assert details == [
        "annotator 'x', not one of those to read",
        "no annotator, not one of those to read",
    ]


def test_annotators_are_counted_and_an_absent_one_is_named(pair):
    report = pair(*ROUND, annotators=["z", "ann", "y"])
    assert report["annotators"] == {"y": 1, "z": 1}
    assert report["annotators_absent"] == ["ann"]
    assert "no row is of: ann" in describe(report)


def test_a_second_row_of_an_annotator_does_not_count(pair):
    report = pair(row([1, 2, 3], annotator=7), row([3, 2, 1], annotator="7"))
    assert compared(report) == ["a>b", "a>c", "b>c"]
    assert report["dropped"] == {"second_annotation": 1}


def test_rows_without_a_name_are_of_different_annotators(pair):
    assert compared(pair(row([1, 2, 3]), row([3, 2, 1]))) == ["a=b", "a=c", "b=c"]


# ---- layouts ---------------------------------------------------------------------------------

RELEASED = {
    "id": "iconqa_1",
    "question": "Which one?",
    "models_output": ["a", "b"],
    "helpfulness": [4, 5],
    "faithfulness": [3, 5],
    "ethical": [5, 5],
}


def test_rows_of_the_release_with_fields_of_any_name(pair):
    report = pair(
        {**RELEASED, "the_rank": "1>2", "why": ["good", "bad"], "answer": None, "rank": "2>1"},
        fields={"rank": "the_rank", "reasons": "why"},
    )
    assert lines(report) == [
        {
            "id": "iconqa_1",
            "prompt": "Which one?",
            "chosen": "a",
            "rejected": "b",
            "chosen_reason": "good",
            "rejected_reason": "bad",
            "is_tie": False,
        }
    ]
    assert report["fields_ignored"] == {"rank": 1}
    assert report["contradictions"] == {"rank_against_scores": 1}


def test_margins_are_differences_of_mean_scores(pair):
    # Means of all scores of an answer: a 4, b 14 / 3; the other row's tie has no margin.
    rows = [{**RELEASED, "rank": [2, 1]}, row([1, 1], answers="ab", scores=[1, 5], prompt="b?")]
    first, tie = lines(pair(*rows, margin_from_scores=True))
    assert first["margin"] == pytest.approx(5 - 4)
    assert "margin" not in tie


def test_margins_are_over_all_rows_and_need_both_scores(pair, tmp_path):
    rows = [
        row([1, 2, 3], scores=[5, 2, None]),
        row([1, 2, 3], scores={"one": [4, 1, None], "two": [2, 3, None]}),
    ]
    report = pair(*rows, margin_from_scores=True)
    # a: 5 and 3, b: 2 and 2.
    assert [line.get("margin") for line in lines(report)] == [2.0, None, None]
    assert not any("margin" in line for line in lines(run_pair(tmp_path / "rows.jsonl", tmp_path)))


def test_a_split_of_parquet_files_is_read(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name, rank in (("train", [1, 2, 3]), ("test", [3, 2, 1])):
        file = tmp_path / "set" / "data" / f"{name}-00000-of-00001.parquet"
        pl.DataFrame([row(rank, annotator=name)]).write_parquet(file)
    assert compared(run_pair(tmp_path / "set", tmp_path / "one"))[0] == "a>b"
    report = run_pair(tmp_path / "set", tmp_path / "two", {"split": "test"})
    assert compared(report)[0] == "b>a"
    assert lines(report)[0]["id"] == "set/test-00000-of-00001.parquet:0"


def test_a_row_without_an_id_has_its_place(pair):
    assert lines(pair(row([1, 2, 3])))[0]["id"] == "rows.jsonl:1"


def test_fields_that_may_be_a_part_of_the_prompt_are_refused_or_ignored(pair, tmp_path):
    asked = row([1, 2, 3], options=["yes, it is", "no, it is not"], worker="w1")
    with pytest.raises(InputError, match=r"none of 1 rows .* unread_field"):
        pair(asked)
    report = run_pair(tmp_path / "rows.jsonl", tmp_path, {"ignore_fields": ["options"]})
    assert report["fields_ignored"] == {"options": 1, "worker": 1}


def test_answers_may_be_objects_with_their_text(pair):
    objects = [
        {"text": "a", "model": "m", "score": 2},
        {"text": "b", "model": None},
        {"text": "c"},
    ]
    texts = row([2, 1, None], annotator="ann")
    report = pair(row([1, 2, 3], annotator="bob", answers=objects), texts)
    # One item: of a and b the votes are equally many.
    assert compared(report) == ["a=b", "a>c", "b>c"]
    assert report["queries"] == 1
    assert report["fields_ignored"] == {"answers[].model": 1, "answers[].score": 1}


# ---- faults ----------------------------------------------------------------------------------

GOOD = row([1, 2, 3], prompt="good?")
BAD = {
    "bad_rank_text": (row("1>2>2"), "bad_rank", "rank '1>2>2', expected a form like 1>2=3"),
    "rank_of_two": (row("1>2"), "bad_rank", "'rank' does not give one rank for each of 3"),
    "rank_too_long": (row([1, 2, 3, 4]), "bad_rank", "one rank for each of 3"),
    "rank_of_half": (row([1, 1.5, 2]), "bad_rank", "'rank' holds 1.5, expected whole numbers"),
    "rank_nan": (row([1, float("nan"), 2]), "wrong_type", "'rank' is nan, expected a finite"),
    "score_nan": (row(scores=[1, float("nan"), 2]), "wrong_type", "'scores' is nan, expected"),
    "score_text": (row(scores=[1, "5", 2]), "wrong_type", "'scores' is str, expected a number"),
    "scores_short": (
        row(scores={"helpfulness": [1, 2]}),
        "wrong_length",
        "'scores.helpfulness' does not give one item for each of 3",
    ),
    "reasons_short": (row([1, 2, 3], reasons=["x"]), "wrong_length", "'reasons' does not give"),
    "one_answer": (row([1], answers=["a"]), "one_answer", "1 answers, none differs"),
    "equal_answers": (row([1, 2], answers=["a", "a "]), "one_answer", "2 answers, none differs"),
    "no_answers": (
        {"prompt": "x", "rank": [1], "answers": []},
        "missing_key",
        "no answers: expected 'models_output' or 'answers' or 'responses'; keys found: answers, ",
    ),
    "empty_answer": (row([1, 2], answers=["a", " "]), "empty_response", "answers[1] is empty"),
    "answers_no_list": ({"prompt": "x", "answers": "a"}, "wrong_type", "expected a list"),
    "object_without_text": (
        row([1, 2], answers=["a", {"answer": "b"}]),
        "missing_key",
        "answers[1] is an object without 'text'; keys found: answer",
    ),
    "object_of_no_text": (
        row([1, 2], answers=["a", {"text": 1}]),
        "wrong_type",
        "'answers[1]' is int, expected text",
    ),
    "object_with_a_prompt": (
        row([1, 2], answers=["a", {"text": "b", "system_prompt": "Be brief."}]),
        "unread_field",
        "system_prompt",
    ),
    "no_prompt": (row([1, 2, 3], prompt=None), "missing_key", "no prompt: expected 'question' or"),
    "empty_prompt": (row([1, 2, 3], prompt=" "), "empty_prompt", "'prompt' is empty"),
    "no_ranks": (row(), "no_ranks", "no two of its answers have a rank"),
    "no_json": ("{", "broken_record", "not JSON"),
    "annotator": (row([1, 2, 3], annotator=["x"]), "wrong_type", "'annotator' is list"),
    "no_video": (row([1, 2, 3], video={"bytes": None}), "wrong_type", "'video' is null"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_dropped_by_name(pair, name):
    record, reason, detail = BAD[name]
    report = pair(GOOD, record, GOOD | {"prompt": "and this?"})
    assert (report["rows_in"], report["rows_out"], report["dropped"]) == (3, 2, {reason: 1})
    ((source, position, found, told),) = table(report, "rejected")
    assert (source, position, found) == ("rows.jsonl", "rows.jsonl:2", reason)
    assert detail in told


def test_a_video_by_content_is_dropped_by_name(tmp_path):
    rows = [row([1, 2, 3], video={"bytes": content, "path": "v"}) for content in (b"x", None)]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    report = run_pair(tmp_path / "rows.parquet", tmp_path / "run")
    assert report["dropped"] == {"inline_video": 1}
    assert lines(report)[0]["video"] == "v"


def test_too_many_bad_rows_stop_the_run(pair, tmp_path):
    with pytest.raises(InputError, match=r"1 of 3 rows are bad \(33\.3 %\)"):
        pair(GOOD, row("1>2"), row([1, 2, 3]), max_bad="30%")
    assert run_pair(tmp_path / "rows.jsonl", tmp_path, {"max_bad": "40%"})["rows_out"] == 2


def test_rows_that_are_left_out_by_choice_are_not_bad(pair):
    assert pair(*ROUND, annotators=["x"], max_bad="0")["rows_out"] == 1


def test_no_pair_at_all_is_an_error(pair):
    with pytest.raises(InputError, match="none of 1 rows can be used: 1 no_pairs; first: rows"):
        pair(row([1, 1, 1]), ties="drop")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fields": {"rang": "x"}}, "no part 'rang'"),
        ({"hold_out": 1.0}, "hold_out"),
        ({"max_bad": "lots"}, "expected a share"),
        ({"pairs": "some"}, "pairs"),
    ],
)
def test_a_wrong_setting_is_refused(pair, settings, message):
    with pytest.raises(ConfigError, match=message):
        pair(GOOD, **settings)


# ---- the command -----------------------------------------------------------------------------


def test_the_command_prints_a_summary_and_is_skipped_when_repeated(tmp_path):
    rows = [*ROUND, row(scores=[1, 2], answers=["e", "f"], prompt="b?"), row("1>2")]
    source = write_lines(tmp_path / "rows.jsonl", [*rows, row([1, 2], answers=["e", "e "])])
    words = ["pair", str(source), "--out", str(tmp_path / "run"), "--progress", "silent"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.output.splitlines() == [
        "rows in = out + dropped: 6 = 4 + 2",
        "           1  bad_rank",
        "           1  one_answer",
        "pairs          7 (3 ties) of 2 queries",
        "contradictions 1 cycle",
        "ranked         1 rows by their scores",
        "agreement      66.7 % of 18 verdicts of two annotators are equal",
        f"next           mmrlhf-engine pack {tmp_path}/run/08_pair/pairs.jsonl ...",
    ]
    folder = tmp_path / "run" / "08_pair"
    before = (folder / "manifest.json").stat().st_mtime_ns
    again = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert again.output == done.output
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    words += ["--annotator", "x"]
    with pytest.raises(ConfigError, match="annotators"):
        CliRunner().invoke(cli, words, catch_exceptions=False)
    done = CliRunner().invoke(cli, [*words, "--restart"], catch_exceptions=False)
    assert "unknown_annotator" in done.output


def test_every_option_of_the_command_is_a_setting(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", [{**GOOD, "lists": "3>2>1", "options": ["u v"]}])
    words = ["--field", "rank=lists", "--pairs", "hardest", "--ties", "drop", "--cycles", "drop"]
    words += ["--contradictions", "by_score", "--no-rank-from-scores", "--margin-from-scores"]
    words += ["--hold-out", "0.25", "--seed", "3", "--ignore-field", "options"]
    words += ["--root", str(tmp_path), "--max-bad", "5%", "--progress", "silent"]
    done = CliRunner().invoke(
        cli, ["pair", str(source), "--out", str(tmp_path / "run"), *words], catch_exceptions=False
    )
    assert done.exit_code == 0
    config = load_config(PairConfig, tmp_path / "run" / "08_pair" / "config.yaml")
    assert config == PairConfig(
        sources=[str(source)],
        root=str(tmp_path),
        fields={"rank": "lists"},
        ignore_fields=["options"],
        pairs="hardest",
        ties="drop",
        contradictions="by_score",
        cycles="drop",
        rank_from_scores=False,
        margin_from_scores=True,
        hold_out=0.25,
        seed=3,
        max_bad="5%",
    )
    both = [Path(tmp_path, "run", "08_pair", f"{name}.jsonl") for name in ("pairs", "held_out")]
    (line,) = [line for file in both for line in file.read_text().splitlines()]
    assert json.loads(line)["chosen"] == "c"


def test_a_field_that_no_row_has_is_an_error(tmp_path):
    settings = {"fields": {"rank": "score", "annotator": "who"}}
    with pytest.raises(InputError, match=r"--field rank=score: none of 2 rows has it; .*: answers"):
        paired(tmp_path, [{**GOOD, "who": "x"}, {**GOOD, "score": None}], settings)
    # One row that has it is enough.
    report = paired(tmp_path, [{**GOOD, "who": "x"}, {**GOOD, "score": "3>2>1"}], settings)
    assert (report["rows_out"], report["dropped"]) == (1, {"no_ranks": 1})


def test_the_next_command_can_be_pasted(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    source = write_lines(folder / "rows.jsonl", [GOOD])
    words = ["pair", str(source), "--out", str(folder / "run"), "--progress", "silent"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    said = done.output.splitlines()[-1]
    assert shlex.split(said)[1:4] == ["mmrlhf-engine", "pack", f"{folder}/run/08_pair/pairs.jsonl"]
    out = CliRunner().invoke(cli, [*words, "--hold-out", "0.999", "--restart"])
    assert out.output.splitlines()[-1].startswith("nothing to pack: pairs.jsonl is empty")
