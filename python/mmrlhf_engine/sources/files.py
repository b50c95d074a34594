"""Files of sources: opened, decompressed, and known by their content.

Every format that any stage reads is listed in :data:`DESCRIPTIONS`. A stage names those that it
takes; what it does not take is refused here, by one error that says what was found and what is
expected.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from mmrlhf_engine.errors import InputError

__all__ = [
    "INDEX_FILES",
    "MEDIA_SUFFIXES",
    "Damage",
    "FileFormat",
    "FolderFormat",
    "SourceFormat",
    "check_present",
    "detect_format",
    "media_files",
    "open_stream",
    "table_files",
]

FileFormat = Literal["jsonl", "json", "csv", "parquet", "arrow", "webdataset"]
FolderFormat = Literal["folder", "saved_dataset", "parquet_folder"]
SourceFormat = FileFormat | FolderFormat

DESCRIPTIONS: dict[SourceFormat, str] = {
    "jsonl": "JSON Lines",
    "json": "a JSON array",
    "csv": "CSV or TSV",
    "parquet": "Parquet",
    "arrow": "an Arrow stream",
    "webdataset": "a WebDataset tar",
    "folder": "a folder of pictures",
    "saved_dataset": "a dataset written by save_to_disk",
    "parquet_folder": "a folder of Parquet files",
}

MEDIA_SUFFIXES = frozenset(
    {"jpg", "jpeg", "png", "webp", "gif", "bmp", "mp4", "webm", "mov", "avi", "mkv"}
)
"""Suffixes of pictures and videos, in lower case."""

INDEX_FILES: dict[str, FileFormat] = {
    "metadata.jsonl": "jsonl",
    "metadata.csv": "csv",
    "metadata.parquet": "parquet",
}
"""Files that list the pictures of a folder, as in Hugging Face's image folders."""

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_START_BYTES = 64 << 10


@dataclass(frozen=True)
class Damage:
    """A part of a file that cannot be read."""

    place: str
    """The row where it begins, or ``end``."""
    detail: str
    """What was found there."""


def open_stream(path: Path) -> pa.NativeFile:
    """A file as a stream of bytes, decompressed if its first bytes say so (gzip, zstd)."""
    return pa.input_stream(str(path), compression=_compression(path))


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)


def detect_format(
    path: Path, takes: Sequence[SourceFormat], *, advice: str | None = None
) -> SourceFormat:
    """The first format in ``takes`` that a file or folder is of, by its content.

    ``advice`` is added to the hint of the error.

    Raises:
        InputError: it is absent, empty, damaged from its first byte, or of none of these formats.
    """
    check_present(path)
    found = _folder_format(path, takes) if path.is_dir() else _file_format(path)
    if found is None or found not in takes:
        expected = "expected one of: " + ", ".join(DESCRIPTIONS[name] for name in takes)
        what = "its content is of no known format"
        if found is not None:
            what = f"{DESCRIPTIONS[found]}, which is not read here"
        raise InputError(f"{path}: {what}", hint="; ".join(filter(None, [expected, advice])))
    if found == "webdataset" and _compression(path) is not None:
        raise InputError(
            f"{path}: a compressed tar", hint="decompress it: pictures are read in place"
        )
    return found


def check_present(path: Path) -> None:
    """Refuse what is absent, empty, or neither a file nor a folder.

    Raises:
        InputError: it is one of these.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")


def _folder_format(folder: Path, takes: Sequence[SourceFormat]) -> SourceFormat | None:
    """The first of ``takes`` that the folder can be read as, else any other format, else None."""
    return next((name for name in (*takes, *DESCRIPTIONS) if _is_folder_of(folder, name)), None)


def _is_folder_of(folder: Path, format: SourceFormat) -> bool:
    match format:
        case "saved_dataset":
            names = ("state.json", "dataset_dict.json")  # one split, or several
            return any((folder / name).is_file() for name in names)
        case "parquet_folder":
            return next(folder.rglob("*.parquet"), None) is not None
        case "folder":
            indexed = any((folder / name).is_file() for name in INDEX_FILES)
            return indexed or next(_find_media(folder), None) is not None
        case _:
            return False


def _file_format(path: Path) -> FileFormat | None:
    """The format of a file; None where it is none of those known."""
    start = _start_of(path)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if start[257:262] == b"ustar":
        return "webdataset"
    return _text_format(path, start.removeprefix(b"\xef\xbb\xbf").lstrip())


def _text_format(path: Path, text: bytes) -> FileFormat | None:
    # A list may also be the bad first line of a JSONL file; an array of records holds objects.
    if text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b"]", b""):
        return "json"
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".csv", ".tsv"}:
        return "csv"
    has_object = any(line.lstrip()[:1] == b"{" for line in text.splitlines())
    return "jsonl" if has_object or ".jsonl" in suffixes else None


def _start_of(path: Path) -> bytes:
    """The first 64 KiB of a file, decompressed."""
    try:
        with open_stream(path) as stream:
            return bytes(stream.read(_START_BYTES))
    except OSError as error:
        raise InputError(f"{path}: cannot be decompressed: {error}") from None


def table_files(folder: Path, format: SourceFormat) -> list[Path]:
    """The files that hold the rows of a folder of tables, in their order.

    Raises:
        InputError: ``state.json`` of a saved dataset is not one.
    """
    if format == "parquet_folder":
        return sorted(folder.rglob("*.parquet"))
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state.get("_data_files", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}/state.json: not as save_to_disk writes it: {error}") from None


def media_files(folder: Path) -> list[Path]:
    """Every picture and video below a folder, sorted; links to folders are not followed."""
    return sorted(_find_media(folder))


def _find_media(folder: Path) -> Iterator[Path]:
    for place, _, files in os.walk(folder):
        for name in files:
            if name.rpartition(".")[2].lower() in MEDIA_SUFFIXES and not name.startswith("."):
                yield Path(place, name)
