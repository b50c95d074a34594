"""Tables as they come: TSV with pictures, JSON objects, columns of every type of text and bytes."""

import base64
import csv
import gzip
import io
import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from intake import PICTURES, lines, picture, take_in
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.json_object import as_records, read_opening
from mmrlhf_engine.sources.samples.read import read
from mmrlhf_engine.sources.samples.resolve import SourceConfig, resolve

CONTENTS = [file.read_bytes() for file in PICTURES[:4]]
TEXTS = [base64.b64encode(content).decode() for content in CONTENTS]


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


def stored(out):
    """The content of every picture, as it is where `media` says."""
    found = []
    for row in out.media.iter_rows(named=True):
        with open(row["path"], "rb") as file:  # noqa: PTH123
            file.seek(row["offset"])
            found.append(base64.b64decode(file.read(row["length"])))
    return found


def tsv(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def test_a_benchmark_in_tsv(tmp_path, take_in):
    header = ["index", "image", "question", "A", "B", "answer"]
    rows = [
        [241, TEXTS[0], 'Which "one"?\nLook.', "cat", "dog", "A"],
        [1000241, "241", "The same picture?", "yes", "no", "B"],
        [3, str([TEXTS[1], TEXTS[2]]), "Two pictures?", "", "", "C"],
        [4, "a.png", "A name?", "x", "y", "A"],
        [5, "77", "Whose picture?", "x", "y", "A"],
    ]
    picture(tmp_path, "a.png", 3)
    out = take_in(tsv(tmp_path / "mm.tsv", header, *rows))
    assert out.samples["modality"].to_list() == ["image", "image", "multi_image", "image"]
    assert out.samples["media"][0].to_list() == out.samples["media"][1].to_list()
    assert out.rejected["reason"].to_list() == ["missing_media"]
    assert out.media["bytes"].to_list() == [len(content) for content in CONTENTS]
    inline = out.media.filter(out.media["offset"].is_not_null())
    assert stored(take_in(tsv(tmp_path / "m.tsv", header, *rows[:3]))) == CONTENTS[:3]
    assert inline.height == 3
    (batch,) = picture_batches(out.media, 9)
    assert len(batch.rows) == 4


LATER = ["index", "image", "question"]


def test_a_row_may_share_the_picture_of_a_later_row(tmp_path, take_in):
    rows = [
        ["2", "7", "The picture of the last?"],
        ["3", "4", "That of the next?"],
        ["4", TEXTS[1], "Its own?"],
        ["5", "gone.png", "A name?"],
        ["6", "99", "Of no row?"],
        ["7", TEXTS[0], "Its own too?"],
    ]
    out = take_in(tsv(tmp_path / "later.tsv", LATER, *rows))
    media = dict(out.samples.select("source_id", "media").iter_rows())
    assert media == {"2": media["7"], "3": media["4"], "4": media["4"], "7": media["7"]}
    assert media["4"] != media["7"]
    assert out.reasons == {"later.tsv:5": "missing_media", "later.tsv:6": "missing_media"}


@pytest.mark.parametrize("cut", [76, 16])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["plain", "address", "data"])
def test_base64_in_lines(tmp_path, take_in, cut, end, form):
    """As mail and most encoders write it, in a quoted cell, and in a column of Parquet."""
    text = base64.b64encode(CONTENTS[0]).decode()
    if form == "address":
        text = base64.urlsafe_b64encode(CONTENTS[0]).decode()
    text = end.join(text[at : at + cut] for at in range(0, len(text), cut))
    if form == "data":
        text = "data:image/png;base64," + text
    out = take_in(tsv(tmp_path / "x.tsv", ["image", "question"], [text, "What?"], ["", "Why?"]))
    assert out.rejected.is_empty(), out.rejected.rows()
    assert out.samples["modality"].to_list() == ["image", "text"]
    assert out.media["bytes"].to_list() == [len(CONTENTS[0])]
    table = pa.table({"image": [text], "question": ["What?"]})
    pq.write_table(table, tmp_path / "x.parquet")
    of_table = take_in(tmp_path / "x.parquet")
    assert of_table.media["hash"].to_list() == out.media["hash"].to_list()
    (batch,) = picture_batches(out.media, 9)
    assert len(batch.rows) == 1


def test_a_long_picture_in_lines_is_one_value(tmp_path, take_in):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    text = base64.encodebytes(file.getvalue()).decode()
    assert len(text) > 1 << 18
    out = take_in(tsv(tmp_path / "x.tsv", ["image", "question"], [text, "What?"]))
    assert out.media["bytes"].to_list() == [len(file.getvalue())]


