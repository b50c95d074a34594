"""One task in a process of its own: ``python opening.py open ours FOLDER``; a line of JSON."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.shards.loader import PreferenceLoader
from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json

RESPONSES, TOKENS, COMPARED = 4, 8, 50
PAIRS = RESPONSES * (RESPONSES - 1) // 2
TOKENIZER = json.dumps({"name": "bench", "sha256": "0" * 64, "vocabulary": 1000})
PLAN = plan_json(PlanSettings(budget=Budget(tokens=16384), packs_per_step=8), None)
QUERIES_PER_APPEND = 100_000


class SmallContent:
    """Pairs of eight tokens a side, as flat records for the peers."""

    megapixels = None

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def records(self) -> Iterator[dict[str, Any]]:
        """As many as there are pairs."""
        random = np.random.default_rng(0)
        rows = random.integers(0, 1000, (3, 1000, TOKENS), dtype=np.int32)
        for number in range(self.pairs):
            sides = rows[:, number % 1000]
            yield {"prompt": sides[0], "chosen": sides[1], "rejected": sides[2]}


def write(name: str, folder: Path, pairs: int) -> dict[str, Any]:
    """Write the pairs in a format."""
    if name != "ours":
        from loading.peers import PEERS

        if name not in ("datasets", "lance"):
            folder.mkdir(parents=True)
        PEERS[name].write(folder, SmallContent(pairs))  # type: ignore[arg-type]
        return {}
    writer = _core.DatasetWriter(folder, tokenizer=TOKENIZER)
    for start in range(0, pairs // PAIRS, QUERIES_PER_APPEND):
        writer.append(*_tables(min(QUERIES_PER_APPEND, pairs // PAIRS - start)))
    writer.commit()
    return {}


def _tables(queries: int) -> tuple[pa.StructArray, pa.StructArray, pa.StructArray]:
    random = np.random.default_rng(queries)

    def lists(rows: int) -> pa.Array:
        ids = pa.array(random.integers(0, 1000, rows * TOKENS, dtype=np.uint32))
        offsets = pa.array(np.arange(0, rows * TOKENS + 1, TOKENS))
        return pa.LargeListArray.from_arrays(offsets, ids)

    sides = np.array(list(combinations(range(RESPONSES), 2)), np.uint32)
    first = np.arange(queries, dtype=np.uint32)[:, None] * RESPONSES
    chosen, rejected = ((first + sides[None, :, side]).reshape(-1) for side in (0, 1))
    owner = np.repeat(np.arange(queries, dtype=np.uint32), RESPONSES)
    responses = [pa.array(owner), lists(queries * RESPONSES)]
    return (
        pa.StructArray.from_arrays([lists(queries)], ["prompt"]),
        pa.StructArray.from_arrays(responses, ["q", "tokens"]),
        pa.StructArray.from_arrays([pa.array(chosen), pa.array(rejected)], ["chosen", "rejected"]),
    )


def open_and_take(name: str, folder: Path) -> dict[str, Any]:
    """Milliseconds to open, and to the first batch with opening; importing is not counted."""
    if name == "ours":
        began = time.perf_counter()
        loader = PreferenceLoader(folder, PLAN)
        opened = time.perf_counter()
        next(loader)
        return _milliseconds(began, opened)
    from loading.peers import PEERS

    # The first try imports the peer's libraries; it opens when it is asked for a batch.
    for _ in range(2):
        began = time.perf_counter()
        next(iter(PEERS[name].read(folder, 0)))
    return {"first_batch_milliseconds": round((time.perf_counter() - began) * 1e3, 2)}


def _milliseconds(began: float, opened: float) -> dict[str, Any]:
    return {
        "open_milliseconds": round((opened - began) * 1e3, 2),
        "first_batch_milliseconds": round((time.perf_counter() - began) * 1e3, 2),
    }


def walk_to_middle(folder: Path) -> dict[str, Any]:
    """The state after half of an epoch, and a digest of what comes after it."""
    loader = PreferenceLoader(folder, PLAN)
    half, pairs = _core.Dataset(folder).rows("pairs") // 2, 0
    for batch in loader:
        pairs += len(batch.pair_row)
        if pairs >= half and batch.ends_step:
            break
    state = loader.state_dict()
    return {"state": state, "digest": _digest(loader), "pairs": pairs}


def go_on(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds to open at a state, and to the first batch from there."""
    began = time.perf_counter()
    loader = PreferenceLoader(folder, PLAN, state=state)
    opened = time.perf_counter()
    first = next(loader)
    found = _milliseconds(began, opened)
    return {**found, "digest": _digest(loader, first)}


def _digest(loader: PreferenceLoader, *taken: Any) -> str:
    digest = hashlib.sha256()
    for batch in [*taken, *islice(loader, COMPARED - len(taken))]:
        digest.update(batch.pair_row.tobytes() + batch.input_ids.tobytes())
    return digest.hexdigest()


def main() -> None:
    """Run the task that the arguments name."""
    task, name, place, *more = sys.argv[1:]
    folder = Path(place)
    if task == "write":
        found = write(name, folder, json.loads(more[0]))
    elif task == "open":
        found = open_and_take(name, folder)
    elif task == "walk_to_middle":
        found = walk_to_middle(folder)
    else:
        found = go_on(folder, json.loads(more[0]))
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
