"""The run folder: what appears, when it counts as finished, and what is kept after a kill."""

import dataclasses
import shutil
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.errors import ConfigError, FileError, InputError, StageError
from mmrlhf_engine.run import tables as table_module
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import STAGE_ORDER, Run, folder_name
from mmrlhf_engine.run.stage import Resources, Stage, StageContext, fingerprint, run_stage
from mmrlhf_engine.run.tables import TableWriter

SCHEMA = {"id": pl.String(), "number": pl.UInt32()}


class Settings(Section):
    """Settings of a stage that copies numbers."""

    value: int = 3


def rows(numbers):
    return pl.DataFrame({"number": numbers, "id": [f"row {n}" for n in numbers]})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folders_sort_in_the_order_of_the_pipeline():
    assert [folder_name(stage) for stage in STAGE_ORDER] == sorted(
        folder_name(stage) for stage in STAGE_ORDER
    )


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


def copy(config, context):
    """A stage that writes the numbers it is configured with."""
    with context.table("numbers", SCHEMA) as table:
        table.write(rows(range(config.value)))
    context.finish(rows_in=config.value + 1, rows_out=config.value, dropped={"last": 1}, hue="blue")


FIRST = Stage("ingest", Settings, copy, writes=("numbers",))
SECOND = Stage("dedup", Settings, copy, reads=("numbers",), writes=("numbers",))


def run_both(folder, value=3, *, resources=None, second=SECOND):
    run = Run(folder)
    for stage in (FIRST, second):
        folder = run.stage_folder(stage.name)
        run_stage(stage, Settings(value=value), folder, resources or Resources(), run)
    return run


def times(run):
    return [
        (run.stage_folder(name) / "manifest.json").stat().st_mtime_ns
        for name in ("ingest", "dedup")
    ]


def context(tmp_path, stage=FIRST, **settings):
    run = Run(tmp_path)
    return StageContext(stage, Settings(**settings), run.stage_folder(stage.name), run, Resources())


def begun(tmp_path, stage=FIRST, **settings):
    made = context(tmp_path, stage, **settings)
    made.begin(fingerprint(stage, made.config, 0, made.run))
    return made


def test_rows_that_disappear_unnamed_fail_the_stage(tmp_path):
    stage = begun(tmp_path)
    with pytest.raises(StageError, match="10 rows came in, but 7 went out and 2 were dropped"):
        stage.finish(rows_in=10, rows_out=7, dropped={"broken": 2})
    assert stage.run.manifest("ingest") is None


def test_a_stage_keeps_to_the_tables_it_declares(tmp_path):
    stage = begun(tmp_path, SECOND)
    with pytest.raises(StageError, match="writes rest, but declares"):
        stage.table("rest", SCHEMA)
    with pytest.raises(StageError, match="reads rest, but declares"):
        stage.scan("rest")
    with pytest.raises(StageError, match="declares to write numbers, but did not"):
        stage.finish(rows_in=0, rows_out=0, dropped={})


def test_finished_and_unchanged_means_skipped(tmp_path):
    run = run_both(tmp_path)
    before = times(run)
    assert times(run_both(tmp_path)) == before
    part = run.stage_folder("ingest") / "numbers" / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    after = times(run_both(tmp_path))
    assert part.read_bytes() == whole
    # The first was made again; its content is equal, so the second was not.
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert all(a != b for a, b in zip(times(run_both(tmp_path, value=4)), after, strict=True))


def test_a_setting_that_does_not_change_the_output_does_not_cause_work(tmp_path):
    quiet = dataclasses.replace(SECOND, no_effect_on_output=frozenset({"value"}))
    before = times(run_both(tmp_path, second=quiet))
    run = Run(tmp_path)
    run_stage(quiet, Settings(value=9), run.stage_folder("dedup"), Resources(), run)
    assert times(run) == before


def test_what_is_outside_of_the_run_is_part_of_the_fingerprint(tmp_path):
    file = tmp_path / "weights"
    file.write_text("1")
    stage = dataclasses.replace(FIRST, external=lambda _: [file.stat().st_size])
    before = fingerprint(stage, Settings(), 0, None)
    assert fingerprint(stage, Settings(), 0, None) == before
    file.write_text("11")
    assert fingerprint(stage, Settings(), 0, None) != before


