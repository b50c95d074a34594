"""Opening a large dataset, its first batch, and going on in the middle of an epoch.

``python benches/loader_open.py`` writes datasets of small rows, then measures each of ours in
processes of their own: seconds to open a million pairs and to the first batch, and the peers on
the same pairs; and seconds to go on at half an epoch of ten million pairs, where batches must be
those of the run without a break. No peer resumes exactly, so that row stands alone.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import write_record

HERE = Path(__file__).parent
PEERS = ["mosaicml-streaming", "grain + array_record", "datasets", "lance", "litdata", "webdataset"]
NOT_MEASURED = ["remote storage", "a cold page cache", "peers at ten million pairs"]


def main() -> None:
    """Write, open, go on, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--resume-pairs", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", default="", help="Peers, by comma; ours always runs.")
    arguments = parser.parse_args()
    peers = [name for name in PEERS if not arguments.only or name in arguments.only.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as base:
        for name in ["ours", *peers]:
            folder = Path(base) / name.split()[0]
            _run("write", name, folder, arguments.pairs)
            runs = [_run("open", name, folder) for _ in range(arguments.runs)]
            rows.append(_row("open", name, arguments.pairs, runs))
            shutil.rmtree(folder, ignore_errors=True)
        folder = Path(base) / "large"
        _run("write", "ours", folder, arguments.resume_pairs)
        middle = _run("walk_to_middle", "ours", folder)
        runs = [_run("go_on", "ours", folder, middle["state"]) for _ in range(arguments.runs)]
        row = _row("go_on", "ours", arguments.resume_pairs, runs)
        row["same_batches"] = all(run["digest"] == middle["digest"] for run in runs)
        row["pairs_before"] = middle["pairs"]
        rows.append(row)
    print(rows[-1], flush=True)
    left_out = [f"{name} at {arguments.pairs:,} pairs" for name in PEERS if name not in peers]
    print(write_record("loader_open", vars(arguments), rows, [*NOT_MEASURED, *left_out]))


def _run(task: str, name: str, folder: Path, *more: Any) -> dict[str, Any]:
    """One task of ``loading/opening.py`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "loading" / "opening.py"), task, name, str(folder)]
        + [json.dumps(argument) for argument in more],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(what: str, name: str, pairs: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what, "loader": name, "pairs": pairs}
    failed = [run["failed"] for run in runs if "failed" in run]
    if failed:
        row["failed"] = failed[0]
    else:
        for key in ("open_milliseconds", "first_batch_milliseconds")[name != "ours" :]:
            values = [run[key] for run in runs]
            row[key] = statistics.median(values)
            row[key.replace("milliseconds", "spread")] = [min(values), max(values)]
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
