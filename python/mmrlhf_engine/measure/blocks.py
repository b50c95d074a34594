"""What the page of a scorecard shows: rows of figures as dots with whiskers on a common axis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Block", "Mark", "Row", "SectionView", "Series", "figure_block"]

SHARES = (0.0, 1.0)
"""The axis of shares."""


@dataclass(frozen=True)
class Mark:
    """A figure on the axis, in per cent of its length from the left."""

    series: int
    """Number of its series, which is its color."""
    place: float
    low: float
    high: float
    text: str
    """Of the pointer."""


@dataclass(frozen=True)
class Row:
    """A line of a block."""

    name: str
    count: str
    marks: list[Mark]
    texts: list[str]
    """A figure with its interval for each series."""


@dataclass(frozen=True)
class Block:
    """A table with dots."""

    title: str
    note: str
    counted: str
    """What the counts are of."""
    series: list[str]
    rows: list[Row]
    ticks: list[tuple[float, str]]
    """Place in per cent, and label."""


@dataclass(frozen=True)
class SectionView:
    """A section of the page."""

    title: str
    lead: str
    blocks: list[Block]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """Figures of several rows."""

    name: str
    figures: Mapping[str, Mapping[str, Any]]
    """By the names of the rows; each has ``key`` and ``key_interval``."""
    key: str


def figure_block(
    title: str,
    note: str,
    series: Sequence[Series],
    *,
    counts: Mapping[str, str],
    counted: str,
    axis: tuple[float, float] | None = SHARES,
) -> Block:
    """A block of the rows of ``counts``, in their order.

    Args:
        title: Of the block.
        note: A sentence under it.
        series: The first is what is measured, the others stand beside it.
        counts: What stands beside the name of each row.
        counted: What the counts are of.
        axis: Its ends; None is what holds all figures. Shares are shown in per cent.
    """
    share = axis == SHARES
    low, high = axis or _ends(series)
    rows = []
    for name, count in counts.items():
        marks, texts = [], []
        for number, one in enumerate(series):
            figure = one.figures.get(name, {})
            text = _text(figure, one.key, share)
            texts.append(text)
            if figure.get(one.key) is not None:
                mark = _mark(number, figure, one.key, (low, high), f"{one.name}: {text}")
                marks.append(mark)
        # The first series is drawn last, over the others.
        rows.append(Row(name, count, marks[::-1], texts))
    return Block(title, note, counted, [one.name for one in series], rows, _ticks(low, high, share))


def _mark(
    number: int, figure: Mapping[str, Any], key: str, axis: tuple[float, float], text: str
) -> Mark:
    value = figure[key]
    low, high = figure.get(f"{key}_interval") or (value, value)
    places = [100 * (one - axis[0]) / (axis[1] - axis[0]) for one in (value, low, high)]
    place, left, right = (min(max(one, 0.0), 100.0) for one in places)
    return Mark(number, place, left, right, text)


def _text(figure: Mapping[str, Any], key: str, share: bool) -> str:
    value, interval = figure.get(key), figure.get(f"{key}_interval")
    if value is None:
        return "—"
    factor = 100 if share else 1
    digits = 1 if share or abs(value) >= 100 else 3
    text = f"{value * factor:,.{digits}f}{' %' if share else ''}"
    if interval is None:
        return text
    ends = [f"{end * factor:,.{digits}f}" for end in interval]
    return f"{text} ({ends[0]} to {ends[1]})"


def _ends(series: Sequence[Series]) -> tuple[float, float]:
    values = [0.0]
    for one in series:
        for figure in one.figures.values():
            if figure.get(one.key) is not None:
                values += [figure[one.key], *(figure.get(f"{one.key}_interval") or ())]
    if min(values[1:], default=0.0) > 500:  # ratings: 0 would leave no room for them
        values = values[1:]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, share: bool) -> list[tuple[float, str]]:
    if share:
        return [(100 * tick, f"{100 * tick:.0f} %") for tick in (0, 0.25, 0.5, 0.75, 1)]
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    gap = next(n * power for n in (1, 2, 5, 10) if n * power >= (high - low) / 4 * 0.999)
    numbers = range(math.ceil(low / gap), math.floor(high / gap) + 1)
    return [(100 * (n * gap - low) / (high - low), f"{n * gap + 0.0:,.4g}") for n in numbers]
