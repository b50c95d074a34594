"""Rows of preference data as dictionaries, from JSON Lines, JSON, Parquet and saved datasets.

Rows come one at a time with the place they came from, so that a file of any size is read in little
memory. What cannot be read is yielded as a :class:`BadRecordError` in its place, never skipped.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.columnar import Batch, read_arrow, read_parquet
from mmrlhf_engine.sources.files import Damage, SourceFormat, detect_format, table_files
from mmrlhf_engine.sources.preferences.record import BadRecordError
from mmrlhf_engine.sources.splits import Split, choose_split, saved_splits
from mmrlhf_engine.sources.text import read_text_records

__all__ = ["Row", "SourceFile", "find_files", "read_rows"]

Row = tuple[str, dict[str, Any] | BadRecordError]
"""Where to look (``pairs.jsonl:17``), and what was found there."""

_FILES: tuple[SourceFormat, ...] = ("jsonl", "json", "parquet", "arrow")
_FOLDERS: tuple[SourceFormat, ...] = ("saved_dataset", "parquet_folder")
_BLOCK_BYTES = 1 << 20
_BATCH_BYTES = 32 << 20
_BATCH_ROWS = 4096
_ROWS_AS_OBJECTS = 64
# JSON can spell half of a surrogate pair, which is no text.
_HALF_A_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, and below which folder its media must lie."""

    source: str
    """Name of the source it belongs to."""
    path: Path
    format: SourceFormat
    root: Path
    split: Split | None = None
    """Where the source has several splits, which of them this file is of."""


def find_files(paths: list[str], root: str | None, split: str | None = None) -> list[SourceFile]:
    """The files of the sources, in the order of their names.

    A folder is one of Parquet files, or a dataset written by ``save_to_disk``. Of one with splits,
    ``split`` is taken, or ``train``. Media are named from ``root`` on, or from the folder of the
    file.

    Raises:
        InputError: there is no source, or one is missing, empty or of a format that is not read; or
            the split is not there, or has to be named.
    """
    if not paths:
        raise InputError(
            "no source given", hint="mmrlhf-engine pack FILE... --out FOLDER --tokenizer NAME"
        )
    files: list[SourceFile] = []
    given = sorted({Path(path).absolute() for path in paths})
    times = Counter(path.name for path in given)
    for path in given:
        own = path if path.is_dir() else path.parent
        below = Path(root) if root is not None else own
        if not below.is_dir():
            raise InputError(f"{below}: the root of the media is not a folder")
        name = path.name if times[path.name] == 1 else str(path)
        found, of_split = _files_of(path, split)
        files += [
            SourceFile(name, file, detect_format(file, _FILES), below.resolve(), of_split)
            for file in found
        ]
    if split is not None and all(file.split is None for file in files):
        raise InputError(f"no source has splits, and {split!r} was asked for")
    return files


def _files_of(path: Path, split: str | None) -> tuple[list[Path], Split | None]:
    """The files that hold the rows of a source, and the split they are of."""
    if (path / "dataset_dict.json").is_file():
        folder, of_split = saved_splits(path, split)
        detect_format(folder, ("saved_dataset",))
        return table_files(folder, "saved_dataset"), of_split
    format = detect_format(path, (*_FILES, *_FOLDERS))
    if format == "saved_dataset":
        return table_files(path, format), None
    if format == "parquet_folder":
        return choose_split(path, table_files(path, format), split)
    return [path], None


def read_rows(file: SourceFile) -> Iterator[Row]:
    """The rows of a file in their order, with their places.

    Raises:
        InputError: the file as a whole is not what its format promises.
    """
    match file.format:
        case "jsonl" | "json":
            return _read_text(file, file.format)
        case "parquet":
            batches = read_parquet(file.path, max_rows=_BATCH_ROWS, max_bytes=_BATCH_BYTES)
            return _read_columnar(file, batches)
        case "arrow":
            # A part of a saved dataset: its places count from the start of the part.
            return _read_columnar(file, read_arrow(file.path))
        case other:
            raise ValueError(f"no reader of rows for the format {other}")


def _read_text(file: SourceFile, format: Literal["jsonl", "json"]) -> Iterator[Row]:
    for found in read_text_records(file.path, format, block_bytes=_BLOCK_BYTES):
        if isinstance(found, Damage):
            yield _damaged(file, found)
            continue
        for record in found.to_pylist():
            yield f"{file.path.name}:{record['number']}", _parse(record["record"])


def _parse(text: bytes) -> dict[str, Any] | BadRecordError:
    try:
        record = json.loads(text)
        if _HALF_A_CHARACTER.search(text):
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return BadRecordError("broken_record", f"not JSON: {error}")
    if not isinstance(record, dict):
        kind = type(record).__name__
        return BadRecordError("broken_record", f"found {kind}, expected an object")
    return record


def _read_columnar(file: SourceFile, batches: Iterator[Batch | Damage]) -> Iterator[Row]:
    for batch in batches:
        if isinstance(batch, Damage):
            yield _damaged(file, batch)
            continue
        for start in range(0, batch.rows.num_rows, _ROWS_AS_OBJECTS):
            records = _records_of(batch.rows.slice(start, _ROWS_AS_OBJECTS))
            for number, record in enumerate(records, start=batch.first + start):
                yield f"{file.path.name}:{number}", record


def _records_of(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dictionaries.

    A value that Python has no object for, such as text that is not UTF-8 or a time in nanoseconds,
    becomes an object of no type that any field accepts, so that it costs only records that need it.
    """
    try:
        return list(rows.to_pylist())
    except (ValueError, OverflowError):
        columns = ([_value_of(scalar) for scalar in column] for column in rows.columns)
        names = rows.schema.names
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return object()


def _damaged(file: SourceFile, damage: Damage) -> Row:
    return f"{file.path.name}:{damage.place}", BadRecordError("broken_record", damage.detail)
