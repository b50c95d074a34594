"""Duplicates: found as all pairs would find them, removed on evidence, the same on every run."""

import io
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from mmrlhf_engine._core import find_duplicates, near_hashes
from mmrlhf_engine.curate import dedup, picture_hashes
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.tables import MEDIA, SAMPLES
from mmrlhf_engine.errors import InputError

WORDS = ["red", "blue", "cat", "dog", "sees", "near"]
FLAT = bytes(192)


def shingles(text, size=3):
    """Plain word shingles of ASCII text, as sets of tuples."""
    tokens = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    if len(tokens) <= size:
        return {tuple(tokens)}
    return {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


BY_HASHES = {"judge": False, "max_per_image": None, "colour_tolerance": 24, "bands": 32}


def find(
    prompts,
    media=None,
    hashes=(),
    colours=None,
    *,
    answers=None,
    overrides=(),
    judge=None,
    threads=2,
    **changes,
):
    """Duplicates, near misses and the number of comparisons; one picture a media item.

    ``overrides`` are kept apart, in whichever order they are named.
    """
    settings = {**BY_HASHES, "judge": judge is not None, **changes}
    duplicates, misses, counts = find_duplicates(
        {
            "prompts": pa.array(prompts, pa.large_string()),
            "answers": pa.array(answers or [None] * len(prompts), pa.large_string()),
            "media": pa.array(media or [[]] * len(prompts), pa.large_list(pa.uint32())),
            "rank": pa.array(range(len(prompts)), pa.uint32()),
            "overrides": list(overrides),
        },
        {
            "media": pa.array(range(len(hashes)), pa.uint32()),
            "phash": pa.array(hashes, pa.uint64()),
            "colour": pa.array(
                map(list, colours or [FLAT] * len(hashes)), pa.large_list(pa.uint8())
            ),
        },
        settings=DedupConfig(**settings).model_dump(),
        judge=judge,
        threads=threads,
    )
    return pa.array(duplicates).to_pylist(), pa.array(misses).to_pylist(), counts["compared"]


def normal(text):
    return " ".join(text.lower().split())


def look_alike(a, b, hashes, colours):
    """Whether two lists of media show the same, position by position."""
    return len(a) == len(b) and all(
        x == y
        or (
            (hashes[x] ^ hashes[y]).bit_count() <= 4
            and max(abs(p - q) for p, q in zip(colours[x], colours[y], strict=True)) <= 24
        )
        for x, y in zip(a, b, strict=True)
    )


def removed_rows(media, most, like, duplicate, apart=(), distance=lambda _row, _other: 0):
    """The rows that go, in keep order: duplicates of one that stays, and those over the cap.

    ``apart`` are pairs of which a person said that they are no duplicates: no third row stands for
    both. Of several rows that a row is a duplicate of, the one of the least ``distance``, then the
    first, removes it.
    """
    kept, founders, removed, stands_for = [], [], set(), {}
    partners = [{b for b in range(len(media)) if (a, b) in apart or (b, a) in apart} - {a}
                for a in range(len(media))]  # fmt: skip

    def kept_apart(row, other):
        return any(stands_for.get(partner, partner) == other for partner in partners[row])

    for row in range(len(media)):
        together = (f for f in founders if media[row] and not kept_apart(row, f[0]))
        founder = next((f for f in together if like(row, f[0])), None)
        full = most is not None and founder is not None and founder[1] >= most
        nearest = sorted(kept, key=lambda other: (distance(row, other), other))
        of = (k for k in nearest if duplicate(row, k) and not kept_apart(row, k))
        stays = next(of, None)
        if stays is not None:
            stands_for[row] = stays
        if full or stays is not None:
            removed.add(row)
        else:
            kept.append(row)
            if founder is not None:
                founder[1] += 1
            elif media[row]:
                founders.append([row, 1])
    return removed


def naive(prompts, media, hashes, colours, policy, most):
    """Every sample against every one that stays, in keep order; the rows that go."""

    def like(a, b):
        if policy in ("text", "exact"):
            return media[a] == media[b]
        return look_alike(media[a], media[b], hashes, colours)

    def duplicate(a, b):
        text = jaccard(prompts[a], prompts[b]) >= 0.8
        if policy == "exact":
            return normal(prompts[a]) == normal(prompts[b]) and media[a] == media[b]
        if policy == "text":
            return text
        if policy == "image":
            return bool(media[a]) and like(a, b)
        return text and like(a, b)

    return removed_rows(media, most, like, duplicate)


@st.composite
def corpora(draw):
    """Prompts of few words over few pictures, so that near ones abound."""
    rows = draw(st.integers(1, 14))
    base = [0, 0b1111, 0b11111111, 2**64 - 1]
    hashes = draw(st.lists(st.sampled_from(base), min_size=3, max_size=3))
    colours = [bytes([draw(st.sampled_from([0, 20, 40]))] * 192) for _ in hashes]
    text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
    pool = draw(st.lists(text, min_size=1, max_size=4))
    noisy = st.sampled_from(pool).flatmap(
        lambda p: st.sampled_from([p, p.upper(), f"  {p} ", f"{p}!", f"{p} now"])
    )
    prompts = draw(st.lists(noisy, min_size=rows, max_size=rows))
    media = draw(st.lists(st.lists(st.integers(0, 2), max_size=2), min_size=rows, max_size=rows))
    return prompts, media, hashes, colours


# Of two equal texts the first is over the cap of its image; the other has no image, so it stays.
EQUAL_TEXT_OVER_THE_CAP = (
    ["red", "red red", "red", "red", "red", "red", "red now", "red now"],
    [[0, 0], [0, 0], [], [], [], [], [0, 0], []],
    [0, 0, 0],
    [bytes(192)] * 3,
)


@pytest.mark.parametrize("policy", ["joint", "image", "text", "exact"])
@pytest.mark.parametrize("most", [None, 2])
@settings(max_examples=60)
@given(corpus=corpora())
@example(corpus=EQUAL_TEXT_OVER_THE_CAP)
def test_removals_equal_a_comparison_of_all_pairs(policy, most, corpus):
    removals, *_ = find(*corpus, policy=policy, max_per_image=most)
    assert {r["row"] for r in removals} == naive(*corpus, policy, most)
    removed = {r["row"] for r in removals}
    for removal in removals:
        assert removal["kept"] not in removed
        assert removal["kept"] < removal["row"]


@settings(max_examples=60)
@given(corpus=corpora())
def test_the_measures_belong_to_the_reported_pair(corpus):
    prompts, media, hashes, _ = corpus
    for removal in find(*corpus)[0]:
        row, other = removal["row"], removal["kept"]
        assert removal["text_jaccard"] == pytest.approx(jaccard(prompts[row], prompts[other]))
        distances = [
            (hashes[a] ^ hashes[b]).bit_count()
            for a, b in zip(media[row], media[other], strict=True)
        ]
        assert removal["image_hamming"] == (max(distances) if distances else None)


@settings(max_examples=30)
@given(corpus=corpora(), threads=st.integers(1, 4))
def test_threads_change_nothing(corpus, threads):
    assert find(*corpus, threads=threads) == find(*corpus, threads=1)


def test_nearly_every_near_pair_of_natural_length_is_found():
    generator = np.random.default_rng(0)
    prompts = []
    for _ in range(300):
        words = [f"w{n}" for n in generator.integers(0, 5000, 40)]
        prompts.append(" ".join(words))
        words[int(generator.integers(0, 40))] = "changed"
        prompts.append(" ".join(words))
    near = {row for row in range(1, 600, 2) if jaccard(prompts[row - 1], prompts[row]) >= 0.8}
    found = {r["row"] for r in find(prompts, policy="text")[0]}
    assert len(near) > 200
    assert found <= near
    assert len(found) >= 0.99 * len(near)


def test_nothing_is_removed_through_a_chain():
    hashes = [0, 0b1111, 0b11111111]  # each within 4 bits of the next, the ends 8 apart
    removals, *_ = find(["what is it"] * 3, [[0], [1], [2]], hashes)
    assert [(r["row"], r["kept"], r["image_hamming"]) for r in removals] == [(1, 0, 4)]


def test_the_same_picture_in_another_colour_is_another_picture():
    colours = [bytes([10] * 192), bytes([200] * 192)]
    args = ["what is it"] * 2, [[0], [1]], [7, 7], colours
    assert find(*args)[0] == []
    assert len(find(*args, colour_tolerance=None)[0]) == 1


def test_text_in_scripts_without_spaces_is_compared_by_character():
    long = "这张图片里有一只黑色的猫坐在红色的沙发上面看着窗外的小鸟"
    removals, *_ = find([long, long + "吗", "这张图片里有几个人"])
    assert [r["row"] for r in removals] == [1]
    assert removals[0]["text_jaccard"] == pytest.approx((len(long) - 2) / (len(long) - 1))


@pytest.mark.parametrize("pictures", [0, 20_000], ids=["no picture", "a picture each"])
def test_one_prompt_twenty_thousand_times_is_compared_once_each_at_most(pictures):
    generator = np.random.default_rng(1)
    hashes = generator.integers(0, 2**63, pictures).tolist()
    media = [[n] for n in range(20_000)] if pictures else None
    removals, _, candidates = find(["Describe this image in detail."] * 20_000, media, hashes)
    assert candidates <= 20_000
    assert (len(removals) == 19_999) == (pictures == 0)


def test_many_similar_texts_below_the_threshold_stay_linear_and_their_duplicates_are_found():
    begin = "please look at this thing and then tell me about number"
    similar = [f"{begin} {n} of {n * 7}" for n in range(20_000)]
    assert 0.5 < jaccard(similar[3], similar[4]) < 0.8
    copies = [f"{similar[n]} now" for n in range(0, 20_000, 100)]
    assert jaccard(similar[0], copies[0]) >= 0.8
    removals, _, candidates = find(similar + copies)
    # The similar texts alone have two hundred million pairs, and nearly all of them share a bucket.
    assert len(similar) < candidates <= 16 * 512 * len(similar + copies)
    assert {r["row"] for r in removals} <= set(range(20_000, 20_200))
    assert len(removals) >= 0.99 * len(copies)


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(
        InputError, match=r"prompts and answers, media, rank: 1 and \[1, 2, 1\] rows"
    ):
        find(["a"], [[0], [0]], [1])
    with pytest.raises(ValidationError, match="policy"):
        find(["a"], policy="some")
    with pytest.raises(InputError, match="expected equal lengths"):
        find(["a"], [[0]], [1], colours=[FLAT, FLAT])


def picture(seed, size=64, quality=None):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG" if quality else "PNG", **({"quality": quality} if quality else {}))
    return buffer.getvalue()


def corpus(stage, folder, samples, pictures, *, shuffled=0, table=None):
    """A finished ingest: samples are (id, prompt, answer, names of pictures)."""
    media = []
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
        side = 128 if "large" in name else 64
        row = {"hash": name, "kind": "image", "width": side, "height": side, "path": folder / name}
        media.append({**dict.fromkeys(MEDIA), **row, "path": str(row["path"])})
    rows = [
        {**dict.fromkeys(SAMPLES), "id": i, "source": "s", "prompt": p, "answer": a, "media": m}
        for i, p, a, m in samples
    ]
    order = np.random.default_rng(shuffled).permutation(len(rows)) if shuffled else range(len(rows))
    stage.upstream(
        "ingest",
        samples=(
            SAMPLES,
            pl.DataFrame([rows[at] for at in order], SAMPLES) if table is None else table,
        ),
        media=(MEDIA, pl.DataFrame(media[:: -1 if shuffled else 1], schema=MEDIA)),
    )


def deduplicate(stage, threads=2, **config):
    begun = stage("dedup", DedupConfig(**config), threads=threads)
    dedup.run(begun.config, begun)
    tables = ("kept", "duplicates", "rejected", "near_pairs")
    read = {name: pl.read_parquet(begun.folder / name / "*.parquet") for name in tables}
    return read, begun.run.report("dedup")


SAMPLE_ROWS = [
    ("a", "What is shown in this picture", "x", ["one.png"]),
    ("b", "what is SHOWN in  this picture", "an answer of more words than x", ["one.png"]),
    ("c", "What is shown in this picture", "x", ["one_large.png"]),
    ("d", "What is shown in this picture", "x", ["two.png"]),
    ("e", "How many people are there", "x", ["one.png"]),
    ("f", "How many people are there", "x", []),
    ("g", "How many people are there", "x", []),
    ("h", "What is shown in this picture", "x", ["one.jpg"]),
]
PICTURES = {
    "one.png": picture(1),
    "one_large.png": picture(1, 128),
    "one.jpg": picture(1, quality=60),
    "two.png": picture(2),
}


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("joint", {"c", "d", "e", "f"}),
        ("image", {"c", "d", "f", "g"}),
        ("text", {"c", "e"}),
        ("exact", {"b", "c", "d", "e", "f", "h"}),
    ],
)
def test_each_policy_keeps_the_best_of_its_duplicates(stage, tmp_path, policy, kept):
    corpus(stage, tmp_path, SAMPLE_ROWS, PICTURES)
    tables, report = deduplicate(stage, policy=policy)
    assert set(tables["kept"]["id"]) == kept
    assert report["rows_in"] == 8
    assert report["rows_out"] == len(kept)
    duplicates = tables["duplicates"]
    assert set(duplicates["kept_id"]) <= kept
    assert set(duplicates["policy"]) == {policy}
    assert Counter(duplicates["kind"]) == {k: n for k, n in report["dropped"].items() if n}
    # A measure that the policy does not use is null.
    assert (duplicates["text_jaccard"].null_count() == duplicates.height) == (policy == "image")
    assert (duplicates["image_hamming"].null_count() == duplicates.height) == (policy == "text")


