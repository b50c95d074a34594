"""Near pictures are compared before a sample goes, and short answers are evidence."""

import io
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from mmrlhf_engine.curate import dedup, media_judge
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.overrides import OVERRIDES
from mmrlhf_engine.curate.tables import SAMPLES
from naive_answers import contradict
from naive_proposals import proposed
from test_dedup import (
    corpora,
    corpus,
    deduplicate,
    find,
    jaccard,
    normal,
    picture,
    removed_rows,
)
from test_image import photograph


@st.composite
def judged_corpora(draw):
    """A corpus with answers, overrides, and which media are copies and which equal."""
    prompts, media, hashes, colours = draw(corpora())
    rows = range(len(prompts))
    answer = st.sampled_from(
        [None, "yes", "Yes.", "no", "two cats", "2", "B", "(b)", "a long answer of several words"]
    )
    answers = [draw(answer) for _ in rows]
    pairs = st.tuples(st.sampled_from(rows), st.sampled_from(rows))
    overrides = draw(st.lists(pairs, max_size=3))
    verdict = st.sampled_from([(False, False), (True, False), (True, True)])
    verdicts = {pair: draw(verdict) for pair in ((0, 1), (0, 2), (1, 2))}
    return (prompts, media, hashes, colours), answers, overrides, verdicts


def naive_judged(corpus, answers, overrides, verdicts, policy, most):
    """As ``naive``, with verdicts on pictures, answers and overrides."""
    prompts, media, hashes, colours = corpus
    pictures = list(zip(hashes, colours, strict=True))

    def look_alike(a, b):
        return len(a) == len(b) and all(
            x == y or proposed(pictures[x], pictures[y]) for x, y in zip(a, b, strict=True)
        )

    def agree(a, b, place):
        return all(
            x == y or verdicts[min(x, y), max(x, y)][place]
            for x, y in zip(media[a], media[b], strict=True)
        )

    def like(a, b, place):
        if policy in ("text", "exact"):
            return media[a] == media[b]
        return look_alike(media[a], media[b]) and agree(a, b, place)

    def duplicate(a, b):
        given = answers[a], answers[b]
        conflict = None not in given and contradict(*given)
        same_words = prompts[a].split() == prompts[b].split()
        text = jaccard(prompts[a], prompts[b]) >= 0.8 and (same_words or not conflict)
        if policy == "exact":
            return normal(prompts[a]) == normal(prompts[b]) and media[a] == media[b]
        if policy == "text":
            return text
        if policy == "image":
            return bool(media[a]) and like(a, b, 0)
        return text and like(a, b, 1 if conflict else 0)

    def distance(a, b):
        if policy not in ("joint", "image"):
            return 0
        pairs = zip(media[a], media[b], strict=False)
        return max(((hashes[x] ^ hashes[y]).bit_count() for x, y in pairs), default=0)

    return removed_rows(media, most, lambda a, b: like(a, b, 0), duplicate, overrides, distance)


# The last two have one answer, but only the first of them has the words of the row that removes it.
ONE_ANSWER_IN_TWO_WORDINGS = (
    (["RED", "RED", "red"], [[], [], []], [0, 0, 0], [bytes(192)] * 3),
    ["no", "yes", "yes"],
    [],
    dict.fromkeys([(0, 1), (0, 2), (1, 2)], (False, False)),
)


