"""Dedup within little memory: files and texts that are read again change no result."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_engine._core import count_frequencies, find_duplicates, keep_orders
from mmrlhf_engine.curate import sample_columns
from mmrlhf_engine.curate.dedup import DedupConfig
from test_dedup import PICTURES, SAMPLE_ROWS, corpus, deduplicate

WORDS = ["red", "blue", "cat", "dog", "sees", "near", "colour", "color", "how", "many", "the"]
ANSWERS = [None, "red", "Red.", "two cats", "a long answer of more than five words"]


@st.composite
def corpora(draw):
    """Texts of which many are edited copies of earlier ones, on pictures with near hashes."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows = draw(st.integers(1, 60))
    texts, media = [], []
    for _ in range(rows):
        words = rng.choice(WORDS, rng.integers(1, 12)).tolist()
        pictures = rng.integers(0, 6, rng.integers(0, 3)).tolist()
        if texts and rng.random() < 0.6:
            of = rng.integers(len(texts))
            words = texts[of].split()
            if rng.random() < 0.5:
                words[rng.integers(len(words))] = str(rng.choice(WORDS))
            if rng.random() < 0.7:
                pictures = media[of]
        texts.append(" ".join(words))
        media.append(pictures)
    hashes = (rng.integers(0, 2, 6) * 0xFFFF_0000 + rng.integers(0, 16, 6)).tolist()
    answers = [ANSWERS[place] for place in rng.integers(0, len(ANSWERS), rows)]
    apart = rng.integers(0, rows, (rng.integers(0, 3), 2)).tolist()
    return texts, answers, media, hashes, rng.permutation(rows), apart


def judge(first, second):
    """Some near pictures are copies, and some of these are equal."""
    return [(a + b) % 3 > 0 for a, b in zip(first, second, strict=True)], [
        (a + b) % 3 == 2 for a, b in zip(first, second, strict=True)
    ]


def find(sample, config, threads, **room):
    texts, answers, media, hashes, rank, apart = sample
    prompts = pa.array(texts, pa.large_string())
    counted = count_frequencies(prompts, shingle_words=3, common_from=4, threads=1)
    duplicates, misses, counts = find_duplicates(
        {
            "prompts": prompts,
            "answers": pa.array(answers, pa.large_string()),
            "media": pa.array(media, pa.large_list(pa.uint32())),
            "rank": pa.array(rank.astype(np.uint32)),
            "overrides": [tuple(pair) for pair in apart],
        },
        {
            "media": pa.array(range(len(hashes)), pa.uint32()),
            "phash": pa.array(hashes, pa.uint64()),
            "colour": pa.array([[0] * 192] * len(hashes), pa.large_list(pa.uint8())),
        },
        settings=config.model_dump(),
        judge=judge,
        threads=threads,
        frequencies=pa.array(counted),
        **room,
    )
    return pa.array(duplicates).to_pylist(), pa.array(misses).to_pylist(), counts


@given(
    sample=corpora(),
    policy=st.sampled_from(["joint", "image", "text", "exact"]),
    judged=st.booleans(),
    most=st.sampled_from([None, 1, 3]),
    memory=st.sampled_from([0, 20_000]),
    threads=st.sampled_from([1, 2]),
)
@settings(max_examples=150, deadline=None)
def test_little_memory_finds_what_any_amount_does(
    tmp_path_factory, sample, policy, judged, most, memory, threads
):
    scratch = tmp_path_factory.getbasetemp()
    config = DedupConfig(policy=policy, judge=judged, max_per_image=most, common_from=4)
    within = find(sample, config, threads, memory=memory, scratch=str(scratch))
    assert within == find(sample, config, 1)
    assert not list(scratch.glob("spill-*"))


@given(
    st.dictionaries(st.text("ab:0é", max_size=12), st.tuples(st.integers(0, 2), st.integers(0, 2)))
)
def test_keep_order_is_that_of_tuples(rows):
    ids = list(rows)
    pixels, lengths = zip(*rows.values(), strict=True) if rows else ((), ())
    by_id, rank = keep_orders(
        pa.array(ids, pa.large_string()),
        pa.array(pixels, pa.uint64()),
        pa.array(lengths, pa.uint32()),
        threads=1,
    )
    assert [ids[row] for row in pa.array(by_id).to_pylist()] == sorted(ids, key=str.encode)
    order = sorted(ids, key=lambda name: (-rows[name][0], -rows[name][1], name.encode()))
    assert [order.index(name) for name in ids] == pa.array(rank).to_pylist()


def test_tables_are_read_and_sorted_in_pieces_of_any_size(stage, tmp_path, monkeypatch):
    names = {
        f"{place:02x}{name}": content for place, (name, content) in enumerate(PICTURES.items())
    }
    names["f0broken.png"] = b"no picture"
    renamed = {name[2:]: name for name in names}
    rows = [(i, p, a, [renamed[name] for name in m]) for i, p, a, m in SAMPLE_ROWS]
    rows += [("i", "Is it broken", "x", [renamed["one.png"], renamed["broken.png"]])]
    corpus(stage, tmp_path, rows, names)
    tables, report = deduplicate(stage)
    assert tables["rejected"]["position"].to_list() == ["i"]
    assert report["rows_in"] == len(rows)
    monkeypatch.setattr(sample_columns, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(sample_columns, "_MEDIA_AT_ONCE", 2)
    again, _ = deduplicate(stage)
    assert all(again[name].equals(rows) for name, rows in tables.items())