def test_max_per_image_limits_the_samples_of_a_picture(stage, tmp_path):
    rows = [(f"q{n}", f"question number {n} about {n * 7}", "x", ["one.png"]) for n in range(6)]
    corpus(stage, tmp_path, [*rows, ("t", "text alone", "x", [])], PICTURES)
    tables, report = deduplicate(stage, max_per_image=4)
    assert set(tables["kept"]["id"]) == {"q0", "q1", "q2", "q3", "t"}
    assert tables["duplicates"].select("id", "kept_id", "kind").rows() == [
        ("q4", "q0", "max_per_image"),
        ("q5", "q0", "max_per_image"),
    ]
    assert report["dropped"] == {"max_per_image": 2}


def test_a_picture_that_cannot_be_decoded_rejects_only_its_samples(stage, tmp_path):
    whole = picture(3)
    broken = whole[:60] + bytes(len(whole) - 72) + whole[-12:]
    corpus(
        stage,
        tmp_path,
        [("bad", "what", "x", ["one.png", "broken.png"]), ("good", "what", "x", ["one.png"])],
        {**PICTURES, "broken.png": broken},
    )
    tables, report = deduplicate(stage)
    assert tables["kept"]["id"].to_list() == ["good"]
    assert tables["kept"]["phash"].list.len().to_list() == [1]
    assert tables["rejected"]["position"].to_list() == ["bad"]
    (reason,) = tables["rejected"]["reason"]
    assert report["dropped"] == {reason: 1}
    assert reason in {"unreadable_media", "truncated_media"}


