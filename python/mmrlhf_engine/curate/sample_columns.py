"""Samples as columns in files, as ``find_duplicates`` takes them.

The tables are read part by part, so what is held in memory of a sample is a few numbers, whatever
the length of its texts. Rows are in the order of the table; ``by_id`` puts them in the order of
their ids, which does not depend on how the sources are laid out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import keep_orders
from mmrlhf_engine.run.mapped import MappedColumn
from mmrlhf_engine.run.stage import StageContext

__all__ = ["SampleColumns", "compared_text", "read_media", "read_samples"]

_COLUMNS = ("id", "prompt", "answer", "media", "history", "needs_history")
_ROWS_AT_ONCE = 16_384
_NO_PART = 2**32 - 1
_MEDIA_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class SampleColumns:
    """Of every sample whose media could be read, by row."""

    numbers: pa.UInt32Array
    """Its row in the table."""
    ids: pa.LargeStringArray
    prompts: pa.LargeStringArray
    """What is compared; see :func:`compared_text`."""
    answers: pa.LargeStringArray
    media: pa.LargeListArray
    """Numbers of its media."""
    rank: pa.UInt32Array
    """Its place in keep order: more pixels first, then the longer answer, then the smaller id."""
    by_id: np.ndarray
    """uint32 [rows]: the rows, ascending by id."""
    named: dict[str, int]
    """The rows of the ids that were asked for."""
    rejected: pl.DataFrame
    """``id``, ``reason`` and ``detail`` of the other samples, ascending by id."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rows: np.ndarray) -> "SampleColumns":
        """The same rows, of which these take no part in what ``find_duplicates`` does."""
        rank = self.rank.to_numpy().copy()
        rank[rows] = _NO_PART
        return replace(self, rank=pa.array(rank))


