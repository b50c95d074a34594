"""What scorers get that do not look: the distribution of a count of independent successes."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from mmrlhf_engine.measure.bootstrap import Floats

__all__ = ["central_range", "count_distribution"]


def count_distribution(probabilities: Iterable[float]) -> Floats:
    """Float64 [n + 1], the probability of each number of successes of n independent trials.

    By the inverse Fourier transform of the characteristic function, which is a product over the
    trials (Hong, *On computing the distribution function for the Poisson binomial distribution*,
    2013, equation 5).

    Args:
        probabilities: Of success, n of them.
    """
    repeats = Counter(probabilities)
    count = repeats.total()
    turns = np.exp(2j * np.pi * np.arange(count + 1) / (count + 1))
    product = np.ones(count + 1, np.complex128)
    for probability, times in repeats.items():
        product *= (1 - probability + probability * turns) ** times
    return np.clip(np.fft.fft(product).real / (count + 1), 0, None)


def central_range(distribution: Floats, level: float) -> list[float]:
    """The share of successes between which ``level`` of the distribution lies, at least."""
    cumulative = np.cumsum(distribution) / distribution.sum()
    most = max(len(distribution) - 1, 1)
    # Sums of probabilities are off by rounding in their last digits.
    ends = [
        np.searchsorted(cumulative, tail - 1e-12) for tail in ((1 - level) / 2, (1 + level) / 2)
    ]
    return [float(end) / most for end in ends]