@pytest.mark.parametrize("policy", ["joint", "image", "text", "exact"])
@settings(max_examples=150)
@given(case=judged_corpora())
@example(case=ONE_ANSWER_IN_TWO_WORDINGS)
def test_what_is_judged_equals_a_comparison_of_all_pairs(policy, case):
    corpus, answers, overrides, verdicts = case
    asked = []

    def judge(first, second):
        pairs = list(zip(first, second, strict=True))
        asked.extend(pairs)
        return [verdicts[pair][0] for pair in pairs], [verdicts[pair][1] for pair in pairs]

    given = {"answers": answers, "overrides": overrides, "text_rule": "documents"}
    found, *_ = find(*corpus, policy=policy, judge=judge, **given)
    assert {r["row"] for r in found} == naive_judged(
        corpus, answers, set(overrides), verdicts, policy, None
    )
    assert len(asked) == len(set(asked))


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    gain=st.floats(0.4, 1.2),
    offset=st.floats(-60, 60),
    saturation=st.floats(0.3, 1.2),
    noise=st.integers(0, 40),
)
def test_what_is_proposed_is_what_a_copy_may_look_like(seed, gain, offset, saturation, noise):
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 256, (3, 3, 3)).repeat(3, 0).repeat(3, 1)[:8, :8].astype(float)
    grey = one.mean(axis=2, keepdims=True)
    other = gain * (grey + saturation * (one - grey)) + offset
    other += rng.integers(-noise, noise + 1, other.shape)
    pictures = [
        (int(rng.choice([0, 0b11, 0b111111])), grid) for grid in (as_bytes(one), as_bytes(other))
    ]
    asked = []

    def judge(first, second):
        asked.extend(zip(first, second, strict=True))
        return [False] * len(first), [False] * len(first)

    hashes, colours = zip(*pictures, strict=True)
    find(["what is it"] * 2, [[0], [1]], hashes, colours, judge=judge)
    assert asked == [(0, 1)] * proposed(*pictures)


def test_a_row_of_the_same_picture_is_found_behind_many_look_alikes():
    """More than are judged for one row, and each as near by its hash."""
    count = 40
    texts = ["what is it"] * count + ["please, what is it"]
    media = [[number] for number in range(count)] + [[count - 1]]
    asked = []

    def judge(first, second):
        asked.extend(zip(first, second, strict=True))
        return [False] * len(first), [False] * len(first)

    found, *_ = find(texts, media, [0] * count, judge=judge, text_rule="prompts")
    assert [(row["row"], row["kept"]) for row in found] == [(count, count - 1)]
    assert len(asked) > 24


def as_bytes(grid):
    return grid.clip(0, 255).astype(np.uint8).tobytes()


QUESTION = "What is the total of this invoice?"


