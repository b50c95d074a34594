"""Sidecar columns against a reader that is pyarrow alone."""

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards import dataset, maintenance
from shard_data import ONE, TABLES, listed, pack, png


def list_of(item):
    return pa.large_list(pa.field("item", item, nullable=False))


SIDECAR_TYPES = {
    "float32": pa.array([0.5, None, -1.0, 3.0], pa.float32()),
    "uint32": pa.array([1, 2**32 - 1, None, 0], pa.uint32()),
    "uint64": pa.array([2**64 - 1, None, 7, 0], pa.uint64()),
    "bool": pa.array([True, False, None, True], pa.bool_()),
    "text": pa.array(["", None, "étude", "two\nlines"], pa.large_string()),
    "list_float32": pa.array([[0.5, -1.0], [], None, [2.0]], list_of(pa.float32())),
    "list_float16": pa.array(
        [[np.float16(0.5), np.float16(-2.0)], None, [], [np.float16(65504)]],
        list_of(pa.float16()),
    ),
}


def read_sidecar_naively(path, column_set):
    """Fields of a column set over all rows, by the manifest and pyarrow alone."""
    manifest = json.loads(sorted((path / "_mmrlhf").glob("manifest-*.json"))[-1].read_text())
    (entry,) = (entry for entry in manifest["columns"] if entry["set"] == column_set)
    if entry["table"] == "b":
        bases = [(blobs["id"], blobs) for blobs in manifest["blobs"]]
    else:
        bases = [(shard["id"], shard[entry["table"]]) for shard in manifest["shards"]]
    fields = {name: [] for name in entry["fields"]}
    for id, base in bases:
        (file,) = (file for file in entry["files"] if file["shard"] == id)
        reader = pa.ipc.open_file(path / file["file"])
        assert reader.schema.metadata[b"mmrlhf.base"].decode() == base["b3"]
        footer = pa.ipc.open_file(path / base["file"]).metadata
        assert reader.schema.metadata[b"mmrlhf.base_keys"] == footer[b"mmrlhf.keys"]
        assert json.loads(reader.schema.metadata[b"mmrlhf.provenance"]) == entry["provenance"]
        assert reader.metadata[b"mmrlhf.rows_per_batch"] == footer[b"mmrlhf.rows_per_batch"]
        table = reader.read_all()
        assert table.num_rows == base["rows"]
        whole = [row for row in table.to_pylist() if None not in row.values()]
        assert file["filled"] == len(whole)
        for name, values in fields.items():
            values += table[name].to_pylist()
    return fields


@pytest.mark.parametrize("table", TABLES)
def test_sidecar_columns_of_every_type_are_what_pyarrow_reads(tmp_path, table):
    path = tmp_path / "ds"
    pack(path, [ONE, {**ONE, "prompt": [9]}], shard_pairs=1, blob_bytes=100)
    rows = _core.Dataset(path).rows(table)
    values = pa.table({name: array.slice(0, rows) for name, array in SIDECAR_TYPES.items()})
    facts = {"table": table, "column_set": "all/types", "provenance": {"model": "m"}}
    dataset.add_column(path, values, **facts)
    shards = _core.Dataset(path, verify="open")
    naive = read_sidecar_naively(path, "all/types")
    for name, array in SIDECAR_TYPES.items():
        ours = pa.array(shards.column("all/types", name))
        assert ours.type == array.type
        assert ours.to_pylist() == naive[name] == array.slice(0, rows).to_pylist()
    assert maintenance.verify(path, deep=True).status == "good"
    (cover,) = json.loads(shards.coverage())
    assert (cover["table"], cover["rows"]) == (table, rows)
    again = values.slice(1, 1)
    dataset.add_column(path, again, start=0, **facts)
    changed = [values["uint32"][1], *values["uint32"][1:]]
    assert listed(_core.Dataset(path).column("all/types", "uint32")) == [
        value.as_py() for value in changed
    ]
    for bad in [pa.array([1], pa.int64()), pa.array([[1]], pa.large_list(pa.uint32()))]:
        with pytest.raises(InputError, match=r"column bad: .*a list of 16-bit floats"):
            dataset.add_column(path, pa.table({"bad": bad}), **facts)


def test_features_of_a_blob_are_found_by_its_id(tmp_path):
    path = tmp_path / "ds"
    pack(path, [ONE], blob_bytes=1)
    rows = _core.Dataset(path).rows("blobs")
    features = pl.DataFrame({"seen": [f"image {row}" for row in range(rows)]})
    dataset.add_column(path, features, table="blobs", column_set="seen", provenance={})
    shards = _core.Dataset(path)
    for place, id in enumerate(listed(shards.media(0))):
        row = shards.blob_row(id)
        assert shards.blob(id)[0] == png(4, 3, place)
        assert listed(shards.column("seen", "seen", row, row + 1)) == [f"image {place}"]
    assert len(json.loads(shards.manifest)["blobs"]) == rows > 1
    with pytest.raises(InputError, match="blob: found 7:0"):
        shards.blob_row(7 << 32)
