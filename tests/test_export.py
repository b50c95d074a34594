"""Exports to Parquet tables, TRL's columns and WebDataset: what they hold, and what they refuse."""

import io
import json
import tarfile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from load_data import struct
from mmrlhf_engine import open_dataset, run_pack
from mmrlhf_engine._core import DatasetWriter
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.families.placeholders import IMAGE, PLACEHOLDER_IDS
from mmrlhf_engine.shards import export_trl
from mmrlhf_engine.shards.dataset import add_column
from mmrlhf_engine.shards.export import export
from mmrlhf_engine.shards.tokenizer import TokenDecoder
from pack_data import picture, put, tokenizer_folder, words, write_lines

SENTINEL = PLACEHOLDER_IDS[IMAGE]

IDS, BLOBS = pa.large_list(pa.uint32()), pa.large_list(pa.uint64())
TYPES = (
    {"prompt": IDS, "media": BLOBS, "weight": pa.float32()},
    {"q": pa.uint32(), "tokens": IDS, "media": BLOBS},
    {"chosen": pa.uint32(), "rejected": pa.uint32(), "margin": pa.float32()},
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed=seed) for seed in range(3)]


def write(path, pictures, queries, responses, pairs, identity=None):
    """A dataset; ``media`` of the rows are numbers of pictures."""
    writer = DatasetWriter(path, tokenizer=json.dumps(identity or {"name": "t"}), threads=1)
    stored = pa.array(writer.add_media(bytes=pa.array(pictures, pa.large_binary())))
    blobs = stored.field("id").to_pylist()
    for row in (*queries, *responses):
        row["media"] = [blobs[number] for number in row.get("media", [])]
    tables = zip((queries, responses, pairs), TYPES, strict=True)
    writer.append(*(struct(rows, **types) for rows, types in tables))
    writer.commit()
    return path


@pytest.fixture
def shards(tmp_path, pictures):
    """A query whose responses have pictures: none, a second one, and another in place of its own;
    and a query without pictures."""
    return write(
        tmp_path / "ds",
        pictures,
        [{"prompt": [SENTINEL, 40, 41], "media": [0]}, {"prompt": [42]}],
        [
            {"q": 0, "tokens": [50]},
            {"q": 0, "tokens": [51, SENTINEL], "media": [1]},
            {"q": 0, "tokens": [52], "media": [2]},
            {"q": 1, "tokens": [53]},
            {"q": 1, "tokens": [54]},
        ],
        [
            {"chosen": 0, "rejected": 1, "margin": 0.5},
            {"chosen": 0, "rejected": 2},
            {"chosen": 3, "rejected": 4, "margin": 2.0},
        ],
    )


@pytest.fixture
def bare(tmp_path):
    """A dataset without any picture."""
    return write(
        tmp_path / "bare",
        [],
        [{"prompt": [40]}],
        [{"q": 0, "tokens": [50]}, {"q": 0, "tokens": [51]}],
        [{"chosen": 0, "rejected": 1}],
    )


def packed(tmp_path, tokenizer, **settings):
    """A dataset that pack made: two prompts with one picture and with two, one without."""
    for number in range(3):
        put(tmp_path / f"{number}.png", picture(seed=number))
    rows = [
        {
            "images": [f"{number}.png" for number in range(count)],
            "prompt": "<image>" * count + f"{words(count)}?",
            "chosen": words(10 + count),
            "rejected": words(20 + count),
        }
        for count in (1, 2, 0)
    ]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    run_pack(source, tmp_path / "packed", {"tokenizer": str(tokenizer), **settings})
    return tmp_path / "packed"


def contents(images):
    return None if images is None else [image["bytes"] for image in images]


