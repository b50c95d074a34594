"""Samples as columns in files, as ``find_duplicates`` takes them.

The tables are read part by part, so what is held in memory of a sample is a few numbers, whatever
the length of its texts. Those of a part of the table are written to one file, which is mapped, and
kept for later runs. Rows are in the order of the table; ``by_id`` puts them in the order of
their ids, which does not depend on how the sources are laid out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mmrlhf_engine._core import keep_orders
from mmrlhf_engine.curate.kept_files import KeptFiles
from mmrlhf_engine.run.code_hash import code_hash
from mmrlhf_engine.run.mapped import MappedColumn
from mmrlhf_engine.run.stage import StageContext

__all__ = ["PartOfSamples", "SampleColumns", "compared_text", "read_media", "read_samples"]

_COLUMNS = ("id", "prompt", "answer", "media", "history", "needs_history")
_ROWS_AT_ONCE = 16_384
_NO_PART = 2**32 - 1
_MEDIA_AT_ONCE = 1_000_000
_TEXTS = pa.schema(
    {
        "id": pa.large_string(),
        "prompt": pa.large_string(),  # as it is compared
        "answer": pa.large_string(),
        "media": pa.large_list(pa.large_string()),
    }
)
"""What is kept of a part of the table, in batches of some rows."""


@dataclass
class PartOfSamples:
    """The texts of a part of the table, but those of rows whose media could not be read."""

    state: str
    """Equal for parts of equal rows."""
    prompts: list[pa.LargeStringArray]
    """What is compared; see :func:`compared_text`."""
    answers: list[pa.LargeStringArray]


@dataclass(frozen=True)
class SampleColumns:
    """Of every sample whose media could be read, by row."""

    numbers: pa.UInt32Array
    """Its row in the table."""
    ids: pa.LargeStringArray
    parts: list[PartOfSamples]
    """Their texts."""
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

    @property
    def prompts(self) -> list[pa.LargeStringArray]:
        """The texts that are compared, in arrays one behind the other."""
        return [texts for part in self.parts for texts in part.prompts]

    @property
    def answers(self) -> list[pa.LargeStringArray]:
        """Likewise, or null."""
        return [texts for part in self.parts for texts in part.answers]

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
    stage: StageContext,
    files: KeptFiles,
    media: pl.DataFrame,
    broken: pl.DataFrame,
    named: Sequence[str],
) -> SampleColumns:
    """Read the table of samples.

    Args:
        stage: Its scratch folder gets columns that hold for this run alone.
        files: Have the texts of each part, or get them.
        media: As :func:`read_media` gives it.
        broken: ``number``, ``reason`` and ``detail`` of media that cannot be read, each once.
        named: Ids whose rows are asked for.
    """
    columns = _Columns(stage, media, broken, named)
    total = stage.rows("samples")
    for part, state in _parts(stage):
        columns.begin_part(state)
        file = files.file("columns", "arrow", [code_hash(__name__), state])
        place = files.find(file) or files.put(file, partial(_write_texts, part))
        with pa.memory_map(str(place)) as mapped:
            reader = pa.ipc.open_file(mapped)
            for number in range(reader.num_record_batches):
                columns.append(reader.get_batch(number))
                stage.progress("reading samples", columns.read, total)
    return columns.finish(stage.threads)


def _parts(stage: StageContext) -> Iterator[tuple[Path, str]]:
    """The parts of the table, each with the hash of its content."""
    folder, run = stage.path("samples"), stage.run
    owner = None if run is None else run.owner("samples", before=stage.stage.name)
    manifest = None if run is None or owner is None else run.manifest(owner)
    known = {} if manifest is None else manifest["outputs"]
    for file in sorted(folder.glob("*.parquet")):
        yield file, known[f"{folder.name}/{file.name}"]["sha256"]


def _write_texts(part: Path, place: Path) -> None:
    rows = pl.read_parquet(part, columns=list(_COLUMNS))
    with pa.ipc.new_file(place, _TEXTS) as writer:
        for samples in rows.iter_slices(_ROWS_AT_ONCE):
            texts = samples.select(
                "id", compared_text(samples), "answer", pl.col("media").fill_null([])
            )
            columns = (
                texts[name].to_arrow().cast(_TEXTS.field(name).type) for name in _TEXTS.names
            )
            writer.write_batch(pa.record_batch([*columns], schema=_TEXTS))


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


class _Columns:
    """The columns while they are written."""

    def __init__(
        self, stage: StageContext, media: pl.DataFrame, broken: pl.DataFrame, named: Sequence[str]
    ) -> None:
        def column(name: str, type: pa.DataType) -> MappedColumn:
            return MappedColumn(self._scratch / name, type)

        self._scratch = stage.scratch / "columns"
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
        self._media = column("media", pa.large_list(pa.uint32()))
        self._pixels = column("pixels", pa.uint64())
        self._lengths = column("lengths", pa.uint32())
        self._parts: list[PartOfSamples] = []

    def begin_part(self, state: str) -> None:
        """The next samples are of another part of the table."""
        self._parts.append(PartOfSamples(state, [], []))

    def append(self, texts: pa.RecordBatch) -> None:
        """Take some more samples, with the columns of ``_TEXTS``."""
        part = self._parts[-1]
        rows = np.arange(self.read, self.read + texts.num_rows, dtype=np.uint32)
        self.read += texts.num_rows
        media = texts.column("media")
        names = pl.Series(pl.from_arrow(media.flatten()), dtype=pl.String)
        numbers = self._numbers.find(names)
        ends = media.offsets.to_numpy()[1:] - media.offsets[0].as_py()
        if self._broken.height:
            bad = np.searchsorted(ends, np.flatnonzero(self._is_broken[numbers]), side="right")
            if len(bad):
                good, numbers, ends = self._reject(texts.column("id"), numbers, ends, bad)
                part.state = f"{part.state} {rows[~good].tolist()}"
                texts, rows = texts.filter(pa.array(good)), rows[good]
                # These are in memory, so they are written to files of their own.
                texts = self._mapped(texts, ("prompt", "answer"))
        offsets = np.concatenate([[0], ends])
        total = np.concatenate([[0], np.cumsum(self._area[numbers], dtype=np.uint64)])
        ids, answers = texts.column("id"), texts.column("answer")
        self._remember(pl.Series(pl.from_arrow(ids), dtype=pl.String))
        self._samples.append(pa.array(rows))
        self._ids.append(ids)
        part.prompts.append(texts.column("prompt"))
        part.answers.append(answers)
        self._media.append(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers)))
        self._pixels.append(pa.array((total[offsets[1:]] - total[offsets[:-1]]).astype(np.uint64)))
        lengths = pc.fill_null(pc.utf8_length(answers), 0).cast(pa.uint32())
        self._lengths.append(lengths)

    def finish(self, threads: int) -> SampleColumns:
        """All columns, and the orders of the rows."""
        ids = self._ids.map()
        orders = keep_orders(ids, self._pixels.map(), self._lengths.map(), threads=threads)
        by_id, rank = (pa.array(order) for order in orders)
        return SampleColumns(
            numbers=self._samples.map(),
            ids=ids,
            parts=self._parts,
            media=self._media.map(),
            rank=rank,
            by_id=by_id.to_numpy(),
            named=self._rows,
            rejected=pl.concat(self._rejected).sort("id"),
        )

    def _mapped(self, texts: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        """The same rows, with these columns in files."""
        columns = dict(zip(texts.schema.names, texts.columns, strict=True))
        for name in names:
            with MappedColumn(self._scratch / f"{name}-{self.read}", columns[name].type) as column:
                column.append(columns[name])
                columns[name] = column.map()
        return pa.record_batch(list(columns.values()), schema=texts.schema)

    def _reject(
        self, ids: pa.LargeStringArray, numbers: np.ndarray, ends: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Without ``rows``, which have broken media, of which the first one counts.

        Returns:
            Which rows are left, the numbers of their media, and where those of each end.
        """
        rows, first = np.unique(rows, return_index=True)
        of = numbers[np.flatnonzero(self._is_broken[numbers])[first]]
        names = pl.Series(pl.from_arrow(ids.take(pa.array(rows))), dtype=pl.String)
        found = pl.DataFrame({"id": names, "number": of})
        found = found.join(self._broken, on="number", how="left", maintain_order="left")
        self._rejected.append(found.select("id", "reason", "detail"))
        good = np.ones(len(ids), np.bool_)
        good[rows] = False
        lengths = np.diff(ends, prepend=0)
        return good, numbers[np.repeat(good, lengths)], np.cumsum(lengths[good])

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
