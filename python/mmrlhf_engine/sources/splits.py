"""Splits of a dataset in a folder: by the names of its files, as on the Hub, or saved as such.

``data/train-00000-of-00002.parquet`` and ``train/0000.parquet`` belong to the split ``train``;
``save_to_disk`` of a ``DatasetDict`` makes a folder a split.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmrlhf_engine.errors import InputError

__all__ = [
    "Split",
    "choose_of",
    "choose_split",
    "folder_splits",
    "saved_splits",
    "split_of",
    "splits_by_folder",
]

_Item = TypeVar("_Item")

_SHARD = re.compile(r"(?P<split>[A-Za-z_][\w.]*?)-\d{4,}(?:-of-\d+)?(?:-[0-9a-f]{8,})?$")
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SUFFIXES = re.compile(r"\.(parquet|jsonl|ndjson|json|csv|tsv|tar)(\.(gz|zst))?.*$", re.IGNORECASE)
_START = re.compile(r"([A-Za-z]+)(?:[-_.]?\d.*)?$")


@dataclass(frozen=True)
class Split:
    """What was taken of a folder of several splits."""

    taken: str
    left: tuple[str, ...]
    """The other splits, and files that belong to none."""


def split_of(path: Path, folder: Path) -> str | None:
    """The split that a file below ``folder`` belongs to, by its name or that of its folder."""
    stem = _SUFFIXES.sub("", path.name)
    shard = _SHARD.fullmatch(stem)
    if shard is not None and (shard["split"].lower().partition("_")[0] in _NAMES or "-of-" in stem):
        return _NAMES.get(shard["split"].lower(), shard["split"])
    start = _START.fullmatch(stem)
    if start is not None and start[1].lower() in _NAMES:
        return _NAMES[start[1].lower()]
    parents = path.relative_to(folder).parts[:-1]
    return next(
        (_NAMES[name.lower()] for name in reversed(parents) if name.lower() in _NAMES), None
    )


def choose_split(
    folder: Path, files: list[Path], wanted: str | None
) -> tuple[list[Path], Split | None]:
    """The files of one split: the one that is wanted, else ``train``, else the only one.

    A folder whose files belong to no split is taken whole; the second result is None then.

    Raises:
        InputError: the split is not there, or there are several and none is ``train``.
    """
    splits = {file: split_of(file, folder) for file in files}
    return choose_of(folder, splits, wanted, lambda file: file.name)


def choose_of(
    folder: Path,
    items: Mapping[_Item, str | None],
    wanted: str | None,
    shown: Callable[[_Item], str],
) -> tuple[list[_Item], Split | None]:
    """The same for anything that belongs to a split or to none.

    Args:
        folder: The folder of the source.
        items: What belongs to which split, in order.
        wanted: The split that is asked for.
        shown: The name by which people know what belongs to no split.

    Raises:
        InputError: as :func:`choose_split`.
    """
    names = list(dict.fromkeys(split for split in items.values() if split is not None))
    if not names and wanted is None:
        return list(items), None
    taken = _choose(folder, names, wanted)
    outside = (shown(item) for item, split in items.items() if split is None)
    left = [*(name for name in names if name != taken), *outside]
    return [item for item, split in items.items() if split == taken], Split(
        taken, tuple(sorted(left))
    )


def folder_splits(
    folder: Path, names: list[str], wanted: str | None
) -> tuple[list[str], Split | None]:
    """The folders of one split of pictures, where every picture lies in the folder of a split.

    ``train`` beside ``bus`` is a folder of pictures of trains: such a folder has no splits. The
    first result is empty then, and the second None.

    Args:
        folder: The folder of the source.
        names: The pictures, relative to it.
        wanted: The split that is asked for.

    Raises:
        InputError: as :func:`choose_split`.
    """
    return choose_of(folder, splits_by_folder(names), wanted, str)


def splits_by_folder(names: Iterable[str]) -> dict[str, str]:
    """Folder -> split, where each of these files lies in the folder of a split; else nothing."""
    folders = sorted({name.partition("/")[0] if "/" in name else "" for name in names})
    splits = {folder: _NAMES.get(folder.lower(), "") for folder in folders}
    return splits if all(splits.values()) else {}


def saved_splits(folder: Path, wanted: str | None) -> tuple[Path, Split]:
    """The folder of one split of a saved ``DatasetDict``.

    Raises:
        InputError: as :func:`choose_split`, or ``dataset_dict.json`` is not one.
    """
    file = folder / "dataset_dict.json"
    try:
        names = [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not as save_to_disk writes it: {error}") from None
    taken = _choose(folder, names, wanted)
    return folder / taken, Split(taken, tuple(sorted(name for name in names if name != taken)))


def _choose(folder: Path, names: list[str], wanted: str | None) -> str:
    found = ", ".join(sorted(names)) or "none"
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{folder}: no split {wanted!r}; splits found: {found}")
        return wanted
    if "train" in names:
        return "train"
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"{folder}: several splits, and none is 'train': {found}",
        hint="choose one by --split, or by the setting `split` of the source",
    )
