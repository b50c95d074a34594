"""Sources as people give them, to sources as they are read: found, named, in one order."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.sources.files import SourceFormat, check_present
from mmrlhf_engine.sources.remote import fetch, is_address
from mmrlhf_engine.sources.samples.batch import Source
from mmrlhf_engine.sources.samples.folder import files_of_folder
from mmrlhf_engine.sources.samples.names import choose_names
from mmrlhf_engine.sources.samples.parts import (
    Found,
    PartSettings,
    parts_of_files,
    parts_of_folder,
)
from mmrlhf_engine.sources.samples.texts import check_prompt

__all__ = ["SourceConfig", "files_of", "resolve"]

Column = Literal["id", "image", "video", "prompt", "answer"]


class SourceConfig(Section):
    """One raw corpus."""

    path: str
    """A file (JSON, JSONL, CSV, TSV, Parquet, WebDataset tar), a folder of such files or of
    pictures, a pattern (``data/*.parquet``), or the address of one (``s3://``, ``hf://``)."""
    name: str | None = None
    """Name in the tables; the file name without suffixes when null. The files of a pattern are a
    source each, or with a name one source together."""
    tags: list[str] = Field(default_factory=list)
    """Carried along with every sample, for example ``[safety]``."""
    format: Literal[
        "auto", "jsonl", "json", "json_object", "csv", "parquet", "webdataset", "folder"
    ] = "auto"
    """``auto`` looks at the content."""
    root: str | None = None
    """Media are looked for from this folder on first, then beside the file that names them, and
    must lie below it; the source's own folder when null."""
    follow_links: bool = False
    """Whether links in the source may lead to files outside of ``root``."""
    split: str | None = None
    """Which split of a folder is read; ``train``, or the only one, when null."""
    prompt_for_pictures: str | None = None
    """The question about pictures of a folder or tar that have no text: ``Describe the image.``
    ``{label}`` in it is the name of the picture's folder, ``{name}`` its own."""
    columns: dict[Column, str] = Field(default_factory=dict)
    """Which field holds what, where the usual names do not: ``{prompt: q, image: picture}``."""

    @field_validator("prompt_for_pictures")
    @classmethod
    def _has_known_fields(cls, value: str | None) -> str | None:
        if value is not None:
            check_prompt(value)
        return value


def resolve(given: list[SourceConfig]) -> list[Source]:
    """The sources in the order of their names, each with its files, their formats and places.

    Files at addresses are fetched.

    Raises:
        InputError: there is none, or one is missing, empty or of no known format.
        ConfigError: two have the same name, or one is given twice.
        MissingExtraError: an address needs a package that is not installed.
    """
    if not given:
        raise InputError("no source given", hint="mmrlhf-engine curate FILE_OR_FOLDER... --out RUN")
    found = [entry for settings in given for entry in _expand(settings)]
    names = choose_names([(files[0][1], settings.name) for settings, files in found])
    sources = [
        _resolve(settings, name, files)
        for (settings, files), name in zip(found, names, strict=True)
    ]
    return sorted(sources, key=lambda source: source.name)


_Files = list[tuple[Path, Path]]
"""Paths on this machine, each with the one by which people know it: where it was fetched from."""


def _expand(settings: SourceConfig) -> list[tuple[SourceConfig, _Files]]:
    """The source, or one for each file of a pattern that was given no name."""
    files: _Files
    if is_address(settings.path):
        fetched = fetch(settings.path)
        files = [(copy, Path(address.partition("://")[2])) for address, copy in fetched]
    else:
        # Links are not followed: a download folder may link to files whose names mean nothing.
        path = Path(settings.path).expanduser().absolute()
        if path.exists() or not any(mark in settings.path for mark in "*?["):
            return [(settings, [(path, path)])]
        found = Path(path.anchor).glob(path.relative_to(path.anchor).as_posix())
        files = [(file, file) for file in sorted(found)]
        if not files:
            raise InputError(f"{settings.path}: no file is named so")
    if settings.name is not None:
        return [(settings, files)]
    return [(settings, [file]) for file in files]


def _resolve(settings: SourceConfig, name: str, files: _Files) -> Source:
    format: SourceFormat | None = None if settings.format == "auto" else settings.format
    of_parts = PartSettings(
        root=Path(settings.root).expanduser().resolve() if settings.root else None,
        follow_links=settings.follow_links,
        columns={str(field): column for field, column in settings.columns.items()},
        prompt_for_pictures=settings.prompt_for_pictures,
        split=settings.split,
    )
    if of_parts.root is not None and not of_parts.root.is_dir():
        raise InputError(f"{settings.root}: the root of the media is not a folder")
    for path, _ in files:
        check_present(path)
    path = files[0][0]
    if len(files) == 1 and path.is_dir():
        found = parts_of_folder(path, format, of_parts)
    else:
        if settings.split is not None:
            raise InputError(f"{settings.path}: split {settings.split!r} asked for of a file")
        found = Found(parts_of_files(files, format, of_parts), None, Counter())
    return Source(
        name=name,
        path=path,
        parts=tuple(found.parts),
        columns=dict(of_parts.columns),
        tags=list(settings.tags),
        split=found.split,
        passed_over=found.passed_over,
        pictures_beside=found.pictures_beside,
    )


def files_of(source: Source) -> Iterator[Path]:
    """The files of a source, without those that its records only name."""
    for part in source.parts:
        if part.format == "folder":
            yield from files_of_folder(part)
        elif part.path.is_file():
            yield part.path
