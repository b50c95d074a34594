"""The files that make up a source: one file, or what a folder holds.

Of a folder everything is read that is a record:

- files that list the pictures beside them (``metadata.csv``, ``.jsonl`` or ``.parquet``), tables
  and tars (``data/train-00000-of-00002.parquet``), whose records may name its pictures;
- pictures with a text beside them, outside of folders that such a list governs;
- in a folder of pictures alone, those without a text, if a question for them was given.

Of a folder with splits one is read: the one that was asked for, else ``train``, else the only one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.files import SourceFormat, detect_format
from mmrlhf_engine.sources.listing import Listing, captioned_pictures, list_folder, suffix_of
from mmrlhf_engine.sources.places import MediaPlaces
from mmrlhf_engine.sources.samples.batch import Part
from mmrlhf_engine.sources.samples.names import choose_names
from mmrlhf_engine.sources.splits import (
    Split,
    choose_of,
    folder_splits,
    split_of,
    splits_by_folder,
)

__all__ = ["FORMATS", "Found", "PartSettings", "parts_of_files", "parts_of_folder"]

FORMATS: tuple[SourceFormat, ...] = (
    *("jsonl", "json", "json_object", "csv", "parquet", "webdataset", "folder"),
)


@dataclass(frozen=True)
class PartSettings:
    """What a source's settings say about each of its files."""

    root: Path | None
    follow_links: bool
    columns: Mapping[str, str]
    prompt_for_pictures: str | None
    split: str | None


@dataclass(frozen=True)
class Found:
    """The parts of a source, and what of its folder is not read."""

    parts: list[Part]
    split: Split | None
    passed_over: Counter[str]
    pictures_beside: int = 0
    """Pictures and videos beside tables."""


def parts_of_files(
    files: list[tuple[Path, Path]], format: SourceFormat | None, settings: PartSettings
) -> list[Part]:
    """Files that were named one by one, each with the path by which people know it."""
    names = choose_names([(shown, None) for _, shown in files])
    parts = []
    for (path, shown), name in zip(files, names, strict=True):
        label = name.removesuffix(name.rpartition("/")[2]) + shown.name
        prefix = "" if len(files) == 1 else f"{name}:"
        found = format or detect_format(path, FORMATS, advice="or set `format`")
        parts.append(_part(path, found, label, prefix, settings, path.parent))
    return parts


