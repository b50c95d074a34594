"""Time and memory of the head and its loss on a CPU, beside PyTorch, TRL and Liger.

``python benches/linear_logp.py`` runs every contender in a process of its own, in turn, and
writes a record. Sizes are those of a 0.5B model: hidden 896, vocabulary 151,936.
"""

import argparse
import json
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from heads.contenders import CONTENDERS
from record import write_record

HIDDEN, VOCABULARY = 896, 151_936
# (rows, pairs): one pair at every size, and many pairs where they have a usual length.
SIZES = [(128, 1), (512, 1), (2048, 1), (8192, 1), (2048, 16), (8192, 32)]
TOO_SLOW = 5.0
"""A contender that takes so many times as long as plain PyTorch is left out of later sizes."""
# Three matrices of logits in float32 at 8,192 rows are 15 GB: more than the machine has free.
TOO_LARGE = {("plain", 8192, "float32"), ("liger", 8192, "float32")}
TOO_LARGE |= {("trl, selective_log_softmax", 8192, "float32")}


def main() -> None:
    """Measure every contender at every size, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="By comma.")
    parser.add_argument("--rows", type=int, default=8192, help="Leave larger sizes out.")
    parser.add_argument("--half-rows", type=int, default=2048, help="The same for bfloat16.")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    slow: set[tuple[str, str]] = set()
    for dtype, (count, pairs) in product(arguments.dtypes.split(","), SIZES):
        if count > (arguments.rows if dtype == "float32" else arguments.half_rows):
            continue
        measured = {
            name: None if (name, dtype) in slow else _measure(name, count, pairs, dtype, arguments)
            for name in CONTENDERS
        }
        rows += [_row(name, count, pairs, dtype, measured) for name in CONTENDERS]
        for row in rows[-len(CONTENDERS) :]:
            print(row, flush=True)
            if row.get("time_of_plain", 0.0) > TOO_SLOW:
                slow.add((row["contender"], dtype))
    parameters = {"hidden": HIDDEN, "vocabulary": VOCABULARY, **vars(arguments)}
    left_out = [f"{name} at {count} rows in {dtype}" for name, count, dtype in sorted(TOO_LARGE)]
    left_out += [
        f"{name} in {dtype} after the first size: too slow" for name, dtype in sorted(slow)
    ]
    print(
        write_record(
            "linear_logp",
            parameters,
            rows,
            ["any GPU", "Liger under torch.compile", *left_out],
        )
    )


def _measure(
    name: str, count: int, pairs: int, dtype: str, arguments: argparse.Namespace
) -> dict[str, Any] | None:
    if (name, count, dtype) in TOO_LARGE:
        return None
    request = {
        "contender": name,
        "rows": count,
        "pairs": pairs,
        "hidden": HIDDEN,
        "vocabulary": VOCABULARY,
        "dtype": dtype,
        "threads": arguments.threads,
        "steps": arguments.steps if count < 8192 else 1,
    }
    script = Path(__file__).parent / "heads" / "measure.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(request)], capture_output=True, text=True
    )
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _row(
    name: str, count: int, pairs: int, dtype: str, measured: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    row: dict[str, Any] = {"contender": name, "rows": count, "pairs": pairs, "dtype": dtype}
    own = measured[name]
    if own is None:
        return row | {"seconds": None}
    seconds = statistics.median(own["seconds"])
    row |= {
        "seconds": round(seconds, 3),
        "spread": [round(min(own["seconds"]), 3), round(max(own["seconds"]), 3)],
        "peak_megabytes": round(own["peak_bytes"] / 1e6, 1),
        "loss": round(own["loss"], 5),
    }
    for other in ("plain", "liger"):
        if (peer := measured[other]) is not None:
            row[f"time_of_{other}"] = round(seconds / statistics.median(peer["seconds"]), 3)
            row[f"memory_of_{other}"] = round(own["peak_bytes"] / max(1, peer["peak_bytes"]), 4)
    return row


if __name__ == "__main__":
    main()
