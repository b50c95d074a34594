"""One measurement in a process of its own: ``python measure.py '{"peer": ..., "folder": ...}'``.

Prints one line of JSON: seconds to the first batch, pairs/s from the first batch on, pairs seen,
and the largest proportional set size of the process and its children. Memory that several
processes map counts once in all. With ``ranks`` above one it starts that many of itself, and the
rates are their sum. With ``cold`` the files are dropped from the page cache first.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

INTERVAL = 0.2


class Watch:
    """Samples the proportional set size of this process and its descendants."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The largest sum seen, in bytes."""
        self._stop.set()
        self._thread.join()
        return self.peak

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.peak = max(self.peak, sum(map(_proportional_set_size, _family(os.getpid()))))


def _family(parent: int) -> list[int]:
    out, seen = [parent], 0
    while seen < len(out):
        for task in Path(f"/proc/{out[seen]}/task").glob("*/children"):
            try:
                out += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
        seen += 1
    return out


def _proportional_set_size(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def epoch(request: dict[str, Any]) -> dict[str, Any]:
    """One epoch of a peer or of ours, at most ``request["seconds"]`` after the first batch."""
    folder = Path(request["folder"])
    if request["peer"] == "ours":
        from loading.ours import pairs_by_batch

        counts = pairs_by_batch(folder, request)
    elif request["peer"] == "bare decoder":
        from loading.ours import pairs_by_bare_decoding

        counts = pairs_by_bare_decoding(request)
    else:
        from loading.peers import PEERS

        peer = PEERS[request["peer"]]
        for module in peer.modules:
            importlib.import_module(module)
        counts = map(len, peer.read(folder, request["workers"]))
    began = time.perf_counter()
    iterator = iter(counts)
    first_pairs = next(iterator)
    first = time.perf_counter()
    pairs = 0
    for count in iterator:
        pairs += count
        if time.perf_counter() - first > request["seconds"]:
            break
    took = time.perf_counter() - first
    return {
        "first_batch_seconds": round(first - began, 4),
        "pairs_per_second": round(pairs / took, 1),
        "pairs": pairs + first_pairs,
    }


def epochs_of_ranks(request: dict[str, Any]) -> dict[str, Any]:
    """The same request by so many processes at a time."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps({**request, "rank": rank, "cold": False})],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(request["ranks"])
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "first_batch_seconds": max(one["first_batch_seconds"] for one in found),
        "pairs_per_second": round(sum(one["pairs_per_second"] for one in found), 1),
        "pairs": sum(one["pairs"] for one in found),
    }


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Run what the argument asks for, on as many cores as it names."""
    request = json.loads(sys.argv[1])
    os.sched_setaffinity(0, range(request["cores"]))
    if request["cold"]:
        forget(Path(request["folder"]))
    watch = Watch()
    several = request["ranks"] > 1 and "rank" not in request
    found = epochs_of_ranks(request) if several else epoch(request)
    print(json.dumps({**found, "peak_pss_bytes": watch.stop()}), flush=True)
    # Peers leave threads and workers behind that would hold the exit for seconds.
    os._exit(0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
