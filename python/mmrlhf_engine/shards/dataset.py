"""Opening a dataset of preference shards: its tables as Polars frames, and its sidecar columns.

The format is specified in ``docs/shard-format.md``. This module reads whole tables; batches for
training come from :class:`mmrlhf_engine.PreferenceLoader`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.shards.columns import provenance
from mmrlhf_engine.shards.loader import PictureSettings
from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json
from mmrlhf_engine.shards.tables import TABLES, Table, scan_table

__all__ = [
    "FLAGS",
    "ColumnSet",
    "ShardDataset",
    "add_column",
    "is_dataset",
    "open_dataset",
]

FLAGS = {"tie": 1, "human": 2, "synthetic": 4, "truncated": 8}
"""Bits of the column ``flags`` of pairs."""


@dataclass(frozen=True)
class ColumnSet:
    """A set of sidecar columns of one table."""

    name: str
    table: str
    revision: int
    fields: list[str]
    filled: int
    """Rows of the table that have values."""
    rows: int
    """Rows of the table."""
    provenance: dict[str, Any]
    """The conditions under which the values were made."""


class ShardDataset:
    """One version of a dataset of preference shards.

    The version is chosen when the dataset is opened and does not change afterwards: open it again
    to see columns or rows that were added since.

    Args:
        path: Folder of the dataset.
        version: Version to open; None is the highest.

    Raises:
        InputError: the folder has no dataset, not this version, or its manifest is damaged.
    """

    def __init__(self, path: Path | str, version: int | None = None) -> None:
        self.path = Path(path)
        self._core = _core.Dataset(self.path, version, "lazy")
        self._manifest: dict[str, Any] = json.loads(self._core.manifest)

    def __repr__(self) -> str:
        rows = ", ".join(f"{self.rows(name):,} {name}" for name in TABLES)
        return f"ShardDataset({str(self.path)!r}, version {self.version}: {rows})"

    @property
    def version(self) -> int:
        """Number of the version that is open, from 1."""
        return self._core.version

    @property
    def fingerprint(self) -> str:
        """``b3:`` and a hash of all shards and blobs; sidecar columns are not part of it."""
        return self._core.fingerprint

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Tokenizer that made the ids: name, SHA-256, vocabulary, SHA-256 of the chat template."""
        return dict(json.loads(self._core.tokenizer))

    @property
    def processor(self) -> dict[str, Any] | None:
        """The model's processor it was packed for: family, image rule and settings of pictures."""
        return self.tokenizer.get("processor")

    @property
    def queries(self) -> pl.LazyFrame:
        """A row a prompt.

        ``prompt`` (ids), ``media`` (blob ids), ``media_t`` (seconds of frames), ``r0``, ``r1``,
        ``p0``, ``p1`` (its responses and pairs, ends excluded), ``source``, ``weight``,
        ``prompt_text``.
        """
        return self.table("queries")

    @property
    def responses(self) -> pl.LazyFrame:
        """A row a response.

        ``q`` (row of its query), ``tokens`` (ids), ``n_tok``, ``media`` (blob ids), ``rank``,
        ``score``, ``critique``, ``critique_tok`` (ids), ``model``.
        """
        return self.table("responses")

    @property
    def pairs(self) -> pl.LazyFrame:
        """A row a pair.

        ``q`` (row of its query), ``chosen`` and ``rejected`` (rows of responses), ``margin``,
        ``weight``, ``flags`` (see ``FLAGS``).
        """
        return self.table("pairs")

    @property
    def blobs(self) -> pl.LazyFrame:
        """A row a distinct picture or frame.

        ``id``, ``bytes`` (the file as it was), ``fmt``, ``w``, ``h``, ``orient``, ``frames``.
        """
        return self.table("blobs")

    @property
    def column_sets(self) -> list[ColumnSet]:
        """The sets of sidecar columns of this version."""
        made = {entry["set"]: entry["provenance"] for entry in self._manifest["columns"]}
        return [
            ColumnSet(
                name=cover["set"],
                table=cover["table"],
                revision=cover["rev"],
                fields=list(cover["fields"]),
                filled=cover["filled"],
                rows=cover["rows"],
                provenance=made[cover["set"]],
            )
            for cover in json.loads(self._core.coverage())
        ]

    def provenance(self, **own: Any) -> dict[str, Any]:
        """The conditions of values made over this dataset as its processor prepares it.

        Args:
            own: What else made the values: model, revision, dtype.
        """
        processor = self.processor or {}
        pictures = None
        if processor:
            pictures = PictureSettings.model_validate(processor["pictures"]).model_dump(mode="json")
        any_plan = PlanSettings(budget=Budget(tokens=1), packs_per_step=1)
        plan = plan_json(any_plan, processor.get("image_rule"))
        return provenance(self._core, plan, pictures=pictures, **own)

    def rows(self, table: Table) -> int:
        """Number of rows of a table.

        Raises:
            InputError: there is no such table.
        """
        return self._core.rows(table)

    def table(self, table: Table) -> pl.LazyFrame:
        """A table over all shards; references are rows over all shards, from 0.

        Checksums are not compared here; ``mmrlhf-engine verify`` does that.

        Raises:
            InputError: there is no such table.
        """
        return scan_table(self.path, self._manifest, table)

    def blob_files(self) -> list[dict[str, Any]]:
        """Entries of the manifest for the files of pictures: ``id``, ``file``, ``rows``, ..."""
        return list(self._manifest["blobs"])

    def picture(self, blob: int) -> tuple[bytes, int]:
        """The file of a picture or frame by its blob id, and its format as in ``blobs``.

        Raises:
            InputError: there is no such blob.
            CorruptDataError: the dataset is damaged there.
        """
        content, _, _, kind, *_ = self._core.blob(blob)
        return content, kind

    def column(self, column_set: str, field: str) -> pl.Series:
        """A sidecar column, a value a row of its table, null where it was not computed.

        Raises:
            InputError: there is no such set or field.
        """
        values = pa.array(self._core.column(column_set, field))
        return pl.Series(field, values)

    def add_column(
        self,
        values: pa.Table | pl.DataFrame,
        *,
        table: Table,
        column_set: str,
        provenance: dict[str, Any],
        start: int = 0,
    ) -> int:
        """Write sidecar columns; see :func:`add_column`. The new version, which is not opened."""
        return add_column(
            self.path,
            values,
            table=table,
            column_set=column_set,
            provenance=provenance,
            start=start,
        )


