"""What a folder holds: pictures, texts beside them, tables, tars, and what nothing here reads.

Hidden files and folders (a name that begins with a dot) are left out: systems and tools keep their
own notes in them.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmrlhf_engine.sources.files import INDEX_FILES, MEDIA_SUFFIXES

__all__ = ["TEXT_SUFFIXES", "Listing", "captioned_pictures", "list_folder", "stem_of", "suffix_of"]

TEXT_SUFFIXES = ("json", "txt", "caption")
"""Suffixes of texts that belong to a picture of the same name, in lower case."""

_TABLE_SUFFIXES = frozenset({"parquet", "jsonl", "ndjson", "csv", "tsv", "json"})
_COMPRESSIONS = frozenset({"gz", "zst"})
_TARS = frozenset({"tar", "tgz"})
LINKED_FOLDERS = "links to folders"


@dataclass
class Listing:
    """The files below a folder by what they are; names are relative to it, with ``/``, sorted."""

    folder: Path
    media: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Texts beside a picture: same folder, same name up to the suffix."""
    indexes: list[str] = field(default_factory=list)
    """Files such as ``metadata.csv``, which list the pictures of their folder."""
    tables: list[str] = field(default_factory=list)
    """Files of records, and tars."""
    others: Counter[str] = field(default_factory=Counter)
    """How many files of each suffix (``.md``) nothing here reads."""


def suffix_of(name: str) -> str:
    """What follows the last dot of a file name, in lower case; empty where there is none."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base.lstrip(".") else ""


def stem_of(name: str) -> str:
    """A file name up to its last dot, with its folders."""
    suffix = suffix_of(name)
    return name[: -len(suffix) - 1] if suffix else name


def list_folder(folder: Path, *, follow_links: bool = False) -> Listing:
    """The files below a folder; links to folders are followed only where that is asked for.

    Raises:
        OSError: the folder, or one below it, cannot be listed.
    """
    listing = Listing(folder)
    names = list(_walk(folder, listing, follow_links))
    names.sort(key=lambda name: name.split("/"))
    listing.media = [name for name in names if suffix_of(name) in MEDIA_SUFFIXES]
    pictured = {stem_of(name) for name in listing.media}
    for name in names:
        suffix = suffix_of(name)
        if suffix in MEDIA_SUFFIXES:
            continue
        if name.rpartition("/")[2].lower() in INDEX_FILES:
            listing.indexes.append(name)
        elif suffix in TEXT_SUFFIXES and stem_of(name) in pictured:
            listing.texts.append(name)
        elif _is_table(name):
            listing.tables.append(name)
        else:
            listing.others[f".{suffix}" if suffix else "without suffix"] += 1
    return listing


def captioned_pictures(listing: Listing) -> Listing:
    """The pictures with a text beside them, and these texts, that no index of a folder governs."""
    folders = tuple(index[: -len(index.rpartition("/")[2])] for index in listing.indexes)
    texts = [name for name in listing.texts if not name.startswith(folders)]
    stems = {stem_of(name) for name in texts}
    media = [name for name in listing.media if stem_of(name) in stems]
    return Listing(listing.folder, media=media, texts=texts)


def _is_table(name: str) -> bool:
    suffixes = [suffix.lower().lstrip(".") for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _TABLE_SUFFIXES | _TARS


def _walk(folder: Path, listing: Listing, follow_links: bool) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    root = os.fspath(folder)
    seen = {os.path.realpath(root)}  # a link to a folder above would never end
    for place, folders, files in os.walk(root, onerror=fail, followlinks=follow_links):
        below = os.path.relpath(place, root).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        yield from (start + name for name in files if not name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in list(folders):
            path = Path(place, name)
            if not path.is_symlink():
                continue
            real = os.path.realpath(path)
            if not follow_links or real in seen:
                folders.remove(name)
                if not Path(real).is_relative_to(os.path.realpath(root)) and real not in seen:
                    listing.others[LINKED_FOLDERS] += 1
            seen.add(real)
