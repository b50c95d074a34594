"""Progress on stderr in one of three formats: for people, for machines, or silent.

Standard output belongs to results, so that it can be piped; everything said on the way goes to
standard error. A stage reports through :meth:`Progress.update`, as often as it likes: the
format decides what is worth saying.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Literal, TextIO

__all__ = ["Progress", "ProgressFormat"]

ProgressFormat = Literal["human", "jsonl", "silent"]

_HUMAN_INTERVAL = 0.2
_MACHINE_INTERVAL = 1.0
_LOG_INTERVAL = 10.0
"""Seconds between lines of measures for people where standard error is no terminal."""


class Progress:
    """Says how far the work is; cheap enough to call from an inner loop."""

    def __init__(self, format: ProgressFormat = "human", stream: TextIO | None = None) -> None:
        self.format = format
        self._stream = stream if stream is not None else sys.stderr
        self._last = 0.0
        self._line_open = False

    def say(self, text: str, **facts: object) -> None:
        """One line that stays: a stage begins, ends or is skipped."""
        if self.format == "jsonl":
            self._write_json({"event": "message", "text": text, **facts})
        elif self.format == "human":
            self._close_line()
            self._stream.write(text + "\n")
            self._stream.flush()

    def update(self, stage: str, task: str, done: int, total: int | None) -> None:
        """A line that moves; ``total`` is None where it cannot be known."""
        interval = _HUMAN_INTERVAL if self.format == "human" else _MACHINE_INTERVAL
        now = time.monotonic()
        if self.format == "silent" or (now - self._last < interval and done != total):
            return
        self._last = now
        if self.format == "jsonl":
            self._write_json(
                {"event": "progress", "stage": stage, "task": task, "done": done, "total": total}
            )
        elif self._stream.isatty():
            share = f" {100 * done / total:3.0f} %" if total else ""
            of_total = f" of {total:,}" if total else ""
            self._stream.write(f"\r\x1b[2K  {stage}: {task} {done:,}{of_total}{share}")
            self._stream.flush()
            self._line_open = True

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
            # A line that wraps could not be cleared as one.
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