UNCLOSED = {
    "at the end": ('q,a\n1?,x\n"2?,x\n3?,x\n4?,x\n', {3}, ["1?", "3?", "4?"]),
    "in the last line": ('q,a\n1?,x\n2?,"x\n', {3}, ["1?"]),
    "before a quoted value": ('q,a\n"1?,x\n2?,x\n"3?",x\n4?,x\n', {2}, ["2?", "3?", "4?"]),
    "before a quoted last value": ('q,a\n"1?,x\n2?,"x"\n3?,x\n', {2}, ["2?", "3?"]),
    "twice": ('q,a\n"1?,x\n"2?,x\n3?,x\n', {2, 3}, ["3?"]),
}


@pytest.mark.parametrize("case", UNCLOSED)
def test_a_quote_that_never_closes_costs_its_line(tmp_path, take_in, case):
    text, bad, prompts = UNCLOSED[case]
    (tmp_path / "x.csv").write_text(text)
    out = take_in(SourceConfig(path=str(tmp_path / "x.csv"), columns={"prompt": "q"}))
    assert out.samples["prompt"].to_list() == prompts
    assert out.reasons == {f"x.csv:{line}": "broken_record" for line in bad}
    assert "a quote opens in this line" in out.rejected["detail"][0]
    assert "write quotes within a value twice" in out.rejected["detail"][0]


def test_an_unclosed_quote_in_the_header_is_one_clear_error(tmp_path, take_in):
    (tmp_path / "x.csv").write_text('question,"answer\n1?,x\n2?,y\n')
    with pytest.raises(InputError, match="line 1, the header: a quote opens in this line"):
        take_in(tmp_path / "x.csv")


@given(st.lists(st.text(st.sampled_from('ab,"\n '), max_size=6), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_rows_that_a_writer_wrote_are_all_read(tmp_path, texts):
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["question", "n"], *([text, "n"] for text in texts)])
    (source,) = resolve([SourceConfig(path=str(tmp_path / "x.csv"))])
    (batch,) = list(read(source))
    assert batch.unreadable.height == 0
    records = [json.loads(record) for record in batch.records.to_pylist()]
    assert [record.get("question", "") for record in records] == texts


def test_a_picture_in_a_compressed_table_is_refused_by_name(tmp_path, take_in):
    plain = tsv(tmp_path / "x.tsv", ["image", "question"], [TEXTS[0], "What?"], ["", "Why?"])
    (tmp_path / "y.tsv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    out = take_in(tmp_path / "y.tsv.gz")
    assert out.samples["prompt"].to_list() == ["Why?"]
    assert "decompress it" in out.rejected["detail"][0]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_ranges_of_pictures_are_where_the_rows_are(tmp_path, rows, end, marked):
    path = tmp_path / "x.tsv"
    with path.open("w", newline="", encoding="utf-8-sig" if marked else "utf-8") as file:
        writer = csv.writer(file, csv.excel_tab, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerow(["question", "image"])
        writer.writerows([["?" + text, TEXTS[number]] for text, number in rows])
    (source,) = resolve([SourceConfig(path=str(path))])
    batches = list(read(source))
    whole, found = path.read_bytes(), []
    for batch in batches:
        assert batch.unreadable.height == 0
        for offset, length in batch.cells.select("offset", "length").iter_rows():
            found.append(whole[offset : offset + length].decode())
    assert found == [TEXTS[number] for _, number in rows]
    records = [json.loads(record) for batch in batches for record in batch.records.to_pylist()]
    assert [record["question"] for record in records] == ["?" + text for text, _ in rows]


@given(
    st.lists(
        st.sampled_from([b'"', b"\n", b"\r", b",", b"\t", b"a", b"\xff", b"\0", b"iVBORw0KGgo"])
    ),
    st.sampled_from(["csv", "tsv"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_no_bytes_of_a_table_are_lost_or_end_the_run(tmp_path, pieces, suffix):
    """What is no blank line is a row or a rejected place; each line belongs to one of these."""
    path = tmp_path / f"x.{suffix}"
    header = (b"\t" if suffix == "tsv" else b",").join([b"index", b"image", b"A"])
    path.write_bytes(header + b"\n" + b"".join(pieces))
    (source,) = resolve([SourceConfig(path=str(path), format="csv")])
    batches = list(read(source))
    bad = [place for batch in batches for place in batch.unreadable["position"]]
    numbers = [place.rpartition(":")[2] for place in bad]
    numbers += [key for batch in batches for key in batch.keys]
    assert len(set(numbers)) == len(numbers)
    assert bool(numbers) == any(piece not in b"\r\n" for piece in pieces)


QUESTIONS = [{"prompt": f"question {n}?", "answer": "yes"} for n in range(3)]
COLUMNS = {"prompt": [row["prompt"] for row in QUESTIONS], "answer": ["yes"] * 3}
OBJECTS = {
    "records by their ids": {
        f"{n}": {"question": row["prompt"]} for n, row in enumerate(QUESTIONS)
    },
    "a list beside other members": {"info": {"data": [1]}, "license": "[{", "questions": QUESTIONS},
    "data": {"data": QUESTIONS},
    "columns": COLUMNS,
    "columns by the number of the row": {
        name: {str(n): value for n, value in enumerate(column)} for name, column in COLUMNS.items()
    },
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("case", OBJECTS)
def test_an_object_that_holds_records(tmp_path, take_in, case, indent):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(OBJECTS[case], indent=indent))
    out = take_in(path)
    assert out.prompts == {f"x:{n}": f"question {n}?" for n in range(3)}
    assert out.rejected.height == 0


@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_object_on_one_line(tmp_path, take_in, indent):
    rows = [{"prompt": f"question {n}?"} for n in range(20_000)]
    for name, content in {
        "a": {"data": rows},
        "b": {"prompt": [r["prompt"] for r in rows]},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content, indent=indent))
    out = take_in(tmp_path / "a.json", tmp_path / "b.json")
    assert out.samples.height == 40_000


def test_one_record_over_several_lines(tmp_path, take_in):
    record = {"id": "r", "conversations": [{"from": "human", "value": "What?"}]}
    (tmp_path / "x.json").write_text(json.dumps(record, indent=2))
    assert take_in(tmp_path / "x.json").prompts == {"x:r": "What?"}


def test_lines_that_are_called_json_are_lines(tmp_path, take_in):
    long = {"prompt": "long " + "x" * 100_000}
    for name, rows in {"a": [{"prompt": "one"}, {"prompt": "two"}], "b": [long, long]}.items():
        lines(tmp_path / f"{name}.json", *rows)
    assert take_in(tmp_path / "a.json").prompts == {"a:1": "one", "a:2": "two"}
    assert take_in(tmp_path / "b.json").samples.height == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            '{"prompt": ["a", "b"], "answer": ["x"]}',
            "columns of different lengths: prompt 2, answer 1",
        ),
        ('{"prompt": ["a", \n}', "not a JSON object"),
    ],
)
def test_an_object_that_is_no_table_is_one_clear_error(tmp_path, take_in, content, what):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=what):
        take_in(tmp_path / "x.json")


