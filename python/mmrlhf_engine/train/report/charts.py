"""Charts of values over steps as data for a template: SVG paths, ticks, hover texts.

A chart is drawn in a box of :data:`WIDTH` by :data:`HEIGHT` units that a page may stretch as it
likes (``preserveAspectRatio="none"``); words stand beside it, not in it, so that they keep their
size. However many steps there are, a chart has at most :data:`BINS` places along its axis.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mmrlhf_engine.train.report.paths import (
    Floats,
    area_path,
    bin_values,
    dots_path,
    line_path,
    running_mean,
    split_steps,
)

__all__ = ["HEIGHT", "WIDTH", "Chart", "Curve", "Mark", "Series", "draw_chart", "nice_ticks"]

WIDTH, HEIGHT = 1000, 400
BINS = 400
"""Places along the axis of steps, for lines."""
_HOVER_BINS = 80
"""Places along the axis of steps that tell their values."""
_MEAN_SHARE = 20
"""The running mean goes over the number of steps divided by this."""
_LEAST_MEAN = 5
_CLIPPED_FROM = 50
"""As many values may have single ones outside of the axis."""
_MOST_DOTS = 40
_NOISE = 4
"""A series that goes up and down by this many times its range has a running mean."""


@dataclass(frozen=True)
class Series:
    """Values over steps; NaN where there is none."""

    name: str
    steps: Floats
    """Rising, shape (n,)."""
    values: Floats
    """Shape (n,), in the unit of the axis."""
    kind: Literal["line", "points"] = "line"
    """A line with its running mean, or points that are joined thinly."""
    color: int = 0


@dataclass(frozen=True)
class Mark:
    """A place on an axis, in per cent of its length from the left or the bottom."""

    place: float
    label: str


@dataclass(frozen=True)
class Hover:
    """What a stretch of the axis of steps tells when the pointer rests on it."""

    place: float
    """In per cent, as is the width."""
    width: float
    text: str


@dataclass(frozen=True)
class Curve:
    """How a series is drawn; an empty path is not."""

    name: str
    kind: Literal["line", "points", "band"]
    color: int
    line: str = ""
    """Each value or, of many, the mean of each bin."""
    area: str = ""
    """From the least to the greatest value of each bin, or of a band."""
    mean: str = ""
    """The running mean."""
    dots: str = ""
    """Lines of no length, which round ends make dots."""


@dataclass(frozen=True)
class Chart:
    """Everything a template needs to draw one."""

    title: str
    unit: str
    curves: list[Curve]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    marks: list[Mark]
    """Vertical lines."""
    zero: float | None
    """Where 0 is on the vertical axis, in per cent, if it is inside."""
    hovers: list[Hover]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Frame:
    """Maps steps and values into the box."""

    first: float
    last: float
    low: float
    high: float

    def x(self, steps: Floats) -> Floats:
        return (steps - self.first) / max(self.last - self.first, 1e-9) * WIDTH

    def y(self, values: Floats) -> Floats:
        finite = np.where(np.isfinite(values), values, np.nan)
        placed = HEIGHT * (self.high - finite) / (self.high - self.low)
        return np.clip(placed, 0, HEIGHT)  # what is outside of the axis stays at its end


def draw_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    first: float,
    last: float,
    band: tuple[Series, Series] | None = None,
    marks: Sequence[float] = (),
) -> Chart:
    """A chart of some series that share both axes.

    Args:
        title: of the chart.
        unit: of its values; empty if they have none.
        series: at least one finite value among them.
        first: the step at the left end of the axis.
        last: the step at the right end.
        band: the least and the greatest value at each step, drawn as an area behind the series.
        marks: steps with a vertical line.
    """
    everything = [*series, *(band or ())]
    low, high, outside = _range(everything)
    ticks = nice_ticks(low, high, 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    frame = _Frame(first, last, low, high)
    curves = [_curve(one, frame) for one in series]
    if band is not None:
        curves.insert(0, _band(*band, frame))
    labels = _labels(ticks)
    return Chart(
        title=title,
        unit=unit,
        curves=curves,
        x_ticks=_step_ticks(first, last),
        y_ticks=[
            Mark(100 * (tick - low) / (high - low), label)
            for tick, label in zip(ticks, labels, strict=True)
        ],
        marks=[Mark(float(frame.x(np.array(step))) / WIDTH * 100, f"{step:,}") for step in marks],
        zero=-100 * low / (high - low) if low < 0 < high else None,
        hovers=_hovers(everything, frame, unit),
        notes=outside,
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``.

    The first and the last are the nearest ones that hold the range, unless a tick inside is within
    a quarter of a gap of the end.
    """
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
    start, end = math.ceil(low / gap - 0.25), math.floor(high / gap + 0.25)
    start = start if start * gap <= low + 0.25 * gap else start - 1
    end = end if end * gap >= high - 0.25 * gap else end + 1
    return [number * gap for number in range(start, end + 1)]


