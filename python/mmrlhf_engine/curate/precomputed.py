"""Embeddings made elsewhere: ``precomputed:FILE.npy``.

The rows belong to the sample ids listed in a file of their own, in that order: ``FILE.ids`` or
``FILE.ids.txt`` (one id a line) or ``FILE.ids.json`` (a list). Without such a list there must be
one row for each kept sample, sorted by id. The file is mapped and read block by block.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from mmrlhf_engine.errors import InputError

__all__ = ["check_precomputed", "open_precomputed", "unit_blocks"]

BLOCK = 65_536


def check_precomputed(file: Path) -> None:
    """Refuse what can be seen without knowing the kept samples.

    Raises:
        InputError: as :func:`open_precomputed`.
    """
    rows, listed = _map(file), _listed_ids(file)
    if listed is not None:
        _check_count(file, rows, listed[1], f"ids in {listed[0].name}")


def open_precomputed(file: Path, kept: pl.Series) -> tuple[np.ndarray, pl.DataFrame]:
    """The mapped rows [n, d], and ``id, number`` of those that belong to kept samples, by id.

    Raises:
        InputError: the file is absent, is no array of numbers [n, d], or does not fit its ids.
    """
    rows = _map(file)
    listed = _listed_ids(file)
    ids = kept.sort() if listed is None else listed[1]
    source = "kept samples" if listed is None else f"ids in {listed[0].name}"
    _check_count(file, rows, ids, source)
    if ids.n_unique() != len(ids):
        twice = ids.filter(ids.is_duplicated())[0]
        raise InputError(f"{file}: the id {twice} has more than one row")
    numbers = pl.DataFrame({"id": ids.cast(pl.String)}).with_row_index("number")
    found = numbers.join(pl.DataFrame({"id": kept}), on="id", how="semi").sort("id")
    if len(kept) and not found.height:
        raise InputError(
            f"{file}: none of its {len(ids)} ids is a kept sample",
            hint=f"found {ids[0]!r}, expected ids such as {kept[0]!r}" if len(ids) else None,
        )
    return rows, found


def _check_count(file: Path, rows: np.ndarray, ids: pl.Series, source: str) -> None:
    if len(rows) != len(ids):
        raise InputError(
            f"{file}: found {len(rows)} rows, expected {len(ids)}, one for each of the {source}",
            hint=f"list the sample ids of the rows in {file.with_suffix('.ids').name}, one a line",
        )


def unit_blocks(file: Path, rows: np.ndarray, found: pl.DataFrame) -> Iterator[np.ndarray]:
    """The rows of ``found`` as float16 unit rows, block by block.

    Raises:
        InputError: a row has no direction: it is zero or not finite.
    """
    for block in found.iter_slices(BLOCK):
        features = rows[block["number"].to_numpy()].astype(np.float32)
        lengths = np.linalg.norm(features, axis=1)
        bad = ~(np.isfinite(lengths) & (lengths > 0))
        if bad.any():
            first = block.row(int(bad.argmax()), named=True)
            raise InputError(
                f"{file}: row {first['number']} ({first['id']}) is zero or not finite; "
                f"so are {int(bad.sum()) - 1} more"
            )
        yield (features / lengths[:, None]).astype(np.float16)


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


def _listed_ids(file: Path) -> tuple[Path, pl.Series] | None:
    """The list of ids next to the file, if there is one."""
    for path in (file.with_suffix(".ids"), file.with_suffix(".ids.txt")):
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return path, pl.Series(lines, dtype=pl.String)
    path = file.with_suffix(".ids.json")
    if not path.is_file():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise InputError(f"{path}: expected a list of sample ids")
    return path, pl.Series(ids, dtype=pl.String)
