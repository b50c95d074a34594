"""Scores of any other reward model, read from JSON Lines for the rows of a dataset.

Each line is of one of four forms, the same on all lines::

    {"row": 7, "rewards": [1.5, -0.25]}      a pair by its row from 0: chosen, rejected
    {"pair": 7, "rewards": [1.5, -0.25]}     a pair by its row, or by its id (32 hexadecimal digits)
    {"pair": "90ab...", "margin": 1.75}      likewise; the reward of chosen less that of rejected
    {"response": 12, "reward": 1.5}          a response by its row, or by its id

The first line may be ``{"dataset": "b3:..."}``: the fingerprint of the dataset that was scored.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmrlhf_engine.errors import CorruptDataError, InputError
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.tables import Table
from mmrlhf_engine.sources.files import check_present, open_stream

__all__ = ["GivenScores", "read_scores"]

_FORMS = (("row", "rewards"), ("pair", "rewards"), ("pair", "margin"), ("response", "reward"))
_FORMS_HINT = (
    'expected {"row": 0, "rewards": [CHOSEN, REJECTED]}, {"pair": ROW|ID, "margin": X}, '
    '{"pair": ROW|ID, "rewards": [CHOSEN, REJECTED]} or {"response": ROW|ID, "reward": X}'
)
_LARGEST = float(np.finfo(np.float32).max) / 2
"""So that the difference of two rewards is finite as float32."""
_SHOWN = 60


@dataclass(frozen=True)
class GivenScores:
    """Scores by the rows of a dataset; NaN is a score that is not known."""

    rewards: np.ndarray | None
    """Float32 [responses]; None where the file has margins alone, or no reward that is one of a
    response."""
    margins: np.ndarray | None
    """Float32 [pairs], chosen less rejected; from rewards of responses where both are known."""
    missing: int
    """Rows that the file has no line for: pairs, or responses where it has those."""
    differing: int = 0
    """Responses whose rewards differ between their pairs: they have margins, and no reward."""


def read_scores(file: Path, dataset: ShardDataset) -> GivenScores:
    """The scores of a file (also gzip or zstd) for the rows of a dataset.

    Rewards of pairs give margins; where a response has the same reward (as float32) in all of its
    pairs that have a line, it has that reward. An id that several rows have, which is one prompt
    and answer stored twice, stands for all of them.

    Args:
        file: The file.
        dataset: The dataset, opened.

    Raises:
        InputError: the file is absent or empty, of another dataset, or one of its lines is not of
            the form of the first, has no finite numbers, or names a row that is not there or that
            another line has named already.
        CorruptDataError: a compressed file is cut off or damaged.
    """
    reader = _Reader(file, dataset)
    reader.read()
    pairs = dataset.pairs.select("chosen", "rejected").collect().to_numpy()
    if reader.form == ("response", "reward"):
        rewards = reader.values[:, 0]
        margins = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
        return GivenScores(_float32(rewards), _float32(margins), reader.missing)
    if reader.form == ("pair", "margin"):
        return GivenScores(None, _float32(reader.values[:, 0]), reader.missing)
    rewards, differing = _of_responses(reader.values, pairs, dataset.rows("responses"))
    known = bool(np.isfinite(rewards).any())
    return GivenScores(
        rewards if known else None,
        _float32(reader.values[:, 0] - reader.values[:, 1]),
        reader.missing,
        differing,
    )


class _Reader:
    """Reads lines into ``values`` float64 [rows, 1 or 2]; NaN where no line was.

    Args:
        file: The file.
        dataset: The dataset.
    """

    def __init__(self, file: Path, dataset: ShardDataset) -> None:
        self._file, self._dataset = file, dataset
        self._rows_of: dict[str, list[int]] | None = None
        self._line_of = np.zeros(0, dtype=np.int64)
        self.form: tuple[str, str] | None = None
        self.values = np.zeros((0, 0))

    @property
    def missing(self) -> int:
        """Rows that no line has named."""
        return int((self._line_of == 0).sum())

    def read(self) -> None:
        """Read all lines.

        Raises:
            InputError: a line is wrong, or there is none.
        """
        for count, (line, record) in enumerate(self._records()):
            if "dataset" in record:
                self._check_dataset(line, record, first=count == 0)
            else:
                self._take(line, record)
        if self.form is None:
            raise InputError(f"{self._file}: no scores", hint=_FORMS_HINT)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        check_present(self._file)
        if self._file.is_dir():
            raise InputError(f"{self._file}: found a folder, expected a file of scores")
        for line, text in self._lines():
            text = text.removeprefix(b"\xef\xbb\xbf") if line == 1 else text
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._wrong(line, f"not JSON: {error}") from None
            if not isinstance(record, dict):
                raise self._wrong(line, f"found {type(record).__name__}, expected an object")
            yield line, record

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        line = 0
        try:
            with io.BufferedReader(open_stream(self._file)) as stream:
                for line, text in enumerate(stream, 1):
                    yield line, text
        except OSError as error:
            raise CorruptDataError(
                f"{self._file}: cannot be read behind line {line}: {error}",
                hint="the file is cut off or damaged; make it again",
            ) from None

    def _wrong(self, line: int, found: str, hint: str = _FORMS_HINT) -> InputError:
        return InputError(f"{self._file}:{line}: {found}", hint=hint)

    def _check_dataset(self, line: int, record: dict[str, Any], *, first: bool) -> None:
        if not first or len(record) != 1:
            raise self._wrong(line, "'dataset' is expected on the first line, alone")
        if record["dataset"] != self._dataset.fingerprint:
            raise self._wrong(
                line,
                f"scores of another dataset: found {_short(record['dataset'])}, expected "
                f"{self._dataset.fingerprint}",
                hint=f"score {self._dataset.path} again; without this line the rows are not "
                "compared",
            )

    def _take(self, line: int, record: dict[str, Any]) -> None:
        form = next((form for form in _FORMS if record.keys() == set(form)), None)
        if form is None:
            raise self._wrong(line, f"keys found: {', '.join(sorted(record)) or 'none'}")
        if self.form is None:
            self._begin(form)
        elif form != self.form:
            both = " and ".join("/".join(one) for one in (self.form, form))
            raise self._wrong(
                line, f"mixed forms: {both}", hint="write all lines of a file in one form"
            )
        values = self._numbers(line, form[1], record[form[1]])
        for row in self._rows(line, form[0], record[form[0]]):
            if self._line_of[row]:
                raise self._wrong(
                    line,
                    f"a second line for {form[0]} {row}, the first is line {self._line_of[row]}",
                    hint="one line a row",
                )
            self._line_of[row] = line
            self.values[row] = values

    def _begin(self, form: tuple[str, str]) -> None:
        self.form = form
        rows = self._dataset.rows(self._table)
        self.values = np.full((rows, 2 if form[1] == "rewards" else 1), np.nan)
        self._line_of = np.zeros(rows, dtype=np.int64)

    @property
    def _table(self) -> Table:
        return "responses" if self.form == ("response", "reward") else "pairs"

    def _numbers(self, line: int, key: str, value: Any) -> list[float]:
        items = value if key == "rewards" else [value]
        if not isinstance(items, list) or (key == "rewards" and len(items) != 2):
            raise self._wrong(line, f"'rewards' is {_short(value)}, expected [CHOSEN, REJECTED]")
        for item in items:
            number = not isinstance(item, bool) and isinstance(item, int | float)
            if not number or not abs(item) <= _LARGEST:  # NaN is not <= anything
                raise self._wrong(
                    line,
                    f"{key!r} is {_short(value)}, expected finite numbers",
                    hint="leave out the line of a row whose score is not known",
                )
        return [float(item) for item in items]

    def _rows(self, line: int, key: str, name: Any) -> list[int]:
        """The rows that a row or an id stands for."""
        count, table = len(self._line_of), self._table
        if isinstance(name, int) and not isinstance(name, bool):
            if not 0 <= name < count:
                raise self._wrong(
                    line,
                    f"{key} {name}: {self._dataset.path} has {count:,} {table}, from 0",
                    hint="these are scores for other rows; score this dataset again",
                )
            return [name]
        if key == "row" or not isinstance(name, str):
            kinds = "a row from 0" if key == "row" else "a row from 0 or an id"
            raise self._wrong(line, f"{key!r} is {_short(name)}, expected {kinds}")
        if self._rows_of is None:
            self._rows_of = self._ids()
        rows = self._rows_of.get(name.lower())
        if rows is None:
            raise self._wrong(
                line,
                f"{key} {_short(name)}: no such id among the {count:,} {table} of "
                f"{self._dataset.path}",
                hint="these are scores of other content; ids are those of the column "
                f"{'rid' if table == 'responses' else 'pid'}, 32 hexadecimal digits",
            )
        return rows

    def _ids(self) -> dict[str, list[int]]:
        column = "rid" if self._table == "responses" else "pid"
        ids = self._dataset.table(self._table).select(pl.col(column).bin.encode("hex")).collect()
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(ids[column]):
            rows_of.setdefault(name, []).append(row)
        return rows_of


def _of_responses(values: np.ndarray, pairs: np.ndarray, responses: int) -> tuple[np.ndarray, int]:
    """Float32 rewards [responses] that are the same in all pairs, and how many are not.

    Args:
        values: Float64 [pairs, 2], NaN where not known.
        pairs: Rows of responses [pairs, 2].
        responses: Rows of responses.
    """
    known = np.isfinite(values).all(axis=1)
    rows, rewards = pairs[known].ravel(), _float32(values[known].ravel())
    lowest = np.full(responses, np.inf, dtype=np.float32)
    highest = np.full(responses, -np.inf, dtype=np.float32)
    np.minimum.at(lowest, rows, rewards)
    np.maximum.at(highest, rows, rewards)
    return np.where(lowest == highest, lowest, np.float32(np.nan)), int((lowest < highest).sum())


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, float) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
