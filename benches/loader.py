"""The loader and its peers: pairs a second, first batch, memory, disk and the time to write.

``python benches/loader.py`` writes the same preference pairs (``loading/content.py``) in every
format and reads an epoch of each in processes of their own: on one core and on two, with and
without worker processes, from a cold page cache, and by four ranks at a time. Peers hand out lists
of records; ours hands out packed batches. A bare decoder, our code for pictures and nothing around
it, shows what the rest of the loader costs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from loading.content import PAIRS
from record import write_record

HERE = Path(__file__).parent
NAMES = ["litdata", "mosaicml-streaming", "webdataset", "grain + array_record", "datasets", "lance"]
UNITS = ["pair", "query"]
NOT_MEASURED = [
    "remote storage",
    "a GPU",
    "spdl, DALI, torchdata, lancedb",
    "peers that divide data among ranks: each of a peer's four ranks reads all",
    "a slow disk: a dropped page cache leaves the cache of whatever is below",
]
CASES: list[dict[str, Any]] = [
    {"cores": 1, "workers": 0, "cold": False, "ranks": 1},
    {"cores": 2, "workers": 0, "cold": False, "ranks": 1},
    {"cores": 2, "workers": 2, "cold": False, "ranks": 1},
    {"cores": 2, "workers": 2, "cold": True, "ranks": 1},
    {"cores": 2, "workers": 0, "cold": False, "ranks": 4},
]
"""``workers`` are processes of a peer, threads of ours; 0 is a peer's own process."""


def main() -> None:
    """Write, read, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1500, help="With pictures.")
    parser.add_argument("--text-queries", type=int, default=8000, help="Of tokens alone.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="Peers, by comma; ours always runs.")
    parser.add_argument("--folder", type=Path, help="Where to write; a temporary one by default.")
    arguments = parser.parse_args()
    names = [name for name in NAMES if not arguments.only or name in arguments.only.split(",")]
    base = arguments.folder or Path(tempfile.mkdtemp())
    rows: list[dict[str, Any]] = []
    for megapixels, count in ((None, arguments.text_queries), (0.2, arguments.queries)):
        for name in [*names, "ours"]:
            folder = base / f"{name.split()[0]}-{megapixels}"
            rows.append(_report(_written(name, folder, count, megapixels)))
            rows += _read_all(name, folder, megapixels, arguments)
        rows += _fill(folder, megapixels)
        if megapixels is not None:
            rows += _bare_decoder(megapixels, arguments)
    parameters = {k: v for k, v in vars(arguments).items() if k != "folder"}
    parameters["pairs_of_a_query"] = PAIRS
    print(write_record("loader", parameters, rows, NOT_MEASURED))
    if arguments.folder is None:
        shutil.rmtree(base)


def _written(name: str, folder: Path, count: int, megapixels: float | None) -> dict[str, Any]:
    """Write one format in a process of its own; content is made again in it and timed apart."""
    shutil.rmtree(folder, ignore_errors=True)
    code = (
        "import sys, time; from pathlib import Path; from loading.writing import write_timed\n"
        "write_timed(*sys.argv[1:])"
    )
    request = [name, str(folder), str(count), json.dumps(megapixels)]
    done = subprocess.run(
        [sys.executable, "-c", code, *request],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": _path()},
    )
    row = {"what": "write", "loader": name, "megapixels": megapixels}
    if done.returncode:
        return row | {"failed": done.stderr.strip().splitlines()[-1:]}
    seconds = json.loads(done.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return row | seconds | {"bytes": size, "bytes_per_pair": round(size / (count * PAIRS), 1)}


def _read_all(
    name: str, folder: Path, megapixels: float | None, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every case, ours by unit."""
    rows = []
    for case, unit in product(CASES, UNITS if name == "ours" else ["pair"]):
        request = {
            "peer": name,
            "folder": str(folder),
            "unit": unit,
            "megapixels": megapixels,
            "seconds": arguments.seconds,
            **case,
        }
        # Ranks are there for their memory, which hardly varies.
        runs = [_measured(request) for _ in range(1 if case["ranks"] > 1 else arguments.runs)]
        rows.append(_report({"what": "read", "loader": name, **_summary(request, runs)}))
    return rows


def _bare_decoder(megapixels: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases that can differ without a loader."""
    rows = []
    for case in CASES:
        if case["ranks"] == 1 and not case["cold"]:
            request = {
                "peer": "bare decoder",
                "folder": "",
                "unit": "query",
                "megapixels": megapixels,
                "seconds": arguments.seconds,
                **case,
            }
            runs = [_measured(request) for _ in range(arguments.runs)]
            rows.append(_report({"what": "decode", **_summary(request, runs)}))
    return rows


def _fill(folder: Path, megapixels: float | None) -> list[dict[str, Any]]:
    from loading.ours import fill

    rows = []
    for unit in ("pair", "response", "query"):
        request = {"unit": unit, "megapixels": megapixels, "workers": 0, "ranks": 1}
        row = {"what": "fill", "loader": "ours", "megapixels": megapixels, "unit": unit}
        rows.append(_report({**row, "fill": round(fill(folder, request), 4)}))
    return rows


def _measured(request: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / "loading" / "measure.py"), json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": _path()},
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"process_seconds": round(time.perf_counter() - began, 2)}


def _summary(request: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spreads over the runs."""
    out: dict[str, Any] = {k: request[k] for k in ("megapixels", "unit", *CASES[0])}
    good = [run for run in runs if "failed" not in run]
    if not good:
        return out | {"failed": runs[0]["failed"]}
    of: Callable[[str], list[float]] = lambda name: [run[name] for run in good]  # noqa: E731
    rates = of("pairs_per_second")
    return out | {
        "pairs_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "first_batch_seconds": statistics.median(of("first_batch_seconds")),
        "peak_pss_megabytes": round(max(of("peak_pss_bytes")) / 1e6, 1),
    }


def _report(row: dict[str, Any]) -> dict[str, Any]:
    print(row, flush=True)
    return row


def _path() -> str:
    return os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])


if __name__ == "__main__":
    main()
