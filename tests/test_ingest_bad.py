"""Each way raw data can be bad is one named row, and costs no good row beside it."""

import contextlib
import gzip
import os
from functools import partial

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intake import DEEP, PICTURES, bomb, conversation, lines, picture, take_in, write_tar
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.errors import ConfigError, InputError, MmrlhfError

GOOD = {"id": "good", "prompt": "What is it?"}


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


BAD_LINES = {
    "cut short": ('{"prompt": "wh', "broken_record"),
    "not JSON": ("hello", "broken_record"),
    "invalid UTF-8": (b'{"prompt": "\xff"}', "broken_record"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16-le").replace(b"\n", b""), "broken_record"),
    "half a surrogate pair": ('{"prompt": "\\ud800"}', "broken_record"),
    "NUL bytes": (b"\0" * 100, "broken_record"),
    "nested deeply": (DEEP, "broken_record"),
    "two records on a line": ('{"prompt": "a"} {"prompt": "b"}', "broken_record"),
    "a number": ("17", "wrong_type"),
    "a list": ("[1, 2, 3]", "wrong_type"),
    "prompt is a list": ({"prompt": ["x"]}, "wrong_type"),
    "id is a list": ({"id": [1], "prompt": "x"}, "wrong_type"),
    "image is a number": ({"image": 3, "prompt": "x"}, "wrong_type"),
    "image points to a cell": ({"image": {"cell": 0}, "prompt": "x"}, "wrong_type"),
    "conversations is a text": ({"conversations": "hi"}, "wrong_type"),
    "a message is a text": ({"conversations": ["hi"]}, "wrong_type"),
    "unknown speaker": ({"conversations": [{"from": "cat", "value": "x"}]}, "unknown_role"),
    "no speaker": ({"messages": [{"who": "cat", "said": "x"}]}, "wrong_type"),
    "no text at all": ({"id": "x", "score": 1}, "no_text"),
    "empty object": ("{}", "no_text"),
    "empty prompt": ({"prompt": "  "}, "empty_prompt"),
    "only white space": ({"conversations": conversation(("\n", "x"))}, "empty_prompt"),
    "no question": ({"conversations": []}, "empty_prompt"),
    "a mark without a picture": ({"prompt": "<image>\nWhat?"}, "marks_and_media_differ"),
    "options of lists": ({"prompt": "x", "options": [["a"], ["b"]]}, "wrong_type"),
    "input is an object": ({"instruction": "x", "input": {"a": "b"}}, "wrong_type"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_and_costs_nothing_else(tmp_path, take_in, case):
    line, reason = BAD_LINES[case]
    out = take_in(lines(tmp_path / "x.jsonl", GOOD, line, "", {"prompt": "after"}))
    assert out.prompts == {"x:good": "What is it?", "x:4": "after"}
    assert out.reasons == {"x.jsonl:2": reason}
    detail = out.rejected["detail"][0]
    assert 0 < len(detail) < 400, detail


BAD_MEDIA = {
    "absent": ("gone.png", "missing_media"),
    "an address": ("https://example.com/a.png", "missing_media"),
    "NUL in the name": ("a\0.png", "missing_media"),
    "a name of a megabyte": ("a" * 2**20, "missing_media"),
    "empty folder": ("empty", "missing_media"),
    "cut short": ("short.png", "truncated_media"),
    "empty file": ("empty.png", "unreadable_media"),
    "a web page": ("page.png", "unreadable_media"),
    "a HEIF picture": ("heif.png", "truncated_media"),
    "a pipe": ("pipe.png", "unreadable_media"),
    "too many pixels": ("bomb.png", "too_many_pixels"),
    "up and away": ("../../../../etc/hostname", "outside_root"),
    "up to what is not there": ("../gone.png", "outside_root"),
    "absolute": ("/etc/hostname", "outside_root"),
    "link that leaves": ("link.png", "outside_root"),
    "folder with a frame that leaves": ("frames", "outside_root"),
}


def bad_media(folder):
    """A folder with one file for each of BAD_MEDIA, and a good picture."""
    whole = PICTURES[0].read_bytes()
    picture(folder, "good.png")
    for name in ("empty", "frames"):
        (folder / name).mkdir()
    for name, content in {
        "short.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "page.png": b"<html>404 Not Found</html>",
        "heif.png": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "bomb.png": bomb(),
    }.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    outside = folder.parent / "outside.png"
    outside.write_bytes(whole)
    for link in ("link.png", "frames/1.png"):
        (folder / link).symlink_to(outside)


@pytest.mark.parametrize("case", BAD_MEDIA)
def test_bad_media_are_named_and_cost_their_record_only(tmp_path, take_in, case):
    name, reason = BAD_MEDIA[case]
    folder = tmp_path / "deep" / "in"
    folder.mkdir(parents=True)
    bad_media(folder)
    talk = conversation(("one?", "1"), ("two?", "2"))
    out = take_in(
        lines(
            folder / "x.jsonl",
            {"id": "a", "image": "good.png", "prompt": "before"},
            {"id": "b", "image": ["good.png", name], "conversations": talk},
            {"id": "c", "image": "./empty/../good.png", "prompt": "after"},
        )
    )
    assert out.prompts == {"x:a": "before", "x:c": "after"}
    assert out.reasons == {"x.jsonl:2": reason}
    assert len(out.rejected["detail"][0]) < 400
    assert out.media.height == 1


def test_one_bad_turn_costs_only_itself(tmp_path, take_in):
    talk = conversation(("one?", "1"), (" ", "2"), ("three?", "3"))
    out = take_in(lines(tmp_path / "x.jsonl", {"id": "a", "conversations": talk}))
    assert out.prompts == {"x:a#1": "one?", "x:a#3": "three?"}
    assert out.reasons == {"x.jsonl:1#2": "empty_prompt"}


def test_only_a_good_record_uses_up_its_id(tmp_path, take_in):
    bad = {"id": "a", "image": "gone.png", "prompt": "x"}
    out = take_in(lines(tmp_path / "x.jsonl", bad, {"id": "a", "prompt": "y"}))
    assert out.prompts == {"x:a": "y"}


@pytest.mark.parametrize("turned", [False, True])
def test_an_id_that_looks_like_a_turn_costs_no_other_row(tmp_path, take_in, turned):
    records = [
        {"id": "a#1", "prompt": "mine"},
        {"id": "a", "conversations": conversation(("one?", "1"), ("two?", "2"))},
    ]
    out = take_in(lines(tmp_path / "x.jsonl", *(records[::-1] if turned else records)))
    expected = {"x:a#1": "one?", "x:a#2": "two?", "x:a#1#2": "mine"}
    if not turned:
        expected = {"x:a#1": "mine", "x:a#2#1": "one?", "x:a#2#2": "two?"}
    assert out.prompts == expected
    assert out.rejected.is_empty()


def test_a_first_line_that_looks_like_an_array_hides_nothing(tmp_path, take_in):
    out = take_in(lines(tmp_path / "x.jsonl", "[1, 2, 3]", GOOD))
    assert out.samples.height == 1
    assert out.reasons == {"x.jsonl:1": "wrong_type"}


def test_what_follows_an_array_is_named(tmp_path, take_in):
    (tmp_path / "x.json").write_text('[{"prompt": "a"}]\n[{"prompt": "b"}]')
    out = take_in(tmp_path / "x.json")
    assert out.samples["prompt"].to_list() == ["a"]
    assert out.reasons == {"x.json:1": "broken_record"}


def test_an_array_cut_short_keeps_what_is_whole(tmp_path, take_in):
    (tmp_path / "x.json").write_text('[{"prompt": "a"}, {"prompt": "b"}, {"pro')
    out = take_in(tmp_path / "x.json")
    assert out.samples["prompt"].to_list() == ["a", "b"]
    assert out.reasons == {"x.json:2": "broken_record"}


def test_byte_order_marks_line_ends_and_blank_lines(tmp_path, take_in):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n\r\n \n{"prompt": "b"}')
    assert take_in(tmp_path / "x.jsonl").prompts == {"x:2": "a", "x:5": "b"}


def test_a_line_of_many_megabytes(tmp_path, take_in):
    long = {"prompt": "x" * 100_000_000}
    out = take_in(lines(tmp_path / "x.jsonl", GOOD, long, "y" * 50_000_000, {"prompt": "z"}))
    assert out.samples["prompt"].str.len_bytes().to_list() == [11, 100_000_000, 1]
    assert out.reasons == {"x.jsonl:3": "broken_record"}


WHOLE_FILES = {
    "absent": None,
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n  \n",
    "noise.bin": bytes(range(256)) * 8,
    "damaged.parquet": b"PAR1" + b"x" * 100 + b"PAR1",
    "array.json": b"[]",
    "header.csv": b"id,question\n",
    "text.gz": gzip.compress(b"hello"),
    "broken.jsonl.gz": b"\x1f\x8b" + b"x" * 50,
    "broken.jsonl.zst": b"\x28\xb5\x2f\xfd" + b"x" * 50,
    "packed.tar.gz": "tar",
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_source_without_a_record_is_one_clear_error(tmp_path, take_in, name):
    content = WHOLE_FILES[name]
    if content == "tar":
        content = gzip.compress(write_tar(tmp_path / "t", {"a.txt": b"What?"}).read_bytes())
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        take_in(tmp_path / name)
    assert name in str(raised.value)


def test_an_empty_source_beside_a_good_one_is_one_clear_error(tmp_path, take_in):
    good = lines(tmp_path / "good.jsonl", GOOD)
    (tmp_path / "blank.jsonl").write_bytes(b"\n")
    with pytest.raises(InputError, match=r"blank\.jsonl"):
        take_in(good, tmp_path / "blank.jsonl")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="nothing"):
        take_in(good, tmp_path / "nothing")


def test_no_source_and_sources_of_one_name(tmp_path, take_in):
    with pytest.raises(InputError, match="no source"):
        take_in()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder / "x.jsonl", GOOD)
    both = [tmp_path / folder / "x.jsonl" for folder in ("a", "b")]
    assert take_in(*both).samples["id"].to_list() == ["a/x:good", "b/x:good"]
    with pytest.raises(ConfigError, match="two sources are named 'x'"):
        take_in(*(SourceConfig(path=str(p), name="x") for p in both))
    with pytest.raises(ConfigError, match="given twice"):
        take_in(both[0], both[0])
    out = take_in(*(SourceConfig(path=str(p), name=p.parent.name) for p in both))
    assert out.samples["id"].to_list() == ["a:good", "b:good"]


def test_a_rotten_run_stops_early(tmp_path, take_in):
    rotten = lines(tmp_path / "x.jsonl", *(["broken"] * 50 + [{"prompt": "x"}] * 150) * 1000)
    with pytest.raises(InputError, match="broken_record") as raised:
        take_in(rotten, max_bad="5%")
    assert "of 8,192 rows" in str(raised.value)
    assert "hint" in str(raised.value)
    assert take_in(rotten, max_bad="30%").rejected.height == 50_000
    few = lines(tmp_path / "few.jsonl", "broken", *[{"prompt": "x"}] * 9)
    with pytest.raises(InputError, match=r"1 of 10 rows"):
        take_in(few, max_bad="5%")
    assert take_in(few, max_bad="10%").samples.height == 9


@pytest.mark.parametrize("share", ["five", "150%", "-1%", "nan"])
def test_a_share_that_is_none(share):
    with pytest.raises(MmrlhfError):
        IngestConfig(max_bad=share)


@given(
    content=st.binary(max_size=300), head=st.sampled_from([b"", b"[", b"{", b'{"prompt":"x"}\n'])
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_cause_a_traceback(tmp_path, stage, content, head):
    file = tmp_path / "x.jsonl"
    file.write_bytes(head + content)
    with contextlib.suppress(MmrlhfError):
        out = take_in(stage, file)
        assert out.samples.height > 0


def test_what_the_demo_plants_is_found(tmp_path, take_in):
    from mmrlhf_engine.demo import corpus

    made = corpus.build(tmp_path)
    out = take_in(*(tmp_path / name for name in corpus.SOURCES))
    found = set(out.rejected.select("source", "position", "reason").iter_rows())
    planted = {(p.source, p.position, p.expected) for p in made.planted}
    bad = {row for row in planted if row[2] not in ("exact", "near")}
    assert bad
    assert found == bad
    ids = set(out.samples.select("source", "source_id").iter_rows())
    assert {row[:2] for row in planted - bad} <= ids
    assert pl.Series(out.report["sources"].values()).struct.field("samples").sum() > 4000
