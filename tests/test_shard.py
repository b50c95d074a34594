"""Preference shards against a reader that is pyarrow alone, and the commands that work on them."""

import base64
import json
import re
import shutil
import struct
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_engine import _core
from mmrlhf_engine.cli import cli
from mmrlhf_engine.errors import CorruptDataError, InputError
from mmrlhf_engine.shards import dataset, maintenance
from shard_data import ONE, TABLES, TOKENIZER, TOKENS, listed, pack, png, struct_array

TEXT = st.none() | st.text(max_size=5)
LISTS = st.lists(st.integers(0, 2**32 - 1), max_size=6)
FLOATS = st.none() | st.floats(width=32, allow_nan=False)
RESPONSES = st.fixed_dictionaries(
    {"tokens": LISTS, "score": FLOATS, "rank": st.none() | st.integers(-9, 9), "critique": TEXT}
)
GROUPS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": LISTS,
            "media": st.lists(st.integers(0, 2), max_size=3),
            "seconds": st.lists(st.floats(0, 100, width=32), max_size=2),
            "source": st.integers(0, 65535),
            "text": TEXT,
            "responses": st.lists(RESPONSES, min_size=1, max_size=4),
            "pairs": st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), FLOATS), max_size=4),
        }
    ),
    max_size=6,
)


def read_naively(path):
    """Every row by the manifest and pyarrow alone; references as rows over all shards."""
    manifest = json.loads(sorted((path / "_mmrlhf").glob("manifest-*.json"))[-1].read_text())
    rows = {"q": [], "r": [], "p": []}
    for shard in manifest["shards"]:
        first = {letter: len(rows[letter]) for letter in rows}
        for letter in rows:
            for row in pa.ipc.open_file(path / shard[letter]["file"]).read_all().to_pylist():
                for column, to in [("q", "q"), ("chosen", "r"), ("rejected", "r")]:
                    if column in row:
                        row[column] += first[to]
                for column, to in [("r0", "r"), ("r1", "r"), ("p0", "p"), ("p1", "p")]:
                    if column in row:
                        row[column] += first[to]
                rows[letter].append(row)
    return {"queries": rows["q"], "responses": rows["r"], "pairs": rows["p"]}


@given(groups=GROUPS, cut=st.integers(1, 4))
@settings(max_examples=40)
def test_rows_are_what_pyarrow_reads_and_what_was_packed(tmp_path_factory, groups, cut):
    path = tmp_path_factory.mktemp("shards") / "ds"
    pack(path, groups, shard_pairs=cut)
    ours, naive = _core.Dataset(path, verify="open"), read_naively(path)
    for table, rows in naive.items():
        assert ours.rows(table) == len(rows)
    for i, row in enumerate(naive["queries"]):
        group = groups[i]
        assert listed(ours.prompt(i)) == row["prompt"] == group["prompt"]
        assert listed(ours.media(i)) == row["media"]
        assert listed(ours.media_seconds(i)) == row["media_t"] == group["seconds"]
        assert ours.ranges(i) == (row["r0"], row["r1"], row["p0"], row["p1"])
        assert ours.query(i) == (row["prompt_text"], row["source"], row["weight"])
        assert row["prompt_text"] == group["text"]
        assert ours.key("queries", i) == row["qid"]
    given_responses = [row for group in groups for row in group["responses"]]
    for i, row in enumerate(naive["responses"]):
        assert listed(ours.tokens(i)) == row["tokens"] == given_responses[i]["tokens"]
        facts = ("q", "n_tok", "rank", "score", "critique", "model")
        assert ours.response(i) == tuple(row[name] for name in facts)
        assert row["critique"] == given_responses[i]["critique"]
    for i, row in enumerate(naive["pairs"]):
        facts = ("q", "chosen", "rejected", "margin", "weight", "flags")
        assert ours.pair(i) == tuple(row[name] for name in facts)
    assert maintenance.verify(path, deep=True).status == "good"


