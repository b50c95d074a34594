"""Hashes and colours of the pictures of media rows, as ``find_duplicates`` takes them.

Every distinct picture is decoded once; where the hash alone of a picture is known, it is taken.
The hashes are kept in the scratch folder of the stage: chunk by chunk, so that a kill loses one
chunk at most, and then in columns that are mapped, so that those of any number of pictures take no
memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mmrlhf_engine._core import hash_images
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.curate.media_judge import FRAME_POSITIONS, MAX_PIXELS
from mmrlhf_engine.curate.signature_cache import SignatureCache
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.mapped import MappedColumn
from mmrlhf_engine.run.stage import StageContext

__all__ = [
    "HASH_NAMES",
    "NO_PICTURES",
    "HashKind",
    "PictureHashes",
    "hash_chunk",
    "hash_pictures",
    "picture_columns",
]

HashKind = Literal["fast", "exact"]
HASH_NAMES: dict[HashKind, str] = {"exact": "phash", "fast": "phash-reduced-64"}
"""What each kind of hash is called where hashes are kept: with another name they are made again."""

_MEDIA_PER_CHUNK = 8192

_PICTURES: dict[str, pl.DataType] = {
    "number": pl.UInt32(),
    "phash": pl.UInt64(),
    "colour": pl.List(pl.UInt8()),
    "reason": pl.String(),
    "detail": pl.String(),
}
NO_PICTURES = pl.DataFrame(schema=_PICTURES)

_COLUMNS: dict[str, pa.DataType] = {
    "media": pa.uint32(),
    "phash": pa.uint64(),
    "colour": pa.large_list(pa.uint8()),
}


@dataclass(frozen=True)
class PictureHashes:
    """What is known of the pictures of some media, ascending by the numbers of these."""

    columns: dict[str, pa.Array]
    """``media``, ``phash`` and ``colour`` of those that could be read: what ``find_duplicates``
    takes."""
    broken: pl.DataFrame
    """``number, reason, detail`` of the others."""
    cached: int
    """Pictures that were not decoded, as a cache had them."""

    def first(self) -> pl.DataFrame:
        """``number, phash`` of the first picture of each medium."""
        numbers, phash = (
            pl.Series(pl.from_arrow(self.columns[name])) for name in _COLUMNS if name != "colour"
        )
        frame = pl.DataFrame({"number": numbers, "phash": phash})
        return frame.filter((numbers != numbers.shift()).fill_null(value=True))

    def media_with_pictures(self) -> int:
        """How many media have a picture, broken ones included."""
        good = pl.Series(pl.from_arrow(self.columns["media"]))
        return pl.concat([good, self.broken["number"]]).n_unique()


def hash_pictures(
    media: pl.DataFrame,
    stage: StageContext,
    hash: HashKind,
    cache: str | None,
    known: Sequence[Path] = (),
) -> PictureHashes:
    """Hash and colours of every picture of ``media``, or what is wrong with it.

    Chunks of media that were hashed before a kill are read back.

    Args:
        media: ``number`` and the columns of MEDIA, ascending by the hash.
        stage: Its scratch folder holds the chunks and the columns.
        hash: How pictures are decoded.
        cache: The folder of a :class:`SignatureCache`, which is read and extended.
        known: The folders of others, which are only read.

    Raises:
        InputError: a file of the cache cannot be read.
    """
    kept = None if cache is None else SignatureCache(Path(cache), HASH_NAMES[hash])
    others = [SignatureCache(folder, HASH_NAMES[hash]) for folder in known]
    chunks = _Chunks(media, stage, hash, [*([] if kept is None else [kept]), *others])
    broken, cached = [NO_PICTURES], 0
    with ExitStack() as stack:
        columns = {
            name: stack.enter_context(MappedColumn(stage.scratch / "pictures" / name, kind))
            for name, kind in _COLUMNS.items()
        }
        for start in range(0, media.height, _MEDIA_PER_CHUNK):
            found = chunks.of(start)
            for name, values in picture_columns(found).items():
                columns[name].append(values)
            broken.append(found.filter(pl.col("reason").is_not_null()).select(*_PICTURES))
            cached += int(found["cached"].sum())
        mapped = {name: column.map() for name, column in columns.items()}
    if kept is not None:
        kept.add(chunks.decoded())
    faults = pl.concat(broken).select("number", "reason", "detail")
    return PictureHashes(mapped, faults, cached)


@dataclass(frozen=True)
class _Chunks:
    """Hashes of media, a chunk of them at a time."""

    media: pl.DataFrame
    stage: StageContext
    hash: HashKind
    caches: list[SignatureCache]

    def of(self, start: int) -> pl.DataFrame:
        """A row for each picture, ascending by the number of its media: columns of ``_PICTURES``
        and ``cached``."""  # noqa: D205, D209
        part = self.media.slice(start, _MEDIA_PER_CHUNK)
        if part["phash"].null_count() == 0:
            return _stored(part).with_columns(cached=pl.lit(value=False))
        file = self._file(start)
        if not file.exists():
            known = self._cached(part)
            rest = part.filter(~pl.col("number").is_in(known["number"].implode()))
            hashed = [
                NO_PICTURES,
                *hash_chunk(rest, self.stage, self.hash, start, self.media.height),
            ]
            found = [
                frame.with_columns(cached=pl.lit(cached))
                for frame, cached in ((known, True), (pl.concat(hashed), False))
            ]
            with appearing(file) as temporary:
                pl.concat(found).sort("number", maintain_order=True).write_parquet(temporary)
        return pl.read_parquet(file)

    def decoded(self) -> Iterator[pl.DataFrame]:
        """``hash, phash, colour`` of the media of each chunk that were decoded without a fault."""
        for start in range(0, self.media.height, _MEDIA_PER_CHUNK):
            file = self._file(start)
            if not file.exists():
                continue
            part = self.media.slice(start, _MEDIA_PER_CHUNK).filter(pl.col("phash").is_null())
            whole = pl.col("phash").is_not_null().all().over("number")
            found = pl.read_parquet(file).filter(~pl.col("cached") & whole)
            named = part.select("number", "hash")
            yield found.join(named, on="number", maintain_order="left")

    def _file(self, start: int) -> Path:
        return self.stage.scratch / f"pictures-{start // _MEDIA_PER_CHUNK:05d}.parquet"

    def _cached(self, part: pl.DataFrame) -> pl.DataFrame:
        readable = part.filter(pl.col("phash").is_null()).select("number", "hash")
        found = [NO_PICTURES]
        for cache in self.caches:
            rows = cache.find(readable["hash"]).join(readable, on="hash", maintain_order="left")
            readable = readable.join(rows, on="hash", how="anti", maintain_order="left")
            rows = rows.select("number", "phash", "colour", reason=None, detail=None)
            found.append(rows.cast(_PICTURES))  # type: ignore[arg-type]
        return pl.concat(found)


def hash_chunk(
    part: pl.DataFrame, stage: StageContext, hash: HashKind, start: int, total: int
) -> Iterator[pl.DataFrame]:
    """Hash, colours and faults of the pictures of media rows; ``start`` of ``total`` are done."""
    yield _stored(part)
    for batch in picture_batches(part, 256, FRAME_POSITIONS):
        hashed = hash_images(
            *(batch.paths, batch.offsets, batch.lengths, batch.inline),
            max_pixels=MAX_PIXELS,
            threads=stage.threads,
            reduced=hash == "fast",
        )
        rows = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(hashed))))
        numbers = part["number"].gather(batch.rows)
        yield rows.with_columns(number=numbers).select(*_PICTURES).cast(_PICTURES)  # type: ignore[arg-type]
        stage.progress("hashing pictures", start + int(batch.rows[-1]) + 1, total)


def _stored(part: pl.DataFrame) -> pl.DataFrame:
    """Rows of the media of which the hash alone is known."""
    known = part.filter(pl.col("phash").is_not_null())
    colour = pc.cast(known["colour"].fill_null(b"").to_arrow(), pa.large_binary())
    _, offsets, values = colour.buffers()
    bytes_ = pa.Array.from_buffers(pa.uint8(), 0 if values is None else values.size, [None, values])
    lists = pa.Array.from_buffers(
        _COLUMNS["colour"], len(colour), [None, offsets], offset=colour.offset, children=[bytes_]
    )
    rows = known.select("number", "phash").with_columns(colour=pl.Series(pl.from_arrow(lists)))
    return rows.select(*rows.columns, reason=None, detail=None).cast(_PICTURES)  # type: ignore[arg-type]


def picture_columns(pictures: pl.DataFrame) -> dict[str, pa.Array]:
    """Pictures that could be read, rows as of ``hash_chunk``, as ``find_duplicates`` takes them."""
    readable = pictures.filter(pl.col("phash").is_not_null()).rename({"number": "media"})
    return {name: readable[name].to_arrow().cast(kind) for name, kind in _COLUMNS.items()}
