"""The public API: what the package exports, when it is imported, and that it does what it says."""

import subprocess
import sys

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import mmrlhf_engine
from load_data import write
from mmrlhf_engine import ShardDataset, open_dataset, run_curate, run_pack
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.pack.pack import PackConfig
from mmrlhf_engine.pipeline import CurateConfig
from pack_data import tokenizer_folder, write_lines

SUBPACKAGES = (
    *("cli", "collect", "curate", "demo", "measure", "models"),
    *("pack", "run", "shards", "sources", "train"),
)
FUNCTIONS = {
    *("answer_rows", "attention_mask", "normalise", "open_dataset", "plan_json"),
    *("provenance", "read_rule", "run_curate", "run_evaluate", "run_pack", "run_pair"),
    *("run_mm_dpo", "run_reference", "run_reward", "run_sample", "run_score", "run_sft"),
}
CLASSES = set(mmrlhf_engine.__all__) - FUNCTIONS - {"__version__"}

CHECK = f"""
import types
import mmrlhf_engine as engine
for name in {sorted(FUNCTIONS)}:
    assert isinstance(getattr(engine, name), types.FunctionType), name
for name in {sorted(CLASSES)}:
    assert isinstance(getattr(engine, name), type), name
for name in {SUBPACKAGES}:
    assert isinstance(getattr(engine, name), types.ModuleType), name
"""
SUBPACKAGES_FIRST = "".join(f"import mmrlhf_engine.{name}\n" for name in SUBPACKAGES)
NAMES_FIRST = f"from mmrlhf_engine import {', '.join(sorted(mmrlhf_engine.__all__))}\n"


@pytest.mark.parametrize(
    "order", [SUBPACKAGES_FIRST + NAMES_FIRST, NAMES_FIRST + SUBPACKAGES_FIRST]
)
def test_no_name_hides_a_subpackage_in_either_order(order):
    done = subprocess.run([sys.executable, "-c", order + CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torch_is_imported_for_the_torch_data_set_alone():
    program = (
        "import sys\n"
        "import mmrlhf_engine as engine\n"
        "assert 'mmrlhf_engine.shards' not in sys.modules\n"
        "assert 'polars' not in sys.modules\n"
        "for name in engine.__all__:\n"
        "    if name != 'PreferenceDataset':\n"
        "        getattr(engine, name)\n"
        "assert not {'torch', 'transformers', 'faiss'} & set(sys.modules)\n"
        "engine.PreferenceDataset\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    assert set(mmrlhf_engine.__all__) <= set(dir(mmrlhf_engine))
    with pytest.raises(AttributeError, match="no attribute 'curate_run'"):
        _ = mmrlhf_engine.curate_run


def test_run_curate_runs_stages_and_skips_them_again(corpus, tmp_path):
    sources = [corpus / "shapes.jsonl", str(corpus / "album")]
    settings = {"dedup.policy": "exact", "threads": 1}
    run = run_curate(sources, tmp_path / "run", settings, last="dedup")
    report = run.report("dedup")
    assert report["rows_in"] == report["rows_out"] + sum(report["dropped"].values())
    assert run.report("embed") is None
    duplicates = pl.read_parquet(run.find("duplicates") / "*.parquet")
    assert set(duplicates["policy"]) == {"exact"}
    manifest = tmp_path / "run" / "02_dedup" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    # The same settings, given as a section.
    config = CurateConfig.model_validate({"dedup": {"policy": "joint"}, "threads": 2})
    run_curate(sources, tmp_path / "run", settings, config=config, last="dedup")
    assert manifest.stat().st_mtime_ns == written
    run_curate(sources, tmp_path / "run", {"threads": 1}, config=config, last="dedup")
    assert manifest.stat().st_mtime_ns != written
    with pytest.raises(ConfigError, match="did you mean count"):
        run_curate(sources, tmp_path / "run", {"select.cuont": 1})


def test_run_pack_packs_and_takes_a_file_of_settings(tmp_path):
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "pack.yaml").write_text(f"tokenizer: {tokenizer}\nties: drop\n")
    report = run_pack(source, tmp_path / "ds", config=tmp_path / "pack.yaml")
    assert (report["version"], report["rows_in"], report["rows_out"]) == (1, 1, 1)
    assert report["settings"]["ties"] == "drop"
    config = PackConfig(tokenizer=str(tokenizer), sources=[str(source)])
    assert run_pack([], tmp_path / "other", {"ties": "keep"}, config=config)["rows_out"] == 1
    with pytest.raises(ConfigError, match="no model given"):
        run_pack(source, tmp_path / "third")


def test_a_dataset_has_its_tables_by_name_and_its_columns(tmp_path):
    path = write(tmp_path / "ds", queries=20, kinds=["plain"] * 4, shard_pairs=20)
    dataset = open_dataset(str(path))
    assert isinstance(dataset, ShardDataset)
    assert (dataset.version, dataset.fingerprint[:3]) == (1, "b3:")
    assert dataset.tokenizer["name"] == "test"
    pairs, responses = dataset.pairs.collect(), dataset.responses.collect()
    assert len(pairs) == dataset.rows("pairs") > 20  # several shards
    # References are rows over all shards: both sides answer the query of the pair.
    for side in ("chosen", "rejected"):
        assert responses["q"].gather(pairs[side]).to_list() == pairs["q"].to_list()
    queries = dataset.queries.with_row_index("row").collect()
    assert queries["r1"].to_list()[-1] == len(responses)
    blobs = dataset.blobs.collect()
    assert set(queries["media"].explode().drop_nulls()) <= set(blobs["id"])
    assert_frame_equal(dataset.table("blobs").collect(), blobs)
    margin = pl.DataFrame({"margin": pl.Series(range(len(pairs)), dtype=pl.Float32)})
    version = dataset.add_column(margin, table="pairs", column_set="rm", provenance={"by": "us"})
    assert (version, dataset.column_sets) == (2, [])  # the version that was opened stays
    (columns,) = open_dataset(path).column_sets
    assert (columns.name, columns.table, columns.fields) == ("rm", "pairs", ["margin"])
    assert columns.filled == columns.rows == len(pairs)
    assert open_dataset(path).column("rm", "margin").to_list() == margin["margin"].to_list()
    assert open_dataset(path, version=1).column_sets == []
    assert "version 1" in repr(dataset)


def test_a_table_by_another_name_is_refused(tmp_path):
    path = write(tmp_path / "ds", queries=2, kinds=["plain"])
    for ask in (open_dataset(path).table, open_dataset(path).rows):
        with pytest.raises(InputError, match="expected queries, responses, pairs or blobs"):
            ask("p")
