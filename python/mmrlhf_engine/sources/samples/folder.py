"""A folder of pictures, with a text file next to each, or with one question for all.

``dogs/1.jpg`` belongs with ``dogs/1.txt`` or ``dogs/1.caption`` (its prompt) and ``dogs/1.json`` (a
record). A picture without a text gets the source's ``prompt_for_pictures``, or is rejected.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from mmrlhf_engine.sources.listing import (
    TEXT_SUFFIXES,
    Listing,
    captioned_pictures,
    list_folder,
    stem_of,
    suffix_of,
)
from mmrlhf_engine.sources.samples.batch import (
    ATTACHED,
    RECORDS_PER_BATCH,
    UNREADABLE,
    Part,
    RawBatch,
    text_column,
)
from mmrlhf_engine.sources.samples.texts import prompt_for, record_of_texts

__all__ = ["files_of_folder", "list_part", "read"]

NO_TEXT = "a picture without a text beside it; `prompt_for_pictures` gives it one"


def read(part: Part) -> Iterator[RawBatch]:
    """The pictures of a folder as records, sorted by path."""
    listing = list_part(part)
    texts = _texts_by_stem(listing)
    for start in range(0, len(listing.media), RECORDS_PER_BATCH):
        yield _to_records(part, listing.media[start : start + RECORDS_PER_BATCH], texts)


def list_part(part: Part) -> Listing:
    """What a folder of pictures holds, as far as this part of a source takes it."""
    listing = list_folder(part.path, follow_links=part.places.follow_links)
    return captioned_pictures(listing) if part.captioned else listing


def files_of_folder(part: Part) -> Iterator[Path]:
    """The files :func:`read` looks at: each picture and its texts."""
    listing = list_part(part)
    for name in sorted([*listing.media, *listing.texts]):
        path = part.path / name
        if path.is_file():  # a link may lead nowhere
            yield path


def _texts_by_stem(listing: Listing) -> dict[str, dict[str, str]]:
    """Names of the texts of each stem by suffix; the suffix may be written in capitals."""
    texts: dict[str, dict[str, str]] = {}
    for name in listing.texts:
        texts.setdefault(stem_of(name), {})[suffix_of(name)] = name
    return texts


def _to_records(part: Part, files: list[str], texts: dict[str, dict[str, str]]) -> RawBatch:
    pictures, records, unreadable = [], [], []
    passed_over: Counter[str] = Counter()
    for name in files:
        if not _is_text(name):
            shown = name.encode("utf-8", "backslashreplace").decode()
            unreadable.append((shown, "missing_media", "the name of the file is not UTF-8"))
            continue
        record = _record_of(part, name, texts.get(stem_of(name), {}), passed_over)
        if isinstance(record, bytes):
            pictures.append(name)
            records.append(record)
        else:
            unreadable.append((f"{part.label}/{name}", *record))
    attached = {
        "record": range(len(pictures)),
        "name": pictures,
        "cell": [None] * len(pictures),
    }
    return RawBatch(
        positions=text_column(f"{part.label}/{picture}" for picture in pictures),
        keys=text_column(pictures),
        records=pa.array(records, pa.large_binary()),
        attached=pl.DataFrame(attached, schema=ATTACHED),
        unreadable=pl.DataFrame(unreadable, schema=UNREADABLE, orient="row"),
        passed_over=passed_over,
    )


def _record_of(
    part: Part, name: str, members: dict[str, str], passed_over: Counter[str]
) -> bytes | tuple[str, str]:
    """The record of a picture, or reason and detail."""
    texts = {}
    for suffix in TEXT_SUFFIXES:
        if suffix not in members:
            continue
        path = part.path / members[suffix]
        # A link next to a picture must not pull a file from elsewhere into a prompt.
        if not part.places.allow(path):
            return "outside_root", f"{members[suffix]} is a link that leaves the folder"
        try:
            texts[suffix] = path.read_bytes()
        except OSError as error:
            return "broken_record", f"{members[suffix]} cannot be read: {error}"
    if not texts:
        prompt = prompt_for(part.prompt_for_pictures, name)
        return ("no_text", NO_TEXT) if prompt is None else prompt
    record, unused = record_of_texts(texts)
    passed_over.update(f".{suffix}" for suffix in unused)
    return record


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8; Python writes other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
