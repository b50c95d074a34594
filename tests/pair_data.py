"""Rows of annotations for the tests of pair, and what the stage wrote."""

import json
from pathlib import Path

import polars as pl

from mmrlhf_engine import run_pair
from pack_data import write_lines


def row(rank=None, *, answers=("a", "b", "c"), prompt="what is it?", **more):
    """An annotation in the project's own layout."""
    given = {} if rank is None else {"rank": rank}
    return {"prompt": prompt, "answers": list(answers), **given, **more}


def paired(folder: Path, rows: list, settings: dict | None = None, **options) -> dict:
    """Run ``pair`` on rows; the report."""
    source = write_lines(folder / "rows.jsonl", rows)
    return run_pair(source, folder / "run", settings, **options)


def lines(report: dict, name: str = "pairs") -> list[dict]:
    """The rows of ``pairs.jsonl`` or ``held_out.jsonl``."""
    text = (Path(report["folder"]) / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def compared(report: dict, name: str = "pairs") -> list[str]:
    """Its pairs as ``a>b`` and ``a=b``."""
    return [
        f"{r['chosen']}{'=' if r['is_tie'] else '>'}{r['rejected']}" for r in lines(report, name)
    ]


def table(report: dict, name: str) -> list[tuple]:
    """The rows of a table."""
    return pl.read_parquet(Path(report["folder"]) / name / "*.parquet").rows()
