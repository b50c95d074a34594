"""Every format people keep raw samples in becomes the same two tables, whatever the order."""

import gzip
import json
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intake import PICTURES, conversation, digest, lines, picture, take_in, write_tar
from mmrlhf_engine._core import read_records
from mmrlhf_engine.curate import ingest
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


def test_llava_conversations_become_single_turns(tmp_path, take_in):
    name = picture(tmp_path, "images/a.png")
    talk = conversation(("<image>\nWhat is it?", "A circle."), ("Which colour?", "Red."))
    system = {"from": "system", "value": "Be brief."}
    file = lines(
        tmp_path / "talk.jsonl", {"id": 7, "image": name, "conversations": [system, *talk]}
    )
    out = take_in(file)
    assert out.prompts == {"talk:7#1": "What is it?", "talk:7#2": "Which colour?"}
    assert out.samples["answer"].to_list() == ["A circle.", "Red."]
    assert out.samples["source_id"].to_list() == ["7", "7"]
    assert out.samples["modality"].unique().to_list() == ["image"]
    assert out.samples["media"].to_list() == [[out.media["hash"][0]]] * 2


def test_media_are_known_by_content_and_probed(tmp_path, take_in):
    first, same = picture(tmp_path, "b.png"), picture(tmp_path, "a.png")
    other = picture(tmp_path, "c.png", 1)
    file = lines(
        tmp_path / "x.jsonl",
        {"id": "1", "image": first, "prompt": "one"},
        {"id": "2", "image": [same, other], "prompt": "two"},
        {"id": "3", "prompt": "three"},
    )
    out = take_in(file)
    assert out.media["hash"].str.contains("^[0-9a-f]{32}$").all()
    assert out.media.select("kind", "format", "width", "height", "frames", "bytes").rows() == [
        ("image", "png", 64, 64, 1, len(PICTURES[n].read_bytes())) for n in (0, 1)
    ]
    assert out.media["path"].to_list() == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]
    assert out.samples["modality"].to_list() == ["image", "multi_image", "text"]


def test_a_json_array_and_chat_messages(tmp_path, take_in):
    name = picture(tmp_path, "a.png")
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A circle."}]
    records = [{"images": [name], "messages": chat}, {"question": "Why?", "answer": "Because."}]
    file = tmp_path / "all.json"
    file.write_text("\ufeff" + json.dumps(records, indent=2), encoding="utf-8")
    out = take_in(file)
    assert out.prompts == {"all:0": "What is it?", "all:1": "Why?"}
    assert out.samples["modality"].to_list() == ["image", "text"]


def test_pictures_named_inside_messages(tmp_path, take_in):
    one, two = picture(tmp_path, "a.png"), picture(tmp_path, "b.png", 1)
    parts = [
        {"type": "image", "image": one},
        {"type": "image_url", "image_url": {"url": two}},
        {"type": "text", "text": "Compare."},
    ]
    file = lines(tmp_path / "x.jsonl", {"messages": [{"role": "user", "content": parts}]})
    out = take_in(file)
    assert out.samples["modality"].to_list() == ["multi_image"]
    assert out.prompts == {"x:1": "Compare."}


def test_the_files_of_mm_rlhf(tmp_path, take_in):
    name = picture(tmp_path, "short/a.png")
    frames = [picture(tmp_path, f"video/v1/{n}.png", n) for n in range(3)]
    data = lines(
        tmp_path / "data.jsonl",
        {"id": "q1", "image": name, "question": "What?", "models_output": ["x", "y"]},
        {"id": "q2", "video": "video/v1", "question": "What happens?", "answer": "Nothing."},
    )
    pair = {"id": "q1", "image": name, "prompt": "What?", "chosen": "good", "rejected": "bad"}
    pairs = lines(tmp_path / "dpo_pairs.jsonl", pair, {**pair, "rejected": "worse"})
    out = take_in(data, pairs)
    assert out.samples["id"].to_list() == ["data:q1", "data:q2", "dpo_pairs:q1@1", "dpo_pairs:q1@2"]
    assert out.samples["answer"].to_list() == [None, "Nothing.", "good", "good"]
    video = out.media.filter(kind="frames").row(0, named=True)
    assert video["frames"] == len(frames)
    assert video["path"] == str(tmp_path / "video/v1")
    assert out.samples["modality"].to_list() == ["image", "video", "image", "image"]


