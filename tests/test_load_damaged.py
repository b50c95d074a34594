"""A damaged copy stops its rank: it never hands out a plan that differs from the other ranks'."""

import shutil

import pyarrow as pa
import pytest

from load_data import PICTURES, plan, write
from mmrlhf_engine.errors import CorruptDataError
from mmrlhf_engine.shards.loader import PreferenceLoader

TABLES = {"q": "queries", "r": "responses", "p": "pairs", "b": "blobs"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=60, shard_pairs=30)


def overwrite(file, column, row, content):
    """Other bytes in a column's values, or in its offsets if it is a list."""
    mapped = pa.memory_map(str(file))
    start = mapped.read_buffer().address
    mapped.seek(0)
    array = pa.ipc.open_file(mapped).get_batch(0).column(column)
    buffer = array.buffers()[1]
    at = buffer.address - start + row * (8 if pa.types.is_large_list(array.type) else len(content))
    changed = bytearray(file.read_bytes())
    assert changed[at : at + len(content)] != content
    changed[at : at + len(content)] = content
    file.write_bytes(changed)


def taken(path, rank, unit):
    """What a rank of two hands out, and the error that ends it."""
    batches = []
    try:
        for batch in PreferenceLoader(
            path, plan(unit=unit), rank, 2, pictures=PICTURES["qwen2_vl"], threads=1
        ):
            batches.append((batch.step, batch.pack, batch.pair_row.tolist()))
    except CorruptDataError as error:
        return batches, error
    return batches, None


@pytest.mark.parametrize("unit", ["pair", "response", "query"])
@pytest.mark.parametrize(
    ("table", "column", "row", "content"),
    [
        ("q", "prompt", 3, b"\xff\xff\xff\x7f"),
        ("q", "prompt", 4, b"\x01"),
        ("r", "tokens", 5, b"\x01"),
        ("p", "chosen", 6, b"\x00\x00\x00\x01"),
        ("b", "w", 2, b"\x00\x00\x00\x00"),
        ("b", "orient", 2, b"\x09"),
    ],
)
def test_a_rank_with_a_damaged_copy_raises(dataset, tmp_path, unit, table, column, row, content):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    folder, pattern = ("blobs", "b*.arrow") if table == "b" else ("data", f"s*-{table}-*.arrow")
    file = sorted((copy / folder).glob(pattern))[-1]
    overwrite(file, column, row, content)
    whole, nothing = taken(dataset, 1, unit)
    assert nothing is None
    batches, error = taken(copy, 1, unit)
    assert batches == whole[: len(batches)]
    assert len(batches) < len(whole)
    if (table, unit) != ("p", "response"):  # Planning responses reads no pair.
        assert not batches
    message = str(error)
    assert file.name in message
    assert f"{TABLES[table]}, row " in message
    assert "verify" in f"{message} {getattr(error, 'hint', '')}"
