"""How common words are is counted once in a run, so that other rows change no verdict."""

import polars as pl
import pytest

from command import engine
from mmrlhf_engine.curate import dedup, frequencies
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.frequencies import FREQUENCIES, frequencies_of_run
from mmrlhf_engine.run.folder import Run
from pack_data import write_lines
from test_dedup import corpus, deduplicate

# `relu` is in no word list: alone it is a slip for `rely`, among others a word of its own.
PAIR = [("a", "Explain the rely of it.", None, []), ("b", "Explain the relu of it.", None, [])]
OTHERS = [(f"z{n}", f"What does the relu do with {n} numbers?", None, []) for n in range(5)]


def test_rows_that_come_later_change_no_verdict(stage, tmp_path):
    corpus(stage, tmp_path, PAIR, {})
    tables, report = deduplicate(stage)
    assert tables["duplicates"].select("id", "kept_id").rows() == [("b", "a")]
    assert report["frequencies"] == {"texts": 2, "shingles": 0, "words": 0}
    run = stage.run
    assert "frequencies.parquet" in run.manifest("dedup")["outputs"]
    corpus(stage, tmp_path, PAIR + OTHERS, {})
    tables, report = deduplicate(stage)
    assert tables["duplicates"].select("id", "kept_id").rows() == [("b", "a")]
    assert report["frequencies"]["texts"] == 2
    frequencies.forget(run)
    tables, report = deduplicate(stage)
    assert tables["duplicates"].is_empty()
    assert report["frequencies"] == {"texts": 7, "shingles": 0, "words": 1}
    found = frequencies_of_run(run)
    assert found.rows.filter("is_word")["count"].to_list() == [6]


def test_the_table_is_counted_anew_where_it_does_not_fit(stage, tmp_path):
    counted = {}
    corpus(stage, tmp_path, PAIR, {})
    deduplicate(stage)
    corpus(stage, tmp_path, PAIR + OTHERS, {})
    for changed in (
        {"text_rule": "auto"},
        {"judge": False},
        {"bands": 8},
        {"policy": "text"},
        {"shingle_words": 2},
        {"common_from": 3},
    ):
        corpus(stage, tmp_path, PAIR, {})
        (stage.run.stage_folder("dedup") / FREQUENCIES).unlink()
        deduplicate(stage)
        corpus(stage, tmp_path, PAIR + OTHERS, {})
        _, report = deduplicate(stage, **changed)
        (name,) = changed
        counted[name] = (report["frequencies"] or {}).get("texts")
    assert counted == {
        "text_rule": 2, "judge": None, "bands": 2, "policy": 2, "shingle_words": 7, "common_from": 7
    }  # fmt: skip
    # What does not use it leaves it as it is.
    assert frequencies_of_run(stage.run).texts == 7


def test_an_interrupted_count_is_the_count_of_the_run(stage, tmp_path, monkeypatch):
    corpus(stage, tmp_path, PAIR, {})

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dedup, "find_duplicates", dies)
        with pytest.raises(KeyboardInterrupt):
            deduplicate(stage)
    assert frequencies_of_run(stage.run).texts == 2
    deduplicate(stage)
    first = stage.run.manifest("dedup")["outputs"]
    frequencies.forget(stage.run)
    deduplicate(stage, threads=1)
    assert stage.run.manifest("dedup")["outputs"] == first


def outputs(folder):
    return Run(folder).manifest("dedup")["outputs"]


def test_reweigh_makes_what_a_fresh_run_of_all_sources_makes(tmp_path):
    for name, rows in (("a", PAIR), ("b", OTHERS)):
        write_lines(tmp_path / f"{name}.jsonl", [{"id": r[0], "prompt": r[1]} for r in rows])
    options = ("--to", "dedup", "--set", "dedup.policy=text")

    def curate(*arguments):
        done = engine("curate", *arguments, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    curate("a.jsonl", "--out", "RUN")
    said = curate("a.jsonl", "b.jsonl", "--out", "RUN", "--add").stderr
    assert "counted in 2 texts, and there are 7 now; --reweigh" in said
    added = outputs(tmp_path / "RUN")
    curate("a.jsonl", "b.jsonl", "--out", "FRESH")
    assert added != outputs(tmp_path / "FRESH")
    text = engine("explain", "RUN", "a:b", "b:z1", cwd=tmp_path).stdout
    assert "what is common was counted in 2 texts" in text
    dry = curate("a.jsonl", "b.jsonl", "--out", "RUN", "--dry-run", "--reweigh").stdout
    assert "dedup       runs" in dry
    assert (
        "dedup       finished" in curate("a.jsonl", "b.jsonl", "--out", "RUN", "--dry-run").stdout
    )
    again = curate("a.jsonl", "b.jsonl", "--out", "RUN", "--reweigh").stderr
    assert "ingest: finished and unchanged" in again
    assert "dedup: running" in again
    assert outputs(tmp_path / "RUN") == outputs(tmp_path / "FRESH")
    refused = engine(*("curate", "--out", "RUN", "--from", "embed", "--reweigh"), cwd=tmp_path)
    assert refused.returncode == 2
    assert "--reweigh: dedup counts, found the stages embed, cluster, select" in refused.stderr
    assert (tmp_path / "RUN" / "02_dedup" / FREQUENCIES).is_file()


def test_the_table_can_be_looked_into(stage, tmp_path):
    template = "Look at the picture of the document and read the field"
    rows = [(f"{n}", f"{template} zorb{n % 2} {n}", None, []) for n in range(12)]
    corpus(stage, tmp_path, rows, {})
    deduplicate(stage, common_from=10)
    table = pl.read_parquet(stage.run.stage_folder("dedup") / FREQUENCIES)
    assert dict(table.schema) == {"hash": pl.UInt64, "count": pl.UInt32, "is_word": pl.Boolean}
    # Every three neighbouring words of the template, and the two words of no list.
    assert sorted(table.filter(~pl.col("is_word"))["count"]) == [12] * (11 - 2)
    assert table.filter("is_word")["count"].to_list() == [6, 6]
    assert DedupConfig().common_from > 10
