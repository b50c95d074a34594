"""Rows to queries: rows of the same prompt and media become one query with shared responses.

Preference files repeat the prompt, its images and each answer once a pair. Here they are put back
together: a bounded table holds the queries seen last; the one not seen for longest leaves when the
table is full. Files that keep the rows of a query near each other, as they all do, are gathered
wholly. Every pair remembers its row, so that what is dropped later can be named.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.tables import TableWriter
from mmrlhf_engine.sources.bad_share import check_bad_share
from mmrlhf_engine.sources.preferences.record import Media, Message, Preference, Response

__all__ = ["DROPPED_BY_CHOICE", "GatheredPair", "Gatherer", "PackedRow", "Query", "RowAccounting"]

DROPPED_BY_CHOICE = frozenset({"tie", "duplicate_pair", "over_long"})
"""Reasons that say nothing bad about the input; the others count for ``max_bad``."""

_ROWS_AT_ONCE = 4096


@dataclass(eq=False, slots=True)
class PackedRow:
    """A row that was understood, and how many of its pairs are still in."""

    source: str
    position: str
    pairs: int


@dataclass(eq=False, slots=True)
class GatheredPair:
    """A pair of a query; ``alive`` until it is dropped."""

    chosen: int
    rejected: int
    tie: bool
    margin: float | None
    weight: float
    row: PackedRow
    truncated: bool = False
    alive: bool = True


@dataclass(eq=False)
class Query:
    """A prompt with its media, the distinct responses to it, and the pairs among them."""

    source: int
    root: Path
    prompt: tuple[Message, ...]
    tools: str = ""
    responses: list[Response] = field(default_factory=list)
    pairs: list[GatheredPair] = field(default_factory=list)
    places: dict[tuple[tuple[Message, ...], tuple[Media, ...]], int] = field(default_factory=dict)
    known: set[tuple[int, int, bool]] = field(default_factory=set)

    @property
    def content_bytes(self) -> int:
        """Bytes of the media that are held in memory."""
        own = sum(len(item.content or b"") for message in self.prompt for item in message.media)
        return own + sum(_bytes_of(response) for response in self.responses)


@dataclass
class RowAccounting:
    """How many rows and pairs were read, dropped and changed, and the tables that name them."""

    rejected: TableWriter
    changed: TableWriter
    rows_in: int = 0
    pairs_in: int = 0
    rows_dropped: Counter[str] = field(default_factory=Counter)
    pairs_dropped: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    _rejected: list[tuple[str, str, str, str]] = field(default_factory=list)
    _changed: list[tuple[str, str, str, str]] = field(default_factory=list)

    def reject_row(self, source: str, position: str, reason: str, detail: str) -> None:
        """A row that gives no pair at all."""
        self.rows_dropped[reason] += 1
        self._rejected.append((source, position, reason, detail))
        if len(self._rejected) >= _ROWS_AT_ONCE:
            self.flush()

    def drop(self, pair: GatheredPair, reason: str, detail: str) -> None:
        """Take a pair out; its row goes with it where it was the last one."""
        if not pair.alive:
            return
        pair.alive = False
        pair.row.pairs -= 1
        self.pairs_dropped[reason] += 1
        if pair.row.pairs == 0:
            self.reject_row(pair.row.source, pair.row.position, reason, detail)
        else:
            self._changed.append((pair.row.source, pair.row.position, f"dropped_{reason}", detail))

    def change(self, row: PackedRow, change: str, detail: str) -> None:
        """Something about a row that stays in is not as it came."""
        self.changes[change] += 1
        self._changed.append((row.source, row.position, change, detail))

    def flush(self) -> None:
        """Write what has gathered to the two tables."""
        for rows, table in ((self._rejected, self.rejected), (self._changed, self.changed)):
            if rows:
                table.write(pl.DataFrame(rows, schema=table.schema, orient="row"))
                rows.clear()

    def check_share(self, max_bad: float | None, *, final: bool = False) -> None:
        """Stop when too much is bad: early, once there is enough to judge by, and at the end.

        Raises:
            InputError: more than ``max_bad`` of the rows are bad, or none is left in the end.
        """
        bad = Counter(self.rows_dropped)
        for reason in DROPPED_BY_CHOICE:
            del bad[reason]
        nothing_new = self.rows_dropped.total() == self.rows_in
        if final and nothing_new and not self.rows_dropped["duplicate_pair"]:
            most = ", ".join(f"{n:,} {name}" for name, n in self.rows_dropped.most_common(3))
            first = f"; first: {self.first_reason}" if self.first_reason else ""
            raise InputError(f"none of {self.rows_in:,} rows can be used: {most or 'empty'}{first}")
        check_bad_share(self.rows_in, bad, max_bad, final=final)

    @property
    def first_reason(self) -> str:
        """The first row still waiting to be written, for a message."""
        if not self._rejected:
            return ""
        source, position, reason, detail = self._rejected[0]
        return f"{position} ({source}): {reason}: {detail}"


class Gatherer:
    """The bounded table of queries."""

    def __init__(
        self,
        accounting: RowAccounting,
        *,
        keep_ties: bool,
        queries: int = 1024,
        content_bytes: int = 256 << 20,
    ) -> None:
        self._accounting = accounting
        self._keep_ties = keep_ties
        self._most_queries = queries
        self._most_bytes = content_bytes
        self._bytes = 0
        self._open: OrderedDict[object, Query] = OrderedDict()

    def add(
        self, preference: Preference, *, source: int, root: Path, row: PackedRow
    ) -> list[Query]:
        """Put a record to its query; the queries that had to leave for it are returned."""
        row.pairs = len(preference.pairs)
        self._accounting.pairs_in += row.pairs
        if not row.pairs:
            detail = "no two of its responses have a rank"
            self._accounting.reject_row(row.source, row.position, "no_pairs", detail)
            return []
        key = (source, root, preference.prompt, preference.tools)
        query = self._open.get(key)
        if query is None:
            query = self._open[key] = Query(source, root, preference.prompt, preference.tools)
            self._bytes += query.content_bytes
        self._open.move_to_end(key)
        self._merge(query, preference, row)
        return self._leave()

    def rest(self) -> list[Query]:
        """Every query still held; the table is empty afterwards."""
        queries = list(self._open.values())
        self._open.clear()
        self._bytes = 0
        return queries

    def _leave(self) -> list[Query]:
        left = []
        while len(self._open) > self._most_queries or self._bytes > self._most_bytes:
            _, query = self._open.popitem(last=False)
            self._bytes -= query.content_bytes
            left.append(query)
        return left

    def _merge(self, query: Query, preference: Preference, row: PackedRow) -> None:
        place = [self._place(query, response) for response in preference.responses]
        for pair in preference.pairs:
            chosen, rejected = place[pair.chosen], place[pair.rejected]
            gathered = GatheredPair(chosen, rejected, pair.tie, pair.margin, pair.weight, row)
            ends = (
                (min(chosen, rejected), max(chosen, rejected)) if pair.tie else (chosen, rejected)
            )
            if chosen == rejected:
                self._accounting.drop(gathered, "chosen_is_rejected", "both responses are the same")
            elif pair.tie and not self._keep_ties:
                self._accounting.drop(gathered, "tie", "the responses are of equal rank")
            elif (*ends, pair.tie) in query.known:
                self._accounting.drop(gathered, "duplicate_pair", "the same pair has come before")
            else:
                query.known.add((*ends, pair.tie))
                query.pairs.append(gathered)

    def _place(self, query: Query, response: Response) -> int:
        """The number of a response; what an equal one before it did not know is added."""
        place = query.places.setdefault((response.messages, response.instead), len(query.responses))
        if place == len(query.responses):
            query.responses.append(response)
            self._bytes += _bytes_of(response)
            return place
        known = query.responses[place]
        query.responses[place] = replace(
            known,
            rank=known.rank if known.rank is not None else response.rank,
            score=known.score if known.score is not None else response.score,
            critique=known.critique if known.critique is not None else response.critique,
        )
        return place


def _bytes_of(response: Response) -> int:
    media = [item for message in response.messages for item in message.media]
    return sum(len(item.content or b"") for item in (*media, *response.instead))
