"""What a dataset of preference shards holds: totals, lengths, the fill of packs, and pairs as text.

The text of ``mmrlhf-engine inspect`` is made here; its page, from the same contents, is made in
:mod:`mmrlhf_engine.shards.inspect_page`.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import NonNegativeInt, PositiveInt

from mmrlhf_engine import _core
from mmrlhf_engine.errors import ConfigError, MissingExtraError
from mmrlhf_engine.models.families.placeholders import SMALLEST_ID
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset
from mmrlhf_engine.shards.image_rule import ImageRule, read_rule
from mmrlhf_engine.shards.inspect_pairs import PairText, read_pair
from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json
from mmrlhf_engine.shards.tables import Table, letter
from mmrlhf_engine.shards.tokenizer import TokenDecoder
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["Contents", "Distribution", "InspectSettings", "inspect", "read_contents"]

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 24
_TABLES: tuple[Table, ...] = ("queries", "responses", "pairs")


class InspectSettings(Section):
    """What is shown of a dataset."""

    rows: NonNegativeInt = 5
    """Pairs to show, evenly spaced over the dataset."""
    tokenizer: str | None = None
    """Name or folder; null is the one that the dataset records, if it is on this machine."""
    image_rule: str | None = None
    """A family or the folder of a processor; null is the one that the dataset records, if any."""
    tokens: PositiveInt = 16_384
    """The budget of a pack, of which the fill is shown."""
    unit: Literal["pair", "response", "query"] = "query"
    """What is packed as a whole."""


@dataclass(frozen=True)
class Distribution:
    """How often which number occurs."""

    name: str
    values: np.ndarray
    """Whole numbers, one at least."""

    def quantiles(self) -> dict[str, int]:
        """Least, median, 99 % and most, each a value that occurs."""
        shares = {"least": 0.0, "median": 0.5, "99 %": 0.99, "most": 1.0}
        return {
            name: int(np.quantile(self.values, share, method="inverted_cdf"))
            for name, share in shares.items()
        }

    def bins(self) -> list[tuple[int, int, int]]:
        """(from, to, count), of equal width, ends excluded; the last holds all above 99 % too."""
        first, last = int(self.values.min()), self.quantiles()["99 %"]
        width = max(1, -(-(last + 1 - first) // _BINS))
        count = -(-(last + 1 - first) // width)
        place = np.minimum((self.values - first) // width, count - 1)
        counts = np.bincount(place, minlength=count).tolist()
        starts = [first + number * width for number in range(count)]
        ends = [*starts[1:], max(first + count * width, int(self.values.max()) + 1)]
        return list(zip(starts, ends, counts, strict=True))

    def __str__(self) -> str:
        counts = [count for _, _, count in self.bins()]
        most = max(counts)
        bars = "".join(
            _BARS[(count * len(_BARS) - 1) // most] if count else " " for count in counts
        )
        numbers = ", ".join(f"{name} {value:,}" for name, value in self.quantiles().items())
        return f"{self.name:18} {numbers:52} {bars}"


@dataclass(frozen=True)
class Contents:
    """What a dataset holds."""

    path: Path
    totals: list[tuple[str, str]]
    """Name and value, in the order in which they are shown."""
    distributions: list[Distribution]
    pairs: list[PairText]
    notes: list[str]
    """What could not be shown, and why."""


def inspect(
    path: Path, settings: InspectSettings | None = None, *, version: int | None = None
) -> str:
    """Totals, lengths, fill of packs and some pairs, as text.

    Raises:
        InputError: the folder has no dataset, or not this version.
        ConfigError: the tokenizer or the image rule that is asked for cannot be read.
        CorruptDataError: a file of it is damaged.
    """
    contents = read_contents(path, settings or InspectSettings(), version=version)
    lines = [str(contents.path)]
    lines += [f"  {name:13} {value}" for name, value in contents.totals]
    lines += [f"  {distribution}" for distribution in contents.distributions]
    lines += [f"  note: {note}" for note in contents.notes]
    for pair in contents.pairs:
        lines += ["", str(pair)]
    return "\n".join(lines)


def read_contents(path: Path, settings: InspectSettings, *, version: int | None = None) -> Contents:
    """Everything that is shown; errors as of :func:`inspect`."""
    dataset = ShardDataset(path, version)
    notes: list[str] = []
    decoder = _decoder(dataset, settings, notes)
    rule = _rule(dataset, settings, notes)
    totals = _totals(dataset)
    if dataset.rows("pairs") == 0:
        return Contents(path, totals, [], [], notes)
    measured = _measure(dataset, rule)
    totals += _pair_totals(dataset)
    totals.append(("packs", _fill(measured, settings, rule)))
    count = min(settings.rows, dataset.rows("pairs"))
    rows = [number * dataset.rows("pairs") // count for number in range(count)]
    core = _core.Dataset(path, dataset.version, "lazy")
    pairs = [read_pair(core, row, decoder, rule) for row in rows]
    return Contents(path, totals, _distributions(measured, rule), pairs, notes)


def _decoder(
    dataset: ShardDataset, settings: InspectSettings, notes: list[str]
) -> TokenDecoder | None:
    try:
        # A recorded name is often that of a folder, for which the hub would be asked in vain.
        offline = settings.tokenizer is None
        return TokenDecoder(dataset.tokenizer, settings.tokenizer, offline=offline)
    except (ConfigError, MissingExtraError) as error:
        if settings.tokenizer is not None:
            raise
        notes.append(f"token ids instead of text: {str(error).splitlines()[0]}; --tokenizer")
        return None


def _rule(dataset: ShardDataset, settings: InspectSettings, notes: list[str]) -> ImageRule:
    if settings.image_rule is not None:
        return read_rule(settings.image_rule)
    if dataset.processor is not None:
        return ImageRule(dataset.processor["image_rule"])
    if dataset.rows("blobs"):
        notes.append("tokens of images are not counted: --image-rule gives the model's rule")
    return ImageRule()


def _totals(dataset: ShardDataset) -> list[tuple[str, str]]:
    manifest = dataset._manifest
    size = sum(shard[letter(name)]["bytes"] for shard in manifest["shards"] for name in _TABLES)
    pictures = sum(blobs["bytes"] for blobs in manifest["blobs"])
    totals = [
        ("version", f"{dataset.version}, profile {manifest['profile']}"),
        ("fingerprint", dataset.fingerprint),
        ("tokenizer", dataset._core.tokenizer),
        *((name, f"{dataset.rows(name):,}") for name in _TABLES),
        ("shards", f"{len(manifest['shards'])}, {size:,} bytes"),
        ("blobs", f"{dataset.rows('blobs'):,}, {pictures:,} bytes"),
    ]
    for columns in dataset.column_sets:
        share = f"{columns.filled:,} of {columns.rows:,} rows"
        name = f"{columns.name} rev {columns.revision} of {columns.table}: {share}"
        totals.append(("column set", name))
    return totals


def _pair_totals(dataset: ShardDataset) -> list[tuple[str, str]]:
    flags = [(pl.col("flags") & bit).gt(0).sum().alias(name) for name, bit in FLAGS.items()]
    known = pl.col("margin").is_not_null().sum().alias("margin")
    row = dataset.pairs.select(known, *flags).collect().row(0, named=True)
    margins = f"{row.pop('margin'):,} of {dataset.rows('pairs'):,} pairs"
    flagged = ", ".join(f"{count:,} {name}" for name, count in row.items())
    return [("margins known", margins), ("flags", flagged)]


@dataclass(frozen=True)
class _Measured:
    """A value a row of queries, responses and pairs."""

    prompts: np.ndarray
    """Tokens of text."""
    pictures: np.ndarray
    image_tokens: np.ndarray
    answers: np.ndarray
    query_of_answer: np.ndarray
    pairs: pl.DataFrame
    """``q``, ``chosen``, ``rejected``."""


def _measure(dataset: ShardDataset, rule: ImageRule) -> _Measured:
    length = (pl.col("prompt").list.len(), pl.col("media").list.len())
    queries = dataset.queries.select(prompt=length[0], media=length[1]).collect()
    pictures = queries["media"].to_numpy().astype(np.int64)
    image_tokens = np.zeros(len(queries), np.int64)
    if rule.parameters is not None and pictures.any():
        image_tokens = _image_tokens(dataset, rule)
    responses = dataset.responses.select("q", "n_tok").collect()
    return _Measured(
        prompts=queries["prompt"].to_numpy().astype(np.int64) - pictures,
        pictures=pictures,
        image_tokens=image_tokens,
        answers=responses["n_tok"].to_numpy().astype(np.int64),
        query_of_answer=responses["q"].to_numpy().astype(np.int64),
        pairs=dataset.pairs.select("q", "chosen", "rejected").collect(),
    )


def _image_tokens(dataset: ShardDataset, rule: ImageRule) -> np.ndarray:
    """Of each query; 0 where the model's processor would refuse one of its images."""
    blobs = dataset.blobs.select("id", "w", "h", "orient").collect()
    turned = blobs["orient"] >= 5
    sizes = {
        blob: (height, width) if swapped else (width, height)
        for blob, width, height, swapped in zip(
            blobs["id"], blobs["w"], blobs["h"], turned, strict=True
        )
    }
    placeholders = pl.col("prompt").list.eval(pl.element().filter(pl.element() >= SMALLEST_ID))
    queries = dataset.queries.select("media", placeholders).collect()
    counted = np.zeros(len(queries), np.int64)
    for row, (media, kinds) in enumerate(queries.iter_rows()):
        if media:
            with contextlib.suppress(BadRecordError):
                counted[row] = sum(rule.count([sizes[blob] for blob in media], kinds))
    return counted


