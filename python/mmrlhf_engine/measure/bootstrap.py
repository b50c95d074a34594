"""Intervals by the cluster bootstrap: whole clusters are drawn again, with replacement.

The pairs of a query, or the questions about a picture, are not independent of each other, so a
resample draws queries or pictures, as many as there are, and takes all of their rows (Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 8 and 13). Every figure here is a
ratio of sums over clusters, or a difference of two such ratios.

A resample is how often each cluster was drawn. Clusters with equal sums are interchangeable, so
where few are distinct, as in accuracies, the counts are drawn for the distinct ones alone, from a
multinomial distribution: the same distribution of the sums at a fraction of the work. Where many
are, as in mean margins, clusters are drawn one by one, which is four times as fast for each.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from mmrlhf_engine.run.config import Section

__all__ = [
    "Floats",
    "Resampling",
    "cluster_numbers",
    "cluster_sums",
    "difference_of_ratios",
    "percentile_interval",
    "ratio",
    "resampled_sums",
]

Floats = npt.NDArray[np.float64]

_BLOCK = 1 << 20
"""Numbers of one array of counts."""
_FEW = 50
"""As many distinct clusters are few, whatever the number of clusters."""
_RATIO = 4
"""A number of a multinomial distribution costs as much as so many clusters drawn."""


class Resampling(Section):
    """How intervals are made."""

    resamples: PositiveInt = 10_000
    """Resamples of each figure."""
    seed: int = Field(default=0, ge=0)
    """Of the resamples; the same figure has the same interval, whatever stands beside it."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """The share of the resamples that lies inside of an interval."""


def cluster_numbers(names: Iterable[Hashable]) -> npt.NDArray[np.int64]:
    """Int64 [rows], the number of each row's cluster, from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def cluster_sums(clusters: npt.NDArray[np.int64], *columns: npt.ArrayLike) -> Floats:
    """Float64 [clusters, columns], the sum of each column over the rows of each cluster.

    Args:
        clusters: Int64 [rows], from 0, without gaps.
        columns: Each [rows].
    """
    count = int(clusters.max()) + 1 if len(clusters) else 0
    sums = [np.bincount(clusters, np.asarray(column, np.float64), count) for column in columns]
    return np.stack(sums, axis=1).astype(np.float64)


def resampled_sums(sums: Floats, settings: Resampling) -> Floats:
    """Float64 [resamples, columns], the sums over the clusters of each resample.

    Args:
        sums: Float64 [clusters, columns], the sums of each cluster.
        settings: How many, and the seed.
    """
    clusters, columns = sums.shape
    distinct, repeats = np.unique(sums, axis=0, return_counts=True)
    few = len(distinct) <= max(_FEW, clusters // _RATIO)
    random = np.random.default_rng(settings.seed)
    drawn = np.empty((settings.resamples, columns))
    step = max(1, _BLOCK // max(len(distinct), 1))
    for start in range(0, settings.resamples, step):
        rows = min(step, settings.resamples - start)
        if few:
            counts = random.multinomial(clusters, repeats / clusters, size=rows)
            drawn[start : start + rows] = counts @ distinct
        else:
            ones = [random.integers(clusters, size=clusters) for _ in range(rows)]
            counts = np.stack([np.bincount(one, minlength=clusters) for one in ones])
            drawn[start : start + rows] = counts @ sums
    return drawn


def percentile_interval(values: Floats, level: float) -> list[float] | None:
    """The percentile interval of a figure's resamples; those that are NaN have no value.

    Args:
        values: Float64 [resamples].
        level: The share inside.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    ends = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return [float(end) for end in ends]


def ratio(name: str, sums: Floats, settings: Resampling) -> dict[str, Any]:
    """``{name: value, name_interval: [low, high]}`` of the ratio of two sums over clusters.

    Args:
        name: Of the figure.
        sums: Float64 [clusters, 2], numerator and denominator; without clusters, or with a
            denominator of 0, value and interval are None.
        settings: How the interval is made.
    """
    return _figure(name, sums, lambda drawn: _quotient(drawn[:, 0], drawn[:, 1]), settings)


def difference_of_ratios(name: str, sums: Floats, settings: Resampling) -> dict[str, Any]:
    """The same for the difference of two ratios of the same clusters, by paired resamples.

    Args:
        name: Of the figure.
        sums: Float64 [clusters, 4]: the first ratio's numerator and denominator, then those of the
            ratio that is subtracted.
        settings: How the interval is made.
    """

    def difference(drawn: Floats) -> Floats:
        return _quotient(drawn[:, 0], drawn[:, 1]) - _quotient(drawn[:, 2], drawn[:, 3])

    return _figure(name, sums, difference, settings)


def _figure(
    name: str, sums: Floats, statistic: Callable[[Floats], Floats], settings: Resampling
) -> dict[str, Any]:
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0]) if len(sums) else float("nan")
    if not np.isfinite(value):
        return {name: None, f"{name}_interval": None}
    drawn = statistic(resampled_sums(sums, settings))
    return {name: value, f"{name}_interval": percentile_interval(drawn, settings.level)}


def _quotient(numerator: Floats, denominator: Floats) -> Floats:
    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1.0, denominator))
