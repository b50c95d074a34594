"""Members of a tar: which belong together, and that none is lost or overwritten unseen."""

import io
import json
import tarfile
from functools import partial

import pytest

from intake import PICTURES, take_in

CONTENTS = [file.read_bytes() for file in PICTURES[:4]]


@pytest.fixture(name="take_in")
def _take_in(stage):
    return partial(take_in, stage)


def tar_of(path, *members):
    """A tar of (name, content) pairs, where a name may come twice; an int is a picture."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = CONTENTS[content] if isinstance(content, int) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_key_ends_at_the_first_dot_of_the_file_name(tmp_path, take_in):
    members = [("v1.0/a.png", 0), ("v1.0/a.txt", b"A folder with a dot?"), ("b.left.png", 1)]
    out = take_in(tar_of(tmp_path / "w.tar", *members, ("b.right.png", 2), ("b.txt", b"Both?")))
    assert out.prompts == {"w:v1.0/a": "A folder with a dot?", "w:b": "Both?"}
    assert out.samples["modality"].to_list() == ["image", "multi_image"]


def test_two_texts_of_one_key_are_not_chosen_from(tmp_path, take_in):
    versions = [("v1.0.png", 0), ("v1.0.txt", b"first"), ("v1.1.png", 1), ("v1.1.txt", b"second")]
    out = take_in(tar_of(tmp_path / "w.tar", *versions, ("x.png", 2), ("x.txt", b"fine")))
    assert out.samples["prompt"].to_list() == ["fine"]
    assert out.reasons == {"w.tar:v1": "repeated_member"}
    assert "v1.0.txt, v1.1.txt" in out.rejected["detail"][0]


def test_a_second_member_of_one_suffix_is_named_and_the_first_read(tmp_path, take_in):
    members = [("x.png", 0), ("x.txt", b"one"), ("x.txt", b"another"), ("x.PNG", 1)]
    out = take_in(tar_of(tmp_path / "w.tar", *members))
    assert out.prompts == {"w:x": "one"}
    assert out.samples["modality"].to_list() == ["image"]
    assert out.reasons == {"w.tar:x.txt": "repeated_member", "w.tar:x.PNG": "repeated_member"}


def test_texts_and_members_that_no_record_holds_are_counted(tmp_path, take_in):
    own = json.dumps({"question": "Its own?"}).encode()
    members = [
        ("a.png", 0),
        ("a.json", own),
        ("a.txt", b"unread"),
        ("a.cls", b"7"),
        ("README", b"x"),
    ]
    more = [("b.png", 1), ("b.txt", b"What?"), ("b.caption", b"unread"), ("b.long.txt", b"unread")]
    out = take_in(tar_of(tmp_path / "w.tar", *members, *more, ("c.npy", b"z")))
    assert out.prompts == {"w:a": "Its own?", "w:b": "What?"}
    passed_over = {".caption": 1, ".cls": 1, ".long.txt": 1, ".npy": 1, ".txt": 1}
    assert out.report["passed_over"] == {**passed_over, "without suffix": 1}


def test_a_picture_under_another_suffix_is_found_by_its_content(tmp_path, take_in):
    members = [("a.image", 0), ("a.txt", b"What?"), ("b.image", 1), ("b.txt", b"Which?")]
    out = take_in(tar_of(tmp_path / "w.tar", *members))
    assert out.samples["modality"].to_list() == ["image", "image"]
    assert out.report["passed_over"] == {}


@pytest.mark.parametrize("first", ["pictures", "texts"])
def test_members_that_are_no_neighbours_do_not_become_text_alone(tmp_path, take_in, first):
    pictures, texts = [("a.png", 0), ("b.png", 1)], [("a.txt", b"a?"), ("b.txt", b"b?")]
    ordered = pictures + texts if first == "pictures" else texts + pictures
    out = take_in(tar_of(tmp_path / "w.tar", *ordered, ("c.txt", b"A text alone?")))
    assert out.prompts == {"w:c": "A text alone?"}
    assert set(out.rejected["reason"]) == {"no_text", "scattered_members"}
    assert out.rejected.height == 4


def test_links_within_a_tar_are_named(tmp_path, take_in):
    with tarfile.open(tar_of(tmp_path / "w.tar", ("a.png", 0), ("a.txt", b"What?")), "a") as tar:
        for number, kind in enumerate((tarfile.LNKTYPE, tarfile.SYMTYPE)):
            info = tarfile.TarInfo(f"b{number}.png")
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
            info = tarfile.TarInfo(f"b{number}.txt")
            info.size = 5
            tar.addfile(info, io.BytesIO(b"Lost?"))
    out = take_in(tmp_path / "w.tar")
    assert out.samples["id"].to_list() == ["w:a"]
    assert out.rejected["reason"].to_list() == ["broken_record"] * 2
    assert out.rejected["detail"].str.contains("a link to a.png").all()


def test_members_of_formats_that_nobody_reads_cost_their_record(tmp_path, take_in):
    drawing = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    members = [("a.svg", drawing), ("a.txt", b"What?"), ("b.png", 0), ("b.txt", b"Which?")]
    out = take_in(tar_of(tmp_path / "w.tar", *members))
    assert out.samples["prompt"].to_list() == ["Which?"]
    assert out.reasons == {"w.tar:a": "unreadable_media"}
