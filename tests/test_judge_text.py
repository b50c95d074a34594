"""The text judge: the core against the plain reference, on pairs made of everything it knows."""
# ruff: noqa: RUF001

import random

import pyarrow as pa
import pytest

import naive_text_judge as naive
from mmrlhf_engine._core import count_frequencies, judge_texts, text_keys
from mmrlhf_engine.errors import InputError

QUESTIONS = [
    "What color is the car in the picture?",
    "How many dogs are there on the left side of the image?",
    "Describe the chart in detail. Answer in one short sentence.",
    "An instruction describes a task. Write a response.\n\n### Instruction:\nName a fruit.",
    "Compute (2 + 3) * 4 and give the result.",
    "What is the value of 5! divided by 3.5%?",
    "Find f'(2) for the function f(x) = x^3 - 2x + 1.",
    "Is it true that a != b when x_1 >= 1,000 and y² < -5?",
    "Which word is repeated in 'very very very good', and who said \"hello\"?",
    "I don't know; they've said it's the U.S. that can't win, e.g. in os.path or user_id.",
    'A file of 5 Mb or 5 MB, a wire of 2 MΩ, a board of 5\' by 6" and the "page 7" of it?',
    "- Read the **bold** text.\n- Say what `x` means & why.\n> Quote it\n# End",
    "Solve for x & y: 3/4 of 10:30 -> what?! A motor of 5 MW or 5 mW? I think so.",
    "¿Cuál es el color del coche en la imagen?",
    "Qu'est-ce que c'est? Décris l'image en détail.",
    "Что изображено на картинке слева?",
    "这张图片里左边的汽车是什么颜色的？请用完整的句子回答。",
    "この画像には何が写っていますか。 AIで説明してください",
    "ภาพนี้มีอะไรบ้าง",
    "इस चित्र में क्या है? (2)",
    "Describe the café, the database and the well-known theatre. Thank you in advance!",
]
CHANGES = [
    ("color", "colour"), ("picture", "image"), ("image", "photo"), ("dogs", "dog"),
    ("dogs", "cats"), ("the", "a"), ("the ", ""), ("is", "was"), ("What", "Which"),
    ("What", "Could you please tell me what"), ("Describe", "Can you describe"),
    ("left", "right"), ("5", "6"), ("(", ""), ("!", ""), ("'", ""), ("3", "three"), ("²", "2"),
    ("data", "data "), ("well-known", "well known"), ("don't", "do not"), ("many", "few"),
    ("car", "automobile"), ("result", "reslut"), ("sentence", "sentnece"),
    ("function", "fucntion"), ("describes", "describing"), ("repeated", "reapeted"), ("not", ""),
    (".", ". Answer in one word please."), ("-", "−"), ("x", "X"), ("MW", "mw"),
    ("detail", "detial"), ("汽车", "房子"), ("？", "?"), ("слева", "справа"), ("coche", "Coche"),
    ("café", "cafe"), ("\n", " "), ("**", ""), ("there ", ""), ("Name", "name"),
    ("can't", "cannot"), ("e.g.", "eg"), ("Mb", "MB"), ("MΩ", "mΩ"), ("5'", '5"'), ('6"', "6"),
]  # fmt: skip


def changed(text: str, draw: random.Random) -> str:
    """A text with one to three changes: listed ones, signs, letters, case, order of sentences."""
    for _ in range(draw.randint(1, 3)):
        kind = draw.randrange(10)
        at = draw.randrange(len(text) + 1)
        if kind < 5:
            fitting = [change for change in CHANGES if change[0] in text]
            old, new = draw.choice(fitting) if fitting else ("", "")
            text = text.replace(old, new, 1) if old else text
        elif kind == 5:
            text = text[:at] + draw.choice(list(".,;:!?'\"()-*_ \n/&%#`")) + text[at:]
        elif kind == 6:
            text = text[:at] + text[at + 1 :]
        elif kind == 7:
            text = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        elif kind == 8:
            text = draw.choice([text.upper(), text.lower(), text.title()])
        else:
            sentences = text.split(". ")
            draw.shuffle(sentences)
            text = ". ".join(sentences)
    return text


def judged(left: list[str], right: list[str], **settings) -> list[dict]:
    given = {"rule": "prompts", "threshold": 0.8, "document_tokens": 200, "shingle_words": 3}
    columns = [pa.array(texts, pa.large_string()) for texts in (left, right)]
    return pa.array(judge_texts(*columns, threads=1, **given | settings)).to_pylist()


def reference(left: str, right: str, known: frozenset[str] = frozenset()) -> bool:
    return naive.same_question(naive.prepare(left, known), naive.prepare(right, known)).same


