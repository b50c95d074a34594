"""``inspect`` of preference shards: totals, lengths, fill of packs, pairs as text, and the page."""

import base64
import io
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from command import engine
from load_data import plan, write
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.shards.dataset import open_dataset
from mmrlhf_engine.shards.inspect import Distribution, InspectSettings, inspect, read_contents
from mmrlhf_engine.shards.inspect_page import write_page
from mmrlhf_engine.shards.loader import PreferenceLoader
from pack_data import picture, put, tokenizer_folder, words, write_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    """Twelve pairs of six queries: two pictures of 112 x 84, one tie, one margin."""
    place = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(6):
        shown = number < 2
        if shown:
            put(place / f"{number}.png", picture(112, 84, seed=number))

        rows.append(
            {
                "id": f"q{number}",
                **({"image": f"{number}.png"} if shown else {}),
                "prompt": ("<image>\n" if shown else "") + f"{words(number)} <i>?",
                "responses": [f"{words(10 * number + at)} é" for at in range(3)],
            }
        )
    return rows, place, folder


@pytest.fixture(scope="module")
def dataset(shards):
    rows, place, folder = shards
    pairs = [
        {
            **{name: row[name] for name in ("id", "image", "prompt") if name in row},
            "chosen": row["responses"][better],
            "rejected": row["responses"][worse],
        }
        for row in rows
        for better, worse in ((0, 1), (0, 2))
    ]
    source = write_lines(place / "pairs.jsonl", pairs)
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(folder), image_rule="qwen2_vl")
    pack.pack_dataset(config, place / "ds")
    return place / "ds"


def test_pairs_are_shown_as_the_text_that_was_packed(dataset, shards):
    rows, _, folder = shards
    settings = InspectSettings(rows=3, image_rule="qwen2_vl", tokenizer=str(folder))
    text = inspect(dataset, settings)
    for row in (rows[0], rows[2], rows[4]):
        assert row["prompt"].removeprefix("<image>\n") in text
        assert f": {row['responses'][0]}" in text
    assert rows[1]["prompt"] not in text
    # 112 x 84 pixels are 4 x 3 tokens of 28 x 28.
    assert "[image 112 x 84, 12 tokens]" in text
    assert re.search(r"pairs +12\n", text)
    assert "margins known 0 of 12 pairs" in text
    contents = read_contents(dataset, settings)
    ids = open_dataset(dataset).queries.collect()["prompt"][0].to_list()
    assert len(contents.pairs[0].prompt.pieces) == len(ids)
    decoder = AutoTokenizer.from_pretrained(folder)
    pieces = contents.pairs[2].prompt.pieces
    ids = open_dataset(dataset).queries.collect()["prompt"][4].to_list()
    assert [piece.text for piece in pieces] == [decoder.decode([token]) for token in ids]


def test_without_the_tokenizer_the_ids_are_shown_and_why(tmp_path):
    path = write(tmp_path / "set", queries=8)
    contents = read_contents(path, InspectSettings(rows=2))
    assert any(note.startswith("token ids instead of text: ") for note in contents.notes)
    assert any("--image-rule" in note for note in contents.notes)
    shown = contents.pairs[1]
    stored = open_dataset(path)
    row = stored.pairs.collect().row(stored.rows("pairs") // 2, named=True)
    chosen = stored.responses.collect()["tokens"][row["chosen"]].to_list()
    assert re.findall(r"\d+", shown.chosen.text) == [str(i) for i in chosen if i < 2**32 - 1]
    assert f"flags         {sum(stored.pairs.collect()['flags'] & 1)} tie" in inspect(path)
    with pytest.raises(ConfigError, match="no such folder"):
        inspect(path, InspectSettings(tokenizer="/absent"))
    with pytest.raises(ConfigError, match="--image-rule other"):
        inspect(path, InspectSettings(image_rule="other"))


@pytest.mark.parametrize("unit", ["pair", "response", "query"])
def test_the_fill_is_that_of_the_batches(tmp_path, unit):
    path = write(tmp_path / "set", queries=40, text_only=True)
    settings = InspectSettings(rows=0, tokens=400, unit=unit)
    shown = dict(read_contents(path, settings).totals)["packs"]
    chosen = {"unit": unit, "packs_per_step": 1, "window": 4096, "too_large": "drop"}
    batches = list(PreferenceLoader(path, plan("none", **chosen), threads=1))
    tokens = sum(len(batch.input_ids) for batch in batches)
    assert shown.startswith(f"{len(batches)} of 400 tokens, {tokens / len(batches) / 400:.1%} full")


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=200))
def test_every_value_is_in_one_bin(values):
    distribution = Distribution("values", np.array(values))
    bins = distribution.bins()
    assert all(end == start for (_, end, _), (start, *_) in itertools.pairwise(bins))
    assert [count for *_, count in bins] == [
        sum(start <= value < end for value in values) for start, end, _ in bins
    ]
    assert sum(count for *_, count in bins) == len(values)
    assert "most" in str(distribution)


def test_the_page_needs_no_other_file(dataset, folder, tmp_path):
    page = tmp_path / "page.html"
    settings = InspectSettings(rows=12, image_rule="qwen2_vl", tokenizer=str(folder))
    write_page(dataset, page, settings)
    text = page.read_text()
    assert not re.findall(r"<script|(?:src|href)=\"(?!data:)|url\(", text)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    # Two queries with a picture, of two pairs each.
    assert len(pictures) == 4
    for content in pictures:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == (112, 84)
    assert text.count('<span class="slot">[image 112 x 84, 12 tokens]</span>') == 4
    assert "&lt;i&gt;?" in text
    assert "<i>?" not in text
    assert text.count("<svg") == 4  # prompt and answer tokens, pictures, image tokens
    assert "12 x 84, 12 tokens" in text


def test_the_command_writes_text_or_a_page(dataset, tmp_path):
    done = engine("inspect", dataset, "--rows", 1, "--tokens", 100, "--unit", "pair")
    assert (done.returncode, "of 100 tokens" in done.stdout) == (0, True), done.stderr
    assert done.stdout.count("chosen (") == 1
    page = tmp_path / "page.html"
    done = engine("inspect", dataset, "--html", page, "--rows", 2, "--version", 1)
    assert (done.returncode, done.stdout) == (0, f"page: {page}\n"), done.stderr
    assert page.read_text().count('class="card pair"') == 2
    (tmp_path / "a.jsonl").write_text("{}\n")
    done = engine("inspect", tmp_path / "a.jsonl", "--html", page)
    assert done.returncode == 2
    assert "no dataset of preference shards: --rows alone" in done.stderr
