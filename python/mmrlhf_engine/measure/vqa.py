"""Answers to questions about pictures: exact match and multiple choice, by kind of question.

Beside the accuracy stands what is reached without looking: the ``blind`` answers of the same model
without the picture, and the most frequent answer of each kind. With a second file, the answers of
the model before, the difference is paired: the same resamples of pictures for both.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.answers import (
    LETTERS,
    UNLISTED,
    letter_of,
    options_in,
    same_answer,
)
from mmrlhf_engine.measure.bootstrap import (
    Floats,
    Resampling,
    cluster_numbers,
    cluster_sums,
    percentile_interval,
    ratio,
    resampled_sums,
)
from mmrlhf_engine.measure.lines import Line, file_state, read_lines
from mmrlhf_engine.measure.plain_text import normalised
from mmrlhf_engine.measure.section import write_section
from mmrlhf_engine.run.stage import Stage, StageContext

__all__ = ["STAGE", "VqaConfig", "vqa_scores"]

Flags = npt.NDArray[np.bool_]


class VqaConfig(Resampling):
    """Settings of ``vqa``."""

    file: str
    """JSON Lines with ``id``, ``question``, ``answer`` (one or a list) and ``prediction``."""
    before: str | None = None
    """The same questions with another model's predictions, to be compared with."""


@dataclass(frozen=True)
class Question:
    """A row."""

    id: str
    question: str
    kind: str
    picture: str
    answers: tuple[str, ...]
    options: tuple[str, ...]
    letter: str | None
    """The right one, of multiple choice."""
    prediction: str
    blind: str | None

    @property
    def expected(self) -> tuple[object, ...]:
        """What must be equal in two files of the same questions."""
        return self.question, self.kind, self.picture, self.answers, self.options

    def is_right(self, prediction: str) -> bool:
        """Whether a prediction counts."""
        if self.letter is None:
            return same_answer(self.answers, prediction)
        if letter_of(prediction, self.options) == self.letter:
            return True
        # Beside the letter the file may accept a text that is not that of the option.
        return len(self.answers) > 1 and same_answer(self.answers, prediction)


def read_questions(file: Path) -> dict[str, Question]:
    """The rows of a file by id.

    Raises:
        InputError: a row lacks a field, or its id is there twice.
    """
    questions: dict[str, Question] = {}
    numbers: dict[str, int] = {}
    for line in read_lines(file):
        question = _question(line)
        if question.id in questions:
            raise InputError(f"{line}: id {question.id} is in line {numbers[question.id]} already")
        questions[question.id], numbers[question.id] = question, line.number
    return questions


def _question(line: Line) -> Question:
    name, answers = line.name("id"), line.texts("answer", numbers=True)
    given = line.fields.get("options") is not None
    options = line.texts("options", numbers=True) if given else []
    if len(options) > len(LETTERS):
        raise line.wrong("options", f"at most {len(LETTERS)} options")
    asked = line.text("question")
    options = options or options_in(asked)
    letter = _right_letter(answers, options)
    if given and letter is None:
        raise line.wrong("answer", f"a letter of the {len(options)} options, or one of their texts")
    default = "exact" if letter is None else "multiple_choice"
    image = line.fields.get("image")
    return Question(
        id=name,
        question=" ".join(asked.split()),
        kind=line.text("kind") if line.fields.get("kind") is not None else default,
        # Without a picture's name each row is a cluster of its own.
        picture=f"row {name}" if image is None else "image " + "\n".join(line.texts("image")),
        answers=tuple(answers),
        options=tuple(options),
        letter=letter,
        prediction=line.text("prediction"),
        blind=line.text("blind") if line.fields.get("blind") is not None else None,
    )


def _right_letter(answers: Sequence[str], options: Sequence[str]) -> str | None:
    """The letter of the right option; None where the question is not one of multiple choice.

    Several answers that name the same option, as its letter and its text, are one.
    """
    letters = {_letter_of_key(answer, options) for answer in answers} - {None}
    return letters.pop() if len(letters) == 1 else None


