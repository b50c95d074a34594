"""Votes, cycles and pairs against a reference that is slow and plain; hashes that are near."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_engine.collect.families import Families, near_hashes
from mmrlhf_engine.collect.votes import (
    agreement,
    find_cycles,
    majority,
    resolve_cycles,
    to_pairs,
    verdicts_of,
)


def verdict_of_two(one, other, places, rule, ranks, scores):
    """What one annotation says of two answers of the query: None, 1, 0 or -1."""
    wins, losses, seen = 0, 0, False
    for i, j in itertools.product(range(len(places)), repeat=2):
        if places[i] != one or places[j] != other or ranks[i] is None or ranks[j] is None:
            continue
        better = "i" if ranks[i] < ranks[j] else "j" if ranks[i] > ranks[j] else ""
        known = scores[i] is not None and scores[j] is not None
        wrong = known and (
            (better == "i" and scores[i] < scores[j]) or (better == "j" and scores[j] < scores[i])
        )
        if wrong and rule == "drop":
            continue
        if wrong and rule == "by_score":
            better = "j" if better == "i" else "i"
        seen = True
        wins += better == "i"
        losses += better == "j"
    if not seen:
        return None
    return 1 if wins > losses else -1 if losses > wins else 0


def naive(rows, count, rule, cycles, which):
    """The pairs, as a set of ``(better, worse)`` and of frozen sets of two for ties."""
    votes = {}
    for one, other in itertools.combinations(range(count), 2):
        said = [verdict_of_two(one, other, p, rule, r, s) for r, s, p in rows]
        said = [verdict for verdict in said if verdict is not None]
        if said:
            votes[one, other] = said
    beats = set()
    for (one, other), said in votes.items():
        if said.count(1) != said.count(-1):
            beats.add((one, other) if said.count(1) > said.count(-1) else (other, one))

    def path(start, end):
        reached, waiting = set(), [start]
        while waiting:
            here = waiting.pop()
            for better, worse in beats:
                if better == here and worse not in reached:
                    reached.add(worse)
                    waiting.append(worse)
        return end in reached

    found = set()
    decided = set()
    for one, other in votes:
        round_ = path(one, other) and path(other, one)
        if round_ and cycles == "drop":
            continue
        better = next((p for p in ((one, other), (other, one)) if p in beats), None)
        if round_ or better is None:
            found.add(frozenset((one, other)))
        else:
            decided.add(better)
    if which == "all":
        return found | decided
    there = {number for pair in found | decided for number in pair}
    best = {n for n in there if all(worse != n for _, worse in decided)}
    rest = there - best
    following = {n for n in rest if all(w != n or b not in rest for b, w in decided)}
    return {pair for pair in decided if pair[0] in best and pair[1] in following}


SCORE = st.none() | st.integers(1, 3)


@st.composite
def annotated(draw):
    """Annotations of two to five distinct answers, some listed twice, some without a rank."""
    count = draw(st.integers(2, 5))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        more = draw(st.lists(st.integers(0, count - 1), max_size=2))
        places = draw(st.permutations([*range(count), *more]))
        ranks = [draw(st.none() | st.integers(1, 4)) for _ in places]
        scores = [draw(SCORE) for _ in places]
        rows.append((ranks, scores, list(places)))
    return count, rows


@settings(max_examples=300, deadline=None)
@given(
    annotated(),
    st.sampled_from(["keep", "drop", "by_score"]),
    st.sampled_from(["tie", "drop"]),
    st.sampled_from(["all", "hardest"]),
)
def test_pairs_are_those_of_the_reference(given_rows, rule, cycles, which):
    count, rows = given_rows
    votes = [verdicts_of(ranks, scores, places, rule)[0] for ranks, scores, places in rows]
    verdicts = majority(votes)
    resolved = resolve_cycles(verdicts, find_cycles(verdicts), cycles)
    pairs = to_pairs(resolved, which)
    found = {
        frozenset((pair.chosen, pair.rejected)) if pair.tie else (pair.chosen, pair.rejected)
        for pair in pairs
    }
    assert len(found) == len(pairs)
    assert found == naive(rows, count, rule, cycles, which)
    assert find_cycles(resolved) == []


@settings(max_examples=100, deadline=None)
@given(annotated())
def test_agreement_counts_every_two_annotators(given_rows):
    votes = [verdicts_of(*row, "keep")[0] for row in given_rows[1]]
    twice = [
        one[key] == other[key]
        for one, other in itertools.combinations(votes, 2)
        for key in one.keys() & other.keys()
    ]
    assert agreement(votes) == (sum(twice), len(twice))


def test_two_cycles_are_two_components():
    # 0 > 1 > 2 > 0 and 3 > 4 > 5 > 3, the first above the second by one verdict.
    verdicts = {(0, 1): 1, (1, 2): 1, (0, 2): -1, (3, 4): 1, (4, 5): 1, (3, 5): -1, (2, 3): 1}
    assert find_cycles(verdicts) == [[0, 1, 2], [3, 4, 5]]
    assert resolve_cycles(verdicts, [[0, 1, 2], [3, 4, 5]], "drop") == {(2, 3): 1}


def test_a_tie_breaks_no_cycle_and_makes_none():
    assert find_cycles({(0, 1): 1, (1, 2): 0, (0, 2): -1}) == []


def test_the_hardest_pairs_of_votes():
    # 0 is above 1 and 2, which nobody compared; 3 is below 2 alone.
    verdicts = {(0, 1): 1, (0, 2): 1, (2, 3): 1, (0, 3): 1}
    pairs = to_pairs(verdicts, "hardest")
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(0, 1), (0, 2)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=6)), max_size=12),
    st.integers(0, 6),
)
def test_near_hashes_are_all_within_the_radius(seeds, changes, radius):
    # Most random hashes are far from each other: near ones are made by flipping some bits.
    values = list(seeds)
    for place, bits in changes:
        if seeds:
            values.append(seeds[place % len(seeds)] ^ sum(1 << bit for bit in bits))
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(len(values)), 2)
        if (values[i] ^ values[j]).bit_count() <= radius
    ]
    assert near_hashes(np.array(values, dtype=np.uint64), radius).tolist() == expected


def test_families_are_united_from_name_to_name():
    families = Families()
    for names in (["a"], ["b"], ["c", "a"], ["d"], ["b", "c"], []):
        families.add(names)
    assert [families.of(number) for number in range(6)] == [0, 0, 0, 3, 0, 5]
    families.unite_names("d", "b")
    assert families.of(3) == 0
