"""Writes the content in one format and prints how long that took, and how long making it takes.

Content is made while it is written, so the time to make it, measured in a run of its own before, is
taken off.
"""

import importlib
import json
import time
from pathlib import Path

from loading.content import pair_records, queries


def write_timed(name: str, folder: str, count: str, megapixels: str) -> None:
    """Write ``count`` queries in the format ``name``."""
    number, pixels = int(count), json.loads(megapixels)
    place = Path(folder)
    began = time.perf_counter()
    for _ in pair_records(queries(number, pixels)):
        pass
    making = time.perf_counter() - began
    place.parent.mkdir(parents=True, exist_ok=True)
    if name == "ours":
        from loading.ours import write

        began = time.perf_counter()
        write(place, number, pixels)
    else:
        from loading.peers import PEERS, Content

        for module in PEERS[name].modules:
            importlib.import_module(module)
        if name not in ("datasets", "lance"):
            place.mkdir()
        began = time.perf_counter()
        PEERS[name].write(place, Content(number, pixels))
    taken = time.perf_counter() - began
    print(
        json.dumps({"write_seconds": round(taken - making, 3), "making_seconds": round(making, 3)})
    )
