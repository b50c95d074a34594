"""Rows of annotations gathered into items: one query with its answers, and all that was said of it.

Rows with the same prompt, media and answers, in whatever order the answers are listed, are of one
item; each is what one annotator says. Media are the same if they lie in the same place, or, where
sources have several roots, if their bytes are equal: each annotator may have a copy. Answers that
are equal but for white space around them are one answer. All items are held in memory until they
are written.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.collect.pair_settings import PairConfig
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.config import parse_share
from mmrlhf_engine.run.tables import REJECTED, TableWriter
from mmrlhf_engine.sources.bad_share import check_bad_share
from mmrlhf_engine.sources.preferences.annotations import Annotation, read_annotation
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, ranks_of_scores
from mmrlhf_engine.sources.preferences.rows import SourceFile

__all__ = ["AnnotatedRow", "Item", "ItemReader"]

_BY_CHOICE = frozenset({"unknown_annotator", "second_annotation", "no_pairs"})
"""Reasons that say nothing bad about a row; the others count for ``max_bad``."""


@dataclass(frozen=True, slots=True)
class AnnotatedRow:
    """What one row says of its item."""

    source: str
    position: str
    annotation: Annotation
    ranks: tuple[int | None, ...]
    """Those given, or those of the scores."""
    places: tuple[int, ...]
    """The number in the item of each of its answers."""


@dataclass(slots=True)
class Item:
    """A query with its distinct answers, and the rows that speak of them."""

    id: str
    root: Path
    prompt: str
    media: tuple[Media, ...]
    answers: list[str] = field(default_factory=list)
    """As the first row has them."""
    rows: list[AnnotatedRow] = field(default_factory=list)

    def annotators(self) -> set[str]:
        """The names of those who spoke of it, where they have one."""
        names = (row.annotation.annotator for row in self.rows)
        return {name for name in names if name is not None}

    def scores(self) -> list[float | None]:
        """The mean score of each answer over its rows; None where no row has one."""
        return [_mean(values) for values in self._of_answers("scores")]

    def reasons(self) -> list[str | None]:
        """The first reason that a row gives for each answer."""
        return [next(iter(values), None) for values in self._of_answers("reasons")]

    def _of_answers(self, name: str) -> list[list[Any]]:
        found: list[list[Any]] = [[] for _ in self.answers]
        for row in self.rows:
            for place, value in zip(row.places, getattr(row.annotation, name), strict=True):
                if value is not None:
                    found[place].append(value)
        return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


class ItemReader:
    """Reads rows into items, and counts what became of each row.

    Args:
        config: The settings.
        rejected: The table of rows that gave nothing.
        by_content: Whether media of equal bytes are the same wherever they lie; else by place.
    """

    def __init__(
        self, config: PairConfig, rejected: TableWriter, *, by_content: bool = False
    ) -> None:
        self._config, self._rejected, self._by_content = config, rejected, by_content
        self._digests: dict[Path, str] = {}
        self._fields_lacking = dict(config.fields)
        """Parts whose field no row has had so far."""
        self._names: set[str] = set()
        """Fields of all rows, while some of those are lacking."""
        self._annotators = frozenset(config.annotators)
        self._ignored = frozenset(config.ignore_fields)
        self._max_bad = parse_share(config.max_bad, "pair.max_bad") if config.max_bad else None
        self._items: dict[object, Item] = {}
        self._first_bad = ""
        self.rows_in = 0
        self.dropped: Counter[str] = Counter()
        self.fields_ignored: Counter[str] = Counter()
        self.annotators: Counter[str] = Counter()
        """Rows of each annotator that has a name, of those that are read."""
        self.merged = 0
        """Answers that are equal to an earlier one of their row."""
        self.ranks_from_scores = 0
        """Rows that are ranked by their scores."""
        self.without_rank = 0
        """Answers without a rank, of rows that are used."""

    @property
    def absent(self) -> list[str]:
        """Annotators to read that no row is of."""
        return sorted(self._annotators - self.annotators.keys())

    @property
    def items(self) -> list[Item]:
        """The items, in the order of their first rows."""
        return list(self._items.values())

    def take(
        self, file: SourceFile, position: str, record: dict[str, Any] | BadRecordError
    ) -> None:
        """Read one row.

        Raises:
            InputError: too many rows are bad.
        """
        self.rows_in += 1
        try:
            if isinstance(record, BadRecordError):
                raise record
            self._note_fields(record)
            annotation, unread = read_annotation(record, self._config.fields, self._ignored)
            self._add(file, position, annotation)
        except BadRecordError as error:
            self.reject(file.source, position, error.reason, error.detail)
            self._check_share()
            return
        self.fields_ignored.update(unread)

    def reject(self, source: str, position: str, reason: str, detail: str) -> None:
        """Count a row that gives no pair, and write why."""
        self.dropped[reason] += 1
        self._first_bad = self._first_bad or f"{position} ({source}): {reason}: {detail}"
        row = (source, position, reason, detail)
        self._rejected.write(pl.DataFrame([row], schema=REJECTED, orient="row"))

    def finish(self) -> None:
        """Judge the whole.

        Raises:
            InputError: no row has a field that was named, no row could be used, or too many are
                bad.
        """
        if self._fields_lacking and self._names:
            named = ", ".join(f"{part}={name}" for part, name in self._fields_lacking.items())
            raise InputError(
                f"--field {named}: none of {self.rows_in:,} rows has it; fields found: "
                f"{', '.join(sorted(self._names))}",
                hint="--field PART=FIELD names a field of the rows",
            )
        if self.rows_in == self.dropped.total():
            most = ", ".join(f"{count:,} {name}" for name, count in self.dropped.most_common(3))
            first = f"; first: {self._first_bad}" if self._first_bad else ""
            raise InputError(
                f"none of {self.rows_in:,} rows can be used: {most or 'empty'}{first}",
                hint="--field PART=FIELD names the fields of another layout",
            )
        self._check_share(final=True)

    def _note_fields(self, record: dict[str, Any]) -> None:
        if self._fields_lacking:
            self._names.update(map(str, record))
            there = [part for part, name in self._fields_lacking.items() if name in record]
            for part in there:
                if record[self._fields_lacking[part]] is not None:
                    del self._fields_lacking[part]

    def _check_share(self, *, final: bool = False) -> None:
        bad = Counter({name: n for name, n in self.dropped.items() if name not in _BY_CHOICE})
        check_bad_share(self.rows_in, bad, self._max_bad, final=final)

    def _add(self, file: SourceFile, position: str, annotation: Annotation) -> None:
        """Put a row to its item.

        Raises:
            BadRecordError: it gives no verdict, or is not wanted.
        """
        name = annotation.annotator
        if self._annotators and name not in self._annotators:
            found = "no annotator" if name is None else f"annotator {name!r}"
            raise BadRecordError("unknown_annotator", f"{found}, not one of those to read")
        if name is not None:
            self.annotators[name] += 1
        if any(one.kind == "video" and not one.names for one in annotation.media):
            raise BadRecordError("inline_video", "a video by content, expected its name")
        texts = [answer.strip() for answer in annotation.answers]
        if len(set(texts)) < 2:
            raise BadRecordError("one_answer", f"{len(texts)} answers, none differs from another")
        ranks = self._ranks(annotation)
        media, prompt = annotation.media, annotation.prompt.strip()
        shown = tuple(self._medium(one, file.root) for one in media)
        key = (prompt, shown, frozenset(texts))
        item = self._items.get(key)
        if item is not None and name in item.annotators():
            detail = f"annotator {name!r} has another row of this query before this one"
            raise BadRecordError("second_annotation", detail)
        if item is None:
            # A position begins with the name of its file, which may be the source itself.
            place = position if file.source == file.path.name else f"{file.source}/{position}"
            item = self._items[key] = Item(
                annotation.id or place, file.root, annotation.prompt, media
            )
            first = {text: texts.index(text) for text in texts}
            item.answers = [annotation.answers[number] for number in first.values()]
        known = {answer.strip(): number for number, answer in enumerate(item.answers)}
        places = tuple(known[text] for text in texts)
        item.rows.append(AnnotatedRow(file.source, position, annotation, ranks, places))
        self.merged += len(texts) - len(known)
        self.without_rank += ranks.count(None)
        self.ranks_from_scores += annotation.ranks != ranks

    def _medium(self, medium: Media, root: Path) -> tuple[object, ...]:
        """Equal for media that are the same."""
        if medium.content is not None:
            return (medium.kind, _digest(medium.content))
        return (medium.kind, *(self._place(name, root) for name in medium.names))

    def _place(self, name: str, root: Path) -> str:
        """Where a medium lies, or a hash of its bytes; an address is itself."""
        if "://" in name:
            return name
        place = Path(os.path.realpath(root / name))
        if not self._by_content:
            return str(place)
        if place not in self._digests:
            self._digests[place] = _digest_at(place)
        return self._digests[place]

    def _ranks(self, annotation: Annotation) -> tuple[int | None, ...]:
        ranks = annotation.ranks
        given = any(rank is not None for rank in ranks)
        if not given and self._config.rank_from_scores:
            ranks = tuple(ranks_of_scores(annotation.scores))
        if len(ranks) - ranks.count(None) < 2:
            scores = "" if given or self._config.rank_from_scores else " (scores are not used)"
            raise BadRecordError("no_ranks", f"no two of its answers have a rank{scores}")
        return ranks


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_at(place: Path) -> str:
    """A hash of a file, or of the files of a folder of frames; what cannot be read is its place."""
    try:
        if place.is_dir():
            frames = sorted(entry for entry in place.iterdir() if entry.is_file())
            return _digest("".join(f"{one.name} {_digest_at(one)}\n" for one in frames).encode())
        with place.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return str(place)
