"""Many values as few, and as the data of SVG paths."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bins",
    "Floats",
    "area_path",
    "bin_values",
    "dots_path",
    "line_path",
    "running_mean",
    "split_steps",
]

Floats = NDArray[np.float64]


def running_mean(values: Floats, width: int) -> Floats:
    """Mean of the finite values among ``width`` around each, fewer at the ends; NaN if none."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    start = np.maximum(places - width // 2, 0)
    end = np.minimum(places + width // 2 + 1, len(values))
    number = counts[end] - counts[start]
    return np.where(number > 0, (sums[end] - sums[start]) / np.maximum(number, 1), np.nan)


@dataclass(frozen=True)
class Bins:
    """Some steps as one; every array has an entry a bin, NaN where no value is finite."""

    steps: Floats
    low: Floats
    mean: Floats
    high: Floats


def bin_values(steps: Floats, values: Floats, most: int) -> Bins:
    """At most ``most`` bins of equal width; values as they are if there are no more."""
    if len(steps) <= most:
        return Bins(steps, values, values, values)
    starts = np.cumsum([0, *(len(group) for group in split_steps(steps, most)[:-1])])
    finite = np.isfinite(values)
    held = np.add.reduceat(finite, starts)
    empty = held == 0
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    return Bins(
        steps=np.add.reduceat(steps, starts) / np.diff(starts, append=len(steps)),
        low=np.where(empty, np.nan, low),
        mean=np.where(empty, np.nan, sums / np.maximum(held, 1)),
        high=np.where(empty, np.nan, high),
    )


def split_steps(steps: Floats, most: int) -> list[Floats]:
    """Each step alone or, of more than ``most``, those of stretches of equal length."""
    if len(steps) <= most:
        return [steps[place : place + 1] for place in range(len(steps))]
    share = (steps - steps[0]) / (steps[-1] - steps[0])
    number = np.minimum((share * most).astype(np.int64), most - 1)
    return np.split(steps, np.flatnonzero(np.diff(number)) + 1)


def line_path(x: Floats, y: Floats) -> str:
    """A line through the points; it breaks at NaN."""
    parts, pen = [], "M"
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(down):
            parts.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L" if math.isfinite(down) else "M"
    return "".join(parts)


def area_path(x: Floats, top: Floats, bottom: Floats) -> str:
    """Areas between two lines; NaN ends one."""
    finite = np.isfinite(top) & np.isfinite(bottom)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(np.int8)))
    parts = []
    for start, end in edges.reshape(-1, 2):
        there = line_path(x[start:end], top[start:end])
        back = line_path(x[start:end][::-1], bottom[start:end][::-1])
        parts.append(there + "L" + back[1:] + "Z")
    return "".join(parts)


def dots_path(x: Floats, y: Floats) -> str:
    """A line of no length at each point: round ends make it a dot, however a page stretches it."""
    return "".join(
        f"M{across:.1f} {down:.1f}h0"
        for across, down in zip(x.tolist(), y.tolist(), strict=True)
        if math.isfinite(down)
    )
