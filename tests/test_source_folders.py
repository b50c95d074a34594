"""Folders as people keep them: shards, image folders, splits, links; nothing is left out unseen."""

import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from intake import PICTURES, lines, picture, take_in, write_tar
from mmrlhf_engine.cli import cli
from mmrlhf_engine.curate.ingest import SourceConfig
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.sources.pictures import FrameSettings, find_pictures
from mmrlhf_engine.sources.preferences.record import Media
from mmrlhf_engine.sources.samples.names import choose_names


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


def parquet(path, *questions):
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [{"bytes": PICTURES[0].read_bytes(), "path": "a.png"} for _ in questions]
    pq.write_table(pa.table({"question": list(questions), "image": contents}), path)


def test_shards_of_a_folder_are_one_source(tmp_path, take_in):
    folder = tmp_path / "set"
    for number in range(2):
        parquet(folder / f"data/train-{number:05}-of-00002.parquet", f"{number}a?", f"{number}b?")
    parquet(folder / "data/test-00000-of-00001.parquet", "a test?")
    (folder / "README.md").write_text("about the set")
    out = take_in(folder)
    first, second = "set:data/train-00000-of-00002", "set:data/train-00001-of-00002"
    assert out.prompts == {
        f"{first}:0": "0a?",
        f"{first}:1": "0b?",
        f"{second}:0": "1a?",
        f"{second}:1": "1b?",
    }
    assert out.report["splits"] == {"set": {"taken": "train", "not_read": ["test"]}}
    assert out.report["passed_over"] == {".md": 1}
    test = take_in(SourceConfig(path=str(folder), split="test"))
    assert test.prompts == {"set:0": "a test?"}
    with pytest.raises(InputError, match="no split 'dev'; splits found: test, train"):
        take_in(SourceConfig(path=str(folder), split="dev"))


def test_a_folder_of_tables_of_several_formats(tmp_path, take_in):
    folder = tmp_path / "set"
    parquet(folder / "a.parquet", "in Parquet?")
    lines(folder / "b.jsonl", {"prompt": "in lines?", "image": "pictures/1.png"})
    (folder / "c.csv").write_text("question\nin a table?\n")
    (folder / "d.json").write_text(json.dumps([{"question": "in a list?"}]))
    (folder / "settings.json").write_text(json.dumps([1, 2]))
    write_tar(folder / "e.tar", {"x.png": PICTURES[2].read_bytes(), "x.txt": b"in a tar?"})
    picture(folder, "pictures/1.png", 1)
    (folder / "f.jsonl").write_bytes(b"")
    (folder / "g.parquet").write_bytes(b"no Parquet at all")
    out = take_in(folder)
    assert out.samples["prompt"].to_list() == [
        *("in Parquet?", "in lines?", "in a table?", "in a list?", "in a tar?")
    ]
    assert out.samples["modality"].to_list() == ["image", "image", "text", "text", "image"]
    assert out.reasons == {"f.jsonl": "broken_record", "g.parquet": "broken_record"}
    assert out.report["passed_over"] == {".json": 1}


def test_names_in_a_table_start_beside_it_or_at_the_folder_of_the_source(tmp_path, take_in):
    folder = tmp_path / "set"
    picture(folder, "images/1.png", 1)
    picture(folder, "data/near.png", 2)
    rows = [{"image": name, "prompt": name} for name in ("images/1.png", "near.png", "gone.png")]
    lines(folder / "data/train.jsonl", *rows)
    out = take_in(folder)
    assert out.samples["prompt"].to_list() == ["images/1.png", "near.png"]
    assert out.rejected["reason"].to_list() == ["missing_media"]


@pytest.mark.parametrize("index", ["metadata.jsonl", "metadata.csv"])
def test_an_image_folder_with_splits(tmp_path, take_in, index):
    folder = tmp_path / "set"
    for split in ("train", "test"):
        for number in range(3):
            picture(folder / split, f"sub/{number}.png", number)
        if index.endswith("jsonl"):
            rows = [{"file_name": f"sub/{n}.png", "text": f"{split} {n}?"} for n in range(2)]
            lines(folder / split / index, *rows)
        else:
            rows = "".join(f"sub/{n}.png,{split} {n}?\n" for n in range(2))
            (folder / split / index).write_text("file_name,text\n" + rows)
    out = take_in(folder)
    assert out.samples["prompt"].to_list() == ["train 0?", "train 1?"]
    assert out.media.height == 2
    assert out.report["splits"] == {"set": {"taken": "train", "not_read": ["test"]}}
    assert out.report["passed_over"] == {f".png not in {index}": 1}


