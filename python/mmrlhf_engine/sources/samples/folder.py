"""A folder of pictures, with a text file beside each, or with an index of them all.

``dogs/1.jpg`` belongs with ``dogs/1.txt`` (its prompt) and ``dogs/1.json`` (a record). If the
folder holds ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet``, its rows are the records
instead and their ``file_name`` is the picture, as in Hugging Face's image folders.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine.sources.samples.batch import (
    BESIDE,
    RECORDS_PER_BATCH,
    TROUBLES,
    RawBatch,
    Source,
    read,
)
from mmrlhf_engine.sources.samples.webdataset import MEDIA_SUFFIXES, sidecar_record

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
        yield _to_records(source, files[start : start + RECORDS_PER_BATCH])


def _to_records(source: Source, files: list[Path]) -> RawBatch:
    names, records, troubles = [], [], []
    for file in files:
        name = file.relative_to(source.path).as_posix()
        if _is_text(name):
            names.append(name)
            records.append(sidecar_record(_texts_beside(source.root, file)))
        else:
            shown = name.encode("utf-8", "backslashreplace").decode()
            troubles.append((shown, "missing_media", "the name of the file is not UTF-8"))
    beside = {"record": range(len(names)), "name": names, "cell": [None] * len(names)}
    return RawBatch(
        positions=[f"{source.path.name}/{name}" for name in names],
        keys=names,
        records=pa.array(records, pa.large_binary()),
        beside=pl.DataFrame(beside, schema=BESIDE),
        troubles=pl.DataFrame(troubles, schema=TROUBLES, orient="row"),
    )


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8; Python writes other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _texts_beside(root: Path, file: Path) -> dict[str, bytes]:
    texts = {}
    for suffix in ("json", "txt"):
        beside = file.with_suffix(f".{suffix}")
        # A link beside a picture must not pull a file from elsewhere into a prompt.
        if beside.is_file() and beside.resolve().is_relative_to(root):
            texts[suffix] = beside.read_bytes()
    return texts
