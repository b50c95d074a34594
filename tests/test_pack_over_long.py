"""Sequences over the limit: each policy, counted, listed, and never inside an image."""

import io

import polars as pl
import pytest
from PIL import Image

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.placeholders import IMAGE, PLACEHOLDER_IDS
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.shard_rows import FLAG_TRUNCATED
from mmrlhf_engine.shards.image_rule import read_rule
from mmrlhf_engine.sources.preferences.record import BadRecordError
from pack_data import picture, put, stored, tokenizer_folder, words, write_lines

# 280 x 196 pixels are 10 x 7 merged patches of 28.
TOKENS = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def run(folder, tmp_path):
    put(tmp_path / "cat.png", picture(280, 196))
    put(tmp_path / "cat.jpg", picture(280, 196, kind="JPEG"))

    def packed(rows, **settings):
        source = write_lines(tmp_path / "pairs.jsonl", rows)
        defaults = {"sources": [str(source)], "tokenizer": str(folder), "image_rule": "qwen2_vl"}
        report = pack.pack_dataset(pack.PackConfig(**{**defaults, **settings}), tmp_path / "ds")
        return report, stored(tmp_path / "ds")

    return packed


def lengths(pair):
    """Tokens of both sequences, an image as what the rule makes of it."""
    sizes = [Image.open(io.BytesIO(content)).size for content in pair["query"]["pictures"]]
    images = sum(read_rule("qwen2_vl").count(sizes))
    prompt = len(pair["query"]["prompt"]) - len(sizes)
    return [images + prompt + len(pair[side]["tokens"]) for side in ("chosen", "rejected")]


def table(tmp_path, name):
    (report,) = (tmp_path / "ds" / "reports").iterdir()
    return pl.read_parquet(report / name / "*.parquet")


def row(image="cat.png", chosen=30, rejected=30):
    asked = {"image": image, "prompt": "What is this?"}
    return {**asked, "chosen": words(1, chosen), "rejected": words(2, rejected)}


def test_the_rule_of_a_family_counts_as_its_processor(run):
    report, pairs = run([row()])
    assert report["image_tokens"] == TOKENS
    assert max(lengths(pairs[0])) > TOKENS
    assert read_rule("none").count([(280, 196)]) == [0]
    assert read_rule("internvl").count([(448, 448)]) == [256 + 2]
    assert read_rule("llava_onevision").count([(384, 384)] * 2) == [730, 730]
    with pytest.raises(BadRecordError, match="refuses 5000 x 10"):
        read_rule("qwen2_vl").count([(5000, 10)])