def crc32c(data):
    """By definition, a bit at a time: reflected polynomial 0x1EDC6F41."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def footer_blocks(content):
    """(offset, header, body) of each block: the footer's flatbuffer, parsed by hand."""
    length = int.from_bytes(content[-10:-6], "little")
    footer = content[-10 - length : -10]

    def number(at, size):
        return int.from_bytes(footer[at : at + size], "little")

    table = number(0, 4)
    vtable = table - int.from_bytes(footer[table : table + 4], "little", signed=True)
    field = number(vtable + 4 + 2 * 3, 2)  # recordBatches is the fourth field
    vector = table + field + number(table + field, 4)
    starts = [vector + 4 + 24 * i for i in range(number(vector, 4))]
    return [(number(at, 8), number(at + 8, 4), number(at + 16, 8)) for at in starts]


def test_every_byte_is_as_documented(tmp_path):
    path = tmp_path / "ds"
    pack(path, [ONE])
    text = (path / "_mmrlhf" / "manifest-0000000001.json").read_bytes()
    manifest = json.loads(text)
    body = text[: text.rindex(b',\n"self_crc32c"')]
    assert f"{crc32c(body):08x}" == manifest["self_crc32c"]
    entries = [shard[letter] for shard in manifest["shards"] for letter in "qrp"]
    for entry in entries + manifest["blobs"]:
        content = (path / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"]
        assert f"{crc32c(content):08x}" == entry["crc32c"]
        assert Path(entry["file"]).stem.endswith(entry["b3"][:16])
        reader = pa.ipc.open_file(path / entry["file"])
        footer = {key.decode(): value.decode() for key, value in reader.metadata.items()}
        blocks = footer_blocks(content)
        crcs = struct.unpack(f"<{len(blocks) + 1}I", base64.b64decode(footer["mmrlhf.crc32c"]))
        assert crcs[0] == crc32c(content[: blocks[0][0]])
        for crc, (offset, header, size) in zip(crcs[1:], blocks, strict=True):
            assert crc == crc32c(content[offset : offset + header + size])
            assert offset % 64 == 0
            assert header % 64 == 0
        assert int(footer["mmrlhf.rows"]) == entry["rows"] == reader.read_all().num_rows
        assert pl.read_ipc(path / entry["file"]).height == entry["rows"]


def test_unreadable_media_are_reported_and_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(png(5, 4))
    writer = _core.DatasetWriter(tmp_path / "ds", tokenizer=TOKENIZER)
    content = pa.array([png(2, 2), None, b"text", None, None, png(5, 4)], pa.large_binary())
    paths = [None, str(tmp_path / "a.png"), None, str(tmp_path / "absent.png"), None, None]
    rows = pa.array(writer.add_media(content, pa.array(paths, pa.large_string()))).to_pylist()
    assert [row["id"] for row in rows] == [0, 1, None, None, None, 1]
    assert [row["width"] for row in rows] == [2, 5, None, None, None, 5]
    assert [row["problem"] is None for row in rows] == [True, True, False, False, False, True]
    writer.abort()
    with pytest.raises(InputError, match="another"):
        writer.commit()


def exif_jpeg(orientation, order):
    def number(n, size):
        return n.to_bytes(size, "little" if order == b"II" else "big")

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    tiff = order + number(42, 2) + number(8, 4) + number(1, 2) + entry + number(0, 4)
    body = b"Exif\0\0" + tiff
    app1 = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    frame = b"\xff\xc0\x00\x0b\x08\x00\x04\x00\x06\x01\x01\x11\x00"
    return b"\xff\xd8" + app1 + frame + b"\xff\xd9"


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
def test_the_orientation_of_a_jpeg_is_kept(tmp_path, order, orientation):
    writer = _core.DatasetWriter(tmp_path / "ds", tokenizer=TOKENIZER)
    picture = pa.array([exif_jpeg(orientation, order)], pa.large_binary())
    (row,) = pa.array(writer.add_media(picture)).to_pylist()
    writer.commit()
    size = _core.Dataset(tmp_path / "ds").blob_size(row["id"])
    assert size == (6, 4, orientation if orientation <= 8 else 1)


def wrong(table, column, values):
    tables = {
        "queries": {"prompt": pa.array([[1], [2]], TOKENS)},
        "responses": {
            "q": pa.array([0, 0, 1], pa.uint32()),
            "tokens": pa.array([[1], [2], [3]], TOKENS),
        },
        "pairs": {"chosen": pa.array([0], pa.uint32()), "rejected": pa.array([1], pa.uint32())},
    }
    tables[table][column] = values
    return [struct_array(**columns) for columns in tables.values()]


@pytest.mark.parametrize(
    ("table", "column", "values", "message"),
    [
        ("queries", "media", pa.array([[5], []], pa.large_list(pa.uint64())), "row 0.*id 5"),
        ("queries", "promt", pa.array([1, 2]), "column promt"),
        (
            "queries",
            "prompt",
            pa.array([[1], [2]], pa.list_(pa.uint32())),
            "prompt.*expected a list of unsigned 32-bit integers",
        ),
        ("responses", "q", pa.array([0, 2, 1], pa.uint32()), "row 1.*found 2.*less than 2"),
        ("responses", "tokens", pa.array([[1], [None], [3]], TOKENS), "null inside"),
        ("pairs", "rejected", pa.array([2], pa.uint32()), "row 0.*one query"),
        ("pairs", "rejected", pa.array([0], pa.uint32()), "row 0.*one query"),
        ("pairs", "rejected", pa.array([3], pa.uint32()), "row 0.*less than 3"),
        ("pairs", "rejected", pa.array([None], pa.uint32()), "rejected.*1 nulls"),
    ],
)
def test_dangling_references_are_refused_before_any_row_is_written(
    tmp_path, table, column, values, message
):
    writer = _core.DatasetWriter(tmp_path / "ds", tokenizer=TOKENIZER)
    with pytest.raises(InputError, match=f"(?s){message}"):
        writer.append(*wrong(table, column, values))
    writer.append(*wrong("queries", "prompt", pa.array([[1], [2]], TOKENS)))
    writer.commit()
    assert _core.Dataset(tmp_path / "ds").rows("pairs") == 1


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "ds"
    pack(path, [ONE, {**ONE, "media": [2], "prompt": [9]}], shard_pairs=1)
    return path


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_verify_distinguishes_good_damaged_and_another_version(packed):
    assert invoke("verify", packed, "--deep").exit_code == 0
    victim = next(packed.glob("data/s00001-r-*.arrow"))
    content = bytearray(victim.read_bytes())
    (offset, header, _) = footer_blocks(bytes(content))[0]
    content[offset + header] ^= 1
    victim.write_bytes(content)
    done = invoke("verify", packed)
    assert done.exit_code == 1
    assert f"data/{victim.name}, block 0, rows 0 to 2" in done.output
    lazy = _core.Dataset(packed)
    assert listed(lazy.tokens(0)) == [4, 5]
    with pytest.raises(CorruptDataError, match=r"(?s)block 0, rows 0 to 2.*hint:"):
        lazy.tokens(2)
    manifest = packed / "_mmrlhf" / "manifest-0000000001.json"
    body = manifest.read_bytes().replace(b'"profile":1', b'"profile":2')
    body = body[: body.rindex(b',\n"self_crc32c"')]
    manifest.write_bytes(body + f',\n"self_crc32c":"{crc32c(body):08x}"}}\n'.encode())
    done = invoke("verify", packed)
    assert (done.exit_code, "upgrade" in done.output) == (2, True)


def test_columns_are_filled_and_shown(packed):
    values = pl.DataFrame({"logp_sum": [-1.5, None]}, schema={"logp_sum": pl.Float32})
    facts = {"model": "m"}
    given = {"table": "responses", "column_set": "reflogp/m", "provenance": facts}
    assert dataset.add_column(packed, values, start=1, **given) == 2
    shards = _core.Dataset(packed)
    assert listed(shards.column("reflogp/m", "logp_sum")) == [None, -1.5, None, None]
    (cover,) = json.loads(shards.coverage())
    assert (cover["filled"], cover["missing"]) == (1, [[0, 2], [2, 4]])
    assert "reflogp/m rev 1 of responses: 1 of 4 rows" in invoke("inspect", packed).output
    assert shards.fingerprint == _core.Dataset(packed, 1).fingerprint
    assert maintenance.verify(packed, deep=True).status == "good"
    lists = pl.DataFrame({"logp": [[1.0], [2.0, 3.0]]}, schema={"logp": pl.List(pl.Float32)})
    dataset.add_column(packed, lists, table="responses", column_set="tok", provenance=facts)
    assert listed(_core.Dataset(packed).column("tok", "logp", 0, 2)) == [[1.0], [2.0, 3.0]]
    for name in ["../x", "", "a//b", ".x"]:
        with pytest.raises(InputError, match="column set"):
            dataset.add_column(packed, values, table="responses", column_set=name, provenance=facts)


def test_the_documented_tables_are_those_of_the_core():
    text = (Path(__file__).parents[1] / "docs" / "shard-format.md").read_text()
    schema = json.loads(_core.shard_schema())
    assert [table["name"] for table in schema] == list(TABLES)
    assert [table["letter"] for table in schema] == ["q", "r", "p", "b"]
    assert [table["rows_per_batch"] for table in schema] == [4096, 4096, 4096, 256]
    for table in schema:
        (section,) = re.findall(rf"### {table['name']}\n(.*?)\n\n(?!\|)", text, re.S)
        rows = [
            "| `{name}` | {type} | {description} |".format(
                **column
                | {
                    "type": re.sub("([<>])", r"\\\1", column["type"])
                    + ", nullable" * column["nullable"]
                }
            )
            for column in table["columns"]
        ]
        assert section.split("\n")[3:] == rows


def test_diff_and_gc(packed):
    pack(packed, [ONE])
    difference = json.loads(invoke("diff", packed).output)
    assert (difference["same_data"], difference["rows"]["pairs"], len(difference["added"])) == (
        False,
        1,
        3,
    )
    stray = packed / "data" / "s00077-q-0000000000000000.arrow"
    stray.write_bytes(b"orphan")
    assert stray.name in invoke("gc", packed, "--dry-run").output
    assert stray.exists()
    assert invoke("gc", packed, "--keep", "1").exit_code == 0
    assert not stray.exists()
    assert _core.Dataset(packed).version == 2
    with pytest.raises(FileNotFoundError):
        _core.Dataset(packed, 1)


def test_rekey_by_command(packed, tmp_path):
    values = pl.DataFrame({"margin": [1.0, 2.0]}, schema={"margin": pl.Float32})
    dataset.add_column(packed, values, table="pairs", column_set="rm", provenance={"model": "m"})
    other = tmp_path / "other"
    pack(other, [{**ONE, "media": [2], "prompt": [9]}, {**ONE, "prompt": [8]}])
    assert "1 of 2 rows" in invoke("rekey", packed, other, "--set", "rm").output
    assert listed(_core.Dataset(other).column("rm", "margin")) == [2.0, None]


def test_a_folder_that_is_no_dataset_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(InputError, match="hint:"):
        _core.Dataset(tmp_path)
    with pytest.raises(FileNotFoundError):
        maintenance.verify(tmp_path)


def test_shards_of_profile_1_open(tmp_path):
    """``tests/data/shards_profile_1`` was written by the first version of the format."""
    path = shutil.copytree(Path(__file__).parent / "data" / "shards_profile_1", tmp_path / "ds")
    assert maintenance.verify(path, deep=True).status == "good"
    shards = _core.Dataset(path, verify="open")
    assert shards.version == 3
    assert shards.fingerprint == (
        "b3:f83eae9ca009545a51c29eb7f81be31d9a34bc85ea5f8daa0c47dc781148c659"
    )
    assert [shards.rows(table) for table in TABLES] == [2, 5, 3, 3]
    assert [shards.query(row) for row in range(2)] == [("which?", 7, 1.0), (None, 3, 1.0)]
    assert [listed(shards.prompt(row)) for row in range(2)] == [[1, 2, 3], [9, 8]]
    assert listed(shards.media_seconds(1)) == [0.5, 1.5]
    assert shards.blob(listed(shards.media(1))[0]) == (png(4, 3, 2), 4, 3, 2, 1, 1)
    assert [listed(shards.tokens(row)) for row in range(5)] == [[4, 5], [6], [], [7, 7, 7], [8]]
    assert shards.response(3) == (1, 3, 1, 2.0, "bétter", 0)
    assert [shards.pair(row)[:4] for row in range(3)] == [
        (0, 0, 1, 0.25),
        (1, 3, 2, 3.0),
        (1, 4, 2, None),
    ]
    assert listed(shards.column("reflogp/m", "logp_sum")) == [-1.5, None, -2.5, -3.5, 0.25]
    assert listed(shards.column("reflogp/m", "n")) == [1, 2, None, 4, 5]
    assert listed(shards.column("reflogp/m", "logp")) == [[-1.0, -0.5], [], None, [1.0], [2.0]]
    assert listed(shards.column("deleted", "deleted")) == [False, True, False]
    pack(path, [ONE])
    assert _core.Dataset(path).rows("pairs") == 4
