"""An encoder that works on batches while those after them are still being decoded.

A sum that is split differently adds up differently. So on a CPU each batch is computed on one
thread, several batches at a time, and features do not depend on the number of threads.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mmrlhf_engine.models.encoder import Encoder

__all__ = ["AHEAD", "ThreadedEncoder"]

AHEAD = 2
"""Batches that wait while every encoding thread has one."""


class ThreadedEncoder:
    """Runs an encoder on several batches at once, each on one thread, and tells how busy it was.

    Attributes:
        seconds: How long the work took.
    """

    def __init__(self, encoder: Encoder, threads: int) -> None:
        import torch

        self.encoder = encoder
        self.workers = (threads or torch.get_num_threads()) if encoder.device == "cpu" else 1
        self.seconds = self._busy_seconds = 0.0

    @property
    def busy(self) -> float:
        """Share of the time in which a thread of the encoder had a batch."""
        return min(self._busy_seconds / (self.seconds * self.workers), 1.0)

    def run(
        self, batches: Iterable[tuple[Any, np.ndarray]]
    ) -> Generator[tuple[Any, np.ndarray], None, None]:
        """(key, features float32 [n, d]) of each (key, pixels), in their order."""
        import torch

        threads = torch.get_num_threads()
        began = time.monotonic()
        try:
            # The number of threads of an operation is a setting of the thread that calls torch.
            with (
                ThreadPoolExecutor(self.workers, "encode", torch.set_num_threads, (1,)) as pool,
                contextlib.closing(
                    _ahead(pool, self._encode, batches, self.workers + AHEAD)
                ) as results,
            ):
                for key, (features, seconds) in results:
                    self._busy_seconds += seconds
                    self.seconds = time.monotonic() - began
                    yield key, features
        finally:
            torch.set_num_threads(threads)

    def _encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        began = time.monotonic()
        return self.encoder.encode(pixels), time.monotonic() - began


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[np.ndarray], Any],
    batches: Iterable[tuple[Any, np.ndarray]],
    waiting: int,
) -> Generator[tuple[Any, Any], None, None]:
    """(key, encode(batch)) in order; up to ``waiting`` batches are handed to the pool ahead."""
    handed: deque[tuple[Any, Future[Any]]] = deque()
    try:
        for key, batch in batches:
            handed.append((key, pool.submit(work, batch)))
            if len(handed) > waiting:
                done, future = handed.popleft()
                yield done, future.result()
        while handed:
            done, future = handed.popleft()
            yield done, future.result()
    finally:
        for _, future in handed:
            future.cancel()
