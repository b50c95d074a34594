"""The line that tells people how a training run goes."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from mmrlhf_engine.run.memory import format_size

__all__ = ["StepLine", "format_duration", "is_evaluation"]

_WINDOW = 100
"""Steps over which the time of a step is a mean."""


def _short(value: float) -> str:
    return f"{value:.4g}"


_PARTS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("loss", lambda value: f"loss {_short(value)}"),
    ("rewards/margins", lambda value: f"margin {_short(value)}"),
    ("rewards/accuracies", lambda value: f"accuracy {value:.1%}"),
    ("mean_token_accuracy", lambda value: f"token accuracy {value:.1%}"),
    ("beta/mean", lambda value: f"beta {_short(value)}"),
    ("tokens_per_second", lambda value: f"{value:,.0f} tokens/s"),
    ("pictures_per_second", lambda value: f"{value:,.1f} pictures/s"),
    ("memory_bytes", format_size),
)
"""What the line shows of the metrics of a step, as far as the step has them, in this order."""


def is_evaluation(values: Mapping[str, object]) -> bool:
    """Whether metrics are those of an evaluation: every name begins with ``eval_``."""
    return bool(values) and all(name.startswith("eval_") for name in values)


def format_duration(seconds: float) -> str:
    """``4000`` as ``1 h 07 min``."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24:02} h"
    if hours:
        return f"{hours} h {minutes % 60:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


class StepLine:
    """Words for metrics, with the time left after the pace of the steps that this process made.

    The pace is measured by the clock, so that evaluations and checkpoints count; steps that were
    made before a run was resumed do not.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._marks: deque[tuple[int, float]] = deque(maxlen=_WINDOW + 1)

    def text(self, step: int, total_steps: int, values: Mapping[str, float]) -> str:
        """The line of a training step or, if the metrics are those, of an evaluation."""
        evaluation = is_evaluation(values)
        prefix = "eval_" if evaluation else ""
        parts = [
            show(values[prefix + name])
            for name, show in _PARTS
            if values.get(prefix + name) is not None
        ]
        if evaluation:
            return ", ".join([f"{self._command}: evaluation at step {step:,}", *parts])
        left = self._time_left(step, total_steps, values.get("seconds"))
        done = f"{self._command}: step {step:,} of {total_steps:,}"
        return ", ".join([done, *parts, *([f"{format_duration(left)} left"] if left else [])])

    def _time_left(self, step: int, total_steps: int, seconds: float | None) -> float | None:
        """In seconds; None before there is a pace, and after the last step."""
        now = time.monotonic()
        if not self._marks and seconds is not None and math.isfinite(seconds):
            self._marks.append((step - 1, now - seconds))
        self._marks.append((step, now))
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        if last == first or step >= total_steps:
            return None
        return (total_steps - step) * (ended - began) / (last - first)