def test_pictures_with_captions_in_folders_of_splits(tmp_path, take_in):
    folder = tmp_path / "set"
    for split in ("train", "validation"):
        picture(folder / split, "1.png", 1)
        (folder / split / "1.TXT").write_text(f"What, in {split}?")
    out = take_in(folder)
    assert out.prompts == {"set:train/1.png": "What, in train?"}
    assert out.rejected.height == 0
    # A folder of pictures of trains, beside one of buses, is no split.
    picture(folder, "bus/1.png", 2)
    (folder / "bus/1.txt").write_text("Which bus?")
    assert take_in(folder).samples.height == 3


def test_a_picture_without_a_text_has_no_question_unless_one_is_given(tmp_path, take_in):
    folder = tmp_path / "photos"
    picture(folder, "cat/1.png", 1)
    picture(folder, "dog/2.png", 2)
    with pytest.raises(InputError, match="2 pictures and no text: there is no question") as raised:
        take_in(folder)
    assert "prompt_for_pictures" in str(raised.value)
    given = SourceConfig(path=str(folder), prompt_for_pictures="Is {name} a {label}?")
    out = take_in(given)
    assert out.samples["prompt"].to_list() == ["Is 1 a cat?", "Is 2 a dog?"]
    (folder / "cat/1.txt").write_text("Its own?")
    assert take_in(given).samples["prompt"].to_list() == ["Its own?", "Is 2 a dog?"]
    rejected = take_in(folder).rejected
    assert rejected["reason"].to_list() == ["no_text"]
    assert "prompt_for_pictures" in rejected["detail"][0]


def test_pictures_of_a_tar_can_be_given_a_question(tmp_path, take_in):
    members = {"cat/1.png": PICTURES[0].read_bytes(), "cat/2.png": PICTURES[1].read_bytes()}
    tar = write_tar(tmp_path / "w.tar", {**members, "cat/2.txt": b"Its own?"})
    out = take_in(SourceConfig(path=str(tar), prompt_for_pictures="What {label}?"))
    assert out.prompts == {"w:cat/1": "What cat?", "w:cat/2": "Its own?"}
    assert take_in(tar).rejected["reason"].to_list() == ["no_text"]


@pytest.mark.parametrize("template", ["{colour}?", "{", "{0}"])
def test_a_question_has_no_other_fields(template):
    with pytest.raises((ConfigError, ValueError), match="prompt_for_pictures"):
        SourceConfig(path="x", prompt_for_pictures=template)


def test_what_a_folder_of_pictures_does_not_read_is_counted(tmp_path, take_in):
    folder = tmp_path / "album"
    for name in ("1.png", "2.jpeg2000", "3.png", ".hidden.png"):
        picture(folder, name)
    (folder / "1.txt").write_text("What?")
    (folder / "1.caption").write_text("A circle.")
    (folder / "3.json").write_text('{"question": "Which?"}')
    (folder / "3.txt").write_text("not asked")
    (folder / "notes").write_text("without a picture")
    (folder / "alone.txt").write_text("without a picture")
    (folder / "table.csv").write_text("question\nWhy?\n")
    out = take_in(folder)
    assert out.samples["prompt"].to_list() == ["Why?", "What?", "Which?"]
    assert out.report["passed_over"] == {
        ".caption": 1,
        ".jpeg2000": 1,
        ".txt": 2,
        "without suffix": 1,
    }


def captioned_pictures(folder):
    picture(folder, "photos/a.png", 1)
    (folder / "photos/a.txt").write_text("What is on it?")
    picture(folder, "photos/b.png", 2)


MIXED = {
    "rows.csv": "rows.csv",
    "rows.jsonl": "rows.jsonl",
    "rows.parquet": "rows.parquet",
    "a list of pictures": "listed/metadata.jsonl",
}


