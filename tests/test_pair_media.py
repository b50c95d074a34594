"""Pairs with media through the real pack, and the held-out side: no picture or text on both."""

import base64
import io
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from mmrlhf_engine import run_pack, run_pair
from pack_data import picture, put, stored, tokenizer_folder, write_lines
from pair_data import compared, lines, paired, row


def answers_of(pair):
    """The two answers of a stored pair, as the tokenizer has them."""
    return tuple(tuple(pair[side]["tokens"]) for side in ("chosen", "rejected"))


def packed(report, folder, name="pairs", **settings):
    """Pack a side with the root that the report tells; the report and the pairs of the shards."""
    model = tokenizer_folder(folder / "tokenizer")
    out = folder / f"shards_{name}"
    given = {"tokenizer": str(model), "root": report["root"], "image_rule": "qwen2_vl"}
    done = run_pack(f"{report['folder']}/{name}.jsonl", out, {**given, **settings})
    return done, stored(out)


def test_pack_finds_the_same_pairs_ties_and_pictures(tmp_path):
    for number in range(6):
        put(tmp_path / "data" / "short" / f"{number}.png", picture(seed=number))
    rows = [
        row("1>2=3", prompt="<image>\nWhich?", image="short/0.png", id="q0", scores=[5, 3, 2]),
        row([2, 1, 3], prompt="Which?", image=["short/1.png", "short/2.png"], id="q1"),
        row([2, 1], prompt="What goes on?", video=[["short/3.png", "short/4.png"]], answers="de"),
        row([1, 2], prompt="And this?", image={"bytes": None, "path": "short/5.png"}, answers="fg"),
        row([1, 2], prompt="No picture?", answers="hi"),
        row(
            [1, 2],
            prompt="Inside?",
            answers="jk",
            image="data:image/png;base64," + base64.b64encode(picture(seed=9)).decode(),
        ),
    ]
    source = write_lines(tmp_path / "data" / "rows.jsonl", rows)
    report = run_pair(source, tmp_path / "run", {"margin_from_scores": True})
    assert report["root"] == str(tmp_path / "data")
    assert report["with_media"] == 5

    done, pairs = packed(report, tmp_path, videos="frames")
    assert (done["pairs_out"], done["ties"]) == (report["pairs"], report["ties"]) == (10, 1)
    assert done["dropped"] == {}
    # The same rows, where pack itself makes pairs of ranks, are the same pairs.
    ranked = [{**one, "models_output": one.pop("answers")} for one in rows]
    direct = write_lines(tmp_path / "data" / "ranked.jsonl", ranked)
    given = {"tokenizer": str(tmp_path / "tokenizer"), "image_rule": "qwen2_vl"}
    run_pack(direct, tmp_path / "direct", {**given, "videos": "frames"})
    expected = stored(tmp_path / "direct")

    def told(pair):
        ends = answers_of(pair)
        ends = tuple(sorted(ends)) if pair["flags"] & 1 else ends
        return (*ends, pair["flags"], pair["query"]["prompt_text"], *pair["query"]["pictures"])

    assert Counter(map(told, pairs)) == Counter(map(told, expected))
    margins = [pair["margin"] for pair in pairs if pair["margin"] is not None]
    assert margins == [2.0, 3.0]


def test_media_of_several_roots_are_named_from_the_folder_above(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name / "a.png", picture(seed=len(name) + ord(name[0])))
        write_lines(tmp_path / name / f"{name}.jsonl", [row([1, 2], answers="ab", image="a.png")])
    sources = [tmp_path / name / f"{name}.jsonl" for name in ("one", "two")]
    report = run_pair(sources, tmp_path / "run")
    assert report["queries"] == 2  # Of the same names, but other pictures.
    assert report["root"] == str(tmp_path)
    assert [line["image"] for line in lines(report)] == ["one/a.png", "two/a.png"]
    _, pairs = packed(report, tmp_path)
    assert [pair["query"]["pictures"][0] for pair in pairs] == [
        (tmp_path / name / "a.png").read_bytes() for name in ("one", "two")
    ]


