"""All pairs of 64-bit hashes within 4 bits, joined: seconds and memory, beside faiss on a slice.

Hashes are random, or *crowded*: two of five are random and the others lie around centres, in groups
whose sizes follow Zipf's law up to 100,000, each up to four bits away. Each case runs in a process
of its own, whose peak of resident memory is told, with that of numpy, pyarrow and the hashes.

faiss answers the same question by a range search of every hash among all, from which the sets are
made here: by its flat index (every pair is compared) for some queries, and by its multi-hash index,
which is exact for 4 bits with 5 keys of 12 bits. Its sets are compared with ours.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from mmrlhf_engine._core import near_hashes
from record import write_record

RADIUS = 4
LARGEST_GROUP = 100_000
FLAT_QUERIES = 500


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slice", type=int, default=100_000)
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        for kind in MADE:
            for threads in (1, 2):
                rounds = [alone(ours, kind, size, threads) for _ in range(given.rounds)]
                rows.append(summary("ours", kind, size, threads, rounds))
                print(json.dumps(rows[-1]), flush=True)
    for kind in MADE:
        rounds = [alone(ours, kind, given.slice, 1) for _ in range(given.rounds)]
        rows.append(summary("ours, slice", kind, given.slice, 1, rounds))
        rows.append({"kind": kind, "hashes": given.slice, **alone(peers, kind, given.slice)})
        rows[-1]["times_ours"] = round(rows[-1]["multi_hash_seconds"] / rows[-2]["seconds"], 1)
        print(json.dumps(rows[-2]), json.dumps(rows[-1]), sep="\n", flush=True)
    path = write_record(
        "near_hashes",
        {
            "radius": RADIUS,
            "rounds": given.rounds,
            "figure": "median seconds; peak of resident memory in MiB",
            "faiss": faiss.__version__,
        },
        rows,
        [
            "hashes of real pictures in millions",
            "more than two threads; a machine without other load",
            "faiss at ten million: its flat index is extrapolated from its rate",
        ],
    )
    print(path)


def random_hashes(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**64, size, dtype=np.uint64)


def crowded_hashes(size: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    sizes = np.minimum(size // 8 // np.arange(1, size), LARGEST_GROUP)
    sizes = sizes[sizes > 1]
    sizes = sizes[np.cumsum(sizes) < 0.6 * size]
    alone = rng.integers(0, 2**64, size - sizes.sum(), dtype=np.uint64)
    near = np.repeat(rng.integers(0, 2**64, len(sizes), dtype=np.uint64), sizes)
    for _ in range(4):
        bit = np.uint64(1) << rng.integers(0, 64, len(near), dtype=np.uint64)
        near ^= np.where(rng.random(len(near)) < 0.6, bit, np.uint64(0))
    return rng.permutation(np.concatenate([alone, near]))


MADE: dict[str, Callable[[int], np.ndarray]] = {
    "random": random_hashes,
    "crowded": crowded_hashes,
}


def ours(kind: str, size: int, threads: int) -> dict[str, Any]:
    hashes = pa.array(MADE[kind](size))
    started, used = time.perf_counter(), time.process_time()
    sets = np.asarray(pa.array(near_hashes(hashes, radius=RADIUS, threads=threads)))
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
        "sets": len(np.unique(sets)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def peers(kind: str, size: int) -> dict[str, Any]:
    """By faiss on one thread; whether its pairs give our sets."""
    faiss.omp_set_num_threads(1)
    hashes = MADE[kind](size)
    codes = hashes.view(np.uint8).reshape(-1, 8)
    flat = faiss.IndexBinaryFlat(64)
    flat.add(codes)
    flat_seconds = clock(lambda: flat.range_search(codes[:FLAT_QUERIES], RADIUS + 1))
    index = faiss.IndexBinaryMultiHash(64, 5, 12)
    started = time.perf_counter()
    index.add(codes)
    limits, _, found = index.range_search(codes, RADIUS + 1)
    sets = united(limits.astype(np.int64), found, size)
    seconds = time.perf_counter() - started
    near = near_hashes(pa.array(hashes), radius=RADIUS, threads=1)
    return {
        "what": "faiss",
        "flat_queries_per_second": round(FLAT_QUERIES / flat_seconds, 1),
        "flat_seconds_extrapolated": round(flat_seconds * size / FLAT_QUERIES),
        "flat_seconds_of_10_million_extrapolated": round(
            flat_seconds * 10_000_000 / FLAT_QUERIES * 10_000_000 / size
        ),
        "multi_hash_seconds": round(seconds, 2),
        "pairs_found": len(found),
        "equal_sets": bool((np.asarray(pa.array(near)) == sets).all()),
    }


def united(limits: np.ndarray, found: np.ndarray, size: int) -> np.ndarray:
    """The smallest member of each set: labels spread along pairs until none changes."""
    sets = np.arange(size)
    rows = np.repeat(sets, np.diff(limits))
    while True:
        before = sets.copy()
        np.minimum.at(sets, rows, before[found])
        sets = sets[sets]
        if (sets == before).all():
            return sets


def alone(work: Callable[..., dict[str, Any]], *given: object) -> dict[str, Any]:
    """``work`` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def summary(
    what: str, kind: str, size: int, threads: int, rounds: list[dict[str, Any]]
) -> dict[str, Any]:
    def median(name: str) -> float:
        return round(statistics.median(found[name] for found in rounds), 2)

    return {
        "what": what,
        "kind": kind,
        "hashes": size,
        "threads": threads,
        "seconds": median("seconds"),
        "seconds_min_max": [round(f([r["seconds"] for r in rounds]), 2) for f in (min, max)],
        "processor_seconds": median("processor_seconds"),
        "peak_mib": max(found["peak_mib"] for found in rounds),
        "sets": rounds[0]["sets"],
    }


def clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
