"""Reference implementation of the core's ``select``: the same rules, each by its definition."""

import itertools
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

NO_ROW = 2**32 - 1


@dataclass
class Problem:
    """Candidates as columns, quotas, and how to choose within a cluster."""

    question_types: list[int]
    modalities: list[int]
    sources: list[int]
    clusters: list[int]
    rows: list[int]
    embeddings: np.ndarray | None
    count: int
    ratios: list[float]
    modality_bounds: list[tuple[int, int]]
    source_bounds: list[tuple[int, int]]
    order: str
    threshold: float | None


@dataclass
class NaiveChoice:
    """Chooses as the core does; ``rank`` is the seeded order of the candidates."""

    problem: Problem
    rank: list[int]
    picks: list[tuple[int, tuple[str, int] | None]] = field(default_factory=list)
    skips: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self):
        ratios = self.problem.ratios
        self.left = {i for i, kind in enumerate(self.problem.question_types) if ratios[kind]}
        self.goal = self.best()

    def run(self):
        for modality in range(len(self.problem.modality_bounds)):
            self.allocate(("modality", modality))
        for source in range(len(self.problem.source_bounds)):
            self.allocate(("source", source))
        self.allocate(None)
        return self.picks, self.skips

    # What can still be reached, by trying every number of every pair.

    def pair(self, i):
        return self.problem.modalities[i], self.problem.sources[i]

    def best(self, also=None):
        """The largest (queries, units of floors met) of all completions of the picks so far."""
        taken = [self.pair(i) for i, _ in self.picks] + ([also] if also else [])
        there = [self.pair(i) for i in self.left] + [self.pair(i) for i, _ in self.picks]
        pairs = sorted(set(there))
        ranges = [range(taken.count(p), there.count(p) + 1) for p in pairs]
        return max(
            (
                self.worth(dict(zip(pairs, numbers, strict=True)))
                for numbers in itertools.product(*ranges)
            ),
            default=(-1, -1),
        )

    def worth(self, numbers):
        total = sum(numbers.values())
        if total > self.problem.count:
            return (-1, -1)
        met = 0
        for axis, bounds in enumerate([self.problem.modality_bounds, self.problem.source_bounds]):
            for group, (floor, cap) in enumerate(bounds):
                units = sum(n for pair, n in numbers.items() if pair[axis] == group)
                if units > cap:
                    return (-1, -1)
                met += min(units, floor)
        return (total, met)

    def admits(self, pair):
        return self.best(also=pair) == self.goal

    # Shares of a group.

    def allocate(self, group):
        while True:
            before = len(self.picks)
            limits = [self.limit(kind, group) for kind in range(len(self.problem.ratios))]
            given = self.webster(self.missing(group), limits)
            kinds = [kind for kind in range(len(given)) if given[kind]]
            for kind in sorted(kinds, key=lambda kind: Fraction(limits[kind], given[kind])):
                for _ in range(given[kind]):
                    if not self.pick(kind, group):
                        break
            if len(self.picks) == before:
                return

    def missing(self, group):
        goal = self.goal[0] - len(self.picks)
        if group is None:
            return goal
        column, number = group
        bounds = getattr(self.problem, f"{column}_bounds")
        picked = sum(self.of(group, i) for i, _ in self.picks)
        return min(max(min(bounds[number]) - picked, 0), goal)

    def of(self, group, i):
        column = {"modality": 0, "source": 1}
        return group is None or self.pair(i)[column[group[0]]] == group[1]

    def limit(self, kind, group):
        open_ones = [
            self.pair(i)
            for i in self.left
            if self.problem.question_types[i] == kind
            and self.of(group, i)
            and self.admits(self.pair(i))
        ]
        picked = [self.pair(i) for i, _ in self.picks]
        sums = []
        for axis, bounds in enumerate([self.problem.modality_bounds, self.problem.source_bounds]):
            room = [cap - sum(p[axis] == g for p in picked) for g, (_, cap) in enumerate(bounds)]
            sums.append(
                sum(min(r, sum(p[axis] == g for p in open_ones)) for g, r in enumerate(room))
            )
        return min(sums)

    def webster(self, amount, limits):
        have = [0] * len(limits)
        for i, _ in self.picks:
            have[self.problem.question_types[i]] += 1
        given = [0] * len(limits)
        for _ in range(amount):
            open_ones = [k for k in range(len(limits)) if given[k] < limits[k]]
            if not open_ones:
                break
            most_owed = max(
                open_ones,
                key=lambda k: (self.problem.ratios[k] / (2 * (have[k] + given[k]) + 1), -k),
            )
            given[most_owed] += 1
        return given

    # Picking.

    def pick(self, kind, group):
        while True:
            open_ones = [
                i
                for i in self.left
                if self.problem.question_types[i] == kind
                and self.of(group, i)
                and self.admits(self.pair(i))
            ]
            if not open_ones:
                return False
            candidate = min(open_ones, key=lambda i: self.turn(i, kind))
            close = self.closest(candidate)
            self.left.remove(candidate)
            threshold = self.problem.threshold
            if threshold is not None and close is not None and close[0] >= np.float32(threshold):
                self.skips.append((candidate, close[1]))
                self.goal = self.best()
                continue
            self.picks.append((candidate, group))
            return True

    def turn(self, i, kind):
        cluster = self.problem.clusters[i]
        picked = [j for j, _ in self.picks if self.problem.clusters[j] == cluster]
        of_kind = sum(self.problem.question_types[j] == kind for j in picked)
        close = self.closest(i) if self.problem.order == "farthest" else None
        distance = -np.inf if close is None else close[0]
        return (of_kind, len(picked), cluster, distance, self.rank[i])

    def closest(self, i):
        """(cosine, candidate) of the closest one chosen from its cluster, the first of equals."""
        if self.problem.embeddings is None or self.problem.rows[i] == NO_ROW:
            return None
        best = None
        for j, _ in self.picks:
            if (
                self.problem.clusters[j] == self.problem.clusters[i]
                and self.problem.rows[j] != NO_ROW
            ):
                cosine = self.cosine(self.problem.rows[i], self.problem.rows[j])
                if best is None or cosine > best[0]:
                    best = (cosine, j)
        return best

    def cosine(self, a, b):
        left, right = self.problem.embeddings[[a, b]].astype(np.float32)
        total = np.float32(0)
        for x, y in zip(left, right, strict=True):
            total += x * y
        return total
