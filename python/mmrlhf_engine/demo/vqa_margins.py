"""How the margins of the reward model stand to the truth, which the annotator has turned round.

A pair is *flipped* if the annotator took right for wrong: its chosen answer is the worse one. A
good reward model gives flipped pairs negative margins, although some that it was trained on were
flipped too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.demo.vqa_pipeline import Prepared
from mmrlhf_engine.demo.vqa_rows import Annotation
from mmrlhf_engine.errors import StageError
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset, open_dataset
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer

__all__ = ["Example", "Margins", "examples", "read_margins"]


@dataclass(frozen=True)
class Margins:
    """Margins of the P ranked pairs of the policy."""

    margin: npt.NDArray[np.float64]
    """[P]."""
    flipped: npt.NDArray[np.bool_]
    """[P]."""

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose truly better answer has the higher reward."""
        return float(((self.margin > 0) != self.flipped).mean())

    @property
    def auc(self) -> float:
        """Probability that an unflipped pair has a larger margin than a flipped one."""
        return area_under_curve(self.margin[~self.flipped], self.margin[self.flipped])

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "pairs": len(self.margin),
            "flipped": int(self.flipped.sum()),
            "accuracy": self.accuracy,
            "auc": self.auc,
        }


def area_under_curve(higher: npt.NDArray[np.float64], lower: npt.NDArray[np.float64]) -> float:
    """P(x > y) + P(x = y) / 2 of x in ``higher`` and y in ``lower``, by ranks (Mann-Whitney)."""
    below = np.sort(lower)
    less = np.searchsorted(below, higher, "left")
    equal = np.searchsorted(below, higher, "right") - less
    return float((less + equal / 2).mean() / len(below))


def read_margins(prepared: Prepared) -> Margins:
    """The margins that ``score`` has written beside the policy's pairs, ties left out."""
    dataset, annotations = _opened(prepared)
    pairs = dataset.pairs.select("q", "flags").collect()
    ranked = ((pairs["flags"] & FLAGS["tie"]) == 0).to_numpy()
    flipped = np.array([one.flipped for one in annotations])[pairs["q"].to_numpy()]
    margin = dataset.column("margin/demo", "margin").to_numpy().astype(np.float64)
    known = ranked & np.isfinite(margin)
    return Margins(margin[known], flipped[known])


@dataclass(frozen=True)
class Answer:
    """An answer of the policy's pairs, as the annotator and the reward model see it."""

    text: str
    verdict: str
    """Of the annotator."""
    true: bool
    reward: float
    critique: str
    """Of the reward model."""


@dataclass(frozen=True)
class Example:
    """A question of the policy's part with its answers, the better ones first."""

    annotation: Annotation
    sampled: list[str]
    answers: list[Answer]
    margin: float
    """The smallest among its ranked pairs, by the annotator's order."""


def examples(prepared: Prepared, count: int) -> list[Example]:
    """The first questions that were flipped, and the first that were not, half and half."""
    dataset, annotations = _opened(prepared)
    chosen = [
        number
        for flipped in (False, True)
        for number in [n for n, one in enumerate(annotations) if one.flipped == flipped][
            : count // 2
        ]
    ]
    decode = load_fast_tokenizer(str(prepared.start), needed_for="the page").decode
    table = dataset.responses.select("q", "tokens", "critique").collect()
    rewards = pl.DataFrame(
        {name: dataset.column("reward/demo", name) for name in ("reward", "critique")}
    ).rename({"critique": "own"})
    rows = pl.concat([table, rewards], how="horizontal").filter(pl.col("q").is_in(chosen))
    found: dict[int, list[Answer]] = {number: [] for number in chosen}
    for number, tokens, given, reward, own in rows.iter_rows():
        text = str(decode(tokens[:-1]))
        right = text == annotations[number].question.answer
        verdict = str(given).rsplit(maxsplit=1)[-1]
        found[number].append(Answer(text, verdict, right, float(reward), str(own or "")))
    return [_example(prepared, annotations[number], own) for number, own in found.items()]


def _example(prepared: Prepared, annotation: Annotation, answers: list[Answer]) -> Example:
    answers = sorted(answers, key=lambda one: one.verdict)  # right before wrong
    better = [one.reward for one in answers if one.verdict == "right"]
    worse = [one.reward for one in answers if one.verdict == "wrong"]
    sampled = prepared.sampled[annotation.question.id]
    return Example(annotation, sampled, answers, min(better) - max(worse))


def _opened(prepared: Prepared) -> tuple[ShardDataset, list[Annotation]]:
    """The policy's shards, and the annotation of each of their queries."""
    dataset, annotations = open_dataset(prepared.policy_shards), prepared.annotations["policy"]
    if dataset.rows("queries") != len(annotations):
        raise StageError(
            f"{dataset.path}: {dataset.rows('queries'):,} queries, expected one for each of the "
            f"{len(annotations):,} annotations"
        )
    return dataset, annotations
