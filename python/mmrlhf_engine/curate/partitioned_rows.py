"""Rows of an array that is larger than memory, by partition: written once, in one pass.

Rows of a partition lie all over the array, and reading them there one by one costs the system a
read of many pages each. So they are copied into one file a partition, in the order of the array.
"""

from pathlib import Path

import numpy as np

__all__ = ["PartitionedRows"]

_BLOCK = 65_536
"""Rows read at once."""
_OPEN_FILES = 256
"""Partitions written in one pass over the array."""


class PartitionedRows:
    """Files ``partition-N.rows`` in ``folder``, which is made."""

    def __init__(
        self, array: np.ndarray, partition_of: np.ndarray, partitions: int, folder: Path
    ) -> None:
        """Copy the rows of ``array`` [n, d]; those whose ``partition_of`` [n] is -1 are left out.

        Raises:
            OSError: the files cannot be written.
        """
        self._array = array
        self._folder = folder
        self._partition_of = partition_of
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, partitions, _OPEN_FILES):
            self._write(range(first, min(first + _OPEN_FILES, partitions)))

    def numbers(self, partition: int) -> np.ndarray:
        """int64: the rows of the array that ``partition`` holds, ascending."""
        return np.flatnonzero(self._partition_of == partition)

    def rows(self, partition: int) -> np.ndarray:
        """The rows themselves, [m, d], mapped, not read."""
        file, width = self._file(partition), self._array.shape[1]
        if not file.stat().st_size:  # nothing can be mapped
            return np.empty((0, width), self._array.dtype)
        return np.memmap(file, self._array.dtype, "r").reshape(-1, width)

    def _write(self, partitions: range) -> None:
        files = [self._file(partition).open("wb") for partition in partitions]
        try:
            for start in range(0, len(self._array), _BLOCK):
                of = self._partition_of[start : start + _BLOCK]
                order = np.argsort(of, kind="stable")
                bounds = np.searchsorted(
                    of[order], np.arange(partitions.start, partitions.stop + 1)
                )
                if bounds[0] == bounds[-1]:
                    continue
                block = np.asarray(self._array[start : start + _BLOCK])[order]
                for file, first, last in zip(files, bounds[:-1], bounds[1:], strict=True):
                    file.write(block[first:last].tobytes())
        finally:
            for file in files:
                file.close()

    def _file(self, partition: int) -> Path:
        return self._folder / f"partition-{partition}.rows"