def votes_of_two_folders(folder, **medium):
    """What ``pair`` makes of two annotators who say the opposite, each in a folder of their own."""
    for name, rank in (("a1", "1>2>3"), ("a2", "3>2>1")):
        rows = [row(rank, annotator=name, **medium)]
        (folder / name).mkdir(exist_ok=True)
        write_lines(folder / name / "rows.jsonl", rows)
    return run_pair(
        [folder / name / "rows.jsonl" for name in ("a1", "a2")], folder / "run", restart=True
    )


def test_annotators_vote_across_folders(tmp_path):
    report = votes_of_two_folders(tmp_path)
    assert (report["queries"], report["ties"]) == (1, 3)
    assert sorted(compared(report)) == ["a=b", "a=c", "b=c"]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_media_that_lie_twice_are_one_query_by_their_bytes(tmp_path, kind):
    names = {"image": ["a.png"], "video": ["v/0.png", "v/1.png"]}[kind]
    medium = {kind: names[0] if kind == "image" else "v"}
    for folder in ("a1", "a2"):
        for number, name in enumerate(names):
            put(tmp_path / folder / name, picture(seed=number))
    report = votes_of_two_folders(tmp_path, **medium)
    assert (report["queries"], report["ties"]) == (1, 3)
    put(tmp_path / "a2" / names[-1], picture(seed=7))
    report = votes_of_two_folders(tmp_path, **medium)
    assert (report["queries"], report["ties"]) == (2, 0)


def test_an_absolute_name_and_one_from_the_root_are_one_place(tmp_path):
    put(tmp_path / "a.png", picture())
    names = ("a.png", str(tmp_path / "a.png"), "./a.png")
    rows = [row([1, 2, 3], image=name, annotator=f"n{n}") for n, name in enumerate(names)]
    report = paired(tmp_path, rows)
    assert (report["queries"], report["agreement"]["compared"]) == (1, 9)


def test_media_are_named_from_the_root_that_is_given(tmp_path):
    put(tmp_path / "pictures" / "a.png", picture())
    rows = [row([1, 2], answers="ab", image="a.png")]
    settings = {"root": str(tmp_path / "pictures"), "hold_out": 0.5}
    report = paired(tmp_path, rows, settings)
    assert report["root"] == settings["root"]
    assert report["split"]["media_not_decoded"] == 0
    assert (
        paired(tmp_path, rows, {"hold_out": 0.5}, restart=True)["split"]["media_not_decoded"] == 1
    )


# ---- held out --------------------------------------------------------------------------------


def saved_again(content):
    """The same picture as JPEG; its pHash differs in 0 to 4 bits."""
    saved = io.BytesIO()
    Image.open(io.BytesIO(content)).save(saved, "JPEG", quality=90)
    return saved.getvalue()