def test_parquet_with_pictures_in_its_cells(tmp_path, take_in):
    contents = [file.read_bytes() for file in PICTURES[:4]]
    picture(tmp_path, "named.png", 4)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {
        "id": pa.array(["a", "b", "c", None]),
        "image": pa.array(
            [
                {"bytes": contents[0], "path": "a.png"},
                {"bytes": None, "path": "named.png"},
                None,
                {"bytes": contents[1], "path": None},
            ],
            kind,
        ),
        "question": pa.array(["one", "two", "three", "four"]),
        "answer": pa.array([1, 2, 3, 4]),
        "score": pa.array([0.5, float("nan"), None, float("inf")]),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=2)
    out = take_in(tmp_path / "t.parquet")
    assert out.samples["id"].to_list() == ["t:a", "t:b", "t:c", "t:3"]
    assert out.samples["modality"].to_list() == ["image", "image", "text", "image"]
    assert out.samples["answer"].to_list() == ["1", "2", "3", "4"]
    cells = out.media.filter(pl.col("column").is_not_null())
    assert cells.select("column", "row", "item").rows() == [("image", 0, None), ("image", 3, None)]
    assert cells["path"].unique().to_list() == [str(tmp_path / "t.parquet")]


def test_parquet_with_lists_of_pictures_and_conversations(tmp_path, take_in):
    contents = [file.read_bytes() for file in PICTURES[:3]]
    talk = conversation(("<image><image>Compare.", "Both red."), ("Sure?", "Yes."))
    table = {
        "images": pa.array([contents[:2], [], [contents[2]]], pa.list_(pa.large_binary())),
        "conversations": pa.array([talk, conversation(("Why?", "So.")), talk[2:]]),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    out = take_in(tmp_path / "t.parquet")
    assert out.samples["id"].to_list() == ["t:0#1", "t:0#2", "t:1", "t:2"]
    kinds = ["multi_image", "multi_image", "text", "image"]
    assert out.samples["modality"].to_list() == kinds
    assert out.media["item"].to_list() == [0, 1, 0]


def test_webdataset_members_are_found_at_their_bytes(tmp_path, take_in):
    contents = [file.read_bytes() for file in PICTURES[:3]]
    members = {
        "shard/000.png": contents[0],
        "shard/000.json": json.dumps({"question": "What?", "image": "gone.png"}).encode(),
        "shard/001.txt": b"A red circle.",
        "shard/001.left.png": contents[1],
        "shard/001.right.png": contents[2],
        f"{'deep/' * 40}002.png": contents[0],
        f"{'deep/' * 40}002.json": b'{"id": "far", "prompt": "Where?"}',
    }
    out = take_in(write_tar(tmp_path / "w.tar", members))
    assert out.samples["id"].to_list() == ["w:shard/000", "w:shard/001", "w:far"]
    assert out.samples["prompt"].to_list() == ["What?", "A red circle.", "Where?"]
    assert out.samples["modality"].to_list() == ["image", "multi_image", "image"]
    whole = (tmp_path / "w.tar").read_bytes()
    for row, content in zip(out.media.iter_rows(named=True), contents, strict=True):
        assert whole[row["offset"] : row["offset"] + row["length"]] == content


def test_two_tars_in_one_file_are_both_read(tmp_path, take_in):
    content = PICTURES[0].read_bytes()
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": content, f"{name}.txt": b"What?"})
    both = tmp_path / "both.tar"
    both.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    assert take_in(both).samples["id"].to_list() == ["both:a", "both:b"]


def test_a_folder_with_a_text_beside_each_picture(tmp_path, take_in):
    album = tmp_path / "album"
    for number, name in enumerate(("1.png", "sub/2.png", "sub/3.PNG")):
        picture(album, name, number)
    (album / "1.txt").write_text("What is it?")
    (album / "sub/2.json").write_text('{"question": "Which colour?", "answer": "red"}')
    (album / "sub/3.txt").write_text("Which shape?")
    (album / "notes.md").write_text("not a picture")
    out = take_in(album)
    assert out.samples["id"].to_list() == ["album:1.png", "album:sub/2.png", "album:sub/3.PNG"]
    assert out.samples["prompt"].to_list() == ["What is it?", "Which colour?", "Which shape?"]


@pytest.mark.parametrize("index", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_folder_with_an_index(tmp_path, take_in, index):
    album = tmp_path / "album"
    rows = [{"file_name": picture(album, f"{n}.png", n), "question": f"{n}?"} for n in range(3)]
    if index.endswith("jsonl"):
        lines(album / index, *rows)
    elif index.endswith("csv"):
        pl.DataFrame(rows).write_csv(album / index)
    else:
        pl.DataFrame(rows).write_parquet(album / index)
    out = take_in(album)
    assert out.samples["prompt"].to_list() == ["0?", "1?", "2?"]
    assert out.media.height == 3


def test_other_names_are_found_through_the_column_map(tmp_path, take_in):
    name = picture(tmp_path / "root", "a.png")
    rows = [{"key": "k1", "q": 'He said "x"\nand y', "a": "1", "img": name}]
    columns = {"id": "key", "prompt": "q", "answer": "a", "image": "img"}
    pl.DataFrame(rows).write_csv(tmp_path / "c.csv")
    pl.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
    lines(tmp_path / "l.jsonl", *rows)
    names = ("c.csv", "p.parquet", "l.jsonl")
    root = str(tmp_path / "root")
    out = take_in(
        *(
            SourceConfig(path=str(tmp_path / n), columns=columns, root=root, tags=["t"])
            for n in names
        )
    )
    assert out.samples["id"].to_list() == ["c:k1", "l:k1", "p:k1"]
    assert out.samples["prompt"].unique().to_list() == ['He said "x"\nand y']
    assert out.samples["tags"].to_list() == [["t"]] * 3
    assert out.media.height == 1


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_compressed_text(tmp_path, take_in, compression):
    text = "".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(5000)).encode()
    files = {"a.jsonl": text, "b.json": b'[{"prompt": "x"}]', "c.csv": b"question\nwhy?\n"}
    for name, content in files.items():
        with pa.output_stream(
            tmp_path / f"{name}.{compression}",
            compression={"gz": "gzip", "zst": "zstd"}[compression],
        ) as stream:
            stream.write(content)
    out = take_in(*sorted(tmp_path.glob(f"*.{compression}")))
    assert out.samples.height == 5002
    assert set(out.samples["source"]) == {"a", "b", "c"}


def test_gzip_members_one_after_another(tmp_path, take_in):
    part = b'{"prompt": "x"}\n'
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(part) + gzip.compress(part))
    assert take_in(tmp_path / "x.jsonl.gz").samples.height == 2