def test_trl_has_the_pictures_of_prompts_and_of_responses(shards, pictures, tokenizer, tmp_path):
    out = tmp_path / "new" / "trl.parquet"
    assert export(shards, out, to="trl", tokenizer=str(tokenizer)) == [out]
    rows = pq.read_table(out).to_pylist()
    assert [contents(row["images"]) for row in rows] == [[pictures[0]], [pictures[0]], []]
    assert [contents(row["chosen_images"]) for row in rows] == [None, None, None]
    rejected = [contents(row["rejected_images"]) for row in rows]
    assert rejected == [[pictures[0], pictures[1]], [pictures[2]], None]
    assert [row["margin"] for row in rows] == [0.5, None, 2.0]
    assert [row["weight"] for row in rows] == [1.0, 1.0, 1.0]


def test_trl_without_pictures_has_no_column_of_them(bare, tokenizer, tmp_path):
    export(bare, tmp_path / "trl.parquet", to="trl", tokenizer=str(tokenizer))
    table = pq.read_table(tmp_path / "trl.parquet")
    assert table.column_names == ["prompt", "chosen", "rejected", "margin", "weight"]
    assert table.num_rows == 1


def test_trl_says_that_the_pictures_are_images(shards, tokenizer, tmp_path):
    export(shards, tmp_path / "trl.parquet", to="trl", tokenizer=str(tokenizer))
    schema = pq.read_schema(tmp_path / "trl.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(schema.names)
    assert features["images"]["feature"] == {"_type": "Image"}
    assert schema.field("images").type == pa.list_(
        pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )


def test_text_is_what_pack_tokenized(tokenizer, tmp_path):
    """Packed and exported, the text gives the token ids again, an image token for each image."""
    dataset = packed(tmp_path, tokenizer, image_rule="qwen2_vl")
    options = {"tokenizer": str(tokenizer), "image_token": "<|image_pad|>"}
    export(dataset, tmp_path / "trl.parquet", to="trl", **options)
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tokenizer)
    image = fast.convert_tokens_to_ids("<|image_pad|>")
    opened = open_dataset(dataset)
    queries, responses = opened.queries.collect(), opened.responses.collect()
    exported = pl.read_parquet(tmp_path / "trl.parquet")
    for row, pair in zip(exported.to_dicts(), opened.pairs.collect().to_dicts(), strict=True):
        stored = {
            "prompt": queries["prompt"][pair["q"]],
            "chosen": responses["tokens"][pair["chosen"]],
            "rejected": responses["tokens"][pair["rejected"]],
        }
        for name, ids in stored.items():
            ids = np.where(ids.to_numpy() == SENTINEL, image, ids.to_numpy()).tolist()
            assert fast(row[name], add_special_tokens=False)["input_ids"] == ids
        assert row["prompt"].count("<|image_pad|>") == len(row["images"])
        assert row["chosen"].endswith("<|im_end|>\n")


def test_a_long_export_is_cut_into_row_groups(shards, tokenizer, tmp_path, monkeypatch):
    whole = tmp_path / "whole.parquet"
    export(shards, whole, to="trl", tokenizer=str(tokenizer))
    monkeypatch.setattr(export_trl, "_BYTES_PER_GROUP", 1)
    export(shards, tmp_path / "cut.parquet", to="trl", tokenizer=str(tokenizer))
    counts = [pq.ParquetFile(file).num_row_groups for file in (whole, tmp_path / "cut.parquet")]
    assert counts == [1, 3]
    assert pq.read_table(whole).equals(pq.read_table(tmp_path / "cut.parquet"))


