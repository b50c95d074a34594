"""Which epoch an iteration of a torch dataset is, agreed between the processes that iterate it.

A ``DataLoader`` starts workers, or has those of the last iteration begin again, without a word to
the dataset in its own process; and what that is told, such as the epoch, does not reach workers
that run already. Both sides therefore share a few numbers in memory, without a lock: each process
writes its own.
"""

import multiprocessing
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mmrlhf_engine.errors import InputError

__all__ = ["Epochs", "Position"]

_MAX_WORKERS = 1024
_FIELDS = 7
# Where things are in the shared numbers.
_FIRST, _LOADED, _LATER, _FINISHED, _SLOTS = 0, 1, 2 + _FIELDS, 3 + 2 * _FIELDS, 4 + 2 * _FIELDS
_BITS = {"epoch": 24, "started": 16, "again": 8, "seed": 15}


class Position(NamedTuple):
    """The numbers in which one cursor of a plan differs from another."""

    epoch: int
    window: int
    pack: int
    step: int
    pairs: int
    text_tokens: int
    image_tokens: int


class Epochs:
    """The epochs that were begun, and positions to begin one at.

    Numbers, all int64: the epoch that comes first; a loaded position and the start of a later
    epoch, each with whether it is there; the epochs whose last batch was made; and a slot for this
    process and for each worker that says which iteration it began last, and its epoch.
    """

    def __init__(self) -> None:
        self._shared = _shared(torch.zeros(_SLOTS + 1 + _MAX_WORKERS, dtype=torch.int64))
        self._owner = os.getpid()
        self._iterations = 0
        self._iteration: dict[str, int] = {}

    def begin(self, worker: Any = None) -> int:
        """The epoch of an iteration that begins in this process; ``worker`` is torch's, if any.

        All workers of one iteration get the same, whichever comes first.

        Raises:
            InputError: the dataset was made in another process than the ``DataLoader``.
        """
        numbers = self._numbers(worker)
        slots = numbers[_SLOTS:]
        if worker is None:
            epoch = _next(numbers)
            slots[0] = _packed(epoch=epoch + 1)
            return epoch
        if worker.id >= _MAX_WORKERS:
            raise InputError(f"num_workers: found {worker.num_workers}, expected up to 1024")
        # Processes are numbered as they are started, so those of one iteration are neighbours.
        started = multiprocessing.current_process()._identity[-1] - worker.id
        self._iterations += 1
        self._iteration = {
            "started": started % (1 << _BITS["started"]),
            "again": self._iterations % (1 << _BITS["again"]),
            "seed": (worker.seed - worker.id) % (1 << _BITS["seed"]),
        }
        for slot in slots[1:].tolist():
            if slot and self._is_same(_unpacked(slot), worker.num_workers):
                epoch = _unpacked(slot)["epoch"] - 1
                break
        else:
            epoch = _next(numbers)
        self.claim(epoch, worker)
        return epoch

    def claim(self, epoch: int, worker: Any = None) -> None:
        """Say that the iteration that this process began is of another epoch."""
        slot = 0 if worker is None else 1 + worker.id
        iteration = {} if worker is None else self._iteration
        self._numbers(worker)[_SLOTS + slot] = _packed(epoch=epoch + 1, **iteration)

    def restart(self, epoch: int, position: Position | None = None) -> None:
        """Let the next iteration be of this epoch, from a position of it if there is one.

        Raises:
            InputError: the epoch is not a number from 0 to 16,777,213.
        """
        most = (1 << _BITS["epoch"]) - 3
        if not 0 <= epoch <= most:
            raise InputError(f"epoch: found {epoch}, expected 0 to {most}")
        numbers = self._numbers()
        numbers[_SLOTS:] = 0
        numbers[_FIRST], numbers[_FINISHED] = epoch, 0
        if position is not None:
            # Steps are counted from where the position was reached: other counts are void.
            numbers[_LATER] = 0
        _store(numbers, _LOADED, position)

    def finished(self, epoch: int) -> None:
        """Say that the last batch of an epoch was made."""
        _array(self._shared)[_FINISHED] = epoch + 1

    def keep(self, start: Position) -> None:
        """Remember where an epoch starts."""
        _store(_array(self._shared), _LATER, start)

    def known(self, epoch: int) -> list[Position]:
        """Positions of an epoch or of those before it from which its start can be counted."""
        numbers = _array(self._shared)
        stored = [_load(numbers, at) for at in (_LOADED, _LATER)]
        return [position for position in stored if position and position.epoch <= epoch]

    def loaded(self) -> Position | None:
        """The position that was loaded, if no iteration has begun since."""
        numbers = self._numbers()
        return None if numbers[_SLOTS:].any() else _load(numbers, _LOADED)

    def next(self) -> int:
        """The epoch of the next iteration."""
        return _next(self._numbers())

    def current(self) -> int:
        """The epoch whose last batch was not made yet, else the next one."""
        numbers = self._numbers()
        begun = _next(numbers) - 1
        return begun if numbers[_SLOTS:].any() and begun >= numbers[_FINISHED] else begun + 1

    def in_workers(self) -> bool:
        """Whether the last iteration began in workers of torch."""
        begun = [_unpacked(slot)["epoch"] for slot in self._numbers()[_SLOTS:].tolist()]
        return max(begun[1:]) > begun[0]

    def _is_same(self, other: dict[str, int], workers: int) -> bool:
        """Whether a worker's iteration is this one's.

        Another thread may start a process between two workers; then their numbers do not fit, but
        are nearer to each other than those of two iterations.
        """
        own, size = self._iteration, 1 << _BITS["started"]
        apart = (own["started"] - other["started"]) % size
        near = min(apart, size - apart) < workers
        return near and all(own[name] == other[name] for name in ("again", "seed"))

    def _numbers(self, worker: Any = None) -> npt.NDArray[np.int64]:
        if worker is not None:
            parent = multiprocessing.parent_process()
            if parent is None or parent.pid != self._owner:
                raise InputError(
                    "the dataset was made in another process than its DataLoader",
                    hint="make the dataset in the process that makes the DataLoader",
                )
        elif os.getpid() != self._owner:
            # A forked or pickled copy, of another rank for example, has epochs of its own.
            self._shared = _shared(self._shared.clone())
            self._owner = os.getpid()
        return _array(self._shared)


def _shared(numbers: torch.Tensor) -> torch.Tensor:
    numbers.share_memory_()  # type: ignore[no-untyped-call]
    return numbers


def _array(shared: torch.Tensor) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = shared.numpy()
    return numbers


def _next(numbers: npt.NDArray[np.int64]) -> int:
    begun = max(_unpacked(slot)["epoch"] for slot in numbers[_SLOTS:].tolist())
    return begun or int(numbers[_FIRST])


def _packed(**parts: int) -> int:
    """One number, so that a process that reads it never sees half of what another writes."""
    packed = 0
    for name, bits in _BITS.items():
        packed = packed << bits | parts.get(name, 0)
    return packed


def _unpacked(packed: int) -> dict[str, int]:
    parts = {}
    for name, bits in reversed(_BITS.items()):
        parts[name] = packed & ((1 << bits) - 1)
        packed >>= bits
    return parts


def _store(numbers: npt.NDArray[np.int64], at: int, position: Position | None) -> None:
    numbers[at] = 0
    if position is not None:
        numbers[at + 1 : at + 1 + _FIELDS] = position
        numbers[at] = 1


def _load(numbers: npt.NDArray[np.int64], at: int) -> Position | None:
    if not numbers[at]:
        return None
    return Position(*numbers[at + 1 : at + 1 + _FIELDS].tolist())
