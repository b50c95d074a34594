"""Datasets of preference shards, seen from Python: look, check, compare, clean, carry, export.

The bytes are told in ``docs/shard-format.md``. Whatever touches a row at speed is Rust; what is
here works on whole tables and reads the shards as anybody could, with polars.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.store import appearing

__all__ = [
    "FLAGS",
    "Damage",
    "Rekeyed",
    "Removed",
    "Verification",
    "add_column",
    "diff",
    "export",
    "gc",
    "inspect",
    "is_dataset",
    "rekey",
    "table",
    "verify",
]

FLAGS = {"tie": 1, "human": 2, "synthetic": 4, "truncated": 8}
"""Bits of the column ``flags`` of pairs."""

Table = Literal["queries", "responses", "pairs", "blobs"]
Format = Literal["parquet", "trl", "webdataset"]

_SUFFIX = {0: "bin", 1: "jpg", 2: "png", 3: "webp", 4: "gif", 5: "bmp"}
_OF_SHARD: tuple[Table, ...] = ("queries", "responses", "pairs")
_LETTERS: dict[str, str] = {
    table["name"]: table["letter"] for table in json.loads(_core.shard_schema())
}
"""The key of each table in a manifest's entry of a shard."""


@dataclass(frozen=True)
class Damage:
    """One damaged place; ``rows`` are rows of the file, from the first to before the second."""

    file: str
    block: int | None
    rows: tuple[int, int] | None
    problem: str


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found."""

    status: Literal["good", "damaged", "wrong_version"]
    version: int
    foreign_profile: int | None
    files: int
    bytes: int
    damages: list[Damage]

    def __str__(self) -> str:
        if self.status == "wrong_version":
            return (
                f"profile {self.foreign_profile}, which this version does not read\n\n"
                "hint: a newer mmrlhf-engine wrote it; upgrade"
            )
        lines = [f"{self.status}: version {self.version}, {self.files} files, {self.bytes:,} bytes"]
        for damage in self.damages:
            block = "" if damage.block is None else f", block {damage.block}"
            rows = "" if damage.rows is None else f", rows {damage.rows[0]} to {damage.rows[1]}"
            lines.append(f"{damage.file}{block}{rows}: {damage.problem}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Removed:
    """What :func:`gc` removed, or would remove."""

    versions: list[int]
    files: list[str]
    bytes: int


@dataclass(frozen=True)
class Rekeyed:
    """What :func:`rekey` carried: ``matched`` of ``rows`` of the target found their key."""

    version: int
    matched: int
    rows: int


def is_dataset(path: Path) -> bool:
    """Whether a folder holds preference shards."""
    return (path / "_mmrlhf").is_dir()


def verify(path: Path, *, version: int | None = None, deep: bool = False) -> Verification:
    """Compare the checksums of every byte of a version; ``deep`` computes all content anew.

    Raises:
        CoreInputError: nothing was committed at ``path``, or not this version.
        FileNotFoundError: there is no dataset at ``path``.
    """
    status, text = _core.verify_dataset(path, version, deep)
    report = json.loads(text)
    damages = [
        Damage(d["file"], d["block"], None if d["rows"] is None else tuple(d["rows"]), d["problem"])
        for d in report.pop("damages")
    ]
    return Verification(status=status, damages=damages, **report)


def diff(
    path: Path,
    other: Path | None = None,
    *,
    first: int | None = None,
    second: int | None = None,
) -> dict[str, Any]:
    """What the second version has that the first has not, and the other way.

    Without ``other`` both are versions of ``path``; by default the last two. The result has
    ``same_data``, ``rows`` (difference by table), ``added`` and ``removed`` (files with their
    rows), ``columns_changed`` and ``columns_removed``.

    Raises:
        CoreInputError: a version is not there or damaged.
    """
    after = _core.Dataset(other or path, second, "off")
    if first is None and other is None:
        first = max(json.loads(after.manifest)["parent"], 1)
    before = _core.Dataset(path, first, "off")
    difference: dict[str, Any] = json.loads(_core.diff_datasets(before, after))
    return difference


def gc(path: Path, *, keep: int | None = None, dry_run: bool = False) -> Removed:
    """Remove old versions beyond the newest ``keep`` (None: none) and every file nobody needs.

    Raises:
        CoreInputError: somebody is writing to the dataset.
    """
    return Removed(**json.loads(_core.collect_garbage(path, keep=keep, dry_run=dry_run)))


def rekey(source: Path, target: Path, column_set: str) -> Rekeyed:
    """Give rows at ``target`` the values of ``column_set`` of rows with equal keys at ``source``.

    Raises:
        CoreInputError: the source has no such set, or no row in common with the target.
    """
    return Rekeyed(**json.loads(_core.rekey_column(source, target, column_set)))


def add_column(
    path: Path,
    values: pa.Table | pl.DataFrame,
    *,
    table: Table,
    column_set: str,
    provenance: dict[str, Any],
    start: int = 0,
) -> int:
    """Write sidecar columns for the rows ``start`` on of a table; the new version.

    ``values`` has a column per field: float32, uint32, uint64, bool, text, or lists of float32 or
    float16; null means not computed. Equal provenance continues a set, other provenance starts it
    over. Rows of ``blobs`` are those of ``_core.Dataset.blob_row``.

    Raises:
        CoreInputError: more rows than the table, another type, or the rows were filled meanwhile.
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


