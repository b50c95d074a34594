"""Damage to a file of any format costs what is damaged, by name, and nothing else."""

import contextlib
import io
import json
import os
import tarfile
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intake import DEEP, PICTURES, bomb, picture, take_in, write_tar
from mmrlhf_engine._core import TarReader


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_compressed_data_that_end_too_early_keep_what_is_whole(tmp_path, take_in, compression):
    text = "".join(json.dumps({"prompt": f"question {n * n}"}) + "\n" for n in range(300_000))
    sink = pa.BufferOutputStream()
    name = {"gz": "gzip", "zst": "zstd"}[compression]
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(text.encode())
    content = sink.getvalue().to_pybytes()
    (tmp_path / f"x.jsonl.{compression}").write_bytes(content[: len(content) * 9 // 10])
    out = take_in(tmp_path / f"x.jsonl.{compression}")
    assert 100_000 < out.samples.height < 300_000
    assert out.samples["prompt"][-1] == f"question {(out.samples.height - 1) ** 2}"
    last = out.rejected.row(-1, named=True)
    assert last["reason"] == "broken_record"
    assert "compressed" in last["detail"]
    assert last["position"].startswith(f"x.jsonl.{compression}:")


def test_bad_rows_of_a_table_of_commas(tmp_path, take_in):
    rows = b'id,question;1,a;2;3,b,too many;;4,\xff;5,"two\nlines";6,c\0d;7,e;'
    (tmp_path / "x.csv").write_bytes(rows.replace(b";", b"\r\n"))
    out = take_in(tmp_path / "x.csv")
    assert out.prompts["x:1"] == "a"
    assert out.prompts["x:5"] == "two\nlines"
    assert out.prompts["x:7"] == "e"
    reasons = out.reasons
    assert reasons["x.csv:3"] == reasons["x.csv:4"] == "wrong_type"
    assert reasons["x.csv:6"] == "broken_record"


def test_a_quote_that_never_closes_is_named(tmp_path, take_in):
    rest = "".join(f"{n},more\n" for n in range(5))
    (tmp_path / "x.csv").write_text(f'id,question\na,first\nb,"never closed\n{rest}')
    out = take_in(tmp_path / "x.csv")
    assert out.prompts["x:a"] == "first"
    assert out.report["rows_in"] >= 2


NAMES = st.text(st.characters(exclude_characters="/.", exclude_categories=["C"]), min_size=1)


@given(
    st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=4), st.binary(max_size=99))),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_members_of_a_tar_are_what_the_standard_library_finds(tmp_path, files, kind):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for parts, content in files:
            info = tarfile.TarInfo("/".join(parts) + ".txt")
            info.size = len(content)
            # A name that is too long for the oldest format cannot be written at all.
            with contextlib.suppress(ValueError):
                tar.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size, tar.extractfile(m).read()) for m in tar]
    reader, found = TarReader(path), []
    while batch := pa.array(reader.next_members(2, ["txt"])).to_pylist():
        assert all(member["reason"] is None for member in batch)
        found += [(m["name"], m["offset"], m["length"], m["text"]) for m in batch]
    assert found == expected


