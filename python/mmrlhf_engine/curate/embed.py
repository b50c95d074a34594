"""Stage ``embed``: what the pictures show, as one unit vector for each distinct first picture.

Samples that begin with the same picture share a row, so a picture with thirty questions is encoded
once. The core decodes and resizes outside the interpreter while the encoder works on the batches
before, so that the encoder is never without work. Of a video the first frame stands for the whole,
as in the paper MM-RLHF, or the mean of several.

Rows do not depend on the number of threads, nor on kills. A sum that is split differently adds up
differently, so on a CPU each batch is computed on one thread (several batches at a time), and the
borders of batches are those of fixed chunks of the media. A finished chunk lies in the scratch
folder; a run that was killed goes on with those that are missing.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator

from mmrlhf_engine._core import decode_images
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.curate.precomputed import (
    BLOCK,
    check_precomputed,
    files_of_precomputed,
    open_precomputed,
    unit_blocks,
    width_of,
)
from mmrlhf_engine.curate.tables import EMBEDDING_IDS
from mmrlhf_engine.models.encoder import Encoder, load_encoder
from mmrlhf_engine.models.encoder_check import check_encoder, check_encoder_form
from mmrlhf_engine.models.threaded_encoder import ThreadedEncoder
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext

__all__ = ["STAGE", "EmbedConfig"]

CHUNK = 512
"""Media rows of one chunk."""
MAX_PIXELS = 2**32
"""Ingest has already refused what is over the limit of the run."""

Rows = np.ndarray
"""int64 [n]: the row of the media frame that each picture of a batch belongs to."""


class EmbedConfig(Section):
    """Settings of ``embed``."""

    encoder: str = "open_clip:ViT-B-32/openai"
    """open_clip:MODEL/WEIGHTS, transformers:NAME, lite0, or precomputed:FILE.npy (its rows in the
    order of FILE.ids, one sample id a line; without that file, of the kept samples by id)."""
    frames: int = Field(default=1, ge=1)
    """Frames of a video: the first, or the mean over so many at even distances."""
    batch: int | None = Field(default=None, ge=1)
    """Pictures the encoder takes at once; null: 8 on a CPU, whose caches hold no more, and 128 on a
    GPU. The last digits of a row depend on it."""

    @field_validator("encoder")
    @classmethod
    def _is_of_a_known_form(cls, value: str) -> str:
        return check_encoder_form(value)


def run(config: EmbedConfig, stage: StageContext) -> None:
    """Write ``embeddings.npy`` (float16 [pictures, d], unit rows) and the table ``embedding_ids``.

    Raises:
        InputError: the weights cannot be had, or precomputed rows do not fit.
        MissingExtraError: the encoder's package is not installed.
    """
    take = _take_precomputed if config.encoder.startswith("precomputed:") else _encode
    rows, facts = take(config, stage)
    with stage.table("embedding_ids", EMBEDDING_IDS) as table:
        start = 0
        for part in stage.parts("kept", "id"):
            table.write(part.with_columns(row=rows.slice(start, part.height)))
            start += part.height
    stage.finish(
        rows_in=len(rows),
        rows_out=len(rows),
        dropped={},
        without_embedding=rows.null_count(),
        encoder=config.encoder,
        **facts,
    )


def check(config: EmbedConfig) -> None:
    """Refuse an encoder that cannot be had, or precomputed rows that cannot be read.

    Raises:
        MmrlhfError: it is so; see :func:`~mmrlhf_engine.models.encoder_check.check_encoder`.
    """
    if config.encoder.startswith("precomputed:"):
        check_precomputed(Path(config.encoder.removeprefix("precomputed:")))
    else:
        check_encoder(config.encoder)


def external(config: EmbedConfig) -> list[object]:
    """The files of precomputed rows, with size and time."""
    if not config.encoder.startswith("precomputed:"):
        return []
    file = Path(config.encoder.removeprefix("precomputed:"))
    return [
        [str(path), (stat := path.stat()).st_size, stat.st_mtime_ns]
        for path in files_of_precomputed(file)
    ]


def _take_precomputed(config: EmbedConfig, stage: StageContext) -> tuple[pl.Series, dict[str, Any]]:
    """Rows made elsewhere, for the kept samples they name, in the order of their file.

    Of each kept sample the row or null, and facts for the report.
    """
    file = Path(config.encoder.removeprefix("precomputed:"))
    kept = pl.concat(stage.parts("kept", "id"))["id"]
    given, numbers = open_precomputed(file, kept)
    wanted = np.sort(numbers[numbers >= 0])

    def name(row: int) -> str:
        return str(kept[int(np.flatnonzero(numbers == row)[0])])

    blocks = unit_blocks(file, given, wanted, name, stage.threads)
    shape = (len(wanted), given.shape[1])
    written = _told(stage, blocks, len(wanted))
    _write_rows(stage.folder / "embeddings.npy", shape, written)
    rows = np.searchsorted(wanted, numbers).astype(np.uint32)
    without = pl.Series(numbers < 0)
    return pl.Series(rows).set(without, None), {"images": len(wanted)}


def _told(stage: StageContext, blocks: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    """The same blocks, each told on its way."""
    done = 0
    for block in blocks:
        done += len(block)
        stage.progress("rows", done, total)
        yield block


def _encode(config: EmbedConfig, stage: StageContext) -> tuple[pl.Series, dict[str, Any]]:
    """Encode the distinct first pictures of the kept samples.

    Of each kept sample the row or null, and facts for the report.
    """
    hashes = stage.scan("samples").select(pl.col("media").list.first()).collect().to_series()
    sample = pl.concat(stage.parts("kept", "sample"))["sample"]
    first = pl.DataFrame({"hash": hashes.gather(sample)})
    wanted = first.lazy().select("hash").drop_nulls().unique()
    media = stage.scan("media").join(wanted, on="hash", how="semi").collect().sort("hash")
    files = [
        stage.scratch / f"chunk-{number:05d}.npz" for number in range(-(-media.height // CHUNK))
    ]
    facts = _encode_missing(config, stage, media, files)
    found = _join_chunks(stage.folder / "embeddings.npy", files)
    rows = media.select("hash")[found].with_row_index("row")
    joined = first.join(rows, on="hash", how="left", maintain_order="left")
    return joined["row"].cast(pl.UInt32), {"images": len(found), **facts}


def _encode_missing(
    config: EmbedConfig, stage: StageContext, media: pl.DataFrame, files: list[Path]
) -> dict[str, Any]:
    """Encode the chunks that have no file; the facts are of this attempt, none if it had no work.

    A chunk's file holds ``numbers`` int64 [m], the media rows that could be encoded, and ``rows``
    float16 [m, d].
    """
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if not missing:
        return {}
    encoder = load_encoder(config.encoder)
    work = ThreadedEncoder(encoder, stage.threads)
    pictures = 0
    batches = _decoded(config, stage, encoder, media, missing)
    with contextlib.closing(work.run(batches)) as encoded:
        watched = _tell_progress(stage, encoded, media.height)
        for number, results in itertools.groupby(watched, key=lambda result: result[0][0]):
            parts = [(rows, features) for (_, rows), features in results]
            numbers, rows = _mean_of_frames(
                np.concatenate([rows for rows, _ in parts]), np.concatenate([f for _, f in parts])
            )
            _save_chunk(files[number], numbers + number * CHUNK, rows)
            pictures += sum(len(rows) for rows, _ in parts)
    return {
        "device": encoder.device,
        "images_per_second": round(pictures / work.seconds, 1),
        "encoder_busy": round(work.busy, 3),
    }


def _tell_progress(
    stage: StageContext, encoded: Iterable[tuple[tuple[int, Rows], np.ndarray]], total: int
) -> Iterator[tuple[tuple[int, Rows], np.ndarray]]:
    """The same results, each batch told on its way."""
    for (chunk, rows), features in encoded:
        if len(rows):
            stage.progress("pictures", chunk * CHUNK + int(rows[-1]) + 1, total)
        yield (chunk, rows), features


def _decoded(
    config: EmbedConfig,
    stage: StageContext,
    encoder: Encoder,
    media: pl.DataFrame,
    chunks: list[int],
) -> Iterator[tuple[tuple[int, Rows], np.ndarray]]:
    """((chunk, rows), pixels uint8 [n, size, size, 3]) of each batch; at least one a chunk."""
    batch = config.batch or (8 if encoder.device == "cpu" else 128)
    positions = tuple(index / config.frames for index in range(config.frames))
    side = encoder.size
    for chunk in chunks:
        yield (chunk, np.empty(0, np.int64)), np.empty((0, side, side, 3), np.uint8)
        for pictures in picture_batches(media.slice(chunk * CHUNK, CHUNK), batch, positions):
            buffer, errors = decode_images(
                *(pictures.paths, pictures.offsets, pictures.lengths, pictures.inline),
                size=side,
                fit=encoder.fit,
                filter=encoder.filter,
                max_pixels=MAX_PIXELS,
                threads=stage.threads,
            )
            pixels = np.frombuffer(buffer, np.uint8).reshape(-1, side, side, 3)
            good = pa.array(errors).field("reason").is_null().to_numpy(zero_copy_only=False)
            yield (chunk, pictures.rows[good]), pixels[good]


def _mean_of_frames(numbers: Rows, features: np.ndarray) -> tuple[Rows, np.ndarray]:
    """One float16 unit row a media: of its picture, or of the mean of its frames' unit rows.

    Features without a direction (all zero, or not finite) have no row.
    """
    numbers, unit = _unit(numbers, features)
    media, starts = np.unique(numbers, return_index=True)
    if len(media) < len(numbers):
        media, unit = _unit(media, np.add.reduceat(unit, starts, axis=0))
    return media, unit.astype(np.float16)


def _unit(numbers: Rows, features: np.ndarray) -> tuple[Rows, np.ndarray]:
    lengths = np.linalg.norm(features, axis=1)
    good = np.isfinite(lengths) & (lengths > 0)
    return numbers[good], features[good] / lengths[good, None]


def _save_chunk(file: Path, numbers: Rows, rows: np.ndarray) -> None:
    with appearing(file) as temporary:
        np.savez(temporary, numbers=numbers, rows=rows)


def _join_chunks(path: Path, files: list[Path]) -> Rows:
    """Write the rows of all chunks to ``path``, one chunk in memory at a time; their numbers."""
    numbers = [_load(file, "numbers") for file in files]
    width = _load(files[0], "rows").shape[1] if files else 0
    found = np.concatenate([np.empty(0, np.int64), *numbers])
    _write_rows(path, (len(found), width), (_load(file, "rows") for file in files))
    return found


def _load(file: Path, name: str) -> np.ndarray:
    with np.load(file) as chunk:
        array: np.ndarray = chunk[name]
    return array


def _write_rows(path: Path, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Write float16 [n, d] block by block; the file appears when it is complete."""
    with appearing(path) as temporary, temporary.open("wb") as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for rows in blocks:
            stream.write(rows.astype("<f2", copy=False).tobytes())


def memory(config: EmbedConfig, inputs: Inputs, threads: int) -> int:
    """Torch and an encoder, batches being decoded, and the ids of samples and media; of rows made
    elsewhere blocks, and the ids of all."""  # noqa: D205, D209
    if config.encoder.startswith("precomputed:"):
        width = width_of(Path(config.encoder.removeprefix("precomputed:")))
        return (64 << 20) + threads * BLOCK * width * 12 + inputs.rows("kept") * 130
    of_tables = inputs.rows("samples") * 300 + inputs.rows("media") * 400
    return (3 << 30) + (256 << 20) + threads * (128 << 20) + of_tables


STAGE = Stage(
    name="embed",
    config=EmbedConfig,
    run=run,
    reads=("kept", "samples", "media"),
    writes=("embeddings.npy", "embedding_ids"),
    external=external,
    check=check,
    memory=memory,
)
