"""Progress: rate and time left, no flood in a log file, JSON for machines."""

import io
import json

import pytest

from mmrlhf_engine.run import progress as module
from mmrlhf_engine.run.progress import Progress, Rate, format_duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    seconds = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    return seconds


def work(progress, clock, counts, *, total=None, step=1.0, task="rows", stage="ingest"):
    for done in counts:
        progress.update(stage, task, done, total)
        clock[0] += step


def test_a_terminal_shows_share_rate_and_time_left_in_one_line(clock):
    said = Terminal()
    work(Progress("human", said), clock, range(0, 501, 100), total=10_000)
    last = said.getvalue().split("\r\x1b[2K")[-1]
    assert last == "  ingest: rows 500 of 10,000  5 %  100/s  1 min 35 s left"
    assert "\n" not in said.getvalue()


def test_a_log_file_gets_a_line_every_ten_seconds(clock):
    said = io.StringIO()
    progress = Progress("human", said)
    progress.say("ingest: running")
    work(progress, clock, range(3600), step=0.1)
    lines = said.getvalue().splitlines()
    assert lines[0] == "ingest: running"
    assert 30 <= len(lines) - 1 <= 36
    assert lines[-1].endswith("10/s")
    assert "\x1b" not in said.getvalue()


def test_what_is_short_adds_no_line_to_a_log_file(clock):
    said = io.StringIO()
    progress = Progress("human", said)
    progress.say("ingest: running")
    work(progress, clock, range(1, 51), total=50, step=0.1)
    assert said.getvalue() == "ingest: running\n"


def test_machines_get_rate_and_time_left_once_a_second(clock):
    said = io.StringIO()
    work(Progress("jsonl", said), clock, range(0, 101), total=100, step=0.1)
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    assert 10 <= len(events) <= 12
    assert (events[0]["per_second"], events[0]["seconds_left"]) == (None, None)
    assert events[5]["per_second"] == pytest.approx(10, rel=0.05)
    assert events[5]["seconds_left"] == pytest.approx((100 - events[5]["done"]) / 10, rel=0.05)
    assert (events[-1]["done"], events[-1]["seconds_left"]) == (100, 0)


def test_silent_says_nothing(clock):
    said = io.StringIO()
    progress = Progress("silent", said)
    progress.say("a")
    work(progress, clock, range(50), step=20)
    assert said.getvalue() == ""


def test_a_rate_is_of_the_last_half_minute_and_of_this_run():
    rate = Rate()
    rate.see("a", 5_000, 0.0)  # done by the run before
    assert rate.per_second is None
    for second in range(1, 101):
        rate.see("a", 5_000 + second * 10, float(second))
    assert rate.per_second == pytest.approx(10)
    for second in range(101, 141):
        rate.see("a", 6_000 + (second - 100) * 20, float(second))
    assert rate.per_second == pytest.approx(20)
    assert rate.seconds_left(7_000) == pytest.approx(10)
    rate.see("b", 0, 141.0)
    assert rate.per_second is None
    rate.see("b", 50, 142.0)
    assert rate.per_second == pytest.approx(50)
    rate.see("b", 1, 143.0)  # other work of the same kind
    assert rate.per_second is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 5 min"),
        (97_200, "1 d 3 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert format_duration(seconds) == text
