"""The training part of the demo as files: which questions train what, and the rows of each.

Pictures are divided, so that no picture is in two parts:

    supervised   pictures outside of the corpus   the base model learns from them, errors included
    reward       pictures outside of the corpus   pairs of the reward model
    policy       pictures of the corpus           pairs of the policy: the curated questions
    test         easy-vqa's own test split        never trained on

Rows are those of MM-RLHF's ``data.jsonl``: a question, answers, their ranks, a reason for each.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf_engine.demo.vqa_questions import Question, balanced, critique, wrong_answer
from mmrlhf_engine.run.files import write_atomically

__all__ = ["Parts", "Sizes", "annotated", "asked", "divide", "examined", "supervised", "write_rows"]

Row = dict[str, Any]

_MOST_WRONG = 2


@dataclass(frozen=True)
class Sizes:
    """How many pictures and questions the parts have."""

    supervised_pictures: int = 600
    reward_pictures: int = 900
    test_pictures: int = 600
    test_of_a_kind: int = 300
    """Questions of each kind that are asked of the test pictures."""
    most_of_a_kind: int = 900
    """The most questions of each kind that the reward model's and the policy's part have."""


@dataclass(frozen=True)
class Parts:
    """Questions by what they train; no two parts show the same picture."""

    supervised: list[Question]
    reward: list[Question]
    policy: list[Question]
    test: list[Question]


def divide(
    train: Sequence[Question],
    test: Sequence[Question],
    policy: Iterable[Question],
    sizes: Sizes,
    seed: int,
) -> Parts:
    """The questions of each part, as many of each kind, in random order.

    Args:
        train: Of easy-vqa's training pictures.
        test: Of its test pictures.
        policy: From which the policy's part is taken; its pictures are in no other part.
        sizes: Of the parts.
        seed: Of the choice.
    """
    randomness = random.Random(seed)
    policy = list(policy)
    taken = {question.picture for question in policy}
    free = sorted({question.picture for question in train} - taken)
    randomness.shuffle(free)
    first, end = sizes.supervised_pictures, sizes.supervised_pictures + sizes.reward_pictures
    pictures = {"supervised": set(free[:first]), "reward": set(free[first:end])}
    own = {
        part: [question for question in train if question.picture in chosen]
        for part, chosen in pictures.items()
    }
    # The test is the same for every seed.
    asked_of = set(sorted({question.picture for question in test})[: sizes.test_pictures])
    tests = [question for question in test if question.picture in asked_of]
    return Parts(
        supervised=balanced(own["supervised"], randomness),
        reward=balanced(own["reward"], randomness, sizes.most_of_a_kind),
        policy=balanced(policy, randomness, sizes.most_of_a_kind),
        test=balanced(tests, random.Random(1), sizes.test_of_a_kind),
    )


def supervised(questions: Iterable[Question], wrong: float, seed: int) -> list[Row]:
    """Rows that the base model learns from, of which a share has a wrong answer as the chosen one.

    Args:
        questions: Of the part.
        wrong: Share of wrong answers.
        seed: Of the errors.
    """
    randomness = random.Random(seed)
    rows = []
    for question in questions:
        learnt = question.answer
        if randomness.random() < wrong:
            learnt = wrong_answer(learnt, randomness)
        rows.append(_row(question, [learnt, wrong_answer(learnt, randomness)], [1, 2]))
    return rows


def asked(questions: Iterable[Question]) -> list[Row]:
    """Rows of questions to be answered. Shards hold pairs; these are ties, which say nothing."""
    return [_row(question, ["yes", "no"], [1, 1]) for question in questions]


def examined(questions: Iterable[Question], seed: int = 1) -> list[Row]:
    """Rows with the right answer before a wrong one, for an evaluation."""
    randomness = random.Random(seed)
    return [
        _row(question, [question.answer, wrong_answer(question.answer, randomness)], [1, 2])
        for question in questions
    ]


@dataclass(frozen=True)
class Annotation:
    """Answers to a question in the order of a simulated annotator, who may have erred."""

    question: Question
    answers: list[str]
    ranks: list[int]
    reasons: list[str]
    flipped: bool


def annotated(
    questions: Sequence[Question], sampled: Mapping[str, Sequence[str]], flip: float, seed: int
) -> list[Annotation]:
    """The judgement of a simulated annotator, who knows the truth, of sampled answers.

    Right answers are ranked before wrong ones. Where all sampled answers are wrong, the annotator
    adds the right one; where all are right, a wrong one, so that there is something to compare.

    Args:
        questions: That were asked.
        sampled: Answers to each, by the id of the question.
        flip: Share of the questions at which the annotator takes right for wrong.
        seed: Of the errors.
    """
    randomness = random.Random(seed)
    annotations = []
    for question in questions:
        # The base model may also say nothing at all.
        given = dict.fromkeys(answer for answer in sampled[question.id] if answer)
        wrong = [answer for answer in given if answer != question.answer][:_MOST_WRONG]
        wrong = wrong or [wrong_answer(question.answer, randomness)]
        answers = [question.answer, *wrong]
        flipped = randomness.random() < flip
        verdicts = [(answer == question.answer) != flipped for answer in answers]
        annotations.append(
            Annotation(
                question,
                answers,
                [1 if right else 2 for right in verdicts],
                [critique(question, right=right) for right in verdicts],
                flipped,
            )
        )
    return annotations


def rows_of(annotations: Iterable[Annotation]) -> list[Row]:
    """Rows of annotations, to be packed."""
    return [
        _row(one.question, one.answers, one.ranks) | {"reason": one.reasons} for one in annotations
    ]


def write_rows(file: Path, rows: Iterable[Row]) -> Path:
    """Write JSON Lines, unless the file has this content already."""
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    return file


def _row(question: Question, answers: Sequence[str], ranks: Sequence[int]) -> Row:
    return {
        "id": question.id,
        "image": str(question.file),
        "question": question.text,
        "models_output": list(answers),
        "rank": list(ranks),
    }
