"""Embeddings made elsewhere: ``precomputed:FILE.npy``.

The rows belong to the sample ids listed in a file of their own, in that order: ``FILE.ids`` or
``FILE.ids.txt`` (one id a line) or ``FILE.ids.json`` (a list). Without such a list there must be
one row for each kept sample, sorted by id. The file is mapped and read block by block.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.ordered_map import ordered_map

__all__ = [
    "check_precomputed",
    "files_of_precomputed",
    "open_precomputed",
    "unit_blocks",
    "width_of",
]

BLOCK = 16_384
_LISTS = (".ids", ".ids.txt", ".ids.json")


def files_of_precomputed(file: Path) -> list[Path]:
    """The files that :func:`open_precomputed` reads, those that are there."""
    listed = _list_beside(file)
    return [path for path in (file, listed) if path is not None and path.is_file()]


def check_precomputed(file: Path) -> None:
    """Refuse what can be seen without knowing the kept samples.

    Raises:
        InputError: as :func:`open_precomputed`.
    """
    rows, path = _map(file), _list_beside(file)
    if path is not None:
        count = len(_read_ids(path)) if path.suffix == ".json" else _count_lines(path)
        _check_count(file, rows, count, f"ids in {path.name}")


def width_of(file: Path) -> int:
    """Values in a row, d of [n, d].

    Raises:
        InputError: the file is absent, or is no array of numbers [n, d].
    """
    return int(_map(file).shape[1])


def open_precomputed(file: Path, kept: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The mapped rows [n, d], and for each kept sample the number of its row, int64, -1 for none.

    ``kept`` is ascending, as the table is.

    Raises:
        InputError: the file is absent, is no array of numbers [n, d], or does not fit its ids.
    """
    rows, path = _map(file), _list_beside(file)
    if path is None:
        _check_count(file, rows, len(kept), "kept samples")
        return rows, np.arange(len(kept))
    ids = _read_ids(path)
    _check_count(file, rows, len(ids), f"ids in {path.name}")
    numbers = _numbers_of(file, ids, kept)
    if len(kept) and not (numbers >= 0).any():
        raise InputError(
            f"{file}: none of its {len(ids)} ids is a kept sample",
            hint=f"found {ids[0]!r}, expected ids such as {kept[0]!r}" if len(ids) else None,
        )
    return rows, numbers


def _numbers_of(file: Path, ids: pl.Series, kept: pl.Series) -> np.ndarray:
    """The place of each kept id among ``ids``, -1 for none.

    They are looked up by a hash of 64 bits: a table of the ids would take several times their size.
    """
    if not len(ids):
        return np.full(len(kept), -1)
    for seed in itertools.count():  # until no two ids have one hash
        hashes = ids.hash(seed).to_numpy()
        order = np.argsort(hashes)
        hashes = hashes[order]
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        if not len(equal):
            break
        first, second = ids.gather(order[equal]), ids.gather(order[equal + 1])
        if twice := first.filter(first == second).to_list():
            raise InputError(f"{file}: the id {twice[0]} has more than one row")
    wanted = kept.hash(seed).to_numpy()
    place = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    numbers = order[place]
    same = (ids.gather(numbers) == kept).to_numpy()
    return np.where(same, numbers, np.int64(-1))


def _check_count(file: Path, rows: np.ndarray, count: int, source: str) -> None:
    if len(rows) != count:
        raise InputError(
            f"{file}: found {len(rows)} rows, expected {count}, one for each of the {source}",
            hint=f"list the sample ids of the rows in {file.with_suffix('.ids').name}, one a line",
        )


def unit_blocks(
    file: Path, rows: np.ndarray, wanted: np.ndarray, name: Callable[[int], str], threads: int
) -> Iterator[np.ndarray]:
    """The rows ``wanted`` (int64, ascending) as float16 unit rows, block by block.

    ``name`` gives the id of the sample of a row.

    Raises:
        InputError: a row has no direction: it is zero or not finite.
    """

    def scaled(start: int) -> np.ndarray:
        numbers = wanted[start : start + BLOCK]
        features = rows[numbers].astype(np.float32)
        lengths = np.linalg.norm(features, axis=1)
        bad = ~(np.isfinite(lengths) & (lengths > 0))
        if bad.any():
            first = int(numbers[bad.argmax()])
            raise InputError(
                f"{file}: row {first} ({name(first)}) is zero or not finite; "
                f"so are {int(bad.sum()) - 1} more"
            )
        unit: np.ndarray = (features / lengths[:, None]).astype(np.float16)
        return unit

    yield from ordered_map(scaled, range(0, len(wanted), BLOCK), threads or os.cpu_count() or 1)


def _map(file: Path) -> np.ndarray:
    if not file.is_file():
        raise InputError(f"embed.encoder: {file}: no such file")
    try:
        rows: np.ndarray = np.lib.format.open_memmap(file, mode="r")
    except ValueError as error:
        raise InputError(f"{file}: not an array saved by numpy: {error}") from None
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        found = f"{rows.dtype} {list(rows.shape)}"
        raise InputError(f"{file}: found {found}, expected an array of numbers [n, d]")
    return rows


def _list_beside(file: Path) -> Path | None:
    """The list of ids next to the file, if there is one."""
    lists = (file.with_suffix(suffix) for suffix in _LISTS)
    return next((path for path in lists if path.is_file()), None)


def _read_ids(path: Path) -> pl.Series:
    """The ids of a list."""
    if path.suffix != ".json":
        return _read_lines(path)
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise InputError(f"{path}: expected a list of sample ids")
    return pl.Series(ids, dtype=pl.String)


def _read_lines(path: Path) -> pl.Series:
    """The lines of a file; read by polars, which holds ten million of them in 300 MB."""
    ids = _lines(path).collect()["id"]
    if len(blank := (ids == "").arg_true()):
        raise _blank_line(path, blank[0])
    return ids


def _count_lines(path: Path) -> int:
    """How many lines a file has, without holding them."""
    blank = pl.col("index").filter(pl.col("id") == "").first()
    lines = _lines(path).with_row_index().select(pl.len(), blank)
    count, first_blank = lines.collect(engine="streaming").row(0)
    if first_blank is not None:
        raise _blank_line(path, first_blank)
    return int(count)


def _blank_line(path: Path, index: int) -> InputError:
    return InputError(
        f"{path}: line {index + 1} is empty, expected the id of a row",
        hint="a line for each row, in their order; take out rows that have no sample",
    )


def _lines(path: Path) -> pl.LazyFrame:
    if not path.stat().st_size:
        return pl.LazyFrame(schema={"id": pl.String()})
    lines = pl.scan_csv(
        path,
        has_header=False,
        separator="\x01",
        quote_char=None,
        schema={"id": pl.String()},
    )
    return lines.select(pl.col("id").fill_null("").str.strip_suffix("\r"))
