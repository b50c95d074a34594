"""Removals that a person does not agree with: ``RUN/overrides.jsonl``, an input of ``dedup``.

A line is ``{"id": ..., "kept_id": ..., "keep": true, "time": ...}``: the two samples are no
duplicates, in whichever order they are named. No third sample stands for both: if one of them is
removed in favour of it, the other is not. The command ``disagree`` appends lines; an editor may
remove them.
"""

import json
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import InputError

__all__ = ["OVERRIDES", "read_overrides"]

OVERRIDES = "overrides.jsonl"


def read_overrides(file: Path | None) -> list[tuple[str, str]]:
    """(id, kept_id) of all samples that are kept apart, in ascending order, each line once.

    Args:
        file: As :meth:`~mmrlhf_engine.run.stage.StageContext.run_file` gives it.

    Raises:
        InputError: a line is not of the form above; the message names it.
    """
    if file is None:
        return []
    pairs = set()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            pairs.add(_read_line(line, f"{file}:{number}"))
    return sorted(pairs)


def _read_line(line: str, place: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not valid JSON: {error}", hint="remove the line") from None
    names = ("id", "kept_id")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        raise InputError(f"{place}: found {line[:80]!r}, expected an object with id and kept_id")
    if row.get("keep") is not True:
        raise InputError(
            f"{place}: found keep: {json.dumps(row.get('keep'))}, expected true",
            hint="remove the line: a removal is dedup's own decision",
        )
    return row["id"], row["kept_id"]
