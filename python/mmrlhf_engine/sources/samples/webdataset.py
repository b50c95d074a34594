"""WebDataset tar: neighbouring members of one key are one record.

The key of a member is its path up to the first dot of the file name, as WebDataset defines it;
what follows is its suffix. ``000017.jpg``, ``000017.json`` and ``000017.txt`` belong together: the
record is the JSON, the text is its prompt where it has none, the pictures are its media. Pictures
stay in the tar and are known by their byte range.

A member whose suffix its key has already is rejected by name, and so is a key that has two texts
which could both be the prompt. Members of other suffixes are counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import TarReader, inspect_located_media
from mmrlhf_engine.sources.files import MEDIA_SUFFIXES
from mmrlhf_engine.sources.listing import TEXT_SUFFIXES
from mmrlhf_engine.sources.samples.batch import (
    ATTACHED,
    CELLS,
    RECORDS_PER_BATCH,
    UNREADABLE,
    Part,
    RawBatch,
    text_column,
)
from mmrlhf_engine.sources.samples.texts import prompt_for, record_of_texts

__all__ = ["read"]

_SNIFFED_BYTES = 1 << 16


@dataclass
class _Group:
    """The members of one record."""

    key: str
    media: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Places of pictures by the whole suffix: ``jpg``, ``left.jpg``."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Texts by the whole suffix: ``txt``, ``0.txt``."""
    repeated: list[str] = field(default_factory=list)
    problem: tuple[str, str] | None = None
    next_to_damage: bool = False


def read(part: Part) -> Iterator[RawBatch]:
    """Groups of members as records, in the order of the tar; damage is a place of its own."""
    tar = _Tar(part)
    groups = tar.groups()
    while batch := list(islice(groups, RECORDS_PER_BATCH)):
        yield _to_records(tar, batch)
    if tar.passed_over:
        yield _to_records(tar, [])