def test_records_of_an_object():
    assert as_records({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert as_records({"a": [1, 2], "b": 3}) == [{"a": [1, 2], "b": 3}]
    assert read_opening(b'{"data": [{').record_list == "data"
    assert read_opening(b'{"deep": {"data": [{}]}, "rows": [{').record_list == "rows"
    assert not read_opening(b'{"data": [1], "prompt": "x"}').has_columns
    assert read_opening(b'{"prompt": ["x"').has_columns


STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
DICTIONARY = pa.array(["a.png"]).dictionary_encode()
IMAGES = {
    "large path": pa.array([{"bytes": None, "path": "a.png"}], STRUCT),
    "large bytes": pa.array([{"bytes": CONTENTS[0], "path": "gone.png"}], STRUCT),
    "list of structs": pa.array([[{"bytes": CONTENTS[0], "path": None}]], pa.large_list(STRUCT)),
    "dictionary of paths": DICTIONARY,
    "dictionary in a struct": pa.StructArray.from_arrays(
        [pa.nulls(1, pa.binary()), DICTIONARY], ["bytes", "path"]
    ),
    "dictionary of bytes": pa.array([CONTENTS[0]], pa.binary()).dictionary_encode(),
    "base64": pa.array([TEXTS[0]]),
    "list of base64": pa.array([[TEXTS[0]]], pa.large_list(pa.large_string())),
    "base64 as bytes of a struct": pa.array([{"bytes": TEXTS[0]}]),
    "data address": pa.array([f"data:image/png;base64,{TEXTS[0]}"]),
    "view": pa.array(["a.png"], pa.string_view()),
}


@pytest.mark.parametrize("case", IMAGES)
def test_a_picture_in_a_column_of_any_type(tmp_path, take_in, case):
    picture(tmp_path, "a.png", 0)
    table = pa.table({"question": pa.array(["What?"], pa.large_string()), "image": IMAGES[case]})
    pq.write_table(table, tmp_path / "t.parquet")
    out = take_in(tmp_path / "t.parquet")
    assert out.samples["modality"].to_list() == ["image"]
    assert out.media["bytes"].to_list() == [len(CONTENTS[0])]
    (batch,) = picture_batches(out.media, 9)
    assert batch.inline[0].as_py() in (None, CONTENTS[0])


def test_names_beside_base64_in_one_column(tmp_path, take_in):
    picture(tmp_path, "a.png", 1)
    images = pa.array([TEXTS[0], "a.png", None, "gone.png"])
    table = pa.table({"question": ["1?", "2?", "3?", "4?"], "image": images})
    pq.write_table(table, tmp_path / "t.parquet")
    out = take_in(tmp_path / "t.parquet")
    assert out.samples["modality"].to_list() == ["image", "image", "text"]
    assert out.rejected["reason"].to_list() == ["missing_media"]
