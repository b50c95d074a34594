"""Files of sources: opened, decompressed, and known by their content.

Every format that any stage reads is listed in :data:`DESCRIPTIONS`. A stage names those that it
takes; what it does not take is refused here, by one error that says what was found and what is
expected.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.json_object import read_opening

__all__ = [
    "INDEX_FILES",
    "MEDIA_SUFFIXES",
    "Damage",
    "FileFormat",
    "FolderFormat",
    "SourceFormat",
    "check_present",
    "detect_format",
    "is_compressed",
    "open_stream",
    "start_of",
    "table_files",
]

FileFormat = Literal["jsonl", "json", "json_object", "csv", "parquet", "arrow", "webdataset"]
FolderFormat = Literal["folder", "saved_dataset", "parquet_folder"]
SourceFormat = FileFormat | FolderFormat

DESCRIPTIONS: dict[SourceFormat, str] = {
    "jsonl": "JSON Lines",
    "json": "a JSON array",
    "json_object": "a JSON object",
    "csv": "CSV or TSV",
    "parquet": "Parquet",
    "arrow": "an Arrow stream",
    "webdataset": "a WebDataset tar",
    "folder": "a folder of pictures",
    "saved_dataset": "a dataset written by save_to_disk",
    "parquet_folder": "a folder of Parquet files",
}

_PICTURES = "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff avif heic heif hif jxl jp2 svg"
_VIDEOS = "mp4 m4v webm mov avi mkv mpg mpeg ogv flv wmv 3gp"

MEDIA_SUFFIXES = frozenset(f"{_PICTURES} {_VIDEOS}".split())
"""Suffixes of pictures and videos, in lower case; also of those that are not read, so that they are
refused by name and never left out of a sample."""

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


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed as a whole (gzip, zstd), by its first bytes."""
    return _compression(path) is not None


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
    found = _folder_format(path, takes) if path.is_dir() else _file_format(path, takes)
    if found is None or found not in takes:
        expected = "expected one of: " + ", ".join(DESCRIPTIONS[name] for name in takes)
        what = "its content is of no known format"
        if found is not None:
            what = f"{DESCRIPTIONS[found]}, which is not read here"
        raise InputError(f"{path}: {what}", hint="; ".join(filter(None, [expected, advice])))
    if found == "webdataset" and _compression(path) is not None:
        raise InputError(
            f"{path}: a compressed tar",
            hint="decompress it (gunzip, zstd -d): pictures are read in place",
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
            return indexed or _has_media(folder)
        case _:
            return False


def _file_format(path: Path, takes: Sequence[SourceFormat]) -> FileFormat | None:
    """The format of a file; None where it is none of those known."""
    start = start_of(path)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if start[257:262] == b"ustar":
        return "webdataset"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if "json_object" in takes and text[:1] == b"{" and _is_one_object(path, text):
        return "json_object"
    return _text_format(path, text)


def _is_one_object(path: Path, text: bytes) -> bool:
    """Whether a file that begins with an object is that object alone, in a file called JSON.

    JSON Lines may be called so too: their first line is a whole object, and another follows. A
    first line that goes on beyond the bytes that were read is taken for one of several, unless what
    it begins with is no record.
    """
    if ".json" not in {suffix.lower() for suffix in path.suffixes}:
        return False
    first, newline, rest = text.partition(b"\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        opening = read_opening(text)
        return bool(newline) or opening.record_list is not None or opening.has_columns
    return not rest.strip()


def _text_format(path: Path, text: bytes) -> FileFormat | None:
    # A list may also be the bad first line of a JSONL file; an array of records holds objects.
    if text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b"]", b""):
        return "json"
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".csv", ".tsv"}:
        return "csv"
    has_object = any(line.lstrip()[:1] == b"{" for line in text.splitlines())
    return "jsonl" if has_object or ".jsonl" in suffixes else None


def start_of(path: Path) -> bytes:
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


def _has_media(folder: Path) -> bool:
    files = (name for _, _, names in os.walk(folder) for name in names)
    return any(name.rpartition(".")[2].lower() in MEDIA_SUFFIXES for name in files)