def _split(name: str) -> tuple[str, str, str]:
    """Key, whole suffix and last suffix of a member; no key where the file name has none."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (
        (folder + slash + stem if stem else ""),
        suffix.lower(),
        suffix.rpartition(".")[2].lower(),
    )


@dataclass
class _Tar:
    """One tar while it is read."""

    part: Part
    passed_over: Counter[str] = field(default_factory=Counter)
    sniffed: dict[str, bool] = field(default_factory=dict)
    """Whether members of a suffix that is not known are pictures."""

    def groups(self) -> Iterator[_Group]:
        """Neighbours of one key; members that are neither pictures nor texts are passed over."""
        group: _Group | None = None
        damage = False
        for member in self._members(TEXT_SUFFIXES):
            key, suffix, kind = _split(member["name"])
            if member["reason"] is None and not (key and self._is_known(kind, member)):
                self.passed_over[f".{kind}" if kind else "without suffix"] += 1
                continue
            if group is None or key != group.key:
                if group is not None:
                    group.next_to_damage |= not suffix
                    yield group
                group = _Group(key, next_to_damage=damage)
            damage = not suffix  # a damaged stretch has no name but its place
            _add(group, suffix, kind, member)
        if group is not None:
            yield group

    def _is_known(self, kind: str, member: dict[str, Any]) -> bool:
        """Whether a member is a text or a picture; of another suffix the first is looked into."""
        if kind in MEDIA_SUFFIXES or kind in TEXT_SUFFIXES:
            return True
        if kind not in self.sniffed:
            (found,) = pa.array(
                inspect_located_media(
                    pa.array([str(self.part.path)], pa.large_string()),
                    pa.array([member["offset"]], pa.uint64()),
                    pa.array([min(member["length"], _SNIFFED_BYTES)], pa.uint64()),
                    pa.nulls(1, pa.large_binary()),
                    max_pixels=2**62,
                    threads=1,
                )
            ).to_pylist()
            self.sniffed[kind] = found["reason"] in (None, "truncated_media")
        return self.sniffed[kind]

    def _members(self, texts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        tar = TarReader(self.part.path)
        while found := pa.array(tar.next_members(RECORDS_PER_BATCH, list(texts))).to_pylist():
            yield from found

    @cached_property
    def _scattered(self) -> set[str]:
        """Keys with a picture whose members are not neighbours, found by reading all names."""
        runs: Counter[str] = Counter()
        pictured: set[str] = set()
        last = None
        for member in self._members(()):
            key, _, kind = _split(member["name"])
            runs[key] += key != last
            last = key
            if kind in MEDIA_SUFFIXES or self.sniffed.get(kind):
                pictured.add(key)
        return {key for key in pictured if runs[key] > 1}

    def problem_of(self, group: _Group) -> tuple[str, str] | None:
        """Why a group is no record, if it is none."""
        if group.problem is not None:
            return group.problem
        if group.next_to_damage and not group.media:
            return "broken_record", "the tar is damaged next to it, where its picture may be"
        if not group.media and group.key in self._scattered:
            detail = f"the picture of {group.key} is elsewhere in the tar: sort its members by name"
            return "scattered_members", detail
        if not group.texts and self.part.prompt_for_pictures is None:
            return "no_text", "a picture without a text; `prompt_for_pictures` gives it one"
        plain = [s for s in group.texts if s not in TEXT_SUFFIXES and not s.endswith(".json")]
        if len(plain) > 1 and not {"txt", "caption"} & group.texts.keys():
            names = ", ".join(f"{group.key}.{suffix}" for suffix in plain)
            return (
                "repeated_member",
                f"several texts of one key, which ends at the first dot: {names}",
            )
        return None

    def record_of(self, group: _Group) -> bytes:
        """The record of a group that has no problem; texts it does not hold are counted."""
        if not group.texts:
            (picture, *_) = group.media
            made = prompt_for(self.part.prompt_for_pictures, f"{group.key}.{picture}")
            return made or b"{}"
        texts = {s: text for s, text in group.texts.items() if s in TEXT_SUFFIXES}
        for suffix, text in group.texts.items():
            kind = suffix.rpartition(".")[2]
            if suffix in texts:
                continue
            if kind in texts or (kind != "json" and {"txt", "caption"} & texts.keys()):
                self.passed_over[f".{suffix}"] += 1
            else:
                texts[kind] = text
        record, unused = record_of_texts(texts)
        self.passed_over.update(f".{suffix}" for suffix in unused)
        return record


def _add(group: _Group, suffix: str, kind: str, member: dict[str, Any]) -> None:
    if member["reason"] is not None:
        group.problem = (member["reason"], member["detail"])
    elif suffix in group.media or suffix in group.texts:
        group.repeated.append(member["name"])
    elif kind not in TEXT_SUFFIXES:
        group.media[suffix] = {"offset": member["offset"], "length": member["length"]}
    else:
        group.texts[suffix] = member["text"]


def _to_records(tar: _Tar, groups: list[_Group]) -> RawBatch:
    """A group whose picture may be lost to damage is no record: its text alone is another."""
    part = tar.part
    unreadable: list[tuple[str, str, str]] = []
    keys: list[str] = []
    records: list[bytes] = []
    cells: list[dict[str, object]] = []
    for group in groups:
        for name in group.repeated:
            detail = f"{name} comes twice; the first is read"
            unreadable.append((f"{part.label}:{name}", "repeated_member", detail))
        problem = tar.problem_of(group)
        if problem is not None:
            unreadable.append((f"{part.label}:{group.key}", *problem))
            continue
        for place in group.media.values():
            owner = {"record": len(records), "cell": len(cells), "path": str(part.path)}
            cells.append({**owner, **place})
        keys.append(group.key)
        records.append(tar.record_of(group))
    frame = pl.DataFrame(cells, schema=CELLS)
    passed_over, tar.passed_over = tar.passed_over, Counter()
    return RawBatch(
        positions=text_column(f"{part.label}:{key}" for key in keys),
        keys=text_column(keys),
        records=pa.array(records, pa.large_binary()),
        cells=frame,
        attached=frame.select("record", "cell", name=pl.lit(None, pl.String())).select(*ATTACHED),
        unreadable=pl.DataFrame(unreadable, schema=UNREADABLE, orient="row"),
        passed_over=passed_over,
    )