@pytest.mark.parametrize(
    ("prompt", "answer", "kind"),
    [
        ("Which?\nA. cat\nB. dog", "A", "mcq"),
        ("Which? (A) cat (B) dog", None, "mcq"),
        ("A) 1\nB) 2", "x" * 500, "mcq"),
        ("Was B. Obama older than A. Lincoln?", "No.", "short"),
        ("Describe.", "x" * 129, "long"),
        ("Describe.", "é" * 128, "short"),
        ("Describe.", None, "short"),
    ],
)
def test_question_types(tmp_path, take_in, prompt, answer, kind):
    out = take_in(lines(tmp_path / "x.jsonl", {"prompt": prompt, "answer": answer}))
    assert out.samples["question_type"].to_list() == [kind]


def test_names_of_sources(tmp_path, take_in):
    one = lines(tmp_path / "shapes.jsonl", {"prompt": "x"})
    pl.DataFrame({"prompt": ["y"]}).write_parquet(tmp_path / "shapes.parquet")
    braces = lines(tmp_path / "odd{}name.jsonl", {"prompt": "z"})
    out = take_in(one, tmp_path / "shapes.parquet", braces)
    assert out.samples["id"].to_list() == [
        "odd{}name:1",
        "shapes.jsonl:1",
        "shapes.parquet:0",
    ]


def test_a_link_to_a_source_is_named_and_rooted_where_it_lies(tmp_path, take_in):
    (tmp_path / "blobs").mkdir()
    real = lines(tmp_path / "blobs/3f2a", {"image": "a.png", "prompt": "x"})
    picture(tmp_path / "snapshot", "a.png")
    (tmp_path / "snapshot/train.jsonl").symlink_to(real)
    out = take_in(tmp_path / "snapshot/train.jsonl")
    assert out.samples["id"].to_list() == ["train:1"]
    assert out.media.height == 1


