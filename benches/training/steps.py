"""What is measured of a step, in the same way for every contender."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Seconds of this process: by the wall and, of all its threads, on processors."""

    wall: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)

    def since(self) -> list[float]:
        """[wall, processor] since this clock was made."""
        return [time.perf_counter() - self.wall, time.process_time() - self.processor]


@dataclass
class Steps:
    """What the steps of one run took.

    A step is forward, backward, optimizer and schedule. ``whole`` is everything from before the
    first pack or batch was asked for to the end of the last step, with the making of all of them.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)
    """[wall, processor] of each step."""
    tokens: list[int] = field(default_factory=list)
    """That the text model reads in a step, in one forward pass, padding included."""
    pictures: list[int] = field(default_factory=list)
    """Encoded in one forward pass."""
    whole: list[float] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """One step."""
        clock = Clock()
        yield
        self.seconds.append(clock.since())


def trained(model: Any) -> list[Any]:
    """The parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def weight_bytes(model: Any) -> int:
    """Of all parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())