def _letter_of_key(answer: str, options: Sequence[str]) -> str | None:
    letter = answer.strip().strip("().")
    if not options:  # the options are in the picture, or in the question in a form of its own
        return letter if len(letter) == 1 and letter in UNLISTED else None
    if len(letter) == 1 and letter.upper() in LETTERS[: len(options)]:
        return letter.upper()
    texts = [normalised(option) for option in options]
    places = [place for place, text in enumerate(texts) if text == normalised(answer)]
    return LETTERS[places[0]] if len(places) == 1 else None


def vqa_scores(
    questions: Sequence[Question],
    *,
    before: Sequence[Question] | None = None,
    settings: Resampling | None = None,
) -> dict[str, Any]:
    """The section ``vqa`` of a scorecard.

    Args:
        questions: With predictions.
        before: The same questions, in the same order, with predictions of another model.
        settings: How intervals are made.

    Returns:
        ``overall``, ``balanced`` (the mean over kinds) and ``by_kind``, each with ``acc``;
        ``baselines`` (``blind``, ``most_frequent``); and ``before`` and ``difference``.
    """
    settings = settings or Resampling()
    right = np.array([one.is_right(one.prediction) for one in questions])
    table = _Table.of(questions)
    seen = np.array([one.blind is not None for one in questions])
    baselines = {
        "most_frequent": {
            "rule": "the most frequent answer of each kind",
            **table.measured(_most_frequent(questions), settings),
        }
    }
    if seen.any():
        blind = np.array([one.blind is not None and one.is_right(one.blind) for one in questions])
        part = _Table.of([one for one in questions if one.blind is not None])
        baselines["blind"] = {
            "rule": "answers without the picture",
            **part.measured(blind[seen], settings),
            **part.compared(right[seen], blind[seen], settings, "over_blind"),
        }
    section: dict[str, Any] = {
        "questions": len(questions),
        "pictures": len({one.picture for one in questions}),
        **table.measured(right, settings),
        "no_letter": sum(
            one.letter is not None and letter_of(one.prediction, one.options) is None
            for one in questions
        ),
        "baselines": baselines,
        "interval": {
            "method": "percentile bootstrap over pictures",
            **settings.model_dump(include={"resamples", "seed", "level"}),
        },
    }
    if before is not None:
        earlier = np.array([one.is_right(one.prediction) for one in before])
        section["before"] = {
            **table.measured(earlier, settings),
            **table.compared(right, earlier, settings, "difference"),
            "became_right": int((right & ~earlier).sum()),
            "became_wrong": int((~right & earlier).sum()),
        }
    return section