def test_a_processor_folder_brings_its_own_numbers(tmp_path):
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4})
    processor.save_pretrained(tmp_path)
    sizes = processor(Image.new("RGB", (280, 196)), return_tensors="np")["image_grid_thw"][0]
    assert read_rule(str(tmp_path)).count([(280, 196)]) == [int(sizes.prod()) // 4]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected LLaVA-OneVision"):
        read_rule(str(tmp_path / "empty"))


def test_ids_are_those_of_the_models_own_processor(run, folder, tmp_path):
    from transformers import (
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = (Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    processor = Qwen2VLProcessor(*parts, chat_template=tokenizer.chat_template)
    processor.save_pretrained(tmp_path / "processor")
    _, (pair,) = run([row()], image_rule=str(tmp_path / "processor"))
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    answer = {"role": "assistant", "content": words(1, 30)}
    text = processor.apply_chat_template([{"role": "user", "content": content}, answer])
    whole = processor(text=[text], images=[Image.open(tmp_path / "cat.png")])["input_ids"][0]
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ours = [*pair["query"]["prompt"], *pair["chosen"]["tokens"]]
    at = ours.index(PLACEHOLDER_IDS[IMAGE])
    assert [*ours[:at], *[image] * TOKENS, *ours[at + 1 :]] == list(whole)


def test_error_names_the_row_and_where_the_tokens_are(run, tmp_path):
    with pytest.raises(InputError, match=r"pairs.jsonl:2 .* 100 allowed: 70 of 1 images"):
        run([row(chosen=1, rejected=2), row()], max_length=100)
    assert not (tmp_path / "ds").exists()


def test_drop_removes_what_is_too_long_and_reports_it(run, tmp_path):
    rows = [row(chosen=1, rejected=2), row(chosen=60)]
    report, pairs = run(rows, max_length=120, over_long="drop")
    assert report["dropped"] == report["pairs_dropped"] == {"over_long": 1}
    assert len(pairs) == 1
    assert max(lengths(pairs[0])) <= 120
    (line,) = table(tmp_path, "rejected").iter_rows(named=True)
    assert (line["position"], line["reason"]) == ("pairs.jsonl:2", "over_long")
    assert "120 allowed: 70 of 1 images" in line["detail"]


def test_a_pair_of_several_is_dropped_from_a_row_that_stays(run, tmp_path):
    rows = [
        {
            "question": "What?",
            "models_output": ["a short one", "another", words(1, 99)],
            "rank": [1, 2, 3],
        }
    ]
    report, pairs = run(rows, max_length=50, over_long="drop")
    assert (report["rows_out"], report["pairs_dropped"]) == (1, {"over_long": 2})
    assert (len(pairs), report["responses"]) == (1, 2)
    assert table(tmp_path, "changed")["change"].to_list() == ["dropped_over_long"] * 2


def test_trim_text_keeps_the_image_and_the_start_of_the_answer(run, tmp_path):
    whole = run([row()])[1][0]
    (tmp_path / "ds").rename(tmp_path / "whole")
    report, pairs = run([row()], max_length=120, over_long="trim_text")
    assert max(lengths(pairs[0])) == 120
    assert report["changed"] == {"trimmed_text": 2}
    assert pairs[0]["query"]["prompt"] == whole["query"]["prompt"]
    assert pairs[0]["query"]["prompt"].count(PLACEHOLDER_IDS[IMAGE]) == 1
    for side in ("chosen", "rejected"):
        tokens = pairs[0][side]["tokens"]
        assert tokens == whole[side]["tokens"][: len(tokens)]
    assert pairs[0]["flags"] & FLAG_TRUNCATED
    assert not whole["flags"] & FLAG_TRUNCATED


def test_trimming_may_leave_too_little_or_nothing_that_differs(run):
    same = {**row(), "chosen": words(1, 40) + " yes", "rejected": words(1, 40) + " no"}
    report, _ = run([row(chosen=1, rejected=2), same], max_length=120, over_long="trim_text")
    assert report["dropped"] == {"over_long": 1}
    with pytest.raises(InputError, match="none of 1 rows can be used: 1 over_long"):
        run([row()], max_length=95, over_long="trim_text", append=True)


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg"])
def test_shrink_image_takes_the_largest_that_fits(run, tmp_path, name):
    whole = lengths(run([row(name, 4, 5)])[1][0])
    (tmp_path / "ds").rename(tmp_path / "whole")
    limit = max(whole) - 20
    report, pairs = run([row(name, 4, 5)], max_length=limit, over_long="shrink_image")
    assert report["changed"] == {"shrunk_image": 1}
    assert limit - 20 <= max(lengths(pairs[0])) <= limit
    (content,) = pairs[0]["query"]["pictures"]
    image = Image.open(io.BytesIO(content))
    assert image.format == {"cat.png": "PNG", "cat.jpg": "JPEG"}[name]
    assert image.size == (round(280 * 0.81), round(196 * 0.81))
    (line,) = table(tmp_path, "changed").iter_rows(named=True)
    assert "images to 0.81 of their sides" in line["detail"]


def test_an_image_is_not_shrunk_to_nothing(run):
    report, pairs = run(
        [row(chosen=1, rejected=2), row("cat.jpg", 99)], max_length=95, over_long="shrink_image"
    )
    assert report["dropped"] == {"over_long": 1}
    assert len(pairs) == 1


def test_the_dataset_keeps_its_tokenizer(run, tmp_path):
    run([row()])
    other = tokenizer_folder(tmp_path / "other", "{{ messages[0].content }}{% for m in messages %}"
                             "{% if not loop.first %}>{{ m.content }}{% endif %}{% endfor %}"
                             "{% if add_generation_prompt %}>{% endif %}")  # fmt: skip
    with pytest.raises(InputError, match="tokenizer"):
        run([row()], tokenizer=str(other), append=True, image_rule="none")
