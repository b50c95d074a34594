"""Index files of image folders: ``metadata.csv``, ``metadata.jsonl``, ``metadata.parquet``.

Their rows are the records, and ``file_name`` is the picture, named from the folder of the index on,
as in Hugging Face's image folders. Pictures that no row names are counted.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from mmrlhf_engine.sources.files import INDEX_FILES
from mmrlhf_engine.sources.listing import list_folder, suffix_of
from mmrlhf_engine.sources.samples.batch import UNREADABLE, Part, RawBatch

__all__ = ["NAME_FIELDS", "count_unnamed", "is_index"]

NAME_FIELDS = ("file_name", "file_names")


def is_index(path: Path) -> bool:
    """Whether a file is the index of its folder, by its name."""
    return path.name.lower() in INDEX_FILES


def count_unnamed(part: Part, batches: Iterator[RawBatch]) -> Iterator[RawBatch]:
    """The batches, and one more that counts the pictures below the folder that no row names."""
    named: set[str] = set()
    for batch in batches:
        for record in batch.records.to_pylist():
            named |= _names_in(record)
        yield batch
    followed = part.places.follow_links
    media = list_folder(part.path.parent, follow_links=followed).media
    unnamed = [name for name in media if name not in named]
    counts = Counter(f".{suffix_of(name)} not in {part.path.name}" for name in unnamed)
    if counts:
        empty = pl.DataFrame(schema=UNREADABLE)
        last = RawBatch.without_record("", "", "")
        yield replace(last, unreadable=empty, passed_over=counts)


def _names_in(record: bytes) -> set[str]:
    """Every name of a file in a record; the core says what is wrong with one that is no JSON."""
    try:
        value = json.loads(record)
    except (ValueError, RecursionError):
        return set()
    names: set[str] = set()
    for name, found in value.items() if isinstance(value, dict) else ():
        if name.endswith(NAME_FIELDS) or name in ("image", "images", "video", "image_path"):
            items = found if isinstance(found, list) else [found]
            names |= {item.removeprefix("./") for item in items if isinstance(item, str)}
    return names
