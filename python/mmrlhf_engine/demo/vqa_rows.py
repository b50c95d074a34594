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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf_engine.demo.vqa_questions import Question, balanced, critique, wrong_answer
from mmrlhf_engine.run.files import write_atomically

__all__ = ["Parts", "Sizes", "annotated", "asked", "divide", "examined", "supervised", "write_rows"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How many pictures and questions the parts have."""

    supervised_pictures: int = 600
    reward_pictures: int = 900
    test_pictures: int = 600
    test_of_a_kind: int = 300
    """Questions of each kind that are asked of the test pictures."""
    reward_of_a_kind: int = 900
    """The most questions of each kind that the reward model's part has."""
    policy_of_a_kind: int = 1_300
    """The most questions of each kind that the policy's part has."""


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
        reward=balanced(own["reward"], randomness, sizes.reward_of_a_kind),
        policy=balanced(policy, randomness, sizes.policy_of_a_kind),
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
    """The right answer to a question and a wrong one, as a simulated annotator ranks them."""

    question: Question
    answers: tuple[str, str]
    """The right one and a wrong one."""
    expected: str
    """That of the two which the annotator takes for right."""

    @property
    def flipped(self) -> bool:
        """Whether the annotator took the wrong one for right."""
        return self.expected != self.question.answer

    def row(self) -> Row:
        """The ranks, with a critique of each answer as the reason."""
        ranks = [1 if answer == self.expected else 2 for answer in self.answers]
        reasons = [critique(self.question, answer, self.expected) for answer in self.answers]
        return _row(self.question, self.answers, ranks) | {"reason": reasons}


def annotated(
    questions: Sequence[Question], sampled: Mapping[str, Sequence[str]], flip: float, seed: int
) -> list[Annotation]:
    """The judgement of a simulated annotator, who knows the truth, of sampled answers.

    The right answer is compared with the wrong one that was sampled most. Where all sampled answers
    are wrong, the annotator adds the right one; where all are right, a wrong one, as those of
    MM-RLHF do (arXiv 2502.10391, section 2.3), so that there is something to compare.

    Args:
        questions: That were asked.
        sampled: Answers to each, by the id of the question.
        flip: Share of the questions at which the annotator takes the wrong answer for right.
        seed: Of the errors.
    """
    randomness = random.Random(seed)
    annotations = []
    for question in questions:
        wrong = Counter(
            answer
            for answer in sampled[question.id]
            if is_text(answer) and answer != question.answer
        )
        added = wrong_answer(question.answer, randomness)
        answers = (question.answer, wrong.most_common(1)[0][0] if wrong else added)
        expected = answers[1] if randomness.random() < flip else answers[0]
        annotations.append(Annotation(question, answers, expected))
    return annotations


def is_text(answer: str) -> bool:
    """Whether an annotator can read it: a model in training may say nothing, or marks of turns."""
    return bool(answer) and "<" not in answer


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