def _distributions(measured: _Measured, rule: ImageRule) -> list[Distribution]:
    found = [
        Distribution("prompt tokens", measured.prompts),
        Distribution("answer tokens", measured.answers),
    ]
    with_pictures = measured.pictures > 0
    if with_pictures.any():
        found.append(Distribution("pictures", measured.pictures))
        if rule.parameters is not None:
            found.append(Distribution("image tokens", measured.image_tokens[with_pictures]))
    return found


def _fill(measured: _Measured, settings: InspectSettings, rule: ImageRule) -> str:
    """How full packs of a budget are; images of answers themselves are not counted."""
    text, of_query = _text_tokens(measured, settings.unit)
    # Both sequences of a pair show the images, whose pixels are in the batch once.
    times = 2 if settings.unit == "pair" else 1
    image_tokens = times * measured.image_tokens[of_query]
    plan = PlanSettings(
        budget=Budget(tokens=settings.tokens),
        packs_per_step=1,
        unit=settings.unit,
        too_large="drop",
    )
    columns = [
        pa.array(column, pa.uint32())
        for column in (text, image_tokens, measured.pictures[of_query])
    ]
    queries = None
    if settings.unit == "pair":
        queries = np.bincount(of_query, minlength=len(measured.prompts)).tolist()
    order = _core.Order(plan_json(plan, rule.parameters), *columns, queries=queries)
    windows = pl.DataFrame(pa.array(order.summarise(0)).to_pylist()).sum().row(0, named=True)
    fill = (windows["text_tokens"] + windows["image_tokens"]) / (
        max(1, windows["packs"]) * settings.tokens
    )
    dropped = f"; {windows['dropped']:,} are larger than that" if windows["dropped"] else ""
    return (
        f"{windows['packs']:,} of {settings.tokens:,} tokens, {fill:.1%} full, "
        f"from {windows['units']:,} units ({settings.unit}){dropped}"
    )


def _text_tokens(measured: _Measured, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of text of each unit, and its query."""
    if unit == "response":
        return measured.prompts[measured.query_of_answer] + measured.answers, (
            measured.query_of_answer
        )
    if unit == "query":
        answers = np.bincount(
            measured.query_of_answer, measured.answers, minlength=len(measured.prompts)
        )
        return measured.prompts + answers.astype(np.int64), np.arange(len(measured.prompts))
    query, *sides = (measured.pairs[name].to_numpy() for name in ("q", "chosen", "rejected"))
    return 2 * measured.prompts[query] + _of_both(measured.answers, sides), query


def _of_both(lengths: np.ndarray, sides: Sequence[Any]) -> np.ndarray:
    total: np.ndarray = lengths[sides[0]] + lengths[sides[1]]
    return total
