"""A folder of pictures, with a text file beside each, or with an index of them all.

``dogs/1.jpg`` belongs with ``dogs/1.txt`` (its prompt) and ``dogs/1.json`` (a record). If the
folder holds ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet``, its rows are the records
instead and their ``file_name`` is the picture, as in Hugging Face's image folders.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from mmrlhf_engine.curate.sources import RECORDS_PER_BATCH, RawBatch, Source, cells_frame, read
from mmrlhf_engine.curate.sources.webdataset import IMAGE_SUFFIXES, MEDIA_SUFFIXES, with_sidecars

__all__ = ["find_index", "media_files", "read_folder"]

_INDEXES = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}


def read_folder(source: Source) -> Iterator[RawBatch]:
    """The pictures of a folder as records, sorted by path, or the records of its index."""
    index = find_index(source.path)
    if index is not None:
        yield from read(replace(source, path=index, format=_INDEXES[index.name]))
        return
    files = media_files(source.path)
    for start in range(0, len(files), RECORDS_PER_BATCH):
        part = files[start : start + RECORDS_PER_BATCH]
        names = [file.relative_to(source.path).as_posix() for file in part]
        records = [_record(source.root, file, name) for file, name in zip(part, names, strict=True)]
        yield RawBatch(
            positions=[f"{source.path.name}/{name}" for name in names],
            keys=names,
            records=pa.array(records, pa.large_binary()),
            cells=cells_frame([]),
        )


def find_index(folder: Path) -> Path | None:
    """The index file of a folder, or None."""
    return next((folder / name for name in _INDEXES if (folder / name).is_file()), None)


def media_files(folder: Path) -> list[Path]:
    """Every picture and video below a folder, sorted; links to folders are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        found += [
            Path(place, name)
            for name in files
            if name.rpartition(".")[2].lower() in MEDIA_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _record(root: Path, file: Path, name: str) -> bytes:
    suffix = file.suffix[1:].lower()
    kind = "image" if suffix in IMAGE_SUFFIXES else "video"
    texts = {}
    for sidecar in ("json", "txt"):
        beside = file.with_suffix(f".{sidecar}")
        # A link beside a picture must not pull a file from elsewhere into a prompt.
        if beside.is_file() and beside.resolve().is_relative_to(root.resolve()):
            texts[sidecar] = beside.read_bytes()
    return with_sidecars(name, {kind: [name]}, texts)