def table(path: Path, name: Table, *, version: int | None = None) -> pl.LazyFrame:
    """A table over all shards, references as rows over all shards, blobs with their ``id``.

    Checksums are not compared; :func:`verify` does that.

    Raises:
        CoreInputError: the version is not there or damaged.
    """
    manifest = json.loads(_core.Dataset(path, version, "off").manifest)
    if name == "blobs":
        parts = [
            pl.scan_ipc(path / blobs["file"]).with_columns(
                id=pl.int_range(pl.len(), dtype=pl.UInt64) + pl.lit(blobs["id"] << 32, pl.UInt64)
            )
            for blobs in manifest["blobs"]
        ]
        return pl.concat(parts) if parts else pl.LazyFrame()
    references = {
        "queries": {"r0": "responses", "r1": "responses", "p0": "pairs", "p1": "pairs"},
        "responses": {"q": "queries"},
        "pairs": {"q": "queries", "chosen": "responses", "rejected": "responses"},
    }[name]
    starts: dict[str, int] = dict.fromkeys(_OF_SHARD, 0)
    parts = []
    for shard in manifest["shards"]:
        moved = [
            (pl.col(column).cast(pl.UInt64) + starts[to]).alias(column)
            for column, to in references.items()
        ]
        parts.append(pl.scan_ipc(path / shard[_LETTERS[name]]["file"]).with_columns(moved))
        for other in _OF_SHARD:
            starts[other] += shard[_LETTERS[other]]["rows"]
    return pl.concat(parts) if parts else pl.LazyFrame()


def inspect(path: Path, rows: int = 5, *, version: int | None = None) -> str:
    """Version, fingerprint, tokenizer, files, column sets and first rows, as text.

    Raises:
        CoreInputError: the version is not there or damaged.
    """
    dataset = _core.Dataset(path, version, "lazy")
    manifest = json.loads(dataset.manifest)
    size = sum(shard[_LETTERS[name]]["bytes"] for shard in manifest["shards"] for name in _OF_SHARD)
    pictures = sum(blobs["bytes"] for blobs in manifest["blobs"])
    lines = [
        f"{path}: preference shards, profile {manifest['profile']}, version {dataset.version}",
        f"  fingerprint  {dataset.fingerprint}",
        f"  tokenizer    {dataset.tokenizer}",
        f"  shards       {len(manifest['shards'])}, {size:,} bytes",
        f"  blobs        {dataset.rows('blobs'):,}, {pictures:,} bytes",
    ]
    for cover in json.loads(dataset.coverage()):
        share = f"{cover['filled']:,} of {cover['rows']:,} rows"
        lines.append(
            f"  column set   {cover['set']} rev {cover['rev']} of {cover['table']}: {share}"
        )
    with pl.Config(tbl_rows=rows, tbl_cols=-1, fmt_str_lengths=40, tbl_width_chars=140):
        for name in _OF_SHARD:
            lines.append(f"{name}: {dataset.rows(name):,} rows")
            if rows and manifest["shards"]:
                head = table(path, name, version=version).head(rows).collect()
                lines.append(str(head.select(pl.exclude(pl.Binary))))
    return "\n".join(lines)


