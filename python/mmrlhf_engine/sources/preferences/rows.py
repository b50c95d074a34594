"""Rows of preference data as dictionaries, from JSON Lines, JSON, Parquet and saved datasets.

Rows come one at a time with the place they came from, so that a file of any size passes in little
memory. What cannot be read is handed on as a :class:`BadRecordError` in its place, never skipped.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine._core import RecordSplitter
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["Layout", "Row", "SourceFile", "find_files", "read_rows"]

Layout = Literal["lines", "array", "parquet", "arrow"]
Row = tuple[str, dict[str, Any] | BadRecordError]
"""Where to look (``pairs.jsonl:17``), and what was found there."""

_PIECE = 1 << 20
_BATCH_BYTES = 32 << 20
# JSON can spell half of a surrogate pair, which is no text.
_HALF_A_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, and below which folder its media must lie."""

    source: str
    """Name of the source it belongs to."""
    path: Path
    layout: Layout
    root: Path


def find_files(paths: list[str], root: str | None) -> list[SourceFile]:
    """The files of the sources, in the order of their names.

    A folder is one of Parquet files, or a dataset written by ``save_to_disk``. Media are named from
    ``root`` on, or from the folder of the file.

    Raises:
        InputError: there is no source, or one is missing, empty or of no known layout.
    """
    if not paths:
        raise InputError(
            "no source given", hint="mmrlhf-engine pack FILE... --out FOLDER --tokenizer NAME"
        )
    files: list[SourceFile] = []
    given = sorted({Path(path).absolute() for path in paths})
    times = Counter(path.name for path in given)
    for path in given:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        found = _files_of_folder(path) if path.is_dir() else [path]
        home = path if path.is_dir() else path.parent
        below = Path(root) if root is not None else home
        if not below.is_dir():
            raise InputError(f"{below}: the root of the media is not a folder")
        name = path.name if times[path.name] == 1 else str(path)
        files += [SourceFile(name, file, _layout(file), below.resolve()) for file in found]
    return files


def _files_of_folder(folder: Path) -> list[Path]:
    """The files that hold the rows of a folder, in their order."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(child.name for child in folder.iterdir() if child.is_dir()))
        raise InputError(f"{folder}: a dataset of several splits", hint=f"name one: {splits}")
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state.get("_data_files", [])]
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise InputError(
            f"{folder}: found neither Parquet files nor a dataset written by save_to_disk",
            hint="name the JSON or JSON Lines files themselves",
        )
    return files


def _layout(path: Path) -> Layout:
    """By content, not by name."""
    if not path.is_file() or path.stat().st_size == 0:
        raise InputError(f"{path}: the file is missing or empty")
    try:
        with _open(path) as stream:
            start = bytes(stream.read(1 << 16))
    except OSError as error:
        raise InputError(f"{path}: cannot be decompressed: {error}") from None
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # A list may also be the bad first line of a JSON Lines file; an array of records holds objects.
    if text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b"]", b""):
        return "array"
    if any(line.lstrip()[:1] == b"{" for line in text.splitlines()):
        return "lines"
    raise InputError(
        f"{path}: its content is of no known layout",
        hint="JSON Lines, a JSON array, Parquet, or a dataset written by save_to_disk",
    )


def read_rows(file: SourceFile) -> Iterator[Row]:
    """The rows of a file in their order, with their places."""
    readers: dict[Layout, Callable[[SourceFile], Iterator[Row]]] = {
        "lines": _read_text,
        "array": _read_text,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }
    return readers[file.layout](file)


def _open(path: Path) -> pa.NativeFile:
    """The file as a stream of bytes, decompressed if its first bytes say so."""
    with path.open("rb") as file:
        start = file.read(4)
    compression = next(
        (name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None
    )
    return pa.input_stream(str(path), compression=compression)


def _read_text(file: SourceFile) -> Iterator[Row]:
    splitter = RecordSplitter("array" if file.layout == "array" else "lines")
    with _open(file.path) as stream:
        last = False
        while not last:
            damage = None
            try:
                block = bytes(stream.read(_PIECE))
            except OSError as error:
                block, damage = b"", f"the compressed data cannot be read further: {error}"
            last = not block
            for found in pa.array(splitter.feed(block, last)).to_pylist():
                yield f"{file.path.name}:{found['number']}", _parse(found["record"])
            if damage is not None:
                yield f"{file.path.name}:end", BadRecordError("broken_record", damage)


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


def _read_parquet(file: SourceFile) -> Iterator[Row]:
    try:
        parquet = pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.path}: cannot be read as Parquet: {error}") from None
    with parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            bytes_per_row = metadata.total_byte_size // max(metadata.num_rows, 1) + 1
            rows = min(max(_BATCH_BYTES // bytes_per_row, 16), 4096)
            batches = parquet.iter_batches(batch_size=rows, row_groups=[group])
            yield from _rows_of(file, batches, first, first + metadata.num_rows)
            first += metadata.num_rows


def _read_arrow(file: SourceFile) -> Iterator[Row]:
    """A part of a saved dataset: an Arrow stream; its places count from the start of the part."""
    with pa.memory_map(str(file.path)) as mapped:
        try:
            stream = pa.ipc.open_stream(mapped)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file.path}: cannot be read as an Arrow stream: {error}") from None
        yield from _rows_of(file, stream, 0, None)


def _rows_of(
    file: SourceFile, batches: Iterator[pa.RecordBatch], first: int, end: int | None
) -> Iterator[Row]:
    """The rows of batches; damage costs the rows that cannot be read, as one bad row."""
    batches = iter(batches)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            upto = "the end" if end is None else f"row {end - 1}"
            detail = f"rows {first} to {upto} cannot be read: {error}"
            yield f"{file.path.name}:{first}", BadRecordError("broken_record", detail)
            return
        if batch is None:
            return
        for part in range(0, batch.num_rows, 64):
            for number, record in enumerate(batch.slice(part, 64).to_pylist(), start=part):
                yield f"{file.path.name}:{first + number}", record
        first += batch.num_rows