def read_media(stage: StageContext, more: pl.DataFrame | None = None) -> pl.DataFrame:
    """The table of media with their ``number``, ascending by hash: files that are mapped.

    ``more`` are rows of other media that take part; what both have is taken once.
    """
    table = stage.scan("media")
    parts = max(1, -(-stage.rows("media") // _MEDIA_AT_ONCE))
    # Hashes are hexadecimal digits: those of a range of them are sorted at a time.
    bounds = ["", *(f"{256 * part // parts:02x}" for part in range(1, parts)), None]
    sorted_parts, start = [], 0
    for part, (low, high) in enumerate(pairwise(bounds)):
        of_part = pl.col("hash") >= low
        if high is not None:
            of_part &= pl.col("hash") < high
        rows = table.filter(of_part).collect()
        if more is not None:
            rows = pl.concat([rows, more.filter(of_part).select(rows.columns)])
            rows = rows.unique("hash", keep="first", maintain_order=True)
        rows = rows.sort("hash")
        rows = rows.with_row_index("number", offset=start)
        file = stage.scratch / f"media-{part:03d}.arrow"
        rows.with_columns(pl.col("number").cast(pl.UInt32)).write_ipc(file)
        start += rows.height
        with pa.memory_map(str(file)) as mapped:
            sorted_parts.append(pl.DataFrame(pl.from_arrow(pa.ipc.open_file(mapped).read_all())))
    return pl.concat(sorted_parts, rechunk=False)


def read_samples(
    stage: StageContext, media: pl.DataFrame, broken: pl.DataFrame, named: Sequence[str]
) -> SampleColumns:
    """Read the table of samples.

    Args:
        stage: Its scratch folder gets the columns.
        media: As :func:`read_media` gives it.
        broken: ``number``, ``reason`` and ``detail`` of media that cannot be read, each once.
        named: Ids whose rows are asked for.
    """
    columns = _Columns(stage, media, broken, named)
    total = stage.rows("samples")
    for samples in _batches(stage):
        columns.append(samples)
        stage.progress("reading samples", columns.read, total)
    return columns.finish(stage.threads)


def compared_text(samples: pl.DataFrame) -> pl.Series:
    """The prompt behind what it depends on: the system prompt, and all turns before it where it
    cannot be understood alone or is about nothing else than these turns."""  # noqa: D205, D209
    if samples["history"].null_count() == samples.height:
        return samples["prompt"]
    alone = ~pl.col("needs_history").fill_null(value=False) & (pl.col("media").list.len() > 0)
    turn = pl.element().struct.field
    said = pl.concat_str(turn("role"), turn("text"), separator=": ", ignore_nulls=True)
    system = pl.col("history").list.eval(said.filter(turn("role") == "system"))
    before = pl.when(alone).then(system).otherwise(pl.col("history").list.eval(said))
    text = pl.concat_str(before.list.join("\n"), "prompt", separator="\n", ignore_nulls=True)
    without = pl.col("history").is_null() | (before.list.len() == 0)
    return samples.select(pl.when(without).then("prompt").otherwise(text)).to_series()


def _batches(stage: StageContext) -> Iterator[pl.DataFrame]:
    for part in sorted(stage.path("samples").glob("*.parquet")):
        yield from pl.read_parquet(part, columns=list(_COLUMNS)).iter_slices(_ROWS_AT_ONCE)


class _Columns:
    """The columns while they are written."""

    def __init__(
        self, stage: StageContext, media: pl.DataFrame, broken: pl.DataFrame, named: Sequence[str]
    ) -> None:
        def column(name: str, type: pa.DataType) -> MappedColumn:
            return MappedColumn(stage.scratch / "columns" / name, type)

        self.read = 0
        self._numbers = _Numbers(media["hash"])
        area = pl.col("width").cast(pl.UInt64) * pl.col("height").cast(pl.UInt64)
        self._area = media.select(area.fill_null(0)).to_series().to_numpy()
        self._broken = broken
        self._is_broken = np.zeros(media.height, np.bool_)
        self._is_broken[broken["number"].to_numpy()] = True
        self._named = pl.Series(named, dtype=pl.String).unique()
        self._rows: dict[str, int] = {}
        self._rejected = [pl.DataFrame(schema=dict.fromkeys(("id", "reason", "detail"), pl.String))]
        self._samples = column("numbers", pa.uint32())
        self._ids = column("ids", pa.large_string())
        self._prompts = column("prompts", pa.large_string())
        self._answers = column("answers", pa.large_string())
        self._media = column("media", pa.large_list(pa.uint32()))
        self._pixels = column("pixels", pa.uint64())
        self._lengths = column("lengths", pa.uint32())

    def append(self, samples: pl.DataFrame) -> None:
        """Write some more samples."""
        samples = samples.with_row_index("number", offset=self.read)
        self.read += samples.height
        names = samples["media"].explode(empty_as_null=False, keep_nulls=False)
        numbers = self._numbers.find(names)
        ends = np.cumsum(samples["media"].list.len().fill_null(0).to_numpy().astype(np.int64))
        if self._broken.height:
            rows = np.searchsorted(ends, np.flatnonzero(self._is_broken[numbers]), side="right")
            if len(rows):
                samples, numbers, ends = self._reject(samples, numbers, ends, rows)
        offsets = np.concatenate([[0], ends])
        total = np.concatenate([[0], np.cumsum(self._area[numbers], dtype=np.uint64)])
        self._remember(samples["id"])
        self._samples.append(pa.array(samples["number"].to_numpy()))
        for column, values in ((self._ids, samples["id"]), (self._answers, samples["answer"])):
            column.append(_strings(values))
        self._prompts.append(_strings(compared_text(samples)))
        self._media.append(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers)))
        self._pixels.append(pa.array((total[offsets[1:]] - total[offsets[:-1]]).astype(np.uint64)))
        lengths = samples["answer"].str.len_chars().fill_null(0).cast(pl.UInt32)
        self._lengths.append(pa.array(lengths.to_numpy()))

    def finish(self, threads: int) -> SampleColumns:
        """All columns, and the orders of the rows."""
        ids = self._ids.map()
        orders = keep_orders(ids, self._pixels.map(), self._lengths.map(), threads=threads)
        by_id, rank = (pa.array(order) for order in orders)
        return SampleColumns(
            numbers=self._samples.map(),
            ids=ids,
            prompts=self._prompts.map(),
            answers=self._answers.map(),
            media=self._media.map(),
            rank=rank,
            by_id=by_id.to_numpy(),
            named=self._rows,
            rejected=pl.concat(self._rejected).sort("id"),
        )

    def _reject(
        self, samples: pl.DataFrame, numbers: np.ndarray, ends: np.ndarray, rows: np.ndarray
    ) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
        """The samples without those of ``rows``, which have broken media; the first one counts."""
        rows, first = np.unique(rows, return_index=True)
        of = numbers[np.flatnonzero(self._is_broken[numbers])[first]]
        found = pl.DataFrame({"id": samples["id"].gather(rows), "number": of})
        found = found.join(self._broken, on="number", how="left", maintain_order="left")
        self._rejected.append(found.select("id", "reason", "detail"))
        good = np.ones(samples.height, np.bool_)
        good[rows] = False
        lengths = np.diff(ends, prepend=0)
        return (
            samples.filter(pl.Series(good)),
            numbers[np.repeat(good, lengths)],
            np.cumsum(lengths[good]),
        )

    def _remember(self, ids: pl.Series) -> None:
        if self._named.len():
            places = ids.is_in(self._named.implode()).arg_true()
            found = zip(ids.gather(places), (places + self._ids.rows).to_list(), strict=True)
            self._rows.update(found)


class _Numbers:
    """The number of each of a series of unique names."""

    def __init__(self, names: pl.Series) -> None:
        for seed in count():
            self._seed = seed
            keys = names.hash(seed).to_numpy()
            self._order = np.argsort(keys).astype(np.uint32)
            self._keys = keys[self._order]
            if not (self._keys[1:] == self._keys[:-1]).any():
                return

    def find(self, names: pl.Series) -> np.ndarray:
        """uint32; each name has a number."""
        if not len(names):
            return np.zeros(0, np.uint32)
        numbers: np.ndarray = self._order[np.searchsorted(self._keys, names.hash(self._seed))]
        return numbers


def _strings(values: pl.Series) -> pa.Array:
    strings = values.to_arrow().cast(pa.large_string())
    return strings.combine_chunks() if isinstance(strings, pa.ChunkedArray) else strings