def invoice(number, total):
    page = Image.new("RGB", (480, 640), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(24)
    draw.text((40, 40), "ACME Limited", "black", ImageFont.load_default(36))
    draw.text((40, 120), f"Invoice {number:05d}", "black", font)
    for line in range(6):
        draw.text((40, 200 + 40 * line), f"Item {line + 1}", "black", font)
        draw.line((40, 235 + 40 * line, 440, 235 + 40 * line), "grey")
    draw.text((280, 480), f"Total {total}", "black", font)
    return page


def stored(page, format="PNG", **options):
    saved = io.BytesIO()
    page.save(saved, format, **options)
    return saved.getvalue()


INVOICES = {f"{n}.png": stored(invoice(10_000 + 7 * n, 300 + 13 * n)) for n in range(12)}


@pytest.mark.parametrize("answers", ["differ", "absent"])
def test_documents_of_one_layout_stay_and_their_copies_go(stage, tmp_path, answers):
    copies = {
        f"{n}_again.jpg": stored(invoice(10_000 + 7 * n, 300 + 13 * n), "JPEG", quality=80)
        for n in range(3)
    }
    pictures = INVOICES | copies
    rows = [
        (name, QUESTION, str(300 + 13 * int(name.split(".")[0].split("_")[0])), [name])
        for name in pictures
    ]
    if answers == "absent":
        rows = [(name, prompt, None, media) for name, prompt, _, media in rows]
    corpus(stage, tmp_path, rows, pictures)
    tables, report = deduplicate(stage)
    assert set(tables["kept"]["id"]) == set(INVOICES)
    assert set(tables["duplicates"]["id"]) == set(copies)
    evidence = tables["duplicates"].to_dicts()
    assert all(row["id"].startswith(row["kept_id"][:-4]) for row in evidence)
    assert all(row["image_difference"] < 5.5 and row["difference"] is None for row in evidence)
    assert report["pictures_judged"] > 3
    # Beside them stand pairs that were not removed, with where they differ.
    stay = tables["near_pairs"].filter(verdict="kept", difference="luma")
    assert stay.height > 5
    for left, top, width, height in stay["difference_box"]:
        assert 0 <= left < left + width <= 1
        # The number of the invoice, or its total.
        assert 110 / 640 < top + height / 2 < 150 / 640 or 470 / 640 < top + height / 2 < 515 / 640


def test_without_the_judge_hashes_decide(stage, tmp_path):
    corpus(stage, tmp_path, [(name, QUESTION, None, [name]) for name in INVOICES], INVOICES)
    tables, report = deduplicate(stage, judge=False)
    assert tables["kept"].height < 4
    assert report["pictures_judged"] == 0


def test_short_answers_that_differ_keep_near_pictures_but_not_equal_ones(stage, tmp_path):
    page = invoice(1, 2)
    pictures = {
        "a.png": stored(page),
        "b.png": stored(page, compress_level=1),
        "c.jpg": stored(page, "JPEG", quality=90),
    }
    assert pictures["a.png"] != pictures["b.png"]
    rows = [
        ("1", QUESTION, "The 2.", ["a.png"]),
        ("2", QUESTION, "3", ["a.png"]),
        ("3", QUESTION, "4", ["b.png"]),
        ("4", QUESTION, "5", ["c.jpg"]),
        ("5", QUESTION, "2", ["c.jpg"]),
        ("6", QUESTION, "It is two pounds and no pence.", ["c.jpg"]),
    ]
    corpus(stage, tmp_path, rows, pictures)
    tables, report = deduplicate(stage)
    found = {row["id"]: row for row in tables["duplicates"].to_dicts()}
    # The longest answer comes first in keep order, and contradicts none of the others.
    assert set(tables["kept"]["id"]) == {"6"}
    assert {row["kept_id"] for row in found.values()} == {"6"}
    assert report["conflicts"] == 0
    corpus(stage, tmp_path, rows[:-1], pictures)
    tables, report = deduplicate(stage)
    found = {row["id"]: row for row in tables["duplicates"].to_dicts()}
    assert set(tables["kept"]["id"]) == {"1", "4"}
    assert {(name, row["kind"], row["conflict"]) for name, row in found.items()} == {
        ("2", "exact", True),
        ("3", "near", True),
        ("5", "near", False),
    }
    assert {name: row["kept_id"] for name, row in found.items()} == {"2": "1", "3": "1", "5": "1"}
    assert report["conflicts"] == 2


@pytest.mark.parametrize(
    ("first", "second", "answers"),
    [
        ("Is this upper case: HELLO", "Is this upper case: hello", ("yes", "no")),
        ("How many letters are in color?", "How many letters are in colour?", ("5", "6")),
        ("Is it right: She have two cats.", "Is it right: She has two cats.", ("no", "yes")),
    ],
)
def test_questions_about_wording_stay_where_their_answers_differ(first, second, answers):
    def removed(*given):
        return [
            row["row"] for row in find([first, second], answers=list(given), judge=no_pictures)[0]
        ]

    assert removed(*answers) == []
    assert removed(answers[0], None) == removed(None, None)


def no_pictures(*_):
    raise AssertionError("there is no picture")


def test_turns_of_other_conversations_stay(stage, tmp_path):
    history = [[{"role": "user", "text": f"The word is {word}."}] for word in ("tree", "dog")]
    systems = [[{"role": "system", "text": f"Bob is {age}."}] for age in (5, 9)]
    rows = [
        *({"id": f"h{n}", "history": turns} for n, turns in enumerate(history)),
        *({"id": f"s{n}", "history": turns} for n, turns in enumerate(systems)),
        *({"id": f"p{n}", "history": turns, "media": ["a.png"]} for n, turns in enumerate(history)),
        *({"id": f"q{n}", "history": turns, "media": ["a.png"]} for n, turns in enumerate(systems)),
    ]
    known = {"source": "s", "prompt": "What is it?", "needs_history": False, "media": []}
    samples = pl.DataFrame([{**dict.fromkeys(SAMPLES), **known, **row} for row in rows], SAMPLES)
    corpus(stage, tmp_path, [], {"a.png": picture(1)}, table=samples)
    tables, _ = deduplicate(stage)
    # A question about a picture that can be understood alone is the same behind other turns.
    assert tables["duplicates"].select("id", "kept_id").rows() == [("p1", "p0")]


def test_what_was_compared_before_a_kill_is_not_compared_again(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(media_judge, "_PAIRS_PER_PART", 4)
    corpus(stage, tmp_path, [(name, QUESTION, None, [name]) for name in INVOICES], INVOICES)
    real, calls = media_judge.judge_pictures, []

    def dies_at_third(*args, **options):
        calls.append(len(args[4]))  # pairs
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(media_judge, "judge_pictures", dies_at_third)
    begun = stage("dedup", DedupConfig())
    with pytest.raises(KeyboardInterrupt):
        dedup.run(begun.config, begun)
    assert len(list(begun.scratch.glob("judged-*.parquet"))) == 2
    _, report = deduplicate(stage)
    assert sum(calls) - calls[2] == report["pictures_judged"]


def test_darker_copies_meet_the_picture_only_where_they_are_judged(stage, tmp_path):
    whole = photograph(3).resize((400, 300), Image.Resampling.LANCZOS)
    pictures = {
        "a_whole.png": stored(whole),
        "darker.png": stored(ImageEnhance.Brightness(whole).enhance(0.8)),
    }
    corpus(stage, tmp_path, [(name, QUESTION, None, [name]) for name in pictures], pictures)
    tables, _ = deduplicate(stage)
    assert tables["kept"]["id"].to_list() == ["a_whole.png"]
    tables, _ = deduplicate(stage, judge=False)
    assert tables["kept"].height > 1


def test_a_removal_that_a_person_took_back_is_not_made(stage, tmp_path):
    pictures = {"a.png": picture(1), "b.jpg": picture(1, quality=80)}
    rows = [("1", "what is it", None, ["a.png"]), ("2", "what is it", None, ["b.jpg"])]
    corpus(stage, tmp_path, rows, pictures)
    tables, _ = deduplicate(stage)
    assert tables["duplicates"].select("id", "kept_id").rows() == [("2", "1")]
    run = stage("dedup", DedupConfig()).run
    line = {"id": "2", "kept_id": "1", "keep": True}
    (run.folder / OVERRIDES).write_text(json.dumps(line) + "\n")
    tables, _ = deduplicate(stage)
    assert tables["kept"]["id"].to_list() == ["1", "2"]


@pytest.mark.parametrize("policy", ["joint", "text", "exact"])
@pytest.mark.parametrize("named", [(1, 2), (2, 1)])
def test_what_is_kept_apart_stays_apart_where_another_row_removes_one_of_them(policy, named):
    """Row 0 came with ``--add``, after a person had kept row 2 beside row 1."""
    texts = ["What is this?", "what is  this?", "What is THIS?", "what IS this?"]

    def removed(*overrides):
        found, *_ = find(texts, overrides=overrides, judge=no_pictures, policy=policy)
        return {row["row"]: row["kept"] for row in found}

    assert removed() == {1: 0, 2: 0, 3: 0}
    assert removed(named) == {1: 0, 3: 0}
    # Two that are kept apart from one that goes: each stays, as far as they are not of each other.
    assert removed(named, (1, 3)) == {1: 0, 3: 2}


def test_the_cap_of_an_image_counts_as_the_policy_does(stage, tmp_path):
    rows = [(name, f"Question {n} on a page?", None, [name]) for n, name in enumerate(INVOICES)]
    corpus(stage, tmp_path, rows, INVOICES)
    for policy in ("exact", "text", "joint"):
        tables, _ = deduplicate(stage, policy=policy, max_per_image=2)
        assert tables["kept"].height == len(INVOICES)
    again = [(f"{name}, again", f"More of {name}?", None, [name]) for name in INVOICES]
    third = [(f"{name}, third", f"Also of {name}?", None, [name]) for name in INVOICES]
    corpus(stage, tmp_path, [*rows, *again, *third], INVOICES)
    tables, report = deduplicate(stage, max_per_image=2)
    assert report["dropped"] == {"max_per_image": len(INVOICES)}
    assert isinstance(tables["kept"], pl.DataFrame)
