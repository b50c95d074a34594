"""WebDataset tar: neighbouring members of one base name are one record.

``000017.jpg``, ``000017.json`` and ``000017.txt`` belong together: the record is the JSON, the text
is its prompt where it has none, the pictures are its media. Pictures stay in the tar and are known
by their byte range.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import TarReader
from mmrlhf_engine.sources.files import MEDIA_SUFFIXES
from mmrlhf_engine.sources.samples.batch import (
    ATTACHED,
    CELLS,
    RECORDS_PER_BATCH,
    UNREADABLE,
    RawBatch,
    Source,
)

__all__ = ["read", "record_of_texts"]

_TEXT_SUFFIXES = ["json", "txt", "caption"]


@dataclass
class _Group:
    """The members of one record."""

    key: str
    media: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    next_to_damage: bool = False


def read(source: Source) -> Iterator[RawBatch]:
    """Groups of members as records, in the order of the tar; damage is a place of its own."""
    groups = _groups(_members(source))
    while batch := list(islice(groups, RECORDS_PER_BATCH)):
        yield _to_records(source, batch)


def _members(source: Source) -> Iterator[dict[str, Any]]:
    tar = TarReader(source.path)
    while found := pa.array(tar.next_members(RECORDS_PER_BATCH, _TEXT_SUFFIXES)).to_pylist():
        yield from found


def _groups(members: Iterator[dict[str, Any]]) -> Iterator[_Group]:
    """Neighbours that share folder and base name up to its first dot; others are passed over."""
    group: _Group | None = None
    damage = False
    for member in members:
        folder, slash, name = member["name"].rpartition("/")
        stem, dot, suffixes = name.partition(".")
        suffix = suffixes.rpartition(".")[2].lower()
        if member["reason"] is None and (
            not stem or suffix not in {*MEDIA_SUFFIXES, *_TEXT_SUFFIXES}
        ):
            continue
        key = folder + slash + stem
        if group is None or key != group.key:
            if group is not None:
                group.next_to_damage |= not dot
                yield group
            group = _Group(key, next_to_damage=damage)
        damage = not dot  # a damaged stretch has no name but its place
        _add(group, suffix, member)
    if group is not None:
        yield group


def _add(group: _Group, suffix: str, member: dict[str, Any]) -> None:
    if member["reason"] is not None:
        group.problem = (member["reason"], member["detail"])
    elif suffix in MEDIA_SUFFIXES:
        group.media.append({"offset": member["offset"], "length": member["length"]})
    else:
        group.texts[suffix] = member["text"]


def _to_records(source: Source, groups: list[_Group]) -> RawBatch:
    """A group whose picture may be lost to damage is no record: its text alone is another."""
    unreadable: list[tuple[str, str, str]] = []
    keys: list[str] = []
    records: list[bytes] = []
    cells: list[dict[str, object]] = []
    for group in groups:
        problem = group.problem
        if problem is None and group.next_to_damage and not group.media:
            problem = ("broken_record", "the tar is damaged next to it, where its picture may be")
        if problem is not None:
            unreadable.append((f"{source.path.name}:{group.key}", *problem))
            continue
        for place in group.media:
            owner = {"record": len(records), "cell": len(cells), "path": str(source.path)}
            cells.append({**owner, **place})
        keys.append(group.key)
        records.append(record_of_texts(group.texts))
    frame = pl.DataFrame(cells, schema=CELLS)
    return RawBatch(
        positions=[f"{source.path.name}:{key}" for key in keys],
        keys=keys,
        records=pa.array(records, pa.large_binary()),
        cells=frame,
        attached=frame.select("record", "cell", name=pl.lit(None, pl.String())).select(*ATTACHED),
        unreadable=pl.DataFrame(unreadable, schema=UNREADABLE, orient="row"),
    )


def record_of_texts(texts: dict[str, bytes]) -> bytes:
    """The record that texts by suffix (``json``, ``txt``, ``caption``) make up together.

    What is no JSON object, or no UTF-8, is returned as it is: the core says what is wrong with it.
    """
    plain = texts.get("txt", texts.get("caption"))
    if plain is None:
        return texts.get("json", b"{}")
    try:
        record = json.loads(texts["json"]) if "json" in texts else {}
        prompt = plain.decode("utf-8")
    except (ValueError, RecursionError):
        return texts.get("json", plain)
    if not isinstance(record, dict):
        return texts["json"]
    has_own = {"conversations", "messages", "prompt", "question"} & record.keys()
    return texts["json"] if has_own else json.dumps({**record, "prompt": prompt}).encode()
