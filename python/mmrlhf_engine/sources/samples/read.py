"""The records of a source of any format."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from mmrlhf_engine.sources.files import INDEX_FILES, Damage
from mmrlhf_engine.sources.samples import csv, folder, parquet, webdataset
from mmrlhf_engine.sources.samples.batch import RECORDS_PER_BATCH, RawBatch, Source
from mmrlhf_engine.sources.text import read_text_records

__all__ = ["read"]

_BLOCK_BYTES = 16 << 20


def read(source: Source) -> Iterator[RawBatch]:
    """The records of a source, in its order, a few thousand at a time.

    Raises:
        InputError: the file as a whole is not what its format promises.
    """
    if source.format == "folder":
        index = folder.find_index(source.path)
        if index is None:
            return folder.read(source)
        source = replace(source, path=index, format=INDEX_FILES[index.name])
    match source.format:
        case "jsonl" | "json":
            return _read_text(source, source.format)
        case "csv":
            return csv.read(source)
        case "parquet":
            return parquet.read(source)
        case "webdataset":
            return webdataset.read(source)
        case other:
            raise ValueError(f"no reader of samples for the format {other}")


def _read_text(source: Source, format: Literal["jsonl", "json"]) -> Iterator[RawBatch]:
    for found in read_text_records(source.path, format, block_bytes=_BLOCK_BYTES):
        if isinstance(found, Damage):
            yield RawBatch.of_damage(source, found)
            continue
        for start in range(0, len(found), RECORDS_PER_BATCH):
            part = found[start : start + RECORDS_PER_BATCH]
            keys = [str(number) for number in part.field("number").to_pylist()]
            positions = [f"{source.path.name}:{key}" for key in keys]
            yield RawBatch(positions, keys, part.field("record"))
