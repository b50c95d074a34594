"""Two samples side by side: which measure keeps them apart, with its value and its limit."""

import colorsys
import io

import pytest
from PIL import Image

from mmrlhf_engine.curate.explain_pair import explain_pair
from test_dedup import corpus, deduplicate, picture
from test_dedup_judged import invoice, stored
from test_image import PHOTOGRAPHS

PHOTO = Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((400, 300))
QUESTION = "What is the total of this invoice?"


def flat(hue):
    """Blocks of one luma pattern and a hue."""
    noise = Image.open(io.BytesIO(picture(5, 128))).convert("L")
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.6, 1)
    weight = 0.299 * red + 0.587 * green + 0.114 * blue
    scales = [0.5 * band / weight for band in (red, green, blue)]
    bands = [noise.point([min(255, round(v * scale)) for v in range(256)]) for scale in scales]
    return stored(Image.merge("RGB", bands))


PICTURES = {
    "1.png": stored(invoice(10_007, 313)),
    "2.png": stored(invoice(10_014, 326)),
    "1.jpg": stored(invoice(10_007, 313), "JPEG", quality=85),
    "red.png": flat(0.0),
    "blue.png": flat(0.6),
    "other.png": picture(9, 128),
    "whole.png": stored(PHOTO),
    "crop.png": stored(PHOTO.crop((0, 0, 388, 291))),
}
ROWS = [
    ("first", QUESTION, None, ["1.png"]),
    ("second", QUESTION, None, ["2.png"]),
    ("again", QUESTION, None, ["1.jpg"]),
    ("third", QUESTION, None, ["1.jpg"]),
    ("asked", "How many items are on this invoice?", None, ["1.png"]),
    ("says 3", "Is it paid?", "3", ["1.png"]),
    ("says 4", "is it PAID", "4", ["1.jpg"]),
    ("red", "What is it?", None, ["red.png"]),
    ("blue", "What is it?", None, ["blue.png"]),
    ("other", "What is it?", None, ["other.png"]),
    ("none", "What is it?", None, []),
    ("whole", "What is it?", None, ["whole.png"]),
    ("crop", "What is it?", None, ["crop.png"]),
    ("two", "What is it?", None, ["red.png", "blue.png"]),
]


@pytest.fixture
def explained(stage, tmp_path):
    corpus(stage, tmp_path, ROWS, PICTURES)

    def explain(one, other, **settings):
        deduplicate(stage, **settings)
        text = explain_pair(stage.run, one, other)
        assert text.splitlines()[0] == one
        return " ".join(text[text.index("dedup ") :].split())

    return explain


def test_what_keeps_two_samples_apart_is_named_with_value_and_limit(explained):
    for one, other, apart, measure in [
        ("first", "second", "pictures", "luma differs by"),
        ("first", "second", "pictures", "copies by less than 5.5"),
        ("first", "second", "pictures", "no copies because of their luma"),
        ("first", "asked", "texts", "Jaccard 0."),
        ("first", "asked", "texts", "what is common was counted in 14 texts"),
        ("says 3", "says 4", "answers", "the questions do not have the same words"),
        ("red", "blue", "colours", "of 255, near up to 24"),
        ("red", "other", "hashes", "of 64 bits, near up to 4"),
        ("red", "none", "media", "1 and 0 media"),
        ("two", "red", "media", "2 and 1 media"),
    ]:
        text = explained(one, other)
        assert f"kept apart by their {apart}" in text, (one, other, text)
        assert measure in text, (one, other, text)


def test_other_policies_look_at_what_they_look_at(explained):
    text = explained("first", "asked", policy="image")
    assert "was removed" in text
    text = explained("red", "blue", policy="image")
    assert "texts" not in text.split("kept apart by their colours")[1].split("(policy")[0]
    text = explained("first", "asked", policy="text")
    assert "hashes" not in text
    assert "kept apart by their texts" in text
    text = explained("first", "again", policy="exact")
    assert "kept apart by their media" in text
    assert "not of equal content" in text
    text = explained("first", "second", judge=False, image_radius=0, colour_tolerance=0)
    assert "luma" not in text
    assert "near up to 0" in text


def test_a_pair_that_is_alike_by_every_measure_says_so(explained):
    # Both went in favour of the sample `again`.
    text = explained("first", "third")
    assert "alike by every measure" in text
    assert text.count("was removed: ") == 2
    assert "first was removed: near duplicate" in explained("first", "again")


def test_pictures_that_cannot_be_read_any_more_are_told(explained, stage, tmp_path):
    assert "kept apart by their colours" in explained("red", "blue")
    (tmp_path / "blue.png").unlink()
    assert "cannot be read now" in explain_pair(stage.run, "red", "blue")
