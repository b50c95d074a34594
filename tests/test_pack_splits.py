"""Folders with splits: the one asked for is read, or ``train``, and what was left is said."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.sources.preferences.rows import find_files, read_rows
from mmrlhf_engine.sources.splits import split_of
from pack_data import tokenizer_folder


def row(name):
    return {"prompt": name, "chosen": "a", "rejected": "b"}


def put_parquet(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row(name)]), folder / name)
    return folder


def prompts(folder, split=None):
    files = find_files([str(folder)], None, split)
    return [record["prompt"] for file in files for _, record in read_rows(file)], files[0].split


HUB = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
TEST = "data/test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (HUB[0], "train"),
        (TEST, "test"),
        ("data/train_prefs-00000-of-00001-abcdef0123456789.parquet", "train_prefs"),
        ("data/test_prefs-00000-of-00001.parquet", "test_prefs"),
        ("default/train/0000.parquet", "train"),
        ("train.parquet", "train"),
        ("val.parquet", "validation"),
        ("dev-00000.parquet", "validation"),
        ("data/harmless-00000-of-00001.parquet", "harmless"),
        ("RLAIF-V-Dataset_000.parquet", None),
        ("part-00000.parquet", None),
        ("training_day.parquet", None),
        ("0001.parquet", None),
    ],
)
def test_the_name_of_a_file_says_its_split(name, split):
    assert split_of(Path("f", name), Path("f")) == split


def test_train_is_taken_and_what_is_left_is_named(tmp_path):
    folder = put_parquet(tmp_path / "set", [*HUB, TEST, "extra.parquet"])
    found, split = prompts(folder)
    assert found == HUB
    assert (split.taken, split.left) == ("train", ("extra.parquet", "test"))
    assert prompts(folder, "test")[0] == [TEST]
    with pytest.raises(InputError, match="no split 'dev'; splits found: test, train"):
        prompts(folder, "dev")


def test_several_splits_without_train_have_to_be_chosen_from(tmp_path):
    names = [f"data/{name}_prefs-00000-of-00001.parquet" for name in ("train", "test")]
    folder = put_parquet(tmp_path / "set", names)
    with pytest.raises(InputError, match="none is 'train': test_prefs, train_prefs") as caught:
        prompts(folder)
    assert "--split" in str(caught.value)
    assert prompts(folder, "train_prefs")[0] == names[:1]
    only = put_parquet(tmp_path / "only", [TEST])
    assert prompts(only)[0] == [TEST]


def test_files_without_splits_are_all_read(tmp_path):
    folder = put_parquet(tmp_path / "set", ["a_000.parquet", "a_001.parquet"])
    assert prompts(folder) == (["a_000.parquet", "a_001.parquet"], None)
    with pytest.raises(InputError, match="no split 'train'; splits found: none"):
        prompts(folder, "train")
    with pytest.raises(InputError, match="no source has splits, and 'test' was asked for"):
        prompts(folder / "a_000.parquet", "test")


def test_a_saved_dataset_of_several_splits(tmp_path):
    for name in ("train", "test"):
        part = tmp_path / "saved" / name
        part.mkdir(parents=True)
        table = pa.Table.from_pylist([row(name)])
        with pa.ipc.new_stream(str(part / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (part / "state.json").write_text(json.dumps(state))
    listed = tmp_path / "saved" / "dataset_dict.json"
    listed.write_text(json.dumps({"splits": ["train", "test"]}))
    found, split = prompts(tmp_path / "saved")
    assert (found, split.taken, split.left) == (["train"], "train", ("test",))
    assert prompts(tmp_path / "saved", "test")[0] == ["test"]
    listed.write_text("[]")
    with pytest.raises(InputError, match=r"dataset_dict\.json: not as save_to_disk writes it"):
        prompts(tmp_path / "saved")


def test_the_report_says_which_split_was_read(tmp_path):
    folder = put_parquet(tmp_path / "set", [*HUB, TEST])
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    config = pack.PackConfig(sources=[str(folder)], tokenizer=str(tokenizer))
    report = pack.pack_dataset(config, tmp_path / "ds")
    assert report["rows_in"] == 2
    assert "split     train of set; not read: test" in pack.describe(report, tmp_path / "ds")