def test_the_order_of_rows_and_the_threads_leave_the_same_bytes(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_hashes, "_MEDIA_PER_CHUNK", 2)

    def digest(shuffled, threads):
        corpus(stage, tmp_path, SAMPLE_ROWS, PICTURES, shuffled=shuffled)
        begun = stage("dedup", DedupConfig(), threads=threads)
        dedup.run(begun.config, begun)
        return begun.run.manifest("dedup")["outputs"]

    first = digest(0, 1)
    assert digest(5, 3) == first


def test_hashing_resumes_where_it_was_interrupted(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_hashes, "_MEDIA_PER_CHUNK", 1)
    corpus(stage, tmp_path, SAMPLE_ROWS, PICTURES)
    real, calls = picture_hashes.hash_images, []

    def dies_at_third(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(picture_hashes, "hash_images", dies_at_third)
    begun = stage("dedup", DedupConfig())
    with pytest.raises(KeyboardInterrupt):
        dedup.run(begun.config, begun)
    assert len(list(begun.scratch.glob("*.parquet"))) == 2
    tables, _ = deduplicate(stage)
    assert set(tables["kept"]["id"]) == {"c", "d", "e", "f"}
    assert len(calls) == 5  # two before the kill, the one that died, the two that were left


def test_near_pairs_show_both_verdicts_around_the_threshold(stage, tmp_path):
    words = [f"word{n}" for n in range(30)]
    near = " ".join([*words[:-1], "other"])
    narrow = " ".join([*words[:14], "x", *words[15:-1], "y"])
    rows = [("a", " ".join(words), "long answer", []), ("b", near, "x", []), ("c", narrow, "x", [])]
    corpus(stage, tmp_path, rows, PICTURES)
    tables, _ = deduplicate(stage, judge=False)
    shown = {row["id"]: row for row in tables["near_pairs"].to_dicts()}
    assert shown["b"]["verdict"] == "removed"
    assert shown["b"]["text_jaccard"] >= 0.8
    assert shown["c"]["verdict"] == "kept"
    assert shown["c"]["text_jaccard"] < 0.8


def test_a_corpus_of_nothing_but_text_needs_no_media(stage, tmp_path):
    corpus(stage, tmp_path, [("a", "one two", None, []), ("b", "One  two", None, [])], {})
    tables, report = deduplicate(stage)
    assert tables["kept"]["id"].to_list() == ["a"]
    assert tables["kept"]["phash"].to_list() == [[]]
    assert report["pictures"] == 0


def test_near_hashes_name_the_first_they_are_connected_with():
    hashes = pa.array([7, 0xFF00, 3, 0xFF00 ^ 1, 2**64 - 1], pa.uint64())
    for radius, first in ((0, [0, 1, 2, 3, 4]), (1, [0, 1, 0, 1, 4]), (16, [0, 0, 0, 0, 4])):
        found = pa.array(near_hashes(hashes, radius=radius, threads=2))
        assert found.to_pylist() == first
