"""The compiled half of the engine: used by the stage file of the same name, and nowhere else.

Arrow arrays come in as pyarrow arrays of exactly the type named, contiguous; what goes out offers
``__arrow_c_array__`` and becomes a pyarrow array by ``pa.array(result)``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import pyarrow as pa

__version__: str

class CoreError(Exception): ...
class InputError(Exception): ...

@final
class ArrowArray:
    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]: ...
    def __len__(self) -> int: ...

# ingest

@final
class RecordSplitter:
    def __new__(cls, layout: Literal["lines", "array"]) -> RecordSplitter: ...
    def feed(self, block: bytes, last: bool) -> ArrowArray:
        """``struct{number: uint64, record: large_binary}``"""

@final
class TarReader:
    def __new__(cls, path: Path) -> TarReader: ...
    def next_members(self, limit: int, texts: list[str]) -> ArrowArray:
        """``struct{name, offset: uint64, length: uint64, text: large_binary, reason, detail}``"""

@final
class FirstSeen:
    def __new__(cls) -> FirstSeen: ...
    def insert(self, texts: pa.Array) -> ArrowArray:
        """large_string in, bool out: whether each is new."""

def read_records(
    records: pa.Array, columns: Mapping[str, str], threads: int
) -> tuple[ArrowArray, ArrowArray]:
    """large_binary JSON in.

    Out, a row a turn: ``struct{record, turn, source_id, pair, prompt, answer, question_type,
    reason, detail}``; a row a media reference: ``struct{record, name, cell}``.
    """

def record_fields() -> list[str]: ...
def inspect_named_media(
    root: Path, names: pa.Array, *, max_pixels: int, threads: int
) -> ArrowArray:
    """large_string in; ``struct{hash, kind, format, path, reason, detail, width, height, frames,
    bytes}`` out."""

def inspect_located_media(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """Locations in, as for :func:`hash_images`; out as :func:`inspect_named_media`."""

# image

def hash_images(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """large_string, uint64, uint64 and large_binary in; inline wins where it is not null.

    Out: ``struct{phash: uint64, colour: fixed_size_list<uint8>[192], reason, detail}``.
    """

def decode_images(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    size: int,
    fit: str,
    filter: str,
    max_pixels: int,
    threads: int,
) -> tuple[bytes, ArrowArray]:
    """Pixels uint8 [n, size, size, 3], zeros where there are none; ``struct{reason, detail}``."""

def thumbnail_images(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    edge: int,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """large_binary JPEG, longer side ``edge``; null where it cannot be made."""

# dedup

def find_duplicates(
    prompts: pa.Array,
    media: pa.Array,
    rank: pa.Array,
    picture_media: pa.Array,
    phash: pa.Array,
    colour: pa.Array,
    *,
    settings: Mapping[str, Any],
    threads: int,
) -> tuple[ArrowArray, ArrowArray, int]:
    """large_string, large_list<uint32>, uint32, uint32, uint64 and uint8 (192 a picture) in.

    Out: duplicates ``struct{row, kept, kind, text_jaccard, image_hamming}``, near misses
    ``struct{row, other, text_jaccard, image_hamming}``, and the number of pairs measured.
    """

# select

def select_queries(
    candidates: pa.Array,
    embeddings: pa.Array | None,
    *,
    count: int,
    ratios: list[float],
    modality_bounds: list[tuple[int, int]],
    source_bounds: list[tuple[int, int]],
    order: str,
    seed: int,
    semantic_threshold: float | None,
    threads: int,
) -> tuple[ArrowArray, ArrowArray]:
    """``struct{id, question_type, modality, source, cluster, row}`` in (large_string, int32 for the
    cluster, else uint32), and fixed_size_list<uint16>[d], the bits of float16 unit rows.

    Out: picks in order ``struct{candidate, floor_modality, floor_source}``, and the semantic
    duplicates met ``struct{candidate, close_to, cosine}``.
    """

def share_by_ratio(amount: int, ratios: list[float], limits: list[int]) -> list[int]:
    """``amount`` in whole parts by ratio, none above its limit."""