def _most_frequent(questions: Sequence[Question]) -> Flags:
    """Whether the most frequent expected answer of its kind is right, of each question."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in questions:
        counts[one.kind].update(_answers(one))
    # Of equally frequent ones the first in alphabetical order.
    best = {
        kind: min(counter, key=lambda text, counter=counter: (-counter[text], text))  # type: ignore[misc]
        for kind, counter in counts.items()
    }
    return np.array([best[one.kind] in _answers(one) for one in questions])


def _answers(question: Question) -> set[str]:
    if question.letter is not None:
        return {question.letter}
    return {normalised(answer) for answer in question.answers}


@dataclass(frozen=True)
class _Table:
    """Kinds and pictures of questions, by which outcomes are summed."""

    kinds: list[str]
    kind: npt.NDArray[np.int64]
    picture: npt.NDArray[np.int64]

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "_Table":
        kinds = sorted({one.kind for one in questions})
        kind = np.array([kinds.index(one.kind) for one in questions], np.int64)
        return cls(kinds, kind, cluster_numbers(one.picture for one in questions))

    def measured(self, right: Flags, settings: Resampling) -> dict[str, Any]:
        """Accuracy of all, the mean over kinds, and by kind."""
        ones = np.ones(len(right))
        return {
            "overall": ratio("acc", cluster_sums(self.picture, right, ones), settings),
            "balanced": self._figure("acc", [right], _balanced, settings),
            "by_kind": {
                name: {
                    "questions": int((self.kind == number).sum()),
                    **ratio(
                        "acc",
                        cluster_sums(
                            cluster_numbers(self.picture[self.kind == number].tolist()),
                            right[self.kind == number],
                            ones[self.kind == number],
                        ),
                        settings,
                    ),
                }
                for number, name in enumerate(self.kinds)
            },
        }

    def compared(
        self, right: Flags, other: Flags, settings: Resampling, name: str
    ) -> dict[str, Any]:
        """The difference of two outcomes of the same questions, of all and over kinds."""

        def all_of(sums: Floats) -> Floats:
            return np.asarray(sums[:, 0].sum(axis=1) / sums[:, 1].sum(axis=1))

        return {
            name: {
                key: self._figure("acc", [right, other], statistic, settings)
                for key, statistic in (("overall", all_of), ("balanced", _balanced))
            }
        }

    def _figure(
        self,
        name: str,
        outcomes: Sequence[Flags],
        statistic: Callable[[Floats], Floats],
        settings: Resampling,
    ) -> dict[str, Any]:
        """A statistic of sums by kind, or the difference of those of two outcomes."""
        of_kind = [self.kind == number for number in range(len(self.kinds))]
        columns = [outcome & rows for outcome in outcomes for rows in of_kind]
        sums = cluster_sums(self.picture, *columns, *of_kind)
        shape = (-1, len(outcomes) + 1, len(self.kinds))

        def value(drawn: Floats) -> Floats:
            parts = drawn.reshape(shape)
            values = [statistic(parts[:, [number, -1]]) for number in range(len(outcomes))]
            return values[0] if len(values) == 1 else values[0] - values[1]

        drawn = value(resampled_sums(sums, settings))
        return {
            name: float(value(sums.sum(axis=0, keepdims=True))[0]),
            f"{name}_interval": percentile_interval(drawn, settings.level),
        }


def _balanced(sums: Floats) -> Floats:
    """The mean over kinds; those that are not in a resample are left out of its mean."""
    right, count = sums[:, 0], sums[:, 1]
    shares = np.where(count > 0, right / np.maximum(count, 1), 0)
    return np.asarray(shares.sum(axis=1) / (count > 0).sum(axis=1))


def _matched(
    now: Mapping[str, Question], before: Mapping[str, Question], file: str
) -> list[Question]:
    """The earlier answers in the order of the questions.

    Raises:
        InputError: the files have other questions.
    """
    other = sorted(set(now) ^ set(before))
    if other:
        raise InputError(
            f"{file}: {len(other):,} ids are in one of the two files only: {', '.join(other[:5])}"
        )
    for name, question in now.items():
        if question.expected != before[name].expected:
            raise InputError(
                f"{file}: id {name} has another question, kind, image, answer or options than the "
                "other file"
            )
    return [before[name] for name in now]


def run(config: VqaConfig, context: StageContext) -> None:
    """Compare the predictions of a file with the answers."""
    section = _section(config)
    write_section(context, {"file": config.file, "before_file": config.before, **section})
    context.finish(rows_in=section["questions"], rows_out=section["questions"], dropped={})


def _section(config: VqaConfig) -> dict[str, Any]:
    questions, before = _read(config)
    return vqa_scores(questions, before=before, settings=config)


def _read(config: VqaConfig) -> tuple[list[Question], list[Question] | None]:
    questions = read_questions(Path(config.file))
    if config.before is None:
        return list(questions.values()), None
    before = _matched(questions, read_questions(Path(config.before)), config.before)
    return list(questions.values()), before


def _external(config: VqaConfig) -> list[object]:
    # Everything that can be refused is refused here, before an earlier section is removed.
    _read(config)
    files = [config.file, *([config.before] if config.before else [])]
    return [file_state(Path(file)) for file in files]


STAGE = Stage(
    name="vqa",
    config=VqaConfig,
    run=run,
    writes=("section.json",),
    external=_external,
)