def test_the_core_agrees_with_the_reference():
    draw = random.Random(7)
    left = [draw.choice(QUESTIONS) for _ in range(3000)]
    left = [changed(text, draw) if draw.random() < 0.3 else text for text in left]
    right = [changed(text, draw) for text in left]
    same = 0
    for a, b, found in zip(left, right, judged(left, right), strict=True):
        expected = reference(a, b)
        assert found["same"] == expected, (a, b, found)
        lists = naive.prepare(a).english and naive.prepare(b).english
        assert found["word_lists"] == lists, (a, b)
        same += expected
    assert 600 < same < 2400


def test_the_normal_form_and_the_tokens_agree_through_equal_texts():
    """Of texts that differ only where it means nothing, the core finds every one the same."""
    for text in QUESTIONS:
        noisy = "  " + text.replace(" ", " \t ").replace("?", " ?").replace("'", "’") + " \n"
        assert judged([text], [noisy])[0]["same"], text
        assert reference(text, noisy), text


def test_the_differences_are_told():
    found = judged(
        ["What is in the image of 2 cats?", "How many dogs?", "Name a city."],
        ["What is in a picture of two cats?", "How many cats?", "NAME A CITY"],
    )
    assert found[0]["differences"] == (
        "the→: function word; →a: function word; image→picture: synonym"
    )
    assert found[1]["differences"] == "dogs→cats: another word"
    assert found[2]["differences"] == ""
    assert [row["same"] for row in found] == [True, False, True]


def test_words_of_the_corpus_are_no_spelling_mistakes():
    pair = ["Explain the relu of it."], ["Explain the rely of it."]
    assert judged(*pair)[0]["same"]
    corpus = pa.array([f"the relu of {n}" for n in range(3)], pa.large_string())
    counted = count_frequencies(corpus, shingle_words=3, common_from=1000, threads=1)
    assert not judged(*pair, frequencies=counted)[0]["same"]
    assert not reference(pair[0][0], pair[1][0], frozenset({"relu"}))


def test_documents_are_judged_by_their_shingles():
    words = [f"word{n}" for n in range(300)]
    left, right = " ".join(words), " ".join([*words[:-1], "other"])
    assert not judged([left], [right])[0]["same"]
    assert judged([left], [right], rule="documents")[0]["same"]
    assert judged([left], [right], rule="auto")[0]["same"]
    assert not judged([left], [right], rule="auto", document_tokens=301)[0]["same"]
    assert not judged([left], [right], rule="documents", threshold=0.999)[0]["same"]
    assert judged([left], [right])[0]["jaccard"] == pytest.approx(297 / 299)


def test_bad_arguments_are_told():
    with pytest.raises(InputError, match="frequencies, hash: expected struct"):
        judged(["a"], ["a"], frequencies=pa.array([{"hash": 1}]))
    with pytest.raises(InputError, match="rule: unknown best"):
        judged(["a"], ["a"], rule="best")
    with pytest.raises(InputError, match="1 and 2 rows"):
        judged(["a"], ["a", "b"])


def test_copies_meet_and_templates_do_not_explode():
    """2,000 questions under one template: nearly every copy meets its original, few others meet."""
    draw = random.Random(3)
    template = (
        "You are given a picture of a document. Extract the requested field and return it. Field: "
    )
    letters = "bcdfghklmnprstvz"
    names = sorted(
        {
            "".join(draw.choice(letters) + draw.choice("aeiou") for _ in range(4))
            for _ in range(2000)
        }
    )
    texts = [template + name for name in names]
    copies = [text.replace("picture", "image").upper() + "!" for text in texts[:100]]
    everything = pa.array([*texts, *copies], pa.large_string())
    counted = count_frequencies(everything, shingle_words=3, common_from=1000, threads=1)
    keys = text_keys(
        everything, shingle_words=3, bands=16, rows_per_band=4, threads=1, frequencies=counted
    )
    rows: dict[int, list[int]] = {}
    lists = [set(row) for row in pa.array(keys).to_pylist()]
    for row, found in enumerate(lists):
        for key in found:
            rows.setdefault(key, []).append(row)
    assert all(lists[row] & lists[len(texts) + row] for row in range(100))
    assert sum(len(found) * (len(found) - 1) // 2 for found in rows.values()) < 20_000
    assert len(pa.array(counted)) > 10


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Is a file of 5 MB large?", "Is a file of 5 Mb large?"),
        ("Is a wire of 5 MΩ hot?", "Is a wire of 5 mΩ hot?"),
        ("Is 5' long?", 'Is 5" long?'),
        ("Is 5' long?", "Is 5 long?"),
        ("Why is the water so cold?", "Why is the water cold?"),
        ("What did the man do then?", "What did the man do?"),
        ("Name foods with gluten.", "Name foods without gluten."),
        ("Which of these is possible?", "Which of these is impossible?"),
        ("Evaluate a && b", "Evaluate a || b"),
        ("Who is Louis XIV?", "Who is Louis XVI?"),
        ("Translate English to French.", "Translate French to English."),
    ],
)
def test_small_changes_that_make_another_question(left, right):
    assert not judged([left], [right])[0]["same"]
    assert not reference(left, right)