def _recipe(number, start):
    steps = " then ".join(f"step {step * (number + 7)}" for step in range(12))
    return f"{start} why one would do {steps} in this order"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Forty groups of queries that share a picture, a near picture, a text or a near text."""
    folder = tmp_path_factory.mktemp("split")
    rows = []
    for n in range(40):
        content = picture(256, 192, seed=n)
        put(folder / f"{n}.png", content)
        put(folder / f"{n}_again.jpg", saved_again(content))
        rows += [
            row([1, 2], answers="ab", image=f"{n}.png", id=f"picture {n}", prompt=f"first {n}?"),
            row([1, 2], answers="ab", image=f"{n}.png", id=f"picture {n}", prompt=f"then {n}?"),
            row([1, 2], answers="ab", image=f"{n}_again.jpg", id=f"picture {n}"),
            row([1, 2], answers="ab", id=f"text {n}", prompt=f"No  Picture {n}?"),
            row([1, 2], answers="cd", id=f"text {n}", prompt=f"no picture {n}? "),
            row([1, 2], answers="ab", id=f"near {n}", prompt=_recipe(n, "Please explain")),
            row([1, 2], answers="cd", id=f"near {n}", prompt=_recipe(n, "Explain")),
        ]
    return folder, rows


def sides_of(folder, rows, **settings):
    report = paired(folder, rows, {"hold_out": 0.3, **settings}, restart=True)
    return report, {
        name: {line["id"] for line in lines(report, name)} for name in ("pairs", "held_out")
    }


def test_a_family_is_never_parted(split):
    report, sides = sides_of(*split)
    assert not sides["pairs"] & sides["held_out"]
    assert len(sides["pairs"]) + len(sides["held_out"]) == 120
    # "what is it?" is asked of 40 pictures, and parts no family and joins none.
    assert report["split"]["families"] == 120
    assert report["split"]["largest_family"] == 3
    assert report["split"]["media_not_decoded"] == 0
    # Of 120 families at 0.3, 36 are expected, with a deviation of 5.
    assert 21 <= len(sides["held_out"]) <= 51
    assert report["split"]["families_held_out"] == len(sides["held_out"])
    held, kept = (report["sides"][name] for name in ("held_out", "pairs"))
    assert held["pairs"] + kept["pairs"] == report["pairs"] == 280
    assert held["queries"] == len(lines(report, "held_out"))


def test_the_side_depends_on_seed_and_content_not_on_the_order(split):
    folder, rows = split
    _, sides = sides_of(folder, rows)
    _, turned = sides_of(folder, rows[::-1])
    _, fewer = sides_of(folder, [one for one in rows if "9" not in one["id"]])
    _, other = sides_of(folder, rows, seed=1)
    assert turned == sides
    for name in sides:
        assert fewer[name] == {one for one in sides[name] if "9" not in one}
    assert other != sides


def test_a_larger_share_holds_out_what_a_smaller_one_does(split):
    _, small = sides_of(*split, hold_out=0.1)
    _, large = sides_of(*split, hold_out=0.5)
    assert small["held_out"] < large["held_out"]


def test_without_a_share_nothing_is_held_out_and_no_picture_is_read(tmp_path):
    report = paired(tmp_path, [row([1, 2, 3], image="absent.png")])
    assert report["split"] == {"hold_out": 0.0}
    assert lines(report, "held_out") == []
    assert len(compared(report)) == 3


def test_media_that_cannot_be_decoded_are_known_by_name_and_counted(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        row([1, 2], answers="ab", image=name, prompt=f"{name} {n}?", id=name)
        for name, n in product(("broken.png", "absent.png"), range(4))
    ]
    report, sides = sides_of(tmp_path, rows)
    assert report["split"]["families"] == 2
    assert report["split"]["media_not_decoded"] == 2
    assert not sides["pairs"] & sides["held_out"]


def test_frames_join_videos_but_not_the_first_and_the_last(tmp_path):
    black = io.BytesIO()
    Image.new("RGB", (64, 48)).save(black, "PNG")
    for video in range(4):
        for frame in range(5):
            # The first two videos share their third frame; all begin and end black.
            seed = 100 if frame == 2 and video < 2 else 10 * video + frame
            content = black.getvalue() if frame in (0, 4) else picture(seed=seed)
            put(tmp_path / f"video{video}" / f"{frame}.png", content)
    rows = [row([1, 2], answers="ab", video=f"video{n}", id=str(n)) for n in range(4)]
    report, _ = sides_of(tmp_path, rows)
    assert (report["split"]["families"], report["split"]["largest_family"]) == (3, 2)


def test_equal_input_makes_equal_files(split):
    folder, rows = split
    report, _ = sides_of(folder, rows)
    place = Path(report["folder"])
    files = ["pairs.jsonl", "held_out.jsonl", "contradictions/part-00000.parquet"]
    first = [(place / name).read_bytes() for name in files]
    sides_of(folder, rows)
    assert [(place / name).read_bytes() for name in files] == first
