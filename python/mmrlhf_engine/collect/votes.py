"""From ranks of several annotators to one verdict on every two answers, and from those to pairs.

1. An annotation is a verdict on every two answers that it ranks: better, worse or a tie. Where its
   scores say the opposite of its ranks, that is a contradiction.
2. Equal answers of a query are one answer. What an annotator says of it is the majority of what is
   said of its copies.
3. Annotators vote on every two answers: the side with more votes is better, equally many are a tie.
   Votes for a tie are for neither side.
4. Majorities can go round: A over B, B over C, C over A. Such answers are a strongly connected
   component of the graph of "better than"; among themselves they have no order.

A verdict is 1 (the first answer is better), -1 (the second is) or 0 (a tie), under the key
``(first, second)``, the numbers of two answers, the first the smaller one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mmrlhf_engine.sources.preferences.record import Pair, pairs_of_ranks

__all__ = [
    "ContradictionRule",
    "CycleRule",
    "Verdicts",
    "agreement",
    "find_cycles",
    "majority",
    "resolve_cycles",
    "to_pairs",
    "verdicts_of",
]

ContradictionRule = Literal["keep", "drop", "by_score"]
"""Of a rank against the scores: the verdict of the rank, none, or that of the scores."""

CycleRule = Literal["tie", "drop"]
"""Of the pairs within a cycle: ties, or none."""

Verdicts = dict[tuple[int, int], int]


def verdicts_of(
    ranks: Sequence[int | None],
    scores: Sequence[float | None],
    places: Sequence[int],
    rule: ContradictionRule,
) -> tuple[Verdicts, list[tuple[str, int, int]]]:
    """The verdicts of one annotation, and its contradictions.

    Args:
        ranks: Of the answers as it lists them; 1 is the best, None takes part in no pair.
        scores: Likewise; None is no score.
        places: The number of each answer in the query; equal answers have one number.
        rule: What becomes of a rank against the scores.

    Returns:
        Verdicts by numbers in the query, and ``(kind, answer, answer)`` by places in the lists,
        the one that is ranked better first: ``rank_against_scores`` where its score is smaller,
        ``equal_answers`` where the two are one answer.
    """
    said: dict[tuple[int, int], list[int]] = defaultdict(list)
    contradictions = []
    for pair in pairs_of_ranks(ranks):
        first, second = places[pair.chosen], places[pair.rejected]
        verdict = 0 if pair.tie else 1
        if first == second:
            if verdict:
                contradictions.append(("equal_answers", pair.chosen, pair.rejected))
            continue
        if verdict and _smaller(scores[pair.chosen], scores[pair.rejected]):
            contradictions.append(("rank_against_scores", pair.chosen, pair.rejected))
            if rule == "drop":
                continue
            verdict = -1 if rule == "by_score" else 1
        key = (first, second) if first < second else (second, first)
        said[key].append(verdict if first < second else -verdict)
    return majority(
        [{key: one} for key, several in said.items() for one in several]
    ), contradictions


def _smaller(score: float | None, other: float | None) -> bool:
    return score is not None and other is not None and score < other


def majority(votes: Iterable[Mapping[tuple[int, int], int]]) -> Verdicts:
    """The side with more votes on every two answers; a tie where both have equally many."""
    sums: Verdicts = defaultdict(int)
    for vote in votes:
        for key, verdict in vote.items():
            sums[key] += verdict
    return {key: (total > 0) - (total < 0) for key, total in sorted(sums.items())}


def agreement(votes: Sequence[Mapping[tuple[int, int], int]]) -> tuple[int, int]:
    """How many verdicts of two annotators on the same two answers are equal, and of how many."""
    counts: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for vote in votes:
        for key, verdict in vote.items():
            counts[key][verdict] += 1
    equal = sum(_two_of(number) for three in counts.values() for number in three)
    return equal, sum(_two_of(sum(three)) for three in counts.values())


def _two_of(number: int) -> int:
    return number * (number - 1) // 2


def find_cycles(verdicts: Mapping[tuple[int, int], int]) -> list[list[int]]:
    """Answers that are each better than each other by some path, the smallest number first.

    These are the strongly connected components of more than one answer. Reachability is closed as
    by Warshall, with a set of answers as the bits of one number: queries have few answers.
    """
    answers = sorted({number for key in verdicts for number in key})
    reached = dict.fromkeys(answers, 0)
    for (first, second), verdict in verdicts.items():
        if verdict:
            better, worse = (first, second) if verdict > 0 else (second, first)
            reached[better] |= 1 << worse
    for through in answers:
        for start in answers:
            if reached[start] >> through & 1:
                reached[start] |= reached[through]
    components: dict[int, list[int]] = {}
    for number in answers:
        # In a component, all reach the same answers, themselves among them.
        if reached[number] >> number & 1:
            components.setdefault(reached[number], []).append(number)
    return list(components.values())


def resolve_cycles(
    verdicts: Verdicts, cycles: Iterable[Sequence[int]], rule: CycleRule
) -> Verdicts:
    """The verdicts, with those among the answers of a cycle made ties, or left out."""
    cycle_of = {number: place for place, cycle in enumerate(cycles) for number in cycle}
    resolved = {}
    for (first, second), verdict in verdicts.items():
        within = first in cycle_of and cycle_of[first] == cycle_of.get(second)
        if not within:
            resolved[first, second] = verdict
        elif rule == "tie":
            resolved[first, second] = 0
    return resolved


def to_pairs(verdicts: Verdicts, which: Literal["all", "hardest"]) -> list[Pair]:
    """Pairs of answers by their numbers, the better one chosen.

    ``all`` is every two answers with a verdict, ties as ties. ``hardest`` is every best answer (to
    which none is better) with every next one (to which only best ones are) that it is better than:
    of ranks, the pairs of the first and the next distinct rank. It has no ties.

    Args:
        verdicts: Without cycles.
        which: The pairs to make.
    """
    pairs = [
        Pair(first, second, tie=verdict == 0) if verdict >= 0 else Pair(second, first)
        for (first, second), verdict in sorted(verdicts.items())
    ]
    if which == "all":
        return pairs
    decided = [pair for pair in pairs if not pair.tie]
    answers = {number for key in verdicts for number in key}
    best = answers - {pair.rejected for pair in decided}
    following = answers - best
    following -= {pair.rejected for pair in decided if pair.chosen not in best}
    return [pair for pair in decided if pair.chosen in best and pair.rejected in following]