@pytest.mark.parametrize("case", MIXED)
def test_tables_beside_captioned_pictures_are_both_read(tmp_path, take_in, case):
    folder = tmp_path / "set"
    captioned_pictures(folder)
    file = folder / MIXED[case]
    if case == "rows.parquet":
        parquet(file, "In the table?")
    elif case == "rows.csv":
        file.write_text("question,image\nIn the table?,photos/b.png\n")
    elif case == "rows.jsonl":
        lines(file, {"question": "In the table?", "image": "photos/b.png"})
    else:
        picture(folder, "listed/c.png", 3)
        (folder / "listed/c.txt").write_text("Governed by the list.")
        lines(file, {"file_name": "c.png", "text": "In the table?"})
    out = take_in(folder)
    assert out.samples["prompt"].to_list() == ["In the table?", "What is on it?"]
    assert out.samples["modality"].to_list() == ["image", "image"]
    assert out.rejected.is_empty()
    assert out.report["passed_over"] == ({".txt": 1} if case == "a list of pictures" else {})


def test_captioned_pictures_beside_a_split_are_named(tmp_path, take_in):
    folder = tmp_path / "set"
    captioned_pictures(folder)
    lines(folder / "train.jsonl", {"question": "In the table?"})
    out = take_in(folder)
    assert out.samples["prompt"].to_list() == ["In the table?"]
    left = out.report["splits"]["set"]["not_read"]
    assert left == ["a picture with a text of the same name"]
    lines(folder / "extra.jsonl", {"question": "More?"})
    assert len(take_in(folder).report["splits"]["set"]["not_read"]) == 2


def test_splits_of_tables_and_of_captioned_pictures_are_one_choice(tmp_path, take_in):
    folder = tmp_path / "set"
    for split in ("train", "test"):
        picture(folder / split, "a.png", 1)
        lines(folder / f"{split}.jsonl", {"question": f"{split} in the table?"})
        (folder / split / "a.txt").write_text(f"{split} beside?")
    for split in ("train", "test"):
        out = take_in(SourceConfig(path=str(folder), split=split))
        assert out.samples["prompt"].to_list() == [f"{split} in the table?", f"{split} beside?"]


def test_a_question_for_pictures_is_not_asked_of_those_beside_tables(tmp_path, take_in):
    folder = tmp_path / "set"
    captioned_pictures(folder)
    lines(folder / "rows.jsonl", {"question": "In the table?"})
    out = take_in(SourceConfig(path=str(folder), prompt_for_pictures="What?"))
    assert out.samples["prompt"].to_list() == ["In the table?", "What is on it?"]
    assert out.report["passed_over"] == {".png without a text beside it": 1}


def test_pictures_of_formats_that_nobody_reads_are_rejected_by_name(tmp_path, take_in):
    folder = tmp_path / "album"
    picture(folder, "good.png")
    for name in ("vector.svg", "scan.jp2", "photo.jxl"):
        (folder / name).write_bytes(
            b"<svg/>" if name.endswith("svg") else b"\0\0\0\x0cjP  \r\n\x87\n"
        )
    for name in ("good", "vector", "scan", "photo"):
        (folder / f"{name}.txt").write_text("What is in it?")
    out = take_in(folder)
    assert out.samples["id"].to_list() == ["album:good.png"]
    assert out.rejected["reason"].to_list() == ["unreadable_media"] * 3


def snapshot(folder):
    """A repository of the Hugging Face cache: a snapshot of links into blobs; its folder."""
    blobs, commit = folder / "datasets--x/blobs", folder / "datasets--x/snapshots/abc"
    blobs.mkdir(parents=True)
    (commit / "data").mkdir(parents=True)
    files = {
        "0.png": PICTURES[0].read_bytes(),
        "metadata.jsonl": b'{"file_name": "0.png", "text": "?!"}',
    }
    for number, (name, content) in enumerate(files.items()):
        (blobs / f"h{number}").write_bytes(content)
        (commit / name).symlink_to(f"../../blobs/h{number}")
    return commit


def test_a_snapshot_of_the_cache_is_read_through_its_links(tmp_path, take_in):
    folder = snapshot(tmp_path)
    out = take_in(folder)
    assert out.prompts == {"abc:1": "?!"}
    assert out.samples["modality"].to_list() == ["image"]
    lines(folder / "rows.jsonl", {"prompt": "Where?", "image": "0.png"})
    assert take_in(folder / "rows.jsonl").samples["modality"].to_list() == ["image"]
    settings = FrameSettings(frames=1, frames_per_second=1.0, max_pixels=10**6, threads=1)
    wanted = (folder, Media("image", ("0.png",), None))
    (found,) = find_pictures([wanted], settings)[wanted]
    assert found.width == 64