def test_order_and_threads_change_nothing(tmp_path, take_in):
    folder = tmp_path / "in"
    names = [picture(folder, f"{n}.png", n) for n in range(4)]
    one = lines(
        folder / "one.jsonl",
        *({"id": n, "image": name, "prompt": "a?"} for n, name in enumerate(names)),
        {"id": 0, "prompt": "again"},
        "broken",
    )
    two = lines(folder / "two.jsonl", *({"image": n, "prompt": "b?"} for n in names[::-1]))
    first = take_in(one, two, threads=1)
    expected = digest(first.folder)
    again = take_in(two, one, threads=2)
    assert digest(again.folder) == expected
    assert first.report["sources"] == again.report["sources"]
    settings = [
        IngestConfig(sources=[SourceConfig(path=str(p)) for p in order])
        for order in ((one, two), (two, one))
    ]
    assert ingest.external(settings[0]) == ingest.external(settings[1])
    assert settings[0].model_dump(mode="json") == settings[1].model_dump(mode="json")


def test_what_lies_outside_the_run_is_noticed(tmp_path):
    file = lines(tmp_path / "x.jsonl", {"prompt": "x"})
    config = IngestConfig(sources=[SourceConfig(path=str(file))])
    before = ingest.external(config)
    json.dumps(before)
    assert ingest.describe(config) == {"files": 1, "bytes": file.stat().st_size}
    lines(file, {"prompt": "other"})
    assert ingest.external(config) != before


def split_turns(messages):
    """The rule in plain words: a user's message opens a turn, what is said next answers it."""
    turns = []
    for who, text in messages:
        if who == "human":
            turns.append([text, None])
        elif who == "gpt" and turns:
            said = turns[-1][1]
            turns[-1][1] = text if said is None else f"{said}\n{text}"
    strip = [
        (q.replace("<image>", "").replace("<video>", "").strip(), (a or "").strip() or None)
        for q, a in turns
    ]
    return strip or [("", None)]


TEXTS = st.sampled_from(["", " ", "<image>", "Why?", "<image>\nWhat?", "Ja. ", "é", "a<video>b"])


@given(st.lists(st.tuples(st.sampled_from(["human", "gpt", "system"]), TEXTS), max_size=8))
@settings(max_examples=200)
def test_turns_are_split_as_the_naive_twin_does(messages):
    record = {"conversations": [{"from": who, "value": text} for who, text in messages]}
    asked = "".join(text for who, text in messages if who == "human")
    for kind in ("image", "video"):
        record[kind] = [f"{kind}.png"] * asked.count(f"<{kind}>")
    turns, _, _ = core_read([json.dumps(record).encode()])
    expected = split_turns(messages)
    assert turns.height == len(expected)
    for row, (prompt, answer) in zip(turns.iter_rows(named=True), expected, strict=True):
        if prompt:
            assert (row["prompt"], row["answer"], row["reason"]) == (prompt, answer, None)
        else:
            assert row["reason"] in ("empty_prompt", "no_text")


NAMES = st.sampled_from(
    [
        *("id", "image", "images", "video", "conversations", "messages", "prompt", "question"),
        *("text", "answer", "chosen", "rejected", "from", "value", "role", "content", "path"),
        *("cell", "bytes", "choices", "options", "A", "B", "input", "context", "hint", "history"),
        *("system", "texts", "questions", "user", "assistant", "rejected", "image_1", "image_url"),
        *("img", "type", "tool_calls", "answers", "label", "url"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["<image>", "<img>a.png</img>", "a.png", "['a', 'b']", "user", "A. x B. y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(VALUES.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=20), max_size=6))
@settings(max_examples=300)
def test_no_record_is_lost_and_none_breaks_the_mapper(records):
    turns, references, _ = core_read(records)
    assert sorted(set(turns["record"])) == list(range(len(records)))
    sound = turns.filter(pl.col("reason").is_null())
    assert sound["prompt"].null_count() == 0
    assert set(references["record"]) <= set(range(len(records)))


def core_read(records):
    tables = read_records(pa.array(records, pa.large_binary()), {}, 1)
    return tuple(
        pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(table))) for table in tables
    )
