"""The pairs that a dataset already has, by their ids, so that none is added twice.

An id is made of the tokens and pictures of a pair (``pid`` in ``docs/shard-format.md``). Ten
million ids take 160 MB.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

__all__ = ["KnownPairs", "ids_of"]

_ID = np.dtype("S16")  # compared as 16 bytes; zeros at the end make no difference to that
_MOST_RECENT = 1 << 18


class KnownPairs:
    """The ids in the newest version of a dataset, and those added since."""

    def __init__(self, dataset: Path) -> None:
        self._sorted = np.sort(_stored_ids(dataset))
        self._recent: set[bytes] = set()

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Remember ids (S16), and say of each, as a boolean, whether it was known before."""
        place = np.searchsorted(self._sorted, ids)
        known = np.zeros(len(ids), bool)
        inside = place < len(self._sorted)
        known[inside] = self._sorted[place[inside]] == ids[inside]
        for number in np.flatnonzero(~known):
            one = bytes(ids[number])
            known[number] = one in self._recent
            self._recent.add(one)
        if len(self._recent) > _MOST_RECENT:
            recent = np.array(list(self._recent), _ID)
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return known


def _stored_ids(dataset: Path) -> np.ndarray:
    manifests = sorted((dataset / "_mmrlhf").glob("manifest-*.json"))
    if not manifests:
        return np.empty(0, _ID)
    manifest = json.loads(manifests[-1].read_text(encoding="utf-8"))
    files = [dataset / shard["p"]["file"] for shard in manifest["shards"]]
    return np.concatenate([np.empty(0, _ID), *map(_ids_of_file, files)])


def _ids_of_file(file: Path) -> np.ndarray:
    with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return np.concatenate([np.empty(0, _ID), *(ids_of(b.column("pid")) for b in batches)])


def ids_of(array: pa.Array) -> np.ndarray:
    """A column of fixed_size_binary[16] without nulls as an array of S16 of its own."""
    content = array.buffers()[1]
    return np.frombuffer(content, _ID, len(array), array.offset * 16).copy()