def parts_of_folder(folder: Path, format: SourceFormat | None, settings: PartSettings) -> Found:
    """What is read of a folder.

    Raises:
        InputError: nothing in it is a record, its pictures have no text, or a split has to be
            chosen.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        detect_format(folder, FORMATS)  # refuses what `save_to_disk` writes by its name
    listing = list_folder(folder, follow_links=settings.follow_links)
    if format != "folder" and (listing.indexes or listing.tables):
        return _tables(listing, format, settings)
    if format == "folder" or listing.texts or (listing.media and settings.prompt_for_pictures):
        return _pictures(listing, settings)
    if listing.media:
        count = len(listing.media)
        raise InputError(
            f"{folder}: {count:,} picture{'s' * (count > 1)} and no text: there is no question in "
            "the folder",
            hint="put a NAME.txt beside each picture, or a metadata.jsonl with file_name and "
            "question, or ask the same of all: --set 'ingest.sources=[{path: "
            f'{folder}, prompt_for_pictures: "Describe the image."}}]\'',
        )
    shown = ", ".join(f"{times:,} {suffix}" for suffix, times in listing.others.most_common(5))
    raise InputError(f"{folder}: no file in it can be read" + (f", but {shown}" if shown else ""))


def _pictures(listing: Listing, settings: PartSettings) -> Found:
    folder = listing.folder
    taken, split = folder_splits(folder, listing.media, settings.split)
    passed_over = listing.others.copy()
    passed_over.update(f".{suffix_of(name)}" for name in [*listing.tables, *listing.indexes])
    parts = [_picture_part(listing, name, settings) for name in taken or [""]]
    return Found(parts, split, passed_over)


def _picture_part(
    listing: Listing, below: str, settings: PartSettings, *, captioned: bool = False
) -> Part:
    """The pictures of a folder, or those ``below`` one of its folders."""
    folder, root = listing.folder, listing.folder / below
    label = f"{folder.name}/{below}" if below else folder.name
    prefix = f"{below}/" if below else ""
    part = _part(root, "folder", label, prefix, settings, root, within=folder)
    return replace(part, captioned=captioned)


def _tables(listing: Listing, format: SourceFormat | None, settings: PartSettings) -> Found:
    """Tables, with the pictures that have a text beside them."""
    folder, pictures = listing.folder, captioned_pictures(listing)
    passed_over = listing.others.copy()
    passed_over.update(
        f".{suffix_of(name)}" for name in set(listing.texts).difference(pictures.texts)
    )
    tables = [folder / name for name in sorted([*listing.indexes, *listing.tables], key=_in_order)]
    items: dict[Path | str, str | None] = {path: split_of(path, folder) for path in tables}
    if pictures.media:
        split_folders = splits_by_folder(pictures.media)
        items.update(split_folders)
        if not split_folders:
            items[""] = None
    taken, split = choose_of(folder, items, settings.split, partial(_shown, len(pictures.media)))
    if settings.prompt_for_pictures is not None and pictures.media:
        # They may belong to the tables, so nobody asks the question about them.
        others = set(listing.media).difference(pictures.media)
        passed_over.update(f".{suffix_of(name)} without a text beside it" for name in others)
    files = [item for item in taken if isinstance(item, Path)]
    parts = []
    for path in files:
        label = path.relative_to(folder).as_posix()
        prefix = "" if len(files) == 1 else f"{_without_suffix(label)}:"
        part = _part(path, format, label, prefix, settings, path.parent, within=folder)
        part, known = _detected(part)
        if known:
            parts.append(part)
        else:
            passed_over[f".{suffix_of(label)}"] += 1
    for item in taken:
        if isinstance(item, str):
            parts.append(_picture_part(listing, item, settings, captioned=True))
    if not parts:
        raise InputError(f"{folder}: none of its {len(files):,} files holds records")
    return Found(parts, split, passed_over, len(listing.media))


def _in_order(name: str) -> list[str]:
    return name.split("/")


def _shown(pictures: int, item: Path | str) -> str:
    """What belongs to no split, for people."""
    if isinstance(item, Path):
        return item.name
    beside = "a picture" if pictures == 1 else f"{pictures:,} pictures"
    return f"{beside} with a text of the same name"


def _detected(part: Part) -> tuple[Part, bool]:
    """The part with its format, or why it has none; whether it is one at all.

    A file called JSON may hold anything, such as settings; other tables are what they are called.
    """
    if not part.places.allow(part.path):
        problem = ("outside_root", f"a link to {part.path.resolve()}: set root or follow_links")
        return _changed(part, None, problem), True
    if part.format is not None:
        return part, True
    try:
        return _changed(part, detect_format(part.path, FORMATS), None), True
    except (InputError, OSError) as error:
        known = suffix_of(part.path.name) != "json"
        return _changed(part, None, ("broken_record", str(error.args[0]))), known


def _changed(part: Part, format: SourceFormat | None, problem: tuple[str, str] | None) -> Part:
    return replace(part, format=format, problem=problem)


def _part(
    path: Path,
    format: SourceFormat | None,
    label: str,
    prefix: str,
    settings: PartSettings,
    own: Path,
    within: Path | None = None,
) -> Part:
    """A part whose names start at the root, at its own folder, and at the folder of the source.

    Names in an image folder start at the folder of the index: that is first.
    """
    root = settings.root
    first = [own] if format == "folder" or path.name.startswith("metadata.") else []
    starts = [*first, *([root] if root else []), own, *([within] if within else [])]
    allowed = [root] if root else [within or own]
    return Part(
        path=path,
        format=format,
        label=label,
        prefix=prefix,
        places=MediaPlaces.of(starts, allowed, follow_links=settings.follow_links),
        columns=settings.columns,
        prompt_for_pictures=settings.prompt_for_pictures,
    )


def _without_suffix(label: str) -> str:
    folder, slash, name = label.rpartition("/")
    return folder + slash + (name.partition(".")[0] or name)
