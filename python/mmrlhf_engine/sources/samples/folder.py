"""A folder of pictures, with a text file next to each, or with an index of them all.

``dogs/1.jpg`` belongs with ``dogs/1.txt`` (its prompt) and ``dogs/1.json`` (a record). If the
folder holds ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet``, its rows are the records
instead and their ``file_name`` is the picture, as in Hugging Face's image folders.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine.sources.files import INDEX_FILES, media_files
from mmrlhf_engine.sources.samples.batch import (
    ATTACHED,
    RECORDS_PER_BATCH,
    UNREADABLE,
    RawBatch,
    Source,
)
from mmrlhf_engine.sources.samples.webdataset import record_of_texts

__all__ = ["files_of_folder", "find_index", "read"]


def read(source: Source) -> Iterator[RawBatch]:
    """The pictures of a folder without an index as records, sorted by path."""
    files = media_files(source.path)
    for start in range(0, len(files), RECORDS_PER_BATCH):
        yield _to_records(source, files[start : start + RECORDS_PER_BATCH])


def find_index(folder: Path) -> Path | None:
    """The index file of a folder, or None."""
    return next((folder / name for name in INDEX_FILES if (folder / name).is_file()), None)


def files_of_folder(folder: Path) -> Iterator[Path]:
    """The files :func:`read` looks at: each picture and its texts."""
    for file in media_files(folder):
        for member in (file, file.with_suffix(".json"), file.with_suffix(".txt")):
            if member.is_file():
                yield member


def _to_records(source: Source, files: list[Path]) -> RawBatch:
    names, records, unreadable = [], [], []
    for file in files:
        name = file.relative_to(source.path).as_posix()
        if _is_text(name):
            names.append(name)
            records.append(record_of_texts(_texts_of(source.root, file)))
        else:
            shown = name.encode("utf-8", "backslashreplace").decode()
            unreadable.append((shown, "missing_media", "the name of the file is not UTF-8"))
    attached = {"record": range(len(names)), "name": names, "cell": [None] * len(names)}
    return RawBatch(
        positions=[f"{source.path.name}/{name}" for name in names],
        keys=names,
        records=pa.array(records, pa.large_binary()),
        attached=pl.DataFrame(attached, schema=ATTACHED),
        unreadable=pl.DataFrame(unreadable, schema=UNREADABLE, orient="row"),
    )


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8; Python writes other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts_of(root: Path, file: Path) -> dict[str, bytes]:
    texts = {}
    for suffix in ("json", "txt"):
        member = file.with_suffix(f".{suffix}")
        # A link next to a picture must not pull a file from elsewhere into a prompt.
        if member.is_file() and member.resolve().is_relative_to(root):
            texts[suffix] = member.read_bytes()
    return texts