def test_a_file_of_the_run_folder_is_part_of_the_fingerprint_where_it_is_declared(tmp_path):
    before = times(run_both(tmp_path))
    stage = dataclasses.replace(SECOND, run_files=("by_hand.jsonl",))
    assert times(run_both(tmp_path, second=stage)) == before
    file = tmp_path / "by_hand.jsonl"
    file.write_text("1")
    assert times(run_both(tmp_path)) == before
    changed = times(run_both(tmp_path, second=stage))
    assert (changed[0] == before[0], changed[1] == before[1]) == (True, False)
    assert times(run_both(tmp_path, second=stage)) == changed
    assert context(tmp_path, stage).run_file("by_hand.jsonl") == file
    with pytest.raises(StageError, match="reads other, but declares"):
        context(tmp_path, stage).run_file("other")
    file.unlink()
    assert context(tmp_path, stage).run_file("by_hand.jsonl") is None


def test_memory_that_does_not_suffice_is_refused_before_anything_is_removed(tmp_path):
    run = run_both(tmp_path)
    before = times(run)
    needy = dataclasses.replace(SECOND, memory=lambda _, inputs, __: inputs.rows("numbers") << 40)
    with pytest.raises(ConfigError, match=r"dedup needs up to 3\.0 TiB .* may use 1\.0 TiB"):
        run_both(tmp_path, second=needy, resources=Resources(memory=1 << 40, seed=1))
    assert times(run)[1] == before[1]


def test_a_full_disk_is_told_with_the_stage_and_a_hint(tmp_path):
    def fill(_config, context):
        (context.scratch / "chunk-0").write_text("half the work")
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"more")

    with pytest.raises(FileError, match="no space is left on the device for what dedup") as error:
        run_both(tmp_path, second=dataclasses.replace(SECOND, run=fill))
    assert "make room" in error.value.hint
    assert (Run(tmp_path).stage_folder("dedup") / "scratch" / "chunk-0").exists()


def test_scratch_survives_a_kill_only_if_it_still_fits(tmp_path):
    stage = begun(tmp_path)
    (stage.scratch / "chunk-0").write_text("half the work")
    (stage.folder / "leftover.parquet").write_text("torn")
    again = begun(tmp_path)
    assert (again.scratch / "chunk-0").read_text() == "half the work"
    assert not (again.folder / "leftover.parquet").exists()
    changed = begun(tmp_path, value=2)
    assert not (changed.scratch / "chunk-0").exists()


def test_rows_written_before_an_error_are_kept(tmp_path):
    def write():
        with TableWriter(tmp_path / "rejected", SCHEMA) as table:
            table.write(rows([1, 2]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert pl.read_parquet(tmp_path / "rejected" / "*.parquet").height == 2


def test_the_report_says_what_it_took(tmp_path):
    report = run_both(tmp_path).report("ingest")
    assert report["hue"] == "blue"
    assert report["dropped"] == {"last": 1}
    assert report["peak_rss_bytes"] > 2**20
    assert report["seconds"] >= 0


def test_what_is_published_appears_after_the_report_and_before_the_manifest(tmp_path):
    stage = begun(tmp_path)
    copied = stage.table("numbers", SCHEMA)
    with copied:
        pass

    def publish():
        assert (stage.folder / "report.json").exists()
        assert not (stage.folder / "manifest.json").exists()
        return {"version": 7}

    stage.finish(rows_in=0, rows_out=0, dropped={}, publish=publish)
    assert stage.run.manifest("ingest")["version"] == 7


def test_a_missing_upstream_table_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"needs numbers.*\n\nhint: run the stages before it"):
        context(tmp_path, SECOND).scan("numbers")


def test_a_missing_upstream_table_is_noticed_before_anything_is_removed(tmp_path):
    run = run_both(tmp_path)
    shutil.rmtree(run.stage_folder("ingest"))
    with pytest.raises(InputError, match="needs numbers"):
        run_stage(SECOND, Settings(value=8), run.stage_folder("dedup"), Resources(), run)
    assert run.manifest("dedup") is not None


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
