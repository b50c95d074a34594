"""``pack`` from files to a dataset, with every row accounted for."""

import json
from importlib.util import find_spec

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from mmrlhf_engine._core import Dataset
from mmrlhf_engine.errors import ConfigError, InputError, MissingExtraError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.gather import Gatherer, PackedRow, RowAccounting
from mmrlhf_engine.pack.shard_rows import FLAG_TIE
from mmrlhf_engine.run.folder import locked
from mmrlhf_engine.run.tables import REJECTED, TableWriter
from mmrlhf_engine.sources.preferences.record import Message, Pair, Preference, Response
from pack_data import (
    pack_in_process,
    picture,
    put,
    stored,
    tokenizer_folder,
    words,
    write_lines,
)
from run_pipeline import SERVER


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def run(folder, tmp_path):
    """``run(source, ...)`` packs into ``tmp_path/ds`` and gives report and pairs."""

    def packed(*sources, out="ds", **settings):
        config = pack.PackConfig(
            sources=[str(source) for source in sources], tokenizer=str(folder), **settings
        )
        report = pack.pack_dataset(config, tmp_path / out)
        return report, stored(tmp_path / out)

    return packed


def rejected(folder):
    (report,) = (folder / "reports").iterdir()
    return pl.read_parquet(report / "rejected" / "*.parquet")


