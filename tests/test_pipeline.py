"""The pipeline from four input formats to selected queries, with every row accounted for."""

import json
import shutil

import polars as pl
import pytest

from mmrlhf_engine.curate import report
from mmrlhf_engine.curate.explain import explain, inspect_table
from mmrlhf_engine.demo.corpus import SOURCES, Planted
from mmrlhf_engine.demo.curate_demo import _built_again, found
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.pipeline import CURATE
from mmrlhf_engine.run.folder import STAGE_ORDER
from run_pipeline import curate, tables


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus, tiny_encoder):
    return curate(tmp_path_factory.mktemp("pipeline") / "run", corpus, tiny_encoder)


def read(run, name):
    return pl.read_parquet(run.find(name) / "*.parquet")


def test_every_row_is_accounted_for(run):
    reports = {stage: run.report(stage) for stage in CURATE}
    for stage, content in reports.items():
        assert content["rows_in"] == content["rows_out"] + sum(content["dropped"].values()), stage
    ids = {
        name: set(read(run, name)["id"]) for name in ("samples", "kept", "duplicates", "queries")
    }
    assert ids["samples"] == ids["kept"] | ids["duplicates"]
    assert not ids["kept"] & ids["duplicates"]
    assert ids["queries"] <= ids["kept"]
    assert len(ids["queries"]) == reports["select"]["rows_out"] == 60


def test_everything_planted_was_found(run, corpus):
    planted = [Planted(**row) for row in json.loads((corpus / "planted.json").read_text())]
    assert len(planted) > 60
    assert [p for p in planted if not found(run, p)] == []


def test_a_duplicate_is_near_to_one_that_stays(run):
    duplicates = read(run, "duplicates")
    assert set(duplicates["kept_id"]) <= set(read(run, "kept")["id"])
    near = duplicates.filter(pl.col("kind") == "near")
    # Texts differ by what makes no difference, which is said.
    assert near.filter(pl.col("text_jaccard") < 1)["text_differences"].null_count() == 0
    assert near["image_difference"].drop_nulls().max() < 5.5
    assert near["image_hamming"].max() <= 4


def test_every_query_has_a_reason(run):
    queries = read(run, "queries")
    assert queries["why"].str.len_chars().min() > 10
    assert queries["id"].is_sorted()


def test_threads_and_order_of_sources_do_not_change_the_tables(run, corpus, tiny_encoder, tmp_path):
    backwards = tuple(reversed(SOURCES))
    again = curate(tmp_path / "run", corpus, tiny_encoder, sources=backwards, threads=1)
    first, second = tables(run.folder), tables(again.folder)
    assert len(first) > 10
    assert first == second


def test_the_report_page_has_every_section(run):
    page = report.write(run).read_text()
    for section in (
        "funnel",
        "mixtures",
        "clusters",
        "map",
        "pairs",
        "rejected",
        "chosen",
        "stages",
    ):
        assert f'id="{section}"' in page, section
    assert "data:image/jpeg;base64," in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "rows in =" in report.funnel(run)


def test_the_report_page_of_a_partial_run_shows_the_finished_stages(corpus, tiny_encoder, tmp_path):
    partial = curate(tmp_path / "run", corpus, tiny_encoder, last="ingest")
    page = report.write(partial).read_text()
    assert 'id="rejected"' in page
    assert 'id="chosen"' not in page


def test_explain_describes_each_outcome(run):
    chosen = explain(run, read(run, "queries")["id"][0])
    assert "ingest" in chosen
    assert "select   chosen:" in chosen
    removed = read(run, "duplicates").filter(pl.col("kind") == "near").row(0, named=True)
    text = explain(run, removed["id"])
    assert f"of {removed['kept_id']}" in text
    assert "text Jaccard" in text
    not_selected = set(read(run, "kept")["id"]) - set(read(run, "queries")["id"])
    assert "not chosen" in explain(run, min(not_selected))
    rejected = read(run, "rejected") if run.find("rejected") else None
    assert rejected is not None
    position = pl.read_parquet(run.stage_folder("ingest") / "rejected" / "*.parquet")["position"][0]
    assert "rejected:" in explain(run, position)


def test_explain_suggests_similar_ids(run):
    identifier = read(run, "samples")["id"][0]
    with pytest.raises(InputError, match="ids look like"):
        explain(run, identifier[:-1] + "§")


def test_inspect_prints_schema_and_rows(run):
    text = inspect_table(run.find("duplicates"), 3)
    assert "text_jaccard" in text
    assert "rows in 1 file" in text
    with pytest.raises(InputError, match="no Parquet part"):
        inspect_table(run.folder, 3)


def test_a_finished_run_is_skipped_and_a_changed_setting_reruns_only_its_stages(
    run, corpus, tiny_encoder, tmp_path
):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    times = {stage: manifest_time(folder, stage) for stage in CURATE}
    curate(folder, corpus, tiny_encoder)
    assert {stage: manifest_time(folder, stage) for stage in CURATE} == times
    curate(folder, corpus, tiny_encoder, count=61)
    changed = {stage for stage in CURATE if manifest_time(folder, stage) != times[stage]}
    assert changed == {"select"}


def test_the_corpus_of_the_demo_is_written_again_only_where_it_differs(tmp_path):
    def times():
        return {file: file.stat().st_mtime_ns for file in made.folder.rglob("*") if file.is_file()}

    made = _built_again(tmp_path / "corpus")
    before = times()
    assert len(before) > 100
    again = _built_again(tmp_path / "corpus")
    assert (times(), again.planted) == (before, made.planted)
    lines = made.folder / "shapes.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole[:-1])
    _built_again(tmp_path / "corpus")
    assert lines.read_bytes() == whole


def manifest_time(folder, stage):
    number = STAGE_ORDER.index(stage) + 1
    return (folder / f"{number:02d}_{stage}" / "manifest.json").stat().st_mtime_ns
