"""Hashes and colours of pictures that outlive a run, by the hash of the content.

A cache is a folder with a folder for each kind of hash, of Parquet files that are only ever added:
each run adds one with the pictures that no file had. A file appears when it is complete, so runs
may share a cache at the same time; two files may then have the same picture.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.files import appearing

__all__ = ["SignatureCache", "check_cache"]

_SCHEMA: dict[str, pl.DataType] = {
    "hash": pl.String(),  # of MEDIA; a row for each picture of a medium, in their order
    "phash": pl.UInt64(),
    "colour": pl.List(pl.UInt8()),
}


class SignatureCache:
    """What is known of media by their hash.

    Args:
        folder: Made if it is not there.
        name: Of the kind of hash.

    Raises:
        InputError: a file of the cache cannot be read.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._files = check_cache(folder, name)
        self._folder = folder / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def find(self, hashes: pl.Series) -> pl.DataFrame:
        """``hash, phash, colour`` of the pictures of media that are known, in their order.

        Args:
            hashes: Of media, ascending.
        """
        found = pl.DataFrame(schema=_SCHEMA)
        for file in self._files if len(hashes) else []:
            # Files are ascending by hash too, so most of one is passed over by its statistics.
            near = pl.col("hash").is_between(pl.lit(hashes[0]), pl.lit(hashes[-1]))
            rows = pl.scan_parquet(file).filter(near).collect()
            wanted = rows["hash"].is_in(hashes.implode())
            found = found.vstack(rows.filter(wanted & ~_are_in(rows, found)))
        return found

    def add(self, parts: Iterable[pl.DataFrame]) -> None:
        """Keep what is not known yet.

        Args:
            parts: ``hash, phash, colour`` of all pictures of some media; together ascending.
        """
        new = (rows for part in parts if (rows := self._unknown(part)).height)
        first = next(new, None)
        if first is None:
            return
        schema = pl.DataFrame(schema=_SCHEMA).to_arrow().schema
        with (
            appearing(self._folder / f"{uuid4().hex}.parquet") as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for rows in itertools.chain([first], new):
                writer.write_table(rows.to_arrow().cast(schema))

    def _unknown(self, part: pl.DataFrame) -> pl.DataFrame:
        known = self.find(part["hash"].unique().sort())
        return part.filter(~_are_in(part, known)).select(*_SCHEMA).cast(_SCHEMA)  # type: ignore[arg-type]


def check_cache(folder: Path, name: str) -> list[Path]:
    """The files of a cache, in the order of their names; none where it is not there.

    Raises:
        InputError: one of them cannot be read, or is no file of a cache.
    """
    files = sorted((folder / name).glob("[!.]*.parquet"))
    for file in files:
        _check(file)
    return files


def _are_in(rows: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
    return rows["hash"].is_in(others["hash"].unique().implode())


def _check(file: Path) -> None:
    """Refuse a file that is none of a cache."""
    try:
        found = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read: {error}", hint="delete it") from None
    if found != list(_SCHEMA):
        raise InputError(
            f"{file}: found the columns {', '.join(found)}, expected {', '.join(_SCHEMA)}",
            hint="delete it, or name another folder",
        )
