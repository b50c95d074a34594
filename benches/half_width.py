"""What bfloat16 costs on a CPU: a step of our functions and of plain PyTorch, against float32.

``python benches/half_width.py`` takes every call in turn, round after round, and writes a record.
Seconds are those of one core, which neighbours on the machine disturb less than the clock.
"""

import argparse
import statistics
import time
from itertools import product
from typing import Any

import torch

from heads.contenders import CONTENDERS, Problem
from record import write_record

SIZES = [(512, 4096), (512, 32_768), (1024, 32_768)]
"""(hidden, vocabulary); the first is small enough for plain PyTorch in half width."""
ROWS, PAIRS = 2048, 1
DTYPES = (torch.float32, torch.bfloat16)
NAMES = ("plain", "ours, fused_linear_logp", "ours, fused_linear_mm_dpo")
LONG = 10.0
"""A call that takes so many seconds is made once, and not at all at later sizes."""


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        slow = {(row["contender"], row["dtype"]) for row in rows if row["seconds"] >= LONG}
        calls = [call for call in product(NAMES, DTYPES) if (call[0], str(call[1])) not in slow]
        rows += measure(*size, calls, rounds)
    parameters = {"rows": ROWS, "pairs": PAIRS, "rounds": rounds, "threads": 1}
    not_measured = ["processors that multiply bfloat16", "Liger, which is not installed"]
    print(write_record("half_width", parameters, rows, not_measured))


def measure(
    hidden: int, vocabulary: int, calls: list[tuple[str, torch.dtype]], rounds: int
) -> list[dict[str, Any]]:
    """A row for each call of one size."""
    problems = {dtype: Problem.make(ROWS, PAIRS, hidden, vocabulary, dtype) for dtype in DTYPES}
    # The first round fills the buffers that an allocator keeps.
    seconds: dict[Any, list[float]] = {call: [] for call in calls}
    for _, call in product(range(rounds + 1), calls):
        if not seconds[call] or seconds[call][0] < LONG:
            seconds[call].append(step(call[0], problems[call[1]]))
    rows: list[dict[str, Any]] = []
    for name, dtype in calls:
        own, wide = (
            statistics.median(taken[1:] or taken)
            for taken in (seconds[name, dtype], seconds[name, torch.float32])
        )
        row = {"contender": name, "hidden": hidden, "vocabulary": vocabulary, "dtype": str(dtype)}
        rows.append(row | {"seconds": round(own, 3), "time_of_float32": round(own / wide, 3)})
        print(rows[-1], flush=True)
    return rows


def step(name: str, problem: Problem) -> float:
    """Seconds of a step forward and backward."""
    problem.hidden.grad = problem.weight.grad = None
    began = time.process_time()
    CONTENDERS[name](problem).backward()
    return time.process_time() - began


if __name__ == "__main__":
    main()