def broken_tar(path, change):
    members = {}
    for name in "abc":
        members |= {
            f"{name}.png": PICTURES[0].read_bytes(),
            f"{name}.txt": f"What {name}?".encode(),
        }
    content = bytearray(write_tar(path, members).read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def test_a_damaged_header_in_a_tar_hides_nothing_behind_it(tmp_path, take_in):
    def damage(content):
        at = content.index(b"b.png")
        content[at : at + 100] = b"\xff" * 100

    out = take_in(broken_tar(tmp_path / "w.tar", damage))
    assert {"w:a", "w:c"} <= set(out.samples["id"])
    assert "broken_record" in out.reasons.values()


def test_a_tar_cut_short_keeps_what_is_whole(tmp_path, take_in):
    def cut(content):
        del content[content.index(b"c.png") + 600 :]

    out = take_in(broken_tar(tmp_path / "w.tar", cut))
    assert out.samples["id"].to_list() == ["w:a", "w:b"]
    assert out.rejected["reason"].to_list() == ["truncated_media"]


def test_a_tar_cut_within_a_header_says_so(tmp_path, take_in):
    def cut(content):
        del content[content.index(b"c.png") + 100 :]

    out = take_in(broken_tar(tmp_path / "w.tar", cut))
    assert out.samples["id"].to_list() == ["w:a", "w:b"]
    assert out.rejected["reason"].to_list() == ["broken_record"]


BAD_SIDECARS = {
    "not JSON": (b"{", "broken_record"),
    "a list": (b"[1]", "wrong_type"),
    "nested deeply": (DEEP.encode(), "broken_record"),
    "a huge number": (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", "broken_record"),
    "another's cell": (b'{"prompt": "x", "video": {"cell": 0}}', None),
    "no text": (b'{"score": 1}', "no_text"),
}


@pytest.mark.parametrize("kind", ["tar", "folder"])
@pytest.mark.parametrize("case", BAD_SIDECARS)
def test_a_bad_sidecar_costs_its_own_picture_only(tmp_path, take_in, case, kind):
    content, reason = BAD_SIDECARS[case]
    members = {
        "a.png": PICTURES[0].read_bytes(),
        "a.txt": b"What?",
        "b.png": PICTURES[1].read_bytes(),
        "b.json": content,
        "c.png": PICTURES[2].read_bytes(),
        "c.txt": b"Which?",
    }
    source = tmp_path / "w"
    if kind == "tar":
        write_tar(source, members)
    else:
        source.mkdir()
        for name, content in members.items():
            (source / name).write_bytes(content)
    out = take_in(source)
    assert {"What?", "Which?"} <= set(out.samples["prompt"])
    assert out.samples["modality"].unique().to_list() == ["image"]
    assert out.rejected["reason"].to_list() == ([reason] if reason else [])


def test_no_record_gets_the_picture_of_another(tmp_path, take_in):
    members = {
        "a.png": PICTURES[0].read_bytes(),
        "a.json": b'{"prompt": "mine", "video": {"cell": 1}}',
        "b.json": b'{"prompt": "his?", "image": {"cell": 0}}',
    }
    out = take_in(write_tar(tmp_path / "w.tar", members))
    assert out.samples["prompt"].to_list() == ["mine"]
    assert out.samples["modality"].to_list() == ["image"]
    assert out.reasons == {"w.tar:b": "wrong_type"}


def test_a_text_that_is_not_utf_8(tmp_path, take_in):
    members = {"a.png": PICTURES[0].read_bytes(), "a.txt": b"\xff\xfe", "b.txt": b"fine"}
    out = take_in(write_tar(tmp_path / "w.tar", members))
    assert out.samples["prompt"].to_list() == ["fine"]
    assert out.rejected["reason"].to_list() == ["broken_record"]


def test_a_picture_without_a_text(tmp_path, take_in):
    picture(tmp_path / "album", "a.png")
    picture(tmp_path / "album", "b.png")
    (tmp_path / "album/b.txt").write_text("What?")
    out = take_in(tmp_path / "album")
    assert out.rejected["reason"].to_list() == ["no_text"]


def test_names_that_are_no_text(tmp_path, take_in):
    album = tmp_path / "album"
    picture(album, "a.png")
    (album / "a.txt").write_text("What?")
    os.link(album / "a.png", os.fsencode(album) + b"/\xff.png")
    out = take_in(album)
    assert out.samples["id"].to_list() == ["album:a.png"]
    assert out.rejected.height == 1


def test_links_in_a_folder_do_not_leave_it(tmp_path, take_in):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    album = tmp_path / "album"
    picture(album, "a.png")
    (album / "a.txt").symlink_to(secret)
    (album / "loop").symlink_to(album)
    picture(album, "b.png")
    (album / "b.txt").write_text("What?")
    out = take_in(album)
    assert out.samples["prompt"].to_list() == ["What?"]
    assert out.rejected.height == 1


ODD_COLUMNS = {
    "dates": pa.array([0], pa.timestamp("us", "UTC")),
    "decimals": pa.array([1], pa.decimal128(10, 2)),
    "maps": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["x"]).dictionary_encode(),
    "lists of lists of bytes": pa.array([[[b"x"]]]),
    "bytes that are a text": pa.array([{"bytes": "x"}]),
    "null": pa.nulls(1),
    "durations": pa.array([5], pa.duration("ms")),
    "fixed bytes": pa.array([b"ab"], pa.binary(2)),
    "bytes": pa.array([b"not a picture"]),
    "struct in list": pa.array([[{"a": b"x", "b": 1}]]),
    "half floats": pa.array([1.5], pa.float16()),
}


@pytest.mark.parametrize("kind", ODD_COLUMNS)
@pytest.mark.parametrize("name", ["extra", "image", "id", "prompt"])
def test_odd_columns_of_parquet_are_no_traceback(tmp_path, take_in, kind, name):
    columns = {"prompt": pa.array(["x"]), name: ODD_COLUMNS[kind]}
    good = {key: pa.nulls(1, values.type) for key, values in columns.items()} | {
        "question": pa.array(["fine"])
    }
    tables = [pa.table({**columns, "question": pa.nulls(1, pa.string())}), pa.table(good)]
    pq.write_table(pa.concat_tables(tables), tmp_path / "t.parquet")
    out = take_in(tmp_path / "t.parquet")
    assert "fine" in out.samples["prompt"].to_list()
    assert out.report["rows_in"] == 2
    if name == "extra":
        assert out.samples.height == 2


def test_a_bad_picture_in_a_cell(tmp_path, take_in):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [b"", bomb(), PICTURES[0].read_bytes()[:300], b"GIF", PICTURES[0].read_bytes()]
    table = {
        "image": pa.array([{"bytes": c, "path": "a.png"} for c in images], kind),
        "question": pa.array([f"{n}?" for n in range(5)]),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    out = take_in(tmp_path / "t.parquet")
    assert out.samples["prompt"].to_list() == ["4?"]
    reasons = ["unreadable_media", "too_many_pixels", "truncated_media", "unreadable_media"]
    assert out.rejected["reason"].to_list() == reasons