def export(
    path: Path,
    out: Path,
    *,
    to: Format,
    version: int | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> list[Path]:
    """Write a version in a form others read; the files written.

    ``parquet``: a file per table, in the folder ``out``. ``trl``: one Parquet file, a row a pair,
    ``prompt``, ``chosen`` and ``rejected`` as text where ``decode`` makes it from token ids, else
    ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``. ``webdataset``: one tar, a sample a query,
    its pictures once.

    Raises:
        InputError: ``to`` is none of these.
        CoreInputError: the version is not there or damaged.
    """
    writers: dict[str, Callable[[], list[Path]]] = {
        "parquet": lambda: _export_parquet(path, out, version),
        "trl": lambda: _export_trl(path, out, version, decode),
        "webdataset": lambda: _export_webdataset(path, out, version),
    }
    if to not in writers:
        raise InputError(f"export to {to!r}", hint=f"one of {', '.join(writers)}")
    return writers[to]()


def _export_parquet(path: Path, out: Path, version: int | None) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    names: tuple[Table, ...] = (*_OF_SHARD, "blobs")
    written = []
    for name in names:
        file = out / f"{name}.parquet"
        with appearing(file) as temporary:
            table(path, name, version=version).sink_parquet(temporary, compression="zstd")
        written.append(file)
    return written


def _export_trl(
    path: Path, out: Path, version: int | None, decode: Callable[[list[int]], str] | None
) -> list[Path]:
    queries = table(path, "queries", version=version).with_row_index("q").collect()
    responses = table(path, "responses", version=version).select("tokens").collect()
    pairs = table(path, "pairs", version=version).collect()
    blobs = table(path, "blobs", version=version).select("id", "bytes").collect()
    of_query = queries[pairs["q"]]
    content = dict(blobs.iter_rows()) if blobs.width else {}
    frame = pl.DataFrame(
        {
            "prompt_ids": of_query["prompt"],
            "chosen_ids": responses[pairs["chosen"]]["tokens"],
            "rejected_ids": responses[pairs["rejected"]]["tokens"],
            "images": [[content[id] for id in ids] for ids in of_query["media"]],
            "margin": pairs["margin"],
        },
        schema_overrides={"images": pl.List(pl.Binary)},
    )
    if decode is not None:
        for name in ("prompt", "chosen", "rejected"):
            text = [decode(ids.to_list()) for ids in frame[f"{name}_ids"]]
            frame = frame.with_columns(pl.Series(name, text, pl.String)).drop(f"{name}_ids")
    with appearing(out) as temporary:
        frame.write_parquet(temporary, compression="zstd")
    return [out]


def _export_webdataset(path: Path, out: Path, version: int | None) -> list[Path]:
    dataset = _core.Dataset(path, version, "lazy")
    with appearing(out) as temporary, tarfile.open(temporary, "w") as tar:
        for query in range(dataset.rows("queries")):
            for name, content in _sample(dataset, query):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return [out]


def _sample(dataset: _core.Dataset, query: int) -> Iterator[tuple[str, bytes]]:
    """The files of one query; responses are numbered within it."""
    key = f"{query:09}"
    for place, id in enumerate(pa.array(dataset.media(query)).to_pylist()):
        content, *_, kind, _, _ = dataset.blob(id)
        yield f"{key}.{place}.{_SUFFIX.get(kind, 'bin')}", content
    first, end, first_pair, end_pair = dataset.ranges(query)
    pairs = [dataset.pair(pair) for pair in range(first_pair, end_pair)]
    text, source, weight = dataset.query(query)
    record = {
        "prompt": pa.array(dataset.prompt(query)).to_pylist(),
        "prompt_text": text,
        "source": source,
        "weight": weight,
        "responses": [pa.array(dataset.tokens(row)).to_pylist() for row in range(first, end)],
        "pairs": [
            {"chosen": pair[1] - first, "rejected": pair[2] - first, "margin": pair[3]}
            for pair in pairs
        ],
    }
    yield f"{key}.json", json.dumps(record).encode()
