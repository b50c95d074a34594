"""The command ``disagree``: a removal that is not right is taken back by hand."""

import json
import time

import polars as pl

from mmrlhf_engine.curate.explain import nearest_ids
from mmrlhf_engine.curate.overrides import OVERRIDES, read_overrides
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import Run

__all__ = ["disagree"]


def disagree(run: Run, identifier: str, kept_id: str) -> str:
    """Record that ``identifier`` is no duplicate of ``kept_id``; what to print.

    From then on no one sample stands for both: where ``kept_id`` is removed in favour of another,
    ``identifier`` is not removed in favour of that one either.

    Raises:
        InputError: one of them is not in the run, or dedup has not removed the one in favour of the
            other; the hint says what it did.
    """
    file = run.folder / OVERRIDES
    again = "dedup applies it the next time curate runs"
    known = read_overrides(file if file.is_file() else None)
    if (identifier, kept_id) in known or (kept_id, identifier) in known:
        return f"{file}: has this pair already; {again}"
    if _kind_of_removal(run, identifier, kept_id) == "max_per_image":
        raise InputError(
            f"{identifier} was removed because its picture has more samples than may stay",
            hint="--max-per-image allows more",
        )
    row = {"id": identifier, "kept_id": kept_id, "keep": True, "time": round(time.time(), 3)}
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    with run.locked():
        write_atomically(file, before + json.dumps(row, ensure_ascii=False) + "\n")
    return f"{identifier} stays beside {kept_id}\nwritten to {file}; {again}"


def _kind_of_removal(run: Run, identifier: str, kept_id: str) -> str:
    """The kind of the removal of one in favour of the other."""
    duplicates, samples = run.find("duplicates"), run.find("samples")
    if duplicates is None or samples is None:
        raise InputError(f"{run.folder}: has no finished dedup", hint="run curate first")
    both = pl.col("id").is_in([identifier, kept_id])
    rows = pl.scan_parquet(duplicates / "*.parquet").filter(both).collect()
    in_benchmark = (pl.col("id") == identifier) & (pl.col("kind") == "contaminated")
    for row in rows.filter(in_benchmark).iter_rows(named=True):
        raise InputError(
            f"{identifier} was removed because it matches {row['kept_id']}, a question of the "
            f"benchmark {row['benchmark']}",
            hint="--against-by says what has to match; without --against none is looked for",
        )
    known = pl.scan_parquet(samples / "*.parquet").select("id").filter(both).collect()["id"]
    for name in (identifier, kept_id):
        if name not in known:
            raise InputError(f"{run.folder}: no sample {name!r}", hint=nearest_ids(run, name))
    favour = dict(rows.select("id", "kept_id").iter_rows())
    actual = favour.get(identifier)
    if actual is None:
        hint = f"mmrlhf-engine explain {run.folder} {identifier}"
        if favour.get(kept_id) == identifier:
            hint = f"{kept_id} was, in favour of {identifier}: name them the other way round"
        raise InputError(f"{identifier} was not removed as a duplicate", hint=hint)
    if actual != kept_id:
        raise InputError(
            f"{identifier} was removed in favour of {actual}, not of {kept_id}",
            hint=f"mmrlhf-engine disagree {run.folder} {identifier} {actual}",
        )
    return str(rows.row(by_predicate=pl.col("id") == identifier, named=True)["kind"])