def mm_rlhf(seed, **changes):
    row = {
        "id": f"q{seed}",
        "image": f"short/{seed}.png",
        "prompt": f"<image>\n{words(seed)}?",
        "chosen": words(100 + seed),
        "rejected": words(200 + seed),
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def test_pairs_of_a_query_share_prompt_answers_and_picture(run, tmp_path, tokenizer):
    put(tmp_path / "short" / "1.png", picture())
    rows = [
        mm_rlhf(1, chosen="one", rejected="two"),
        mm_rlhf(1, chosen="one", rejected="three", chosen_reason="It is right.", margin=0.5),
        mm_rlhf(1, chosen="two", rejected="three", is_tie=True),
        mm_rlhf(1, chosen="one", rejected="two"),
    ]
    report, pairs = run(write_lines(tmp_path / "pairs.jsonl", rows))
    assert (report["rows_in"], report["rows_out"]) == (4, 3)
    assert report["dropped"] == {"duplicate_pair": 1}
    assert (report["queries"], report["responses"], report["pairs_out"]) == (1, 3, 3)
    answers = [
        tuple(tokenizer.decode(pair[side]["tokens"]) for side in ("chosen", "rejected"))
        for pair in pairs
    ]
    end = "<|im_end|>\n"
    assert answers == [
        (f"one{end}", f"two{end}"),
        (f"one{end}", f"three{end}"),
        (f"two{end}", f"three{end}"),
    ]
    assert [pair["flags"] & FLAG_TIE for pair in pairs] == [0, 0, FLAG_TIE]
    assert [pair["margin"] for pair in pairs] == [None, 0.5, None]
    assert pairs[0]["chosen"]["critique"] == "It is right."
    critique = tokenizer.decode(pairs[0]["chosen"]["critique_tok"])
    assert critique == "It is right."
    assert {pair["query"]["qid"] for pair in pairs} == {pairs[0]["query"]["qid"]}
    assert pairs[0]["query"]["pictures"] == [picture()]
    assert "<image>" in pairs[0]["query"]["prompt_text"]


def test_the_engine_reads_the_same_rows(run, folder, tmp_path):
    put(tmp_path / "short" / "1.png", picture(80, 60))
    rows = [mm_rlhf(1, margin=1.5), mm_rlhf(1, chosen="x"), {**mm_rlhf(2), "image": None}]
    report, pairs = run(write_lines(tmp_path / "pairs.jsonl", rows))
    dataset = Dataset(tmp_path / "ds", verify="open")
    assert dataset.version == report["version"] == 1
    assert json.loads(dataset.tokenizer) == report["tokenizer"]
    assert [dataset.rows(table) for table in ("queries", "responses", "pairs", "blobs")] == [
        2,
        5,
        3,
        1,
    ]
    for number, pair in enumerate(pairs):
        query, chosen, rejected, margin, weight, _ = dataset.pair(number)
        assert (margin, weight) == (pair["margin"], pair["weight"])
        assert pa.array(dataset.prompt(query)).to_pylist() == pair["query"]["prompt"]
        assert pa.array(dataset.tokens(chosen)).to_pylist() == pair["chosen"]["tokens"]
        assert pa.array(dataset.tokens(rejected)).to_pylist() == pair["rejected"]["tokens"]
        blobs = [dataset.blob(blob)[:3] for blob in pa.array(dataset.media(query)).to_pylist()]
        assert blobs == [(content, 80, 60) for content in pair["query"]["pictures"]]


def test_ranked_rows_become_all_pairs(run, tmp_path):
    put(tmp_path / "a.png", picture())
    rows = [
        {
            "image": "a.png",
            "question": "What?",
            "models_output": ["a", "b", "c", "a"],
            "rank": [1, 2, 2, 1],
            "helpfulness": [5, 3, 4, 5],
        },
        {"question": "And this?", "models_output": ["a", "b"], "rank": [1, None]},
    ]
    source = write_lines(tmp_path / "data.jsonl", rows)
    report, pairs = run(source)
    # Of 6 pairs, the tie of the two equal texts is none, and two come twice.
    assert report["pairs_in"] == 6
    assert report["pairs_dropped"] == {"chosen_is_rejected": 1, "duplicate_pair": 2}
    assert report["dropped"] == {"no_pairs": 1}
    assert (report["pairs_out"], report["ties"], report["responses"]) == (3, 1, 3)
    assert sorted(pair["chosen"]["rank"] for pair in pairs) == [1, 1, 2]
    assert {pair["chosen"]["score"] for pair in pairs} == {5.0, 3.0}
    report, _ = run(source, out="without", ties="drop")
    assert report["pairs_dropped"]["tie"] == 1
    assert report["ties"] == 0


def one_of_each(folder):
    """The same preference in every layout and format; their names."""
    Dataset = pytest.importorskip("datasets", reason="datasets is not installed").Dataset

    put(folder / "cat.png", picture(seed=3))
    text = {"prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."}
    messages = {
        "prompt": [{"role": "user", "content": "What is this?"}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    }
    swift = {
        "messages": [
            {"role": "user", "content": "<image>What is this?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "rejected_response": "A dog.",
        "images": ["cat.png"],
    }
    factory = {
        "conversations": [{"from": "human", "value": "<image>What is this?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["cat.png"],
    }
    write_lines(folder / "mm_rlhf.jsonl", [{**text, "image": "cat.png"}])
    write_lines(folder / "swift.jsonl", [swift])
    (folder / "factory.json").write_text(json.dumps([factory], indent=1))
    content = {"bytes": picture(seed=3), "path": "elsewhere.png"}
    table = pa.Table.from_pylist([{**messages, "images": [content]}])
    pq.write_table(table, folder / "trl.parquet")
    Dataset.from_list([{**messages, "image": content}]).save_to_disk(folder / "saved")
    with pa.output_stream(folder / "packed.jsonl.gz", compression="gzip") as stream:
        stream.write(json.dumps({**text, "images": ["cat.png"]}).encode())
    files = ["mm_rlhf.jsonl", "swift.jsonl", "factory.json", "trl.parquet", "packed.jsonl.gz"]
    return [*files, "saved"]


def test_every_layout_gives_the_same_pair(run, tmp_path):
    ids = {}
    for name in one_of_each(tmp_path):
        report, pairs = run(tmp_path / name, out=f"ds_{name}")
        assert report["rows_out"] == 1, name
        assert pairs[0]["query"]["pictures"] == [picture(seed=3)]
        ids[name] = (pairs[0]["pid"], pairs[0]["query"]["qid"])
    assert len(set(ids.values())) == 1, ids


def test_the_same_input_gives_the_same_ids_in_any_order_of_sources(run, tmp_path):
    for seed in range(6):
        put(tmp_path / "short" / f"{seed}.png", picture(seed=seed))
    first = write_lines(tmp_path / "a.jsonl", [mm_rlhf(seed) for seed in range(3)])
    second = write_lines(tmp_path / "b.jsonl", [mm_rlhf(seed) for seed in range(3, 6)])
    _, once = run(first, second)
    _, again = run(second, first, out="again")
    assert [pair["pid"] for pair in once] == [pair["pid"] for pair in again]
    assert [pair["query"]["source"] for pair in once] == [0, 0, 0, 1, 1, 1]
    _, apart = run(first, out="apart")
    _, apart = run(second, out="apart", append=True)
    assert {pair["pid"] for pair in apart} == {pair["pid"] for pair in once}


def test_bad_rows_are_rejected_with_their_position(run, tmp_path):
    put(tmp_path / "short" / "1.png", picture())
    put(tmp_path / "cut.png", picture()[:-30])
    put(tmp_path / "text.png", b"not a picture at all")
    put(tmp_path.parent / "outside.png", picture())
    bad = {
        "broken_record": ["{broken", "[1]", '{"prompt": "\\ud800"}'],
        "missing_key": [mm_rlhf(1, chosen=None)],
        "empty_chosen": [mm_rlhf(1, chosen="  ")],
        "chosen_is_rejected": [mm_rlhf(1, chosen="x", rejected="x")],
        "missing_media": [
            mm_rlhf(1, image="nowhere.png"),
            mm_rlhf(1, image="http://x/y.png"),
            mm_rlhf(1, image=None, video="\0"),
            mm_rlhf(1, image="\0"),
            mm_rlhf(1, image="x" * 5000),
        ],
        "outside_root": [mm_rlhf(1, image="../outside.png"), mm_rlhf(1, video="/etc", image=None)],
        "truncated_media": [mm_rlhf(1, image="cut.png")],
        "unreadable_media": [mm_rlhf(1, image="text.png"), mm_rlhf(1, image="short")],
        "image_mark_in_text": [mm_rlhf(1, prompt="A <|image_pad|>?")],
    }
    rows = [mm_rlhf(1), *(row for group in bad.values() for row in group)]
    report, pairs = run(write_lines(tmp_path / "pairs.jsonl", rows), image_rule="qwen2_vl")
    assert len(pairs) == 1
    assert report["dropped"] == {reason: len(group) for reason, group in sorted(bad.items())}
    table = rejected(tmp_path / "ds")
    reasons = [reason for reason, group in bad.items() for _ in group]
    places = {f"pairs.jsonl:{line}": reason for line, reason in enumerate(reasons, start=2)}
    assert dict(table.select("position", "reason").iter_rows()) == places
    assert table["source"].unique().to_list() == ["pairs.jsonl"]
    assert table["detail"].str.len_chars().min() > 5


def test_too_much_bad_stops_the_run_and_leaves_only_the_evidence(run, tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, *["{"] * 3]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=r"3 of 4 rows are bad \(75.0 %\)"):
        run(source, max_bad="50%")
    assert not list((tmp_path / "ds").glob("_mmrlhf/manifest-*"))
    assert rejected(tmp_path / "ds")["position"].to_list() == [
        f"pairs.jsonl:{n}" for n in (2, 3, 4)
    ]
    with pytest.raises(InputError, match="none of 2 rows can be used"):
        run(write_lines(tmp_path / "rotten.jsonl", ["{", "{"]), out="rotten")
    assert rejected(tmp_path / "rotten").height == 2
    # What a refused call has left does not stand in the way of a better one.
    assert len(run(source)[1]) == 1


def test_a_call_that_another_process_is_at_leaves_its_reports_alone(run, tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    run(source)
    (record,) = (tmp_path / "ds" / "reports").iterdir()
    folder = tmp_path / "other" / "reports" / record.name
    with locked(folder):
        (folder / "started.json").write_text("{}")
        with pytest.raises(InputError, match="another process is working"):
            run(source, out="other")
        assert (folder / "started.json").exists()


def test_the_same_call_again_is_skipped_and_a_changed_source_is_refused(run, tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    first, _ = run(source)
    again, pairs = run(source)
    assert (again, len(pairs)) == (first, 1)
    appended, pairs = run(source, append=True)
    assert (appended["version"], len(pairs)) == (first["version"], 1)
    with pytest.raises(InputError, match="already there"):
        run(source, ties="drop")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, "no source given"),
        ({"sources": ["absent.jsonl"]}, "no such file"),
        ({"image_rule": "absent"}, "no such folder"),
        ({"tokenizer": "./absent"}, "no such folder"),
        ({"sources": ["odd.jsonl"]}, "no format of preference data fits"),
        ({"tokenizer": ""}, "no model given"),
        ({"root": "absent"}, "root of the media is not a folder"),
    ],
)
def test_an_invalid_setting_is_one_clear_error_before_work_starts(
    folder, tmp_path, monkeypatch, settings, message
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    write_lines(tmp_path / "odd.jsonl", [{"question": "a", "answer": "b"}])
    config = pack.PackConfig(**{"sources": ["a.jsonl"], "tokenizer": str(folder), **settings})
    with pytest.raises((ConfigError, InputError), match=message):
        pack.pack_dataset(config, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()


def test_an_existing_dataset_is_extended_only_with_append(run, tmp_path):
    first = write_lines(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    second = write_lines(tmp_path / "b.jsonl", [{"prompt": "d", "chosen": "e", "rejected": "f"}])
    run(first)
    with pytest.raises(InputError, match="already there"):
        run(second)
    report, pairs = run(second, append=True)
    assert (report["version"], len(pairs)) == (2, 2)
    names = sorted(path.name for path in (tmp_path / "ds" / "reports").iterdir())
    assert len(names) == 2


def test_the_rejected_side_may_see_another_image(run, tmp_path):
    put(tmp_path / "cat.png", picture(seed=1))
    put(tmp_path / "dog.png", picture(seed=2))
    row = {
        "messages": [
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "rejected_response": "A cat.",
        "images": ["cat.png"],
        "rejected_images": ["dog.png"],
    }
    source = write_lines(tmp_path / "pairs.jsonl", [row, {**row, "rejected_images": ["no.png"]}])
    report, (pair,) = run(source, image_rule="qwen2_vl", max_length=100)
    assert report["dropped"] == {"missing_media": 1}
    assert pair["query"]["pictures"] == [picture(seed=1)]
    assert (pair["chosen"]["pictures"], pair["rejected"]["pictures"]) == ([], [picture(seed=2)])
    assert pair["chosen"]["tokens"] == pair["rejected"]["tokens"]
    assert pair["chosen"]["rid"] != pair["rejected"]["rid"]


def test_a_video_is_some_of_its_frames(run, tmp_path, tokenizer):
    for number in range(25):
        put(tmp_path / "video" / "a" / f"{number:03}.png", picture(seed=number))
    rows = [mm_rlhf(1, image=None, video="video/a"), mm_rlhf(1, image="video/a/007.png")]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    report, pairs = run(source, frames=4, videos="frames")
    query = pairs[0]["query"]
    assert query["pictures"] == [picture(seed=number) for number in (0, 8, 16, 24)]
    assert query["media_t"] == [0.0, 8.0, 16.0, 24.0]
    assert query["prompt"].count(0xFFFFFFFF) == 4
    assert pairs[1]["query"]["media_t"] == []
    assert report["pictures"] == 5


def test_a_video_file_needs_its_extra(run, tmp_path):
    put(tmp_path / "frame.png", picture())
    put(tmp_path / "clip.mp4", b"\0\0\0\x18ftypmp42" + bytes(40))
    source = write_lines(tmp_path / "a.jsonl", [mm_rlhf(1, image=None, video="frame.png")])
    assert run(source, videos="frames")[1][0]["query"]["media_t"] == [0.0]
    source = write_lines(tmp_path / "b.jsonl", [mm_rlhf(1, image=None, video="clip.mp4")])
    if find_spec("av") is None:
        with pytest.raises(MissingExtraError, match=r"mmrlhf-engine\[video\]"):
            run(source, out="clip", videos="frames")
        assert not (tmp_path / "clip").exists()
    else:
        with pytest.raises(InputError, match="unreadable_media"):
            run(source, out="clip", videos="frames")


def test_two_processes_pack_into_one_dataset(folder, tmp_path):
    put(tmp_path / "short" / "1.png", picture())
    running = []
    for part in range(2):
        rows = [mm_rlhf(1, chosen=words(part * 100 + n), rejected=words(n + 50)) for n in range(30)]
        source = write_lines(tmp_path / f"part{part}.jsonl", rows)
        arguments = (str(source), str(folder), str(tmp_path / "ds"))
        running.append(SERVER.Process(target=pack_in_process, args=arguments))
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert len({pair["pid"] for pair in stored(tmp_path / "ds")}) == 60
    names = sorted(path.name for path in (tmp_path / "ds" / "reports").iterdir())
    assert len(names) == 2


def test_the_table_of_queries_is_bounded(run, tmp_path):
    def preference(prompt, answer):
        sides = (Response((Message("assistant", (text,)),)) for text in (answer, "no"))
        return Preference((Message("user", (prompt,)),), tuple(sides), (Pair(0, 1),))

    with (
        TableWriter(tmp_path / "rejected", REJECTED) as rejected,
        TableWriter(tmp_path / "changed", pack.CHANGED) as changed,
    ):
        gatherer = Gatherer(RowAccounting(rejected, changed), keep_ties=True, queries=2)
        left = []
        for number, prompt in enumerate("abacab"):
            row = PackedRow("s", str(number), 0)
            preferred = preference(prompt, str(number))
            left += gatherer.add(preferred, source=0, root=tmp_path, row=row)
        left += gatherer.rest()
    # c evicts b, the second b evicts c; a was used in between and stays in memory.
    assert [query.prompt[0].text for query in left] == ["b", "c", "a", "b"]
    assert [len(query.pairs) for query in left] == [1, 1, 3, 1]


def test_many_rows_far_apart_still_add_up(run, tmp_path):
    rows = [
        {"prompt": words(n % 700), "chosen": words(n + 1000), "rejected": words(n + 5000)}
        for n in range(1500)
    ]
    report, pairs = run(write_lines(tmp_path / "pairs.jsonl", rows), shard_pairs=200)
    assert report["rows_in"] == report["rows_out"] + sum(report["dropped"].values()) == 1500
    assert len(pairs) == report["pairs_out"] == report["rows_out"]
    assert report["queries"] <= 700
    assert len(list((tmp_path / "ds" / "data").glob("*-p-*.arrow"))) > 3
