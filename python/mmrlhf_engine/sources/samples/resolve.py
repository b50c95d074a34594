"""Sources as people give them, to sources as they are read: found, named, in one order."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.sources.files import SourceFormat, check_present, detect_format
from mmrlhf_engine.sources.samples.batch import Source
from mmrlhf_engine.sources.samples.folder import files_of_folder, find_index

__all__ = ["SourceConfig", "files_of", "resolve"]

_FORMATS: tuple[SourceFormat, ...] = ("jsonl", "json", "csv", "parquet", "webdataset", "folder")
_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".tar")

Column = Literal["id", "image", "video", "prompt", "answer"]


class SourceConfig(Section):
    """One raw corpus."""

    path: str
    """A file (JSON, JSONL, CSV, Parquet, WebDataset tar) or a folder of pictures."""
    name: str | None = None
    """Name in the tables; the file name without suffixes when null."""
    tags: list[str] = Field(default_factory=list)
    """Carried along with every sample, for example ``[safety]``."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "webdataset", "folder"] = "auto"
    """``auto`` looks at the content."""
    root: str | None = None
    """Media are named from this folder on and must lie below it; the source's own when null."""
    columns: dict[Column, str] = Field(default_factory=dict)
    """Which field holds what, where the usual names do not: ``{prompt: q, image: picture}``."""


def resolve(given: list[SourceConfig]) -> list[Source]:
    """The sources in the order of their names, each with its format and root.

    Raises:
        InputError: there is none, or one is missing, empty or of no known format.
        ConfigError: two have the same name.
    """
    if not given:
        raise InputError("no source given", hint="mmrlhf-engine curate FILE_OR_FOLDER... --out RUN")
    names = _names(given)
    sources = [_resolve(settings, name) for settings, name in zip(given, names, strict=True)]
    return sorted(sources, key=lambda source: source.name)


def _resolve(settings: SourceConfig, name: str) -> Source:
    # Links are not followed: a download folder may link to files whose names mean nothing.
    path = Path(settings.path).absolute()
    check_present(path)
    format: SourceFormat = (
        detect_format(path, _FORMATS, advice="or set `format`")
        if settings.format == "auto"
        else settings.format
    )
    own = path if path.is_dir() else path.parent
    return Source(
        name=name,
        path=path,
        format=format,
        root=Path(settings.root or own).resolve(),
        columns={str(field): column for field, column in settings.columns.items()},
        tags=list(settings.tags),
    )


def _names(given: list[SourceConfig]) -> list[str]:
    """A name each: as given, else the stem; the whole file name where two stems are the same."""
    stems = [settings.name or _stem(Path(settings.path).absolute()) for settings in given]
    count = Counter(stems)
    names = [
        settings.name or (stem if count[stem] == 1 else Path(settings.path).absolute().name)
        for settings, stem in zip(given, stems, strict=True)
    ]
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ConfigError(
            f"two sources are named {twice[0]!r}",
            hint="give each a name: ingest: {sources: [{path: ..., name: ...}]}",
        )
    return names


def _stem(path: Path) -> str:
    name = path.name
    while not path.is_dir() and name.lower().endswith(_SUFFIXES):
        name = name[: name.rindex(".")]
    return name or path.name


def files_of(source: Source) -> Iterator[Path]:
    """The files of a source, without those that its records only name."""
    if source.format != "folder":
        yield source.path
        return
    index = find_index(source.path)
    yield from files_of_folder(source.path) if index is None else [index]
