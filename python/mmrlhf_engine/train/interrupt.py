"""Ctrl-C, and the signal by which schedulers end a job, as a request to stop after a step."""

import signal
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, a first SIGINT or SIGTERM sets ``requested``; a second one acts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Take the signals over; outside of the main thread they stay as they are."""
        try:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        except ValueError:
            self._before = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            before = self._before[signal.Signals(number)]
            if callable(before):
                before(number, frame)
            else:
                raise KeyboardInterrupt
        self.requested = True
