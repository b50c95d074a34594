"""What the pictures show: one unit vector for each distinct picture that a kept sample begins with.

Samples that share their first picture share a row, so a picture with thirty questions is encoded
once. The core decodes and resizes while the encoder works on the batches before, so that it is
never without work. Batches have fixed borders and each is computed on one thread: rows do not
depend on the number of threads, nor on whether the run was killed between two chunks.

Of a video the first frame stands for the whole, as in the paper MM-RLHF, or the mean of several.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from mmrlhf_engine._core import decode_images
from mmrlhf_engine.config import Section
from mmrlhf_engine.curate.media import PictureBatch, picture_batches
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.encoder import Encoder, load_encoder
from mmrlhf_engine.store import Stage
from mmrlhf_engine.tables import EMBEDDING_IDS

__all__ = ["EmbedConfig", "run"]

_MAX_PIXELS = 2**32
_MEDIA_PER_CHUNK = 2048


class EmbedConfig(Section):
    """How pictures become vectors."""

    encoder: str = "open_clip:ViT-B-32/openai"
    """open_clip:MODEL/WEIGHTS, transformers:NAME, lite0, or precomputed:FILE.npy (rows in the order
    of FILE.ids, one sample id a line; without that file, of the kept samples by id)."""
    frames: int = Field(default=1, ge=1)
    """Frames of a video: the first, or the mean over this many at even distances."""
    batch: int = Field(default=32, ge=1)
    """Pictures the encoder takes at once."""


def run(config: EmbedConfig, stage: Stage) -> None:
    """Write `embeddings.npy` (float16 [pictures, d], unit rows) and the table `embedding_ids`.

    Raises:
        InputError: the weights cannot be had, or precomputed rows do not fit.
        MissingExtraError: the encoder's package is not installed.
    """
    kept = stage.scan("kept").select("id").collect()
    samples = stage.scan("samples").select("id", "media").collect()
    samples = samples.join(kept, on="id", how="semi").sort("id")
    if config.encoder.startswith("precomputed:"):
        ids, facts = _take_precomputed(config, stage, samples["id"])
    else:
        ids, facts = _encode(config, stage, samples)
    with stage.table("embedding_ids", EMBEDDING_IDS) as table:
        table.write(ids)
    stage.finish(
        rows_in=samples.height,
        rows_out=samples.height,
        dropped={},
        without_embedding=samples.height - ids.height,
        encoder=config.encoder,
        **facts,
    )


def _encode(
    config: EmbedConfig, stage: Stage, samples: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, object]]:
    """Encode the first pictures of the samples; their ids with rows, and facts for the report."""
    first = samples.select("id", hash=pl.col("media").list.first()).drop_nulls()
    wanted = first.select("hash").unique()
    media = stage.scan("media").collect().join(wanted, on="hash", how="semi").sort("hash")
    work = _Work(config, stage, media.height)
    chunks = [
        work.chunk(media.slice(start, _MEDIA_PER_CHUNK), start)
        for start in range(0, media.height, _MEDIA_PER_CHUNK)
    ]
    width = max((rows.shape[1] for _, rows in chunks), default=0)
    found = np.concatenate([np.empty(0, np.int64), *(numbers for numbers, _ in chunks)])
    _write_embeddings(stage.folder, [rows for _, rows in chunks if len(rows)], width)
    rows = media.select("hash").select(pl.all().gather(found)).with_row_index("row")
    ids = first.join(rows, on="hash", how="inner").select("id", "row").sort("id")
    return ids, {"images": len(found), **work.facts()}


@dataclass
class _Work:
    """The encoder at work, and how busy it was."""

    config: EmbedConfig
    stage: Stage
    total: int
    encoded: int = 0
    busy: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded when the first chunk needs it: a run that only has to be put together does not."""
        return load_encoder(self.config.encoder)

    @property
    def workers(self) -> int:
        """Batches encoded at the same time."""
        import torch

        return 1 if self.encoder.device == "cuda" else self.stage.threads or torch.get_num_threads()

    def chunk(self, media: pl.DataFrame, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Media numbers int64 [m] and unit rows float16 [m, d]; read back if a kill left them."""
        file = self.stage.scratch / f"chunk-{start // _MEDIA_PER_CHUNK:05d}.npz"
        if not file.exists():
            numbers, rows = _mean_of_frames(*self._encode_chunk(media, start))
            temporary = file.with_name(f".{file.name}.tmp")
            with temporary.open("wb") as stream:
                np.savez(stream, numbers=numbers + start, rows=rows)
            temporary.replace(file)
        with np.load(file) as saved:
            return saved["numbers"], saved["rows"]

    def _encode_chunk(self, media: pl.DataFrame, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the media frame int64 [k] and features float32 [k, d] of its pictures."""
        count = self.config.frames
        positions = tuple(index / count for index in range(count))
        began = time.monotonic()
        waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
        done: list[tuple[np.ndarray, np.ndarray]] = []
        with ThreadPoolExecutor(self.workers) as pool:
            for numbers, pixels in self._decoded(media, positions):
                waiting.append((numbers, pool.submit(self._timed_encode, pixels)))
                # A few batches ahead keep the encoder busy; more would only hold memory.
                while len(waiting) > self.workers + 2:
                    done.append(self._next(waiting, start))
            while waiting:
                done.append(self._next(waiting, start))
        self.seconds += time.monotonic() - began
        if not done:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        return np.concatenate([n for n, _ in done]), np.concatenate([f for _, f in done])

    def _decoded(
        self, media: pl.DataFrame, positions: tuple[float, ...]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in picture_batches(media, self.config.batch, positions):
            yield _decode(batch, self.encoder, self.stage.threads)

    def _timed_encode(self, pixels: np.ndarray) -> np.ndarray:
        began = time.monotonic()
        features = self.encoder.encode(pixels) if len(pixels) else np.empty((0, 0), np.float32)
        self.busy.append(time.monotonic() - began)
        return features

    def _next(
        self, waiting: "deque[tuple[np.ndarray, Future[np.ndarray]]]", start: int
    ) -> tuple[np.ndarray, np.ndarray]:
        numbers, future = waiting.popleft()
        features = future.result()
        self.encoded += len(numbers)
        if len(numbers):
            self.stage.progress("encoding pictures", start + int(numbers[-1]) + 1, self.total)
        return numbers, features

    def facts(self) -> dict[str, object]:
        """For the report: speed, and the share of the time in which the encoder had work."""
        if not self.encoded:
            return {}
        share = sum(self.busy) / (self.seconds * self.workers)
        return {
            "device": self.encoder.device,
            "images_per_second": round(self.encoded / self.seconds, 1),
            "encoder_busy": round(min(share, 1.0), 3),
        }


def _decode(batch: PictureBatch, encoder: Encoder, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the media frame and pixels uint8 [n, size, size, 3] of the pictures that decode."""
    buffer, errors = decode_images(
        *(batch.paths, batch.offsets, batch.lengths, batch.inline),
        size=encoder.size,
        fit=encoder.fit,
        filter=encoder.filter,
        max_pixels=_MAX_PIXELS,
        threads=threads,
    )
    pixels = np.frombuffer(buffer, np.uint8).reshape(-1, encoder.size, encoder.size, 3)
    good = pa.array(errors).field("reason").is_null().to_numpy(zero_copy_only=False)
    return batch.rows[good], pixels[good]


def _mean_of_frames(numbers: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One unit row float16 a media: of its picture, or of the mean of its frames' unit rows.

    A picture whose features are all zero has no direction, and no row.
    """
    lengths = np.linalg.norm(features, axis=1)
    numbers, features = numbers[lengths > 0], features[lengths > 0]
    unit = features / lengths[lengths > 0, None]
    media, starts = np.unique(numbers, return_index=True)
    if len(media) < len(numbers):
        unit = np.add.reduceat(unit, starts, axis=0)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return media, unit.astype(np.float16)


def _write_embeddings(folder: Path, chunks: list[np.ndarray], width: int) -> None:
    temporary = folder / ".embeddings.npy.tmp"
    shape = (sum(len(rows) for rows in chunks), width)
    if not shape[0]:
        # An empty file cannot be mapped; a table without pictures has no vectors.
        with temporary.open("wb") as stream:
            np.save(stream, np.empty(shape, np.float16))
    else:
        out = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        start = 0
        for rows in chunks:
            out[start : start + len(rows)] = rows
            start += len(rows)
        out.flush()
    temporary.replace(folder / "embeddings.npy")


def _take_precomputed(
    config: EmbedConfig, stage: Stage, ids: pl.Series
) -> tuple[pl.DataFrame, dict[str, object]]:
    """Rows made elsewhere, for the kept samples they name."""
    file = Path(config.encoder.removeprefix("precomputed:"))
    if not file.is_file():
        raise InputError(f"embed.encoder: {file}: no such file")
    given = np.load(file, mmap_mode="r")
    names = file.with_suffix(".ids")
    known = names.read_text(encoding="utf-8").split() if names.is_file() else ids.to_list()
    if given.ndim != 2 or len(given) != len(known):
        raise InputError(
            f"{file}: found shape {list(given.shape)}, expected [{len(known)}, d]",
            hint=f"one row an id of {names.name}, or without it one row a kept sample, by id",
        )
    numbers = pl.DataFrame({"id": known}).with_row_index("number")
    joined = pl.DataFrame({"id": ids}).join(numbers, on="id", how="inner").sort("id")
    features = np.asarray(given[joined["number"].to_numpy()], dtype=np.float32)
    lengths = np.linalg.norm(features, axis=1)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise InputError(f"{file}: {int((~(lengths > 0)).sum())} rows are zero or not finite")
    unit = (features / lengths[:, None]).astype(np.float16)
    _write_embeddings(stage.folder, [unit] if len(unit) else [], features.shape[1])
    return joined.select("id").with_row_index("row"), {"images": len(unit)}
