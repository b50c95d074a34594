"""Records of JSON Lines and of one JSON array; plain, gzip or zstd.

Lines and elements are cut out of blocks by the core, so that a file of any size, and a line of any
length, is read in little memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa

from mmrlhf_engine._core import RecordSplitter
from mmrlhf_engine.sources.files import Damage, is_compressed, open_stream

__all__ = ["read_text_records"]

_PIECE_BYTES = 64 << 10


def read_text_records(
    path: Path,
    format: Literal["jsonl", "json", "json_object"],
    *,
    block_bytes: int,
    member: str | None = None,
) -> Iterator[pa.StructArray | Damage]:
    """The records of each block of a file as ``struct{number: uint64, record: large_binary}``.

    ``number`` is the line of a record, from 1, or the place of an element in the array, from 0. Of
    a ``json_object`` the array under the key ``member`` is read.
    Compressed data that end too early, or are damaged, give what can be read and one
    :class:`Damage` at the end.
    """
    layouts: dict[str, Literal["lines", "array", "member"]]
    layouts = {"jsonl": "lines", "json": "array", "json_object": "member"}
    splitter = RecordSplitter(layouts[format], member)
    piece_bytes = _PIECE_BYTES if is_compressed(path) else block_bytes
    with open_stream(path) as stream:
        last = False
        while not last:
            block, error = _read_block(stream, block_bytes, piece_bytes)
            last = not block or error is not None
            yield pa.array(splitter.feed(block, last))
            if error is not None:
                yield Damage("end", f"the compressed data cannot be read further: {error}")


def _read_block(stream: pa.NativeFile, size: int, piece_bytes: int) -> tuple[bytes, OSError | None]:
    """The next ``size`` bytes, in pieces, so that damage costs no more than the piece it is in."""
    pieces: list[bytes] = []
    try:
        for _ in range(size // piece_bytes):
            piece = stream.read(piece_bytes)
            if not piece:
                break
            pieces.append(piece)
    except OSError as error:
        return b"".join(pieces), error
    return b"".join(pieces), None
