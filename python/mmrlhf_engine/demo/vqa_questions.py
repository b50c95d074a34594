"""The questions of easy-vqa, which have right answers, and what is known of each picture.

A picture shows one shape in one colour. Its questions ask for the shape, for the colour, or whether
the one or the other is there (yes or no). So an answer can be judged without people: truth ranks
answers, and a critique can say what the picture really shows.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = ["KINDS", "Question", "answers_like", "balanced", "critique", "questions_of", "words"]

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO = ("no", "yes")
KINDS = {"shape": SHAPES, "colour": COLOURS, "yes/no": YES_NO}
"""The answers that a question of each kind may have."""

_CRITIQUE = "the image shows a {colour} {shape} so it is {expected} and {answer} is {verdict}"

Split = Literal["train", "test"]
_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class Question:
    """A question about a picture, and its right answer."""

    split: Split
    picture: int
    """Number of the picture in its split."""
    text: str
    answer: str
    shape: str
    """What the picture shows, whatever the question asks."""
    colour: str

    @property
    def kind(self) -> str:
        """Of :data:`KINDS`."""
        return next(kind for kind, answers in KINDS.items() if self.answer in answers)

    @property
    def file(self) -> Path:
        """The picture, 64 by 64 pixels."""
        return _picture_files(self.split)[self.picture]

    @property
    def id(self) -> str:
        """Of picture and question, the same in every file of the demo."""
        return f"{self.split}_{self.picture:05d}:{self.text}"


@cache
def questions_of(split: Split) -> tuple[Question, ...]:
    """All questions about pictures whose shape and colour are known, by picture.

    What a picture shows is not part of easy-vqa; its questions say it, also ``is there not a red
    shape?`` with the answer no.
    """
    import easy_vqa

    ask = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    texts, answers, pictures = ask()
    asked = list(zip(pictures, texts, answers, strict=True))
    shapes: dict[int, str] = {}
    colours: dict[int, str] = {}
    for picture, text, answer in asked:
        shown = _shown(text, answer)
        shapes.update((picture, word) for word in shown if word in SHAPES)
        colours.update((picture, word) for word in shown if word in COLOURS)
    known = shapes.keys() & colours.keys()
    # A question may be listed twice for a picture.
    return tuple(
        Question(split, picture, text, answer, shapes[picture], colours[picture])
        for picture, text, answer in dict.fromkeys(sorted(asked))
        if picture in known
    )


def answers_like(answer: str) -> tuple[str, ...]:
    """The answers of the kind of this one."""
    return next(answers for answers in KINDS.values() if answer in answers)


def wrong_answer(answer: str, randomness: random.Random) -> str:
    """Another answer of the same kind."""
    return randomness.choice([other for other in answers_like(answer) if other != answer])


def critique(question: Question, answer: str, expected: str) -> str:
    """What an annotator says of an answer: what the picture shows, what is expected, a verdict.

    Args:
        question: The question.
        answer: The answer that is judged.
        expected: What the annotator takes for the right answer, which may be an error.
    """
    return _CRITIQUE.format(
        colour=question.colour,
        shape=question.shape,
        expected=expected,
        answer=answer,
        verdict="right" if answer == expected else "wrong",
    )


def balanced(
    questions: Iterable[Question], randomness: random.Random, most: int | None = None
) -> list[Question]:
    """As many questions of each kind as of the rarest, in random order.

    Of all questions three in four are answered by yes or no, most of them rightly without a look
    at the picture: the accuracy over all of them would say little.

    Args:
        questions: From which to choose.
        randomness: Of the choice.
        most: The most of each kind; None sets no limit.
    """
    by_kind: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for question in questions:
        by_kind[question.kind].append(question)
    count = min(len(own) for own in by_kind.values())
    count = count if most is None else min(count, most)
    chosen = [one for own in by_kind.values() for one in randomness.sample(own, count)]
    randomness.shuffle(chosen)
    return chosen


def words() -> list[str]:
    """Every word and mark of questions, answers and critiques, sorted."""
    questions = [one for split in _SPLITS for one in questions_of(split)]
    texts = [
        text
        for one in questions
        for text in (one.text, critique(one, one.answer, one.answer), critique(one, "", one.answer))
    ]
    return sorted({word for text in texts for word in text.replace("?", " ?").split()})


def _shown(text: str, answer: str) -> tuple[str, ...]:
    """Words for what the picture shows that a question and its right answer tell."""
    if answer not in YES_NO:
        # "what is the red shape?" tells the colour as well.
        return (answer, *text.replace("?", "").split())
    asked = text.replace("?", "").split()
    denied = "not" in asked or "no" in asked
    return tuple(asked) if (answer == "yes") != denied else ()


@cache
def _picture_files(split: Split) -> dict[int, Path]:
    import easy_vqa

    train = split == "train"
    files = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    return {number: Path(file) for number, file in files.items()}
