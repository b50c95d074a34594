"""Time and memory of the head and its loss on a CPU, compared with PyTorch, TRL and Liger.

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
LONG = 8192
"""From so many rows on a step takes minutes, and the first one is timed like the others."""
# Four times what they need at 2,048 rows is 17 and 20 GB: more than the machine has free.
TOO_LARGE = {("liger", 8192, 1)}
TOO_LARGE |= {("trl, selective_log_softmax", 8192, pairs) for pairs in (1, 32)}


def main() -> None:
    """Measure every contender at every size, print the table, write the record."""
    arguments = _arguments()
    chosen = [part for part in arguments.sizes.split(",") if part]
    rows: list[dict[str, Any]] = []
    slow = set(product(arguments.without, arguments.dtypes.split(",")))
    for dtype, (count, pairs) in product(arguments.dtypes.split(","), SIZES):
        if chosen and f"{count}x{pairs}" not in chosen:
            continue
        if dtype != "float32" and count > arguments.half_rows:
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
    left_out = [
        f"{name} at {count} rows, pairs {pairs}" for name, count, pairs in sorted(TOO_LARGE)
    ]
    left_out += [
        f"{name} in {dtype}: left out by hand, or after a size where it was too slow"
        for name, dtype in sorted(slow)
    ]
    print(
        write_record(
            "_".join(["linear_logp", *chosen]),
            parameters,
            rows,
            ["any GPU", "Liger under torch.compile", *left_out],
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="By comma.")
    parser.add_argument(
        "--sizes", default="", help="ROWSxPAIRS by comma: these alone, in a record apart."
    )
    parser.add_argument("--half-rows", type=int, default=2048, help="Largest size in bfloat16.")
    parser.add_argument("--without", action="append", default=[], help="A contender; may repeat.")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _measure(
    name: str, count: int, pairs: int, dtype: str, arguments: argparse.Namespace
) -> dict[str, Any] | None:
    if (name, count, pairs) in TOO_LARGE:
        return None
    request = {
        "contender": name,
        "rows": count,
        "pairs": pairs,
        "hidden": HIDDEN,
        "vocabulary": VOCABULARY,
        "dtype": dtype,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "time_first": count >= LONG,
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
