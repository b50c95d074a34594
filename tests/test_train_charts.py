"""Charts as data: ticks, paths, bins, hover texts."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.train.report.charts import BINS, HEIGHT, WIDTH, Series, draw_chart, nice_ticks


def series(values, name="training", *, first=1, kind="line", color=0):
    values = np.array(values, np.float64)
    return Series(
        name, np.arange(first, first + len(values), dtype=np.float64), values, kind, color
    )


def chart(*many, first=1, last=None, **arguments):
    last = max(one.steps[-1] for one in many) if last is None else last
    return draw_chart("A title", "GiB", many, first=first, last=last, **arguments)


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.41, 0.86, [0.4, 0.6, 0.8, 1.0]),
        (-3, 9, [-5, 0, 5, 10]),
        (1, 300, [0, 100, 200, 300]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high, 4) == pytest.approx(ticks)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 6))
def test_ticks_cover_the_range_and_are_few(low, extent, count):
    high = low + extent
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = nice_ticks(low, high, count)
    gap = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= count + 3
    assert ticks[0] <= low + 0.26 * gap
    assert ticks[-1] >= high - 0.26 * gap


def test_the_line_goes_from_corner_to_corner():
    drawn = chart(series([0.0, 0.5, 1.0]))
    assert points(drawn.curves[0].line) == [(0, HEIGHT), (WIDTH / 2, HEIGHT / 2), (WIDTH, 0)]
    assert [(tick.place, tick.label) for tick in drawn.y_ticks] == [
        (0, "0.0"), (50, "0.5"), (100, "1.0"),
    ]  # fmt: skip
    assert [(tick.place, tick.label) for tick in drawn.x_ticks] == [(0, "1"), (50, "2"), (100, "3")]


def test_labels_tell_ticks_apart():
    def labels(*values):
        return [tick.label for tick in chart(series(values)).y_ticks]

    assert labels(0, 1e-6) == ["0", "5e-7", "1e-6"]
    assert labels(5_000_100, 5_000_200) == ["5000100", "5000150", "5000200"]
    assert labels(0, 20_000_000) == ["0", "5e6", "1e7", "1.5e7", "2e7"]
    assert labels(49_000, 53_000) == ["49,000", "50,000", "51,000", "52,000", "53,000"]
    assert labels(-1, 1) == ["-1.0", "-0.5", "0.0", "0.5", "1.0"]


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-9, 1e12])
def test_one_value_has_room_around_it(value):
    drawn = chart(series([value]))
    ((x, y),) = points(drawn.curves[0].line)
    assert x == 0
    assert 0 < y < HEIGHT
    assert drawn.curves[0].dots


def test_a_value_that_is_not_finite_breaks_the_line():
    drawn = chart(series([1, 2, np.nan, 3, np.inf, 4]))
    assert re.sub(r"[^ML]", "", drawn.curves[0].line) == "MLMM"
    assert drawn.curves[0].dots.count("h0") == 4


def test_many_steps_become_bins_that_keep_range_and_mean():
    values = np.sin(np.arange(50_000) / 5000) + np.tile([1.0, -1.0], 25_000)
    values[12_345] = np.nan
    drawn = chart(series(values))
    curve = drawn.curves[0]
    line = points(curve.line)
    assert len(line) == BINS
    # Twice the bins: there and back.
    area = points(curve.area)
    assert len(area) == 2 * BINS
    ticks = [float(tick.label) for tick in drawn.y_ticks]
    low = min(ticks[0], np.nanmin(values))
    high = max(ticks[-1], np.nanmax(values))
    lowest = high - max(y for _, y in area) / HEIGHT * (high - low)
    assert lowest == pytest.approx(np.nanmin(values), abs=0.01)
    first = high - line[0][1] / HEIGHT * (high - low)
    assert first == pytest.approx(values[:125].mean(), abs=0.02)
    assert len(curve.line) + len(curve.area) + len(curve.mean) < 60_000


def test_the_running_mean_is_that_of_the_steps_around():
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    drawn = chart(series(values))
    mean = points(drawn.curves[0].mean)
    each = points(drawn.curves[0].line)
    assert len(mean) == 100
    heights = np.array([y for _, y in each])
    assert mean[50][1] == pytest.approx(heights[48:53].mean(), abs=0.1)
    assert mean[0][1] == pytest.approx(heights[:3].mean(), abs=0.1)


def test_a_smooth_series_has_no_running_mean():
    assert chart(series(np.linspace(0, 1, 200))).curves[0].mean == ""


def test_a_single_far_value_does_not_flatten_the_rest():
    values = np.random.default_rng(0).normal(2, 0.2, size=200)
    values[70] = 900
    drawn = chart(series(values))
    assert float(drawn.y_ticks[-1].label) < 20
    assert drawn.notes == [
        "1 of 200 values are outside of the axis and not in the running mean; "
        f"all are from {values.min():.4g} to 900."
    ]
    assert min(y for _, y in points(drawn.curves[0].line)) == 0
    assert min(y for _, y in points(drawn.curves[0].mean)) > HEIGHT / 4


def test_counts_that_are_mostly_zero_are_not_far_values():
    drawn = chart(series([0] * 99 + [1]))
    assert drawn.notes == []
    assert drawn.y_ticks[-1].label == "1.0"


def test_evaluations_are_dots_until_there_are_too_many():
    line = series(np.arange(100.0))
    few = series(np.arange(5.0), "evaluation", kind="points")
    many = series(np.arange(100.0), "evaluation", kind="points")
    assert chart(line, few).curves[1].dots.count("h0") == 5
    assert chart(line, many).curves[1].dots == ""
    assert len(points(chart(line, many).curves[1].line)) == 100


def test_a_band_is_an_area_behind_the_line():
    least, mean, greatest = (series([n, n + 1], name) for n, name in enumerate(["min", "m", "max"]))
    drawn = chart(mean, band=(least, greatest))
    assert [(curve.name, curve.kind) for curve in drawn.curves] == [
        ("min to max", "band"), ("m", "line"),
    ]  # fmt: skip
    assert drawn.curves[0].area.endswith("Z")
    assert len(points(drawn.curves[0].area)) == 4


def test_marks_and_zero_are_placed_on_the_axes():
    drawn = chart(series([-1.0, 1.0, 3.0]), marks=[2])
    assert [(mark.place, mark.label) for mark in drawn.marks] == [(50, "2")]
    assert drawn.zero == pytest.approx(25, abs=8)
    assert chart(series([1.0, 2.0])).zero is None


def test_hover_texts_cover_the_axis_and_tell_each_value():
    drawn = chart(series([1.0, 2.0, np.nan]), series([4.0], "evaluation", first=3, kind="points"))
    assert [hover.text for hover in drawn.hovers] == [
        "step 1\ntraining: 1 GiB",
        "step 2\ntraining: 2 GiB",
        "step 3\nevaluation: 4 GiB",
    ]
    assert sum(hover.width for hover in drawn.hovers) == pytest.approx(100)
    assert [hover.place for hover in drawn.hovers] == [0, 25, 75]


def test_hover_texts_of_many_steps_are_of_stretches():
    drawn = chart(series(np.arange(8000.0)))
    assert len(drawn.hovers) == 80
    assert drawn.hovers[0].text == "step 1 to 100, mean\ntraining: 49.5 GiB"
    assert sum(hover.width for hover in drawn.hovers) == pytest.approx(100)
