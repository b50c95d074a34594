"""Datasets of preference shards in forms that other tools read.

Rows are read and written a batch at a time: memory does not grow with the dataset or its pictures.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from mmrlhf_engine import _core
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.export_trl import deleted_pairs, write_trl
from mmrlhf_engine.shards.tables import TABLES
from mmrlhf_engine.shards.tokenizer import TokenDecoder

__all__ = ["FORMATS", "Format", "export"]

Format = Literal["parquet", "trl", "webdataset"]

FORMATS: tuple[Format, ...] = get_args(Format)

_SUFFIX = {0: "bin", 1: "jpg", 2: "png", 3: "webp", 4: "gif", 5: "bmp"}


def export(
    path: Path,
    out: Path,
    *,
    to: Format,
    version: int | None = None,
    tokenizer: str | None = None,
    image_token: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a version in a form others read; returns the files written.

    ``parquet``: a file a table, in the folder ``out``, every row and column of it.

    ``trl``: one Parquet file, a row a pair, for ``DPOTrainer`` of TRL; its columns are described in
    :mod:`mmrlhf_engine.shards.export_trl`. Text is decoded by ``tokenizer`` (name or folder), or
    the one that the dataset records; ``image_token`` is the text of an image.

    ``webdataset``: one tar, a sample a query: ``KEY.N.SUFFIX``, its distinct pictures, and
    ``KEY.json`` with the token ids of the prompt and the responses, the pairs by number of
    response, and by name the pictures of the prompt (``images``) and of each response
    (``response_images``).

    Pairs that are marked as deleted are left out of ``trl`` and ``webdataset``.

    Raises:
        ConfigError: ``to`` is none of these, or the tokenizer is missing or not the right one.
        InputError: a file is there already and ``overwrite`` is not set.
        InputError: the version is not there or damaged.
        MissingExtraError: ``trl`` needs transformers.
    """
    if to not in FORMATS:
        raise ConfigError(f"export to {to!r}", hint=f"one of {', '.join(FORMATS)}")
    if to != "trl" and (tokenizer is not None or image_token is not None):
        raise ConfigError(f"a tokenizer has no effect on an export to {to}, which has token ids")
    files = [out / f"{name}.parquet" for name in TABLES] if to == "parquet" else [out]
    for file in files:
        if file.exists() and not overwrite:
            raise InputError(f"{file}: already there", hint="--overwrite replaces it")
    if to == "trl":
        dataset = _core.Dataset(path, version, "lazy")
        decoder = TokenDecoder(json.loads(dataset.tokenizer), tokenizer, image_token)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_trl(dataset, out, decoder)
    elif to == "webdataset":
        dataset = _core.Dataset(path, version, "lazy")
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_webdataset(dataset, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        _write_tables(ShardDataset(path, version), out)
    return files


def _write_tables(dataset: ShardDataset, out: Path) -> None:
    for name in TABLES:
        with appearing(out / f"{name}.parquet") as temporary:
            if name == "blobs":
                _write_blobs(dataset, temporary)
            else:
                dataset.table(name).sink_parquet(temporary, compression="zstd")


def _write_blobs(dataset: ShardDataset, file: Path) -> None:
    """The pictures, a row group for each batch of the shards: those of polars hold 262,144 rows."""
    schema = pl.DataFrame(schema=dataset.blobs.collect_schema()).to_arrow().schema
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for entry in dataset.blob_files():
            with (
                pa.memory_map(str(dataset.path / entry["file"])) as source,
                pa.ipc.open_file(source) as reader,
            ):
                first = entry["id"] << 32
                for number in range(reader.num_record_batches):
                    batch = pa.Table.from_batches([reader.get_batch(number)])
                    ids = pa.array(range(first, first + batch.num_rows), pa.uint64())
                    first += batch.num_rows
                    writer.write_table(batch.append_column("id", ids).cast(schema))


def _write_webdataset(dataset: _core.Dataset, out: Path) -> None:
    deleted = deleted_pairs(dataset)
    with appearing(out) as temporary, tarfile.open(temporary, "w") as tar:
        for query in range(dataset.rows("q")):
            for name, content in _sample(dataset, query, deleted):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _sample(
    dataset: _core.Dataset, query: int, deleted: pl.Series | None
) -> Iterator[tuple[str, bytes]]:
    """The files of one query; responses are numbered within it."""
    key = f"{query:09}"
    first, end, first_pair, end_pair = dataset.ranges(query)
    prompt_media = _list(dataset.media(query))
    response_media = [_list(dataset.response_media(row)) for row in range(first, end)]
    names: dict[int, str] = {}
    for blob in (*prompt_media, *(blob for media in response_media for blob in media)):
        if blob not in names:
            content, *_, kind, _, _ = dataset.blob(blob)
            names[blob] = f"{len(names)}.{_SUFFIX.get(kind, 'bin')}"
            yield f"{key}.{names[blob]}", content
    rows = [row for row in range(first_pair, end_pair) if deleted is None or not deleted[row]]
    pairs = [dataset.pair(row) for row in rows]
    text, source, weight = dataset.query(query)
    record = {
        "prompt": _list(dataset.prompt(query)),
        "prompt_text": text,
        "images": [names[blob] for blob in prompt_media],
        "source": source,
        "weight": weight,
        "responses": [_list(dataset.tokens(row)) for row in range(first, end)],
        "response_images": [[names[blob] for blob in media] for media in response_media],
        "pairs": [
            {"chosen": pair[1] - first, "rejected": pair[2] - first, "margin": pair[3]}
            for pair in pairs
        ],
    }
    yield f"{key}.json", json.dumps(record).encode()


def _list(array: Any) -> list[int]:
    values: list[int] = pa.array(array).to_pylist()
    return values
