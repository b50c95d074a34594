"""The run folder: what appears, when it counts as finished, and what is kept after a kill."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.errors import InputError, StageError
from mmrlhf_engine.run import tables as table_module
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import WALK, Run, folder_name
from mmrlhf_engine.run.tables import TableWriter

SCHEMA = {"id": pl.String(), "number": pl.UInt32()}


class Settings(Section):
    """Settings of a stage that does nothing."""

    value: int = 1


def rows(numbers):
    return pl.DataFrame({"number": numbers, "id": [f"row {n}" for n in numbers]})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folders_sort_in_the_order_of_the_walk():
    assert [folder_name(stage) for stage in WALK] == sorted(folder_name(stage) for stage in WALK)


@given(st.lists(st.lists(st.integers(0, 99), max_size=40), max_size=6))
def test_parts_do_not_depend_on_the_batches_they_came_in(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "ROWS_PER_PART", 16)
        with TableWriter(folder / "batched", SCHEMA) as table:
            for batch in batches:
                table.write(rows(batch))
        everything = [number for batch in batches for number in batch]
        with TableWriter(folder / "whole", SCHEMA) as table:
            table.write(rows(everything))
    assert contents(folder / "batched") == contents(folder / "whole")
    assert pl.read_parquet(folder / "whole" / "*.parquet")["number"].to_list() == everything


def test_a_missing_column_is_named(tmp_path):
    with (
        pytest.raises(StageError, match="table numbers: columns missing: number"),
        TableWriter(tmp_path / "numbers", SCHEMA) as table,
    ):
        table.write(pl.DataFrame({"id": ["a"]}))


def test_an_empty_table_has_one_empty_part_with_its_schema(tmp_path):
    with TableWriter(tmp_path / "empty", SCHEMA):
        pass
    assert pl.read_parquet(tmp_path / "empty" / "*.parquet").schema == SCHEMA


def test_rows_that_disappear_unnamed_fail_the_stage(stage):
    begun = stage("ingest", Settings())
    with pytest.raises(StageError, match="10 rows came in, but 7 went out and 2 were dropped"):
        begun.finish(rows_in=10, rows_out=7, dropped={"broken": 2})
    assert begun.run.manifest("ingest") is None


def test_finished_and_unchanged_means_skipped(stage):
    begun = stage("ingest", Settings())
    with begun.table("samples", SCHEMA) as table:
        table.write(rows([1, 2]))
    begun.finish(rows_in=2, rows_out=2, dropped={})
    run = begun.run
    assert run.is_finished("ingest", begun.fingerprint)
    changed = run.fingerprint("ingest", Settings(value=2), 0, None)
    assert not run.is_finished("ingest", changed)
    part = begun.folder / "samples" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    assert not run.is_finished("ingest", begun.fingerprint)


def test_an_equal_rebuilt_input_causes_no_work_downstream(stage):
    def ingest():
        begun = stage("ingest", Settings())
        with begun.table("samples", SCHEMA) as table:
            table.write(rows([1, 2]))
        begun.finish(rows_in=2, rows_out=2, dropped={})
        return begun.run

    first = ingest().fingerprint("dedup", Settings(), 0, None)
    second = ingest().fingerprint("dedup", Settings(), 0, None)
    assert first == second


def test_scratch_survives_a_kill_only_if_it_still_fits(stage):
    begun = stage("embed", Settings())
    (begun.scratch / "chunk-0").write_text("half the work")
    (begun.folder / "leftover.parquet").write_text("torn")
    again = stage("embed", Settings())
    assert (again.scratch / "chunk-0").read_text() == "half the work"
    assert not (again.folder / "leftover.parquet").exists()
    changed = stage("embed", Settings(value=2))
    assert not (changed.scratch / "chunk-0").exists()


def test_the_report_says_what_it_took(stage):
    begun = stage("ingest", Settings())
    begun.finish(rows_in=3, rows_out=2, dropped={"broken": 1}, colour="blue")
    report = json.loads((begun.folder / "report.json").read_text())
    assert report["colour"] == "blue"
    assert report["dropped"] == {"broken": 1}
    assert report["peak_rss_bytes"] > 2**20
    assert report["seconds"] >= 0


def test_a_missing_upstream_table_says_what_to_do(stage):
    begun = stage("dedup", Settings())
    with pytest.raises(InputError, match=r"needs samples.*\n\nhint: run the stages before it"):
        begun.scan("samples")


def test_a_run_folder_is_open_for_one_process_at_a_time(tmp_path):
    with (
        Run(tmp_path).locked(),
        pytest.raises(InputError, match="another process is working"),
        Run(tmp_path).locked(),
    ):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