def test_the_recorded_tokenizer_is_used_and_another_one_refused(
    bare, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    other = tokenizer_folder(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    dataset = packed(tmp_path, tokenizer)
    with pytest.raises(ConfigError, match="another one than made the token ids"):
        export(dataset, tmp_path / "t.parquet", to="trl", tokenizer=str(other))
    # A folder is recorded by its name alone: the same text is found where the name leads to it.
    with pytest.raises(ConfigError, match=r"(?s)which made the token ids.*--tokenizer"):
        export(dataset, tmp_path / "t.parquet", to="trl")
    with pytest.raises(ConfigError, match="no such folder"):
        export(bare, tmp_path / "t.parquet", to="trl", tokenizer="./absent")
    recorded = {"name": str(tokenizer)}
    assert TokenDecoder(recorded).decode([np.array([SENTINEL], np.uint32)]) == ["<IMG_CONTEXT>"]
    assert not (tmp_path / "t.parquet").exists()


def test_pairs_marked_as_deleted_are_left_out(shards, tokenizer, tmp_path):
    marks = pl.DataFrame({"deleted": [True, None, False]})
    add_column(shards, marks, table="pairs", column_set="deleted", provenance={})
    export(shards, tmp_path / "t.parquet", to="trl", tokenizer=str(tokenizer))
    assert pl.read_parquet(tmp_path / "t.parquet")["margin"].to_list() == [None, 2.0]
    export(shards, tmp_path / "w.tar", to="webdataset")
    pairs = [sample["pairs"] for sample in read_tar(tmp_path / "w.tar")[1]]
    assert [len(rows) for rows in pairs] == [1, 1]


def test_parquet_has_every_table_and_every_picture_once(shards, bare, pictures, tmp_path):
    names = ["queries", "responses", "pairs", "blobs"]
    written = export(shards, tmp_path / "tables", to="parquet")
    assert [file.stem for file in written] == names
    opened = open_dataset(shards)
    for name, file in zip(names, written, strict=True):
        assert pl.read_parquet(file).equals(opened.table(name).collect()), name
    blobs = pl.read_parquet(written[3])
    assert blobs["bytes"].to_list() == pictures
    assert blobs["id"].to_list() == [0, 1, 2]
    empty = pl.read_parquet(export(bare, tmp_path / "bare_tables", to="parquet")[3])
    assert empty.schema == blobs.schema
    assert empty.height == 0


def read_tar(file):
    """Pictures by name, and the JSON of each sample."""
    pictures, samples = {}, []
    with tarfile.open(file) as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            if member.name.endswith(".json"):
                samples.append(json.loads(content))
            else:
                pictures[member.name] = content
    return pictures, samples


def test_webdataset_has_the_pictures_of_responses_once(shards, bare, pictures, tmp_path):
    export(shards, tmp_path / "w.tar", to="webdataset")
    stored, samples = read_tar(tmp_path / "w.tar")
    assert stored == {f"000000000.{n}.png": content for n, content in enumerate(pictures)}
    assert samples[0]["images"] == ["0.png"]
    assert samples[0]["response_images"] == [[], ["1.png"], ["2.png"]]
    assert samples[0]["responses"] == [[50], [51, SENTINEL], [52]]
    assert samples[0]["pairs"][0] == {"chosen": 0, "rejected": 1, "margin": 0.5}
    assert (samples[1]["images"], samples[1]["response_images"]) == ([], [[], []])
    export(bare, tmp_path / "bare.tar", to="webdataset")
    assert read_tar(tmp_path / "bare.tar")[0] == {}


@pytest.mark.parametrize("to", ["parquet", "trl", "webdataset"])
def test_what_is_there_is_not_overwritten_unless_asked(to, bare, tokenizer, tmp_path):
    options = {"tokenizer": str(tokenizer)} if to == "trl" else {}
    out = tmp_path / "out"
    (file, *_) = export(bare, out, to=to, **options)
    whole = file.read_bytes()
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"(?s)already there.*--overwrite"):
        export(bare, out, to=to, **options)
    assert file.read_bytes() == b"mine"
    export(bare, out, to=to, overwrite=True, **options)
    assert len(file.read_bytes()) == len(whole)
    assert io.BytesIO(file.read_bytes()).getbuffer().nbytes > 4


def test_an_option_without_effect_is_refused(bare, tmp_path):
    with pytest.raises(ConfigError, match="no effect"):
        export(bare, tmp_path / "w.tar", to="webdataset", tokenizer="t")
    with pytest.raises(ConfigError, match="one of parquet, trl, webdataset"):
        export(bare, tmp_path / "w.tar", to="csv")
