"""Checking, comparing and cleaning datasets of preference shards, and carrying columns over."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.dataset import is_dataset

__all__ = ["Damage", "Rekeyed", "Removed", "Verification", "diff", "gc", "rekey", "verify"]


@dataclass(frozen=True)
class Damage:
    """One damaged place; ``rows`` are rows of the file, from the first to before the second."""

    file: str
    block: int | None
    rows: tuple[int, int] | None
    problem: str


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found."""

    status: Literal["good", "damaged", "wrong_version"]
    version: int
    foreign_profile: int | None
    files: int
    bytes: int
    damages: list[Damage]

    def __str__(self) -> str:
        if self.status == "wrong_version":
            return (
                f"profile {self.foreign_profile}, which this version does not read\n\n"
                "hint: a newer mmrlhf-engine wrote it; upgrade"
            )
        lines = [f"{self.status}: version {self.version}, {self.files} files, {self.bytes:,} bytes"]
        for damage in self.damages:
            block = "" if damage.block is None else f", block {damage.block}"
            rows = "" if damage.rows is None else f", rows {damage.rows[0]} to {damage.rows[1]}"
            lines.append(f"{damage.file}{block}{rows}: {damage.problem}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Removed:
    """What :func:`gc` removed, or would remove."""

    versions: list[int]
    files: list[str]
    bytes: int


@dataclass(frozen=True)
class Rekeyed:
    """What :func:`rekey` carried: ``matched`` of ``rows`` of the target found their key."""

    version: int
    matched: int
    rows: int


def verify(path: Path, *, version: int | None = None, deep: bool = False) -> Verification:
    """Compare the checksums of every byte of a version.

    ``deep`` also recomputes content hashes, row keys and references.

    Raises:
        InputError: nothing was committed at ``path``, or not this version.
        FileNotFoundError: there is no dataset at ``path``.
    """
    status, text = _core.verify_dataset(path, version, deep)
    report = json.loads(text)
    damages = [
        Damage(d["file"], d["block"], None if d["rows"] is None else tuple(d["rows"]), d["problem"])
        for d in report.pop("damages")
    ]
    return Verification(status=status, damages=damages, **report)


def diff(
    path: Path,
    other: Path | None = None,
    *,
    first: int | None = None,
    second: int | None = None,
) -> dict[str, Any]:
    """What the second version has that the first has not, and the other way.

    Without ``other`` both are versions of ``path``; by default the last two. The result has
    ``same_data``, ``rows`` (difference by table), ``added`` and ``removed`` (files with their
    rows), ``columns_changed`` and ``columns_removed``.

    Raises:
        InputError: a version is not there or damaged.
    """
    after = _core.Dataset(other or path, second, "off")
    if first is None and other is None:
        first = max(json.loads(after.manifest)["parent"], 1)
    before = _core.Dataset(path, first, "off")
    difference: dict[str, Any] = json.loads(_core.diff_datasets(before, after))
    return difference


def gc(path: Path, *, keep: int | None = None, dry_run: bool = False) -> Removed:
    """Remove all versions but the newest ``keep`` (None: keep all) and files of no version.

    Raises:
        InputError: the folder has no dataset; nothing in it is touched.
        ConflictError: another process is writing to the dataset.
    """
    if not is_dataset(path):
        raise InputError(f"{path}: no dataset of preference shards")
    return Removed(**json.loads(_core.collect_garbage(path, keep=keep, dry_run=dry_run)))


def rekey(source: Path, target: Path, column_set: str) -> Rekeyed:
    """Give rows at ``target`` the values of ``column_set`` of rows with equal keys at ``source``.

    Raises:
        InputError: the source has no such set, or no row in common with the target.
    """
    return Rekeyed(**json.loads(_core.rekey_column(source, target, column_set)))
