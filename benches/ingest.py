"""Rows of a JSON Lines file to typed columns: ours, ``polars.scan_ndjson`` and datasets' reader.

Three kinds of rows: plain (picture, prompt, answer), conversations of two turns, and questions with
options. Everybody reads the same file, from the disk cache, on one thread. Ours decides what each
record means: prompt with its options, turns with their history, marks, media, what was not read; it
does not look for the pictures. The peers parse fields into columns and decide nothing. datasets
reads into a new cache each time, and is measured where it is installed.

Time is processor time, which other work on the machine does not stretch as much; medians over
rounds that alternate between the contestants.
"""

import os

os.environ["RAYON_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import read_records
from mmrlhf_engine.sources.files import Damage
from mmrlhf_engine.sources.text import read_text_records
from record import write_record

ROWS = 100_000
ROUNDS = 7
BLOCK_BYTES = 8 << 20


def main() -> None:
    contestants: dict[str, Callable[[Path], int]] = {"ours": ours, "polars": polars}
    if importlib.util.find_spec("datasets") is not None:
        contestants["datasets"] = datasets
    found = [row for kind in KINDS for row in measure(kind, contestants)]
    path = write_record(
        "ingest",
        {"rows": ROWS, "rounds": ROUNDS, "threads": 1, "block_bytes": BLOCK_BYTES},
        found,
        [
            *("finding and hashing pictures", "more than one thread", "other formats"),
            *([] if "datasets" in contestants else ["datasets, which is not installed here"]),
        ],
    )
    for row in found:
        print(
            f"{row['kind']:14} {row['who']:9} {row['rows_per_second']:>10,.0f} rows/s  "
            f"{row['megabytes_per_second']:>6.0f} MB/s  {row['against_polars']:.2f} of polars"
        )
    print(path)


def plain(number: int) -> dict[str, Any]:
    """A picture, a question and an answer."""
    return {
        "id": f"row_{number}",
        "image": f"images/{number:08}.jpg",
        "prompt": f"What is the colour of object {number} on the table in the picture?",
        "answer": f"It is a red object, the one with the number {number}.",
    }


def conversation(number: int) -> dict[str, Any]:
    """Two turns about a picture, as LLaVA writes them."""
    said = [
        ("human", f"<image>\nWhat is the colour of object {number}?"),
        ("gpt", "It is red."),
        ("human", "And what is it made of?"),
        ("gpt", f"It is made of wood, like number {number + 1}."),
    ]
    talk = [{"from": who, "value": text} for who, text in said]
    return {"id": f"row_{number}", "image": f"images/{number:08}.jpg", "conversations": talk}


def options(number: int) -> dict[str, Any]:
    """A question with four options."""
    return {
        "id": f"row_{number}",
        "image": f"images/{number:08}.jpg",
        "question": f"Which of these is object {number} of the picture?",
        "options": ["a cat", f"dog {number}", "a horse", "a bird"],
        "answer": "B",
    }


KINDS = {"plain": plain, "conversations": conversation, "options": options}


def ours(path: Path) -> int:
    """Samples of the file."""
    samples = 0
    for block in read_text_records(path, "jsonl", block_bytes=BLOCK_BYTES):
        assert not isinstance(block, Damage)
        records = block.field("record")
        for start in range(0, len(records), 16_384):
            turns, _, _ = read_records(records[start : start + 16_384], {}, 1)
            samples += len(pa.array(turns))
    return samples


def polars(path: Path) -> int:
    """Rows of the file."""
    return pl.scan_ndjson(path).collect().height


def datasets(path: Path) -> int:
    """Rows of the file."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        read = load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        return int(read.num_rows)


def measure(kind: str, contestants: dict[str, Callable[[Path], int]]) -> list[dict[str, object]]:
    """One row for each contestant over one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = (json.dumps(KINDS[kind](number)) for number in range(ROWS))
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        megabytes = path.stat().st_size / 1e6
        seconds: dict[str, list[float]] = {who: [] for who in contestants}
        for _ in range(ROUNDS):
            for who, read in contestants.items():
                start = time.process_time()
                count = read(path)
                seconds[who].append(time.process_time() - start)
                assert count == (2 * ROWS if who == "ours" and kind == "conversations" else ROWS)
    medians = {who: statistics.median(taken) for who, taken in seconds.items()}
    return [
        {
            "kind": kind,
            "who": who,
            "rows_per_second": round(ROWS / median),
            "megabytes_per_second": round(megabytes / median, 1),
            "seconds": [round(value, 4) for value in seconds[who]],
            "against_polars": round(medians["polars"] / median, 3),
        }
        for who, median in medians.items()
    ]


if __name__ == "__main__":
    main()
