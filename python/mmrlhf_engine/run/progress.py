"""Progress on stderr in one of three formats: for people, for machines, or silent.

Standard output belongs to results, so that it can be piped; everything said on the way goes to
standard error. A stage reports through :meth:`Progress.update`, as often as it likes: the
format decides what is worth saying.
"""

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Literal, TextIO

__all__ = ["Progress", "ProgressFormat", "Rate", "format_duration"]

ProgressFormat = Literal["human", "jsonl", "silent"]

_HUMAN_INTERVAL = 0.2
_MACHINE_INTERVAL = 1.0
_LOG_INTERVAL = 10.0
"""Seconds between lines for people where standard error is no terminal."""


class Rate:
    """How fast work goes, by what was done in the last half minute, and how long the rest takes.

    The count need not begin at 0: what was done before the first call is not work of this run.
    """

    WINDOW = 30.0
    """Seconds."""

    def __init__(self) -> None:
        self._kind: object = None
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, kind: object, done: int, now: float) -> None:
        """Take note of a count; another ``kind``, or a smaller count, is other work."""
        if kind != self._kind or (self._seen and done < self._seen[-1][1]):
            self._kind = kind
            self._seen.clear()
        # A few points tell the rate as well as thousands do.
        if len(self._seen) > 1 and now - self._seen[-2][0] < self.WINDOW / 100:
            self._seen[-1] = (now, done)
        else:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self.WINDOW:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None where nothing was done yet, or too little time has passed to say."""
        if not self._seen:
            return None
        (began, first), (now, done) = self._seen[0], self._seen[-1]
        return (done - first) / (now - began) if now - began > 0.05 and done > first else None

    def seconds_left(self, total: int | None) -> float | None:
        """Until ``total``; None where either is not known."""
        rate = self.per_second
        return None if rate is None or total is None else (total - self._seen[-1][1]) / rate


class Progress:
    """Says how far the work is; cheap enough to call from an inner loop."""

    def __init__(self, format: ProgressFormat = "human", stream: TextIO | None = None) -> None:
        self.format = format
        self._stream = stream if stream is not None else sys.stderr
        self._last = 0.0
        self._line_open = False
        self._rate = Rate()

    def say(self, text: str, **facts: object) -> None:
        """One line that stays: a stage begins, ends or is skipped."""
        if self.format == "jsonl":
            self._write_json({"event": "message", "text": text, **facts})
        elif self.format == "human":
            self._close_line()
            self._stream.write(text + "\n")
            self._stream.flush()
            # In a log file, what takes less time than this needs no line between these two.
            self._last = time.monotonic()

    def warn(self, text: str, **facts: object) -> None:
        """One line that stays, also where the format is silent: it is not about progress."""
        if self.format == "jsonl":
            self._write_json({"event": "warning", "text": text, **facts})
        else:
            self._close_line()
            self._stream.write(text + "\n")
            self._stream.flush()

    def update(self, stage: str, task: str, done: int, total: int | None) -> None:
        """Done so far, with rate and time left; ``total`` is None where it cannot be known.

        On a terminal a line that moves, in a log file a line every ten seconds. For machines an
        event ``progress`` at most once a second, with ``per_second`` and ``seconds_left``, null
        where they are not known yet.
        """
        if self.format == "silent":
            return
        machine, now = self.format == "jsonl", time.monotonic()
        moves = not machine and self._stream.isatty()
        self._rate.see((stage, total), done, now)
        interval = _MACHINE_INTERVAL if machine else _HUMAN_INTERVAL if moves else _LOG_INTERVAL
        last_of_all = done == total and (machine or moves)
        if now - self._last < interval and not last_of_all:
            return
        self._last = now
        rate, left = self._rate.per_second, self._rate.seconds_left(total)
        if machine:
            counts = {"stage": stage, "task": task, "done": done, "total": total}
            speed = {
                "per_second": None if rate is None else round(rate, 2),
                "seconds_left": None if left is None else round(left, 1),
            }
            self._write_json({"event": "progress", **counts, **speed})
            return
        line = _line(stage, task, done, total, rate, left)
        if moves:
            self._move(line)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def measure(self, text: str, facts: Mapping[str, object], *, keep: bool = False) -> None:
        """What a step of long work measured: a line that moves, or stays if ``keep``.

        Where standard error is no terminal, a line for people is written every ten seconds. For
        machines it is an event ``metrics`` with ``facts``, at most one a second unless ``keep``.
        """
        if self.format == "silent":
            return
        machine = self.format == "jsonl"
        moves = not machine and self._stream.isatty()
        interval = _MACHINE_INTERVAL if machine else _HUMAN_INTERVAL if moves else _LOG_INTERVAL
        now = time.monotonic()
        if not keep and now - self._last < interval:
            return
        self._last = now
        if machine:
            self._write_json({"event": "metrics", **facts})
        elif keep or not moves:
            self.say(text)
        else:
            self._move(text)

    def _move(self, text: str) -> None:
        """Put a line in place of the one before it; one that wraps could not be cleared as one."""
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[2K{text[:width]}")
        self._stream.flush()
        self._line_open = True

    def _close_line(self) -> None:
        if self._line_open:
            self._stream.write("\r\x1b[2K")
            self._line_open = False

    def _write_json(self, record: dict[str, object]) -> None:
        self._stream.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")
        self._stream.flush()


def _line(
    stage: str, task: str, done: int, total: int | None, rate: float | None, left: float | None
) -> str:
    """``dedup: hashing pictures 1,024 of 5,000  20 %  310/s  13 s left``."""
    parts = [f"  {stage}: {task} {done:,}" + (f" of {total:,}" if total else "")]
    if total:
        parts.append(f"{100 * done / total:.0f} %")
    if rate is not None:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    if left is not None:
        parts.append(f"{format_duration(left)} left")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``1 d 3 h``: the two largest units."""
    whole = max(round(seconds), 0)
    for large, unit, small, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= large:
            return f"{whole // large} {unit} {whole % large // small} {part}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
