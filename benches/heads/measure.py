"""One contender in a process of its own: ``python measure.py '{"contender": ..., "rows": ...}'``.

Prints one line of JSON. Memory is the high-water mark of the resident set, reset before the step,
less what was resident then and less the two gradients: what a step needs beyond inputs and
results. The first step is timed only where ``time_first`` says so, so that pages of buffers that an
allocator keeps are in place for everybody.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of the first step, seconds of ``steps`` steps."""
    import torch

    from heads.contenders import CONTENDERS, Problem

    torch.set_num_threads(request["threads"])
    dtype = getattr(torch, request["dtype"])
    sizes = (request["hidden"], request["vocabulary"])
    problem = Problem.make(request["rows"], request["pairs"], *sizes, dtype)
    step = CONTENDERS[request["contender"]]
    small = Problem.make(2 * request["pairs"], request["pairs"], request["hidden"], 1000, dtype)
    step(small).backward()  # imports and dispatch caches are not part of the step's memory

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    loss, first = _timed(step, problem)
    gradients = sum(t.grad.nbytes for t in (problem.hidden, problem.weight))
    peak = resident("VmHWM") - before - gradients

    seconds = [first] if request["time_first"] else []
    while len(seconds) < request["steps"]:
        problem.hidden.grad = problem.weight.grad = None
        loss, again = _timed(step, problem)
        seconds.append(again)
    return {"loss": loss, "peak_bytes": max(0, peak), "seconds": seconds}


def _timed(step: Callable[[Any], Any], problem: Any) -> tuple[float, float]:
    """Loss of one step forward and backward, and its seconds."""
    began = time.perf_counter()
    loss = step(problem)
    loss.backward()
    return loss.item(), time.perf_counter() - began


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)