def test_links_are_followed_where_that_is_asked_for(tmp_path, take_in):
    away, folder = tmp_path / "away", tmp_path / "set"
    picture(away, "images/1.png", 1)
    folder.mkdir()
    (folder / "images").symlink_to(away / "images")
    (folder / "2.png").symlink_to(away / "images/1.png")
    rows = [
        {"prompt": name, "image": name}
        for name in ("images/1.png", "2.png", "../away/images/1.png")
    ]
    file = lines(folder / "rows.jsonl", {"prompt": "no picture"}, *rows)
    assert set(take_in(file).reasons.values()) == {"outside_root"}
    assert "follow_links" in take_in(file).rejected["detail"][0]
    out = take_in(SourceConfig(path=str(file), follow_links=True))
    assert out.samples["prompt"].to_list() == ["no picture", "images/1.png", "2.png"]
    assert out.reasons == {"rows.jsonl:4": "outside_root"}
    within = take_in(SourceConfig(path=str(file), root=str(tmp_path)))
    assert within.samples.height == 4


def test_the_command_says_what_is_not_read_and_follows_links(tmp_path):
    picture(tmp_path / "away", "1.png")
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        lines(folder / f"data/{split}.jsonl", {"prompt": "Where?", "image": "link.png"})
    (folder / "README.md").write_text("about the set")
    (folder / "link.png").symlink_to(tmp_path / "away/1.png")
    asked = ["curate", str(folder), "--out", str(tmp_path / "run"), "--to", "ingest"]
    refused = CliRunner().invoke(cli, asked)
    assert "none of 1 rows can be used: 1 outside_root" in str(refused.exception)
    followed = CliRunner().invoke(cli, [*asked, "--follow-links"])
    assert followed.exit_code == 0, followed.exception
    assert "split train of set, not read: test" in followed.output
    assert "not read: 1 .md" in followed.output
    page = (tmp_path / "run/report.html").read_text()
    assert "not read: 1 .md" in page


def test_linked_folders_of_pictures_are_counted_or_followed(tmp_path, take_in):
    away, folder = tmp_path / "away", tmp_path / "album"
    for place in (away, folder):
        picture(place, "1.png")
        (place / "1.txt").write_text("What?")
    (folder / "more").symlink_to(away)
    (folder / "loop").symlink_to(folder)
    out = take_in(folder)
    assert out.samples["id"].to_list() == ["album:1.png"]
    assert out.report["passed_over"] == {"links to folders": 1}
    out = take_in(SourceConfig(path=str(folder), follow_links=True))
    assert out.samples["id"].to_list() == ["album:1.png", "album:more/1.png"]


def test_a_text_behind_a_link_that_leaves_is_named(tmp_path, take_in):
    (tmp_path / "secret.txt").write_text("a secret")
    folder = tmp_path / "album"
    for name in ("1.png", "2.png"):
        picture(folder, name)
    (folder / "1.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "2.txt").write_text("What?")
    out = take_in(folder)
    assert out.samples["id"].to_list() == ["album:2.png"]
    assert out.rejected["reason"].to_list() == ["outside_root"]


def test_names_are_as_short_as_they_can_be_told_apart(tmp_path):
    def names(*paths):
        return choose_names([(tmp_path / path, None) for path in paths])

    assert names("a/00000.tar", "b/00000.tar", "c.jsonl") == ["a/00000", "b/00000", "c"]
    assert names("x.jsonl", "x.parquet") == ["x.jsonl", "x.parquet"]
    assert names("a/x/t.tar", "b/x/t.tar") == ["a/x/t", "b/x/t"]
    assert names("train.jsonl.gz") == ["train"]
    assert choose_names([(tmp_path / "a.jsonl", None), (tmp_path / "b.jsonl", "a")]) == [
        "a.jsonl",
        "a",
    ]


def test_shards_of_equal_names_keep_ids_of_their_own(tmp_path, take_in):
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        members = {"000.png": PICTURES[number].read_bytes(), "000.txt": b"What?"}
        write_tar(tmp_path / folder / "00000.tar", members)
    out = take_in(tmp_path / "a/00000.tar", tmp_path / "b/00000.tar")
    assert out.samples["id"].to_list() == ["a/00000:000", "b/00000:000"]
    both = take_in(SourceConfig(path=str(tmp_path / "*" / "00000.tar"), name="both"))
    assert both.samples["source"].unique().to_list() == ["both"]
    assert both.samples["id"].to_list() == ["both:a/00000:000", "both:b/00000:000"]
