"""Work on several threads whose results come in order, a few ahead of their use at most."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["ordered_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, **pool_options: Any
) -> Iterator[Result]:
    """``function`` of each item, in their order.

    Unlike ``Executor.map``, no more than ``threads`` results wait for the one who reads them, so
    large results need no more memory than that.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, **pool_options) as pool:
        for item in items:
            if len(waiting) > threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
