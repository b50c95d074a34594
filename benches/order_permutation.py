"""The order of training and others: is it a permutation, has it a pattern, how fast is it.

Permutations: ours shuffled (as orders use it up to 131,072), ours computed place by place, numpy's,
and grain's index_shuffle where the package is there. A random order flips parity half of the time,
has about one pair of neighbours per two expected, about one fixed point, and no correlation of its
low bit with a bit of the place. Packs: fill and time of a window on units in the shape of MM-RLHF.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmrlhf_engine._core import Order, permute
from record import write_record

SEEDS = 5
SIZES = (100, 1000, 4096, 65_536, 65_537, 131_072, 262_145, 1_000_000)
# Grain follows its cycles for half a millisecond an index below 2^16, so it gets fewer seeds there.
GRAIN_BUDGET_SECONDS = 5.0
ROUNDS = 5
Shuffle = Callable[[int, int], np.ndarray]


def main() -> None:
    rows = [measure(name, shuffle, n) for n in SIZES for name, shuffle in peers().items()]
    rows += [measure_packs(unit, window) for unit in ("pair", "query") for window in (4096, 1024)]
    path = write_record(
        "order_permutation",
        {"seeds": SEEDS, "rounds": ROUNDS, "time": "median of rounds", "threads": 1},
        rows,
        [
            "Levanter's permutation, which is not a package of its own",
            "windows read at random by grain, where its cycles are as long as in order",
            "real lengths: the units are drawn, see `mm_rlhf_like`",
        ],
    )
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(path)


def peers() -> dict[str, Shuffle]:
    """Name to a function of (n, seed) that gives the whole order."""
    shuffles: dict[str, Shuffle] = {
        "ours": lambda n, seed: ours(n, seed, keyed=False),
        "ours_keyed": lambda n, seed: ours(n, seed, keyed=True),
        "numpy": lambda n, seed: np.random.default_rng(seed).permutation(n),
    }
    module = grain_index_shuffle()
    if module is not None:

        def grain(n: int, seed: int) -> np.ndarray:
            places = (module.index_shuffle(at, n - 1, seed, 4) for at in range(n))
            return np.fromiter(places, np.int64, n)

        shuffles["grain"] = grain
    return shuffles


def grain_index_shuffle() -> Any:
    """Grain's compiled module, loaded by itself: the package imports much that is not needed."""
    package = importlib.util.find_spec("grain")
    for place in (package.submodule_search_locations or []) if package else []:
        for file in Path(place).rglob("index_shuffle_module*.so"):
            spec = importlib.util.spec_from_file_location("index_shuffle_module", file)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    return None


def ours(n: int, seed: int, *, keyed: bool) -> np.ndarray:
    items = permute(n, seed=seed, epoch=0, stream=0, start=0, count=n, keyed=keyed)
    return pa.array(items).to_numpy().astype(np.int64)


def measure(name: str, shuffle: Shuffle, n: int) -> dict[str, object]:
    """Means over seeds; the most duplicates and the largest correlation of any seed."""
    found = []
    spent = time.perf_counter()
    for seed in range(1, SEEDS + 1):
        begin = time.perf_counter()
        order = shuffle(n, seed)
        seconds = time.perf_counter() - begin
        found.append(pattern(order, n) | {"microseconds": seconds * 1e6 / n})
        if name == "grain" and time.perf_counter() - spent > GRAIN_BUDGET_SECONDS:
            break

    def mean(figure: str) -> float:
        return round(statistics.fmean(one[figure] for one in found), 4)

    return {
        "permutation": name,
        "n": n,
        "seeds": len(found),
        "missing": max(one["missing"] for one in found),
        "parity_flips": mean("parity_flips"),
        "neighbour_ratio": mean("neighbour_ratio"),
        "fixed_points": mean("fixed_points"),
        "bit_correlation": round(max(one["bit_correlation"] for one in found), 4),
        "microseconds_an_index": round(statistics.median(o["microseconds"] for o in found), 4),
    }


def pattern(order: np.ndarray, n: int) -> dict[str, float]:
    """Figures of one order; each is explained at the top of this file."""
    place = np.arange(n)
    low = order & 1
    bits = range((n - 1).bit_length() - 1)
    agreement = [abs(2 * np.mean(low == (place >> bit) & 1) - 1) for bit in bits]
    return {
        "missing": n - len(np.unique(order)),
        "parity_flips": float(np.mean(low[1:] != low[:-1])),
        "neighbour_ratio": float(np.sum(np.abs(np.diff(order)) == 1)) / 2,
        "fixed_points": float(np.sum(order == place)),
        "bit_correlation": float(max(agreement)),
    }


def mm_rlhf_like(queries: int, unit: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text tokens, image tokens and pictures of units: one picture a query, 4 answers, 6 pairs.

    Prompts and answers are log-normal; 5 % of queries have no picture, the others one of the token
    counts that an any-resolution model gives.
    """
    generator = np.random.default_rng(0)
    prompt = np.exp(generator.normal(4.0, 0.6, queries)).clip(8, 1024).astype(np.uint32)
    answers = np.exp(generator.normal(5.2, 0.8, (queries, 4))).clip(4, 1500).astype(np.uint32)
    sizes = generator.choice([729, 1485, 2241, 2943, 3699, 5211, 7371], queries)
    image = np.where(generator.random(queries) < 0.05, 0, sizes).astype(np.uint32)
    if unit == "query":
        return prompt + answers.sum(axis=1, dtype=np.uint32), image, (image > 0).astype(np.uint32)
    left, right = np.triu_indices(4, 1)
    text = 2 * prompt[:, None] + answers[:, left] + answers[:, right]
    return (
        text.ravel(),
        np.repeat(2 * image, len(left)),
        np.repeat((image > 0) * 2, len(left)).astype(np.uint32),
    )


def measure_packs(unit: str, window: int) -> dict[str, object]:
    """Fill of an epoch, and the time of one window."""
    budget = 32_768
    plan = {"unit": unit, "seed": 1, "window": window, "packs_per_step": 32}
    columns = [pa.array(column, pa.uint32()) for column in mm_rlhf_like(20_000, unit)]
    order = Order(json.dumps(plan | {"budget": {"tokens": budget}}), *columns)
    rows = pa.array(order.summarise(0, threads=1)).to_pylist()
    tokens = sum(row["text_tokens"] + row["image_tokens"] for row in rows)
    packs = sum(row["packs"] for row in rows)
    order.window(0, 0)  # the epoch's permutation is made once
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        order.window(0, 1)
        seconds.append(time.perf_counter() - begin)
    return {
        "packs_of": unit,
        "units": sum(row["units"] for row in rows),
        "window": window,
        "budget_tokens": budget,
        "packs": packs,
        "fill": round(tokens / (packs * budget), 4),
        "milliseconds_a_window": round(statistics.median(seconds) * 1e3, 3),
    }


if __name__ == "__main__":
    main()
