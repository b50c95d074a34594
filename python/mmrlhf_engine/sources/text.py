"""JSONL and one JSON array; plain, gzip or zstd.

Lines and elements are cut out of blocks by the core, so that a file of any size, and a line of any
length, passes in little memory.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import RecordSplitter
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.samples.batch import RECORDS_PER_BATCH, TROUBLES, RawBatch, Source

__all__ = ["compression", "open_text", "opening", "read"]

_PIECE = 64 << 10
_PIECES = 256
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def opening(path: Path) -> bytes:
    """The first 64 KiB of a file, decompressed.

    Raises:
        InputError: the file begins as a compressed one and is none.
    """
    try:
        with open_text(path) as stream:
            return bytes(stream.read(1 << 16))
    except OSError as error:
        raise InputError(f"{path}: cannot be decompressed: {error}") from None


def read(source: Source) -> Iterator[RawBatch]:
    """Lines of a JSONL file, or elements of a JSON array.

    Compressed data that end too early, or are damaged, give what can be had and one trouble.
    """
    splitter = RecordSplitter("array" if source.format == "json" else "lines")
    with open_text(source.path) as stream:
        last = False
        while not last:
            block, damage = _read_block(stream)
            last = not block or damage is not None
            yield from _batches(source, pa.array(splitter.feed(block, last)))
            if damage is not None:
                yield _damaged(source, damage)


def _read_block(stream: pa.NativeFile) -> tuple[bytes, OSError | None]:
    """The next few megabytes, in pieces, so that damage costs no more than the piece it is in."""
    pieces: list[bytes] = []
    try:
        while len(pieces) < _PIECES and (piece := stream.read(_PIECE)):
            pieces.append(piece)
    except OSError as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def _batches(source: Source, found: pa.Array) -> Iterator[RawBatch]:
    for start in range(0, len(found), RECORDS_PER_BATCH):
        part = found[start : start + RECORDS_PER_BATCH]
        keys = [str(number) for number in part.field("number").to_pylist()]
        positions = [f"{source.path.name}:{key}" for key in keys]
        yield RawBatch(positions, keys, part.field("record"))


def _damaged(source: Source, error: OSError) -> RawBatch:
    detail = f"the compressed data cannot be read further: {error}"
    trouble = [(f"{source.path.name}:end", "broken_record", detail)]
    return RawBatch(
        positions=[],
        keys=[],
        records=pa.array([], pa.large_binary()),
        troubles=pl.DataFrame(trouble, schema=TROUBLES, orient="row"),
    )


def open_text(path: Path) -> pa.NativeFile:
    """The file as a stream of bytes, decompressed if its first bytes say so."""
    return pa.input_stream(str(path), compression=compression(path))


def compression(path: Path) -> str | None:
    """``gzip``, ``zstd`` or None, by the first bytes of a file."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)