def _step_ticks(first: float, last: float) -> list[Mark]:
    if last <= first:
        return [Mark(0, f"{first:,.0f}")]
    ticks = nice_ticks(first, last, min(5, int(last - first)))
    return [
        Mark(100 * (tick - first) / (last - first), f"{tick:,.0f}")
        for tick in ticks
        if first <= tick <= last
    ]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as tell them apart; powers of ten where that were too many."""
    gap = ticks[1] - ticks[0]
    largest = max(abs(tick) for tick in ticks)
    if largest >= 1e6 or largest < 1e-3:
        digits = max(1, math.ceil(math.log10(largest / gap) + 1e-9) + 1)
        texts = ["0" if abs(tick) < gap / 2 else f"{tick:.{digits}g}" for tick in ticks]
        return [text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e") for text in texts]
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    # `+ 0.0` makes minus zero plain zero.
    return [f"{round(tick, decimals) + 0.0:,.{decimals}f}" for tick in ticks]


def _range(series: Sequence[Series]) -> tuple[float, float, list[str]]:
    """Low, high, and a note if values far from all others are outside."""
    pools = [one.values[np.isfinite(one.values)] for one in series]
    values = np.concatenate(pools)
    low, high = float(values.min()), float(values.max())
    notes = []
    if len(values) >= _CLIPPED_FROM:
        near = np.percentile(values, [5, 95])
        room = 4 * float(near[1] - near[0])
        clipped_low, clipped_high = float(near[0]) - room, float(near[1]) + room
        outside = int(((values < clipped_low) | (values > clipped_high)).sum()) if room else 0
        if outside:
            notes.append(
                f"{outside:,} of {len(values):,} values are outside of the axis and not in the "
                f"running mean; all are from {low:.4g} to {high:.4g}."
            )
            low, high = max(low, clipped_low), min(high, clipped_high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: give it room
        space = abs(low) * 0.1 or 1.0
        low, high = low - space, high + space
    return low, high, notes


def _curve(series: Series, frame: _Frame) -> Curve:
    steps, values = series.steps, series.values
    bins = bin_values(steps, values, BINS)
    x, y = frame.x(bins.steps), frame.y(bins.mean)
    evaluated = series.kind == "points"
    crowded = len(steps) > BINS and not evaluated
    return Curve(
        series.name,
        series.kind,
        series.color,
        line=line_path(x, y),
        area=area_path(x, frame.y(bins.low), frame.y(bins.high)) if crowded else "",
        mean="" if evaluated else _mean_path(series, frame),
        dots=dots_path(x, y) if len(steps) <= _MOST_DOTS else "",
    )


def _mean_path(series: Series, frame: _Frame) -> str:
    """The running mean of the values inside of the axis; empty if it would show nothing more."""
    width = max(_LEAST_MEAN, len(series.steps) // _MEAN_SHARE)
    inside = (series.values >= frame.low) & (series.values <= frame.high)
    values = series.values[inside]
    if len(values) < 3 * width or np.abs(np.diff(values)).sum() <= _NOISE * np.ptp(values):
        return ""
    smooth = running_mean(np.where(inside, series.values, np.nan), width)
    bins = bin_values(series.steps, smooth, BINS)
    return line_path(frame.x(bins.steps), frame.y(bins.mean))


def _band(low: Series, high: Series, frame: _Frame) -> Curve:
    below, above = (bin_values(one.steps, one.values, BINS) for one in (low, high))
    x = frame.x(below.steps)
    area = area_path(x, frame.y(below.low), frame.y(above.high))
    return Curve(f"{low.name} to {high.name}", "band", low.color, area=area)


def _hovers(series: Sequence[Series], frame: _Frame, unit: str) -> list[Hover]:
    """One for each step or, of many, for each of :data:`_HOVER_BINS` stretches."""
    steps = np.unique(np.concatenate([one.steps for one in series]))
    groups = split_steps(steps, _HOVER_BINS)
    # A stretch ends halfway to the next one.
    inner = [(left[-1] + right[0]) / 2 for left, right in itertools.pairwise(groups)]
    edges = frame.x(np.array([frame.first, *inner, frame.last])) / WIDTH * 100
    suffix = f" {unit}" if unit else ""
    hovers = []
    for group, place, end in zip(groups, edges.tolist(), edges[1:].tolist(), strict=False):
        told = [f"step {group[0]:,.0f}"]
        if len(group) > 1:
            told = [f"{told[0]} to {group[-1]:,.0f}, mean"]
        for one in series:
            begin = np.searchsorted(one.steps, group[0], "left")
            values = one.values[begin : np.searchsorted(one.steps, group[-1], "right")]
            values = values[np.isfinite(values)]
            if len(values):
                told.append(f"{one.name}: {values.mean():.4g}{suffix}")
        hovers.append(Hover(place, end - place, "\n".join(told)))
    return hovers