def open_dataset(path: Path | str, version: int | None = None) -> ShardDataset:
    """Open one version of a dataset of preference shards; None is the highest.

    Raises:
        InputError: the folder has no dataset, not this version, or its manifest is damaged.
    """
    return ShardDataset(path, version)


def is_dataset(path: Path) -> bool:
    """Whether a folder holds preference shards."""
    return (path / "_mmrlhf").is_dir()


def add_column(
    path: Path,
    values: pa.Table | pl.DataFrame,
    *,
    table: Table,
    column_set: str,
    provenance: dict[str, Any],
    start: int = 0,
) -> int:
    """Write sidecar columns for the rows of a table from ``start`` on; returns the new version.

    ``values`` has a column a field: float32, uint32, uint64, bool, text, or lists of float32 or
    float16; null means not computed. Equal provenance continues to fill a set, another one starts a
    new revision of it. Rows of ``blobs`` are those of ``_core.Dataset.blob_row``.

    Raises:
        InputError: there is no such table.
        InputError: more rows than the table, another type, or the rows were filled meanwhile.
    """
    if isinstance(values, pl.DataFrame):
        arrow = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    else:
        arrow = values
    columns = [column.combine_chunks() for column in arrow.columns]
    return _core.add_column(
        path,
        table=table,
        set=column_set,
        values=pa.StructArray.from_arrays(columns, names=arrow.column_names),
        provenance=json.dumps(provenance, sort_keys=True),
        start=start,
    )
