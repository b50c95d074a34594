"""Files of sources are known once for every stage; what a stage does not take is refused."""

import gzip
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intake import PICTURES, lines, picture, write_tar
from mmrlhf_engine._core import read_records, role_names
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.files import DESCRIPTIONS, detect_format
from mmrlhf_engine.sources.preferences import FORMATS
from mmrlhf_engine.sources.preferences.fields import normal_role
from mmrlhf_engine.sources.preferences.record import BadRecordError
from mmrlhf_engine.sources.preferences.rows import find_files, read_rows
from mmrlhf_engine.sources.samples.read import read
from mmrlhf_engine.sources.samples.resolve import SourceConfig, resolve

ROWS = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(5)]


def save_dataset(folder, rows):
    """What ``datasets`` writes by ``save_to_disk``: a stream of Arrow batches and its state."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "data-00000.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": "data-00000.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))


def write_all(folder):
    """One source of every format, by the name of the format."""
    table = pa.Table.from_pylist(ROWS)
    save_dataset(folder / "saved_dataset", ROWS)
    picture(folder / "folder", "a.png")
    (folder / "folder" / "a.txt").write_text("question 0")
    (folder / "parquet_folder").mkdir()
    for file in (folder / "parquet_folder" / "x.parquet", folder / "parquet"):
        pq.write_table(table, file)
    (folder / "arrow").write_bytes((folder / "saved_dataset" / "data-00000.arrow").read_bytes())
    lines(folder / "jsonl", *ROWS)
    (folder / "json").write_text(json.dumps(ROWS))
    (folder / "x.json").write_text(json.dumps({"info": "of a set", "data": ROWS}))
    (folder / "x.csv").write_text("id,prompt\n1,question 0\n")
    record = json.dumps(ROWS[0]).encode()
    write_tar(folder / "webdataset", {"a.json": record, "a.png": PICTURES[0].read_bytes()})
    suffixed = {"csv": "x.csv", "json_object": "x.json"}
    return {name: folder / suffixed.get(name, name) for name in DESCRIPTIONS}


def rows_of(path):
    return [row for file in find_files([str(path)], None) for row in read_rows(file)]


def batches_of(path):
    return [batch for source in resolve([SourceConfig(path=str(path))]) for batch in read(source)]


def test_every_format_is_known_by_its_content(tmp_path):
    for name, path in write_all(tmp_path).items():
        assert detect_format(path, tuple(DESCRIPTIONS)) == name


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_format_is_read_or_refused_by_its_name(tmp_path, name):
    path = write_all(tmp_path)[name]
    if name in ("arrow", "saved_dataset"):
        with pytest.raises(InputError, match=f"{DESCRIPTIONS[name]}, which is not read") as caught:
            batches_of(path)
        assert "CSV or TSV, Parquet, a WebDataset tar" in str(caught.value)
    else:
        assert "question 0" in str(batches_of(path)[0].records[0])
    if name == "json_object":
        return  # to a stage that does not take it, it is a line
    if name in ("csv", "webdataset", "folder"):
        with pytest.raises(InputError, match=f"{DESCRIPTIONS[name]}, which is not read") as caught:
            rows_of(path)
        assert "JSON Lines, a JSON array, Parquet" in str(caught.value)
    else:
        assert [row for _, row in rows_of(path)] == ROWS


def test_pictures_and_tables_of_one_folder_are_read_by_the_stage_that_takes_them(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    picture(tmp_path, "a.png")
    assert batches_of(tmp_path)[0].keys.to_list() == ["0", "1", "2", "3", "4"]
    assert [row for _, row in rows_of(tmp_path)] == ROWS
    (tmp_path / "a.txt").write_text("question 0")
    assert [batch.keys.to_list() for batch in batches_of(tmp_path)] == [
        ["0", "1", "2", "3", "4"],
        ["a.png"],
    ]
    assert [row for _, row in rows_of(tmp_path)] == ROWS


def test_a_saved_dataset_of_several_splits_is_known(tmp_path):
    save_dataset(tmp_path / "train", ROWS)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match="written by save_to_disk, which is not read here"):
        batches_of(tmp_path)
    assert [row for _, row in rows_of(tmp_path)] == ROWS
    (tmp_path / "train" / "state.json").write_text("[]")
    with pytest.raises(InputError, match=r"state\.json: not as save_to_disk writes it"):
        rows_of(tmp_path / "train")


def test_samples_and_preferences_keep_the_same_rows_of_damaged_data(tmp_path):
    random.seed(0)
    text = "".join(
        json.dumps({"prompt": f"{n} {random.random()}", "chosen": "a", "rejected": "b"}) + "\n"
        for n in range(20_000)
    )
    content = gzip.compress(text.encode())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(content[: len(content) * 9 // 10])
    *found, (_, cut), (place, damage) = rows_of(path)
    assert len(found) > 15_000
    assert all(record["prompt"].startswith(f"{n} ") for n, (_, record) in enumerate(found))
    assert isinstance(cut, BadRecordError)
    assert (place, damage.reason) == ("x.jsonl.gz:end", "broken_record")
    batches = batches_of(path)
    assert [p for batch in batches for p in batch.positions][:-1] == [p for p, _ in found]
    (unreadable,) = batches[-1].unreadable.rows()
    assert unreadable == (place, damage.reason, damage.detail)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_batch_costs_the_rows_it_holds(tmp_path, kind):
    generator = np.random.default_rng(0)
    rows = [{"prompt": generator.bytes(2000).hex(), "chosen": "a"} for _ in range(6)]
    if kind == "parquet":
        path = tmp_path / "x.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, compression="zstd")
    else:
        save_dataset(tmp_path / "x", rows)
        path = tmp_path / "x" / "data-00000.arrow"
    content = bytearray(path.read_bytes())
    if kind == "parquet":
        start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
        content[start : start + 2000] = b"\xff" * 2000
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    found = rows_of(path)
    expected = rows[:2] + (rows[4:] if kind == "parquet" else [])
    assert [row for _, row in found if isinstance(row, dict)] == expected
    ((place, error),) = [row for row in found if isinstance(row[1], BadRecordError)]
    assert place == f"{path.name}:2"
    last = "3" if kind == "parquet" else "the end"
    assert error.detail.startswith(f"rows 2 to {last} cannot be read")


def text_of(*contents):
    return pa.Array.from_buffers(pa.string(), len(contents), pa.array(contents).buffers())


@pytest.mark.parametrize(
    "odd",
    [
        pa.array([1, 2], pa.timestamp("ns")),
        pa.array([1, 2**62], pa.timestamp("us")),
        pa.array([1, 2**31 - 1], pa.date32()),
        text_of(b"fine", b"\xff\xfe"),
    ],
)
def test_a_value_that_python_cannot_hold_costs_only_records_that_need_it(tmp_path, odd):
    table = pa.table({name: pa.array(["a", "b"]) for name in ("prompt", "chosen", "rejected")})
    pq.write_table(table.append_column("noted", odd), tmp_path / "x.parquet")
    for _, record in rows_of(tmp_path / "x.parquet"):
        assert FORMATS["trl"].parse(record).prompt
    pq.write_table(table.set_column(0, "prompt", odd), tmp_path / "x.parquet")
    _, (place, record) = rows_of(tmp_path / "x.parquet")
    assert place == "x.parquet:1"
    with pytest.raises(BadRecordError, match="expected"):
        FORMATS["trl"].parse(record)


def test_samples_and_preferences_know_the_same_roles():
    for name, role in role_names():
        assert normal_role(name) == role
        talk = [{"role": name, "content": "x"}, {"role": "user", "content": "What?"}]
        record = json.dumps({"messages": [*talk, {"role": "assistant", "content": "This."}]})
        turns, _, _ = read_records(pa.array([record.encode()], pa.large_binary()), {}, 1)
        turns = pa.array(turns).to_pylist()
        assert not any(turn["reason"] for turn in turns)
        assert len(turns) == (2 if role == "user" else 1)
    with pytest.raises(BadRecordError, match="expected one of system, user, assistant, tool"):
        normal_role("owner")
