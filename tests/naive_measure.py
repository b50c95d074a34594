"""Evaluations as one would write them first: the specification of what is fast."""

import numpy as np


def accuracies(rows, rewards):
    """ACC and ACC+ of pairs, row by row."""
    right = [chosen > rejected for chosen, rejected in rewards]
    queries = {}
    for row, hit in zip(rows, right, strict=True):
        queries.setdefault(row["id"], []).append(hit)
    return sum(right) / len(right), sum(all(hits) for hits in queries.values()) / len(queries)


def bootstrap_ratios(numerators, denominators, resamples, seed):
    """A ratio of sums over clusters that are drawn one by one."""
    random = np.random.default_rng(seed)
    count = len(numerators)
    ratios = []
    for _ in range(resamples):
        drawn = [int(random.integers(count)) for _ in range(count)]
        bottom = sum(denominators[one] for one in drawn)
        if bottom:
            ratios.append(sum(numerators[one] for one in drawn) / bottom)
    return np.array(ratios)


def count_distribution(probabilities):
    """Successes of independent trials, one trial after the other."""
    distribution = np.array([1.0])
    for probability in probabilities:
        distribution = np.convolve(distribution, [1 - probability, probability])
    return distribution
