"""Fields of records that are not read and look like a part of the sample, counted by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

__all__ = ["UnreadFields"]

_MOST_NAMES = 1000
_OTHERS = "(other names)"


@dataclass
class UnreadFields:
    """Counts over all batches of a run.

    Of names that differ in each record (a URL as a key) only the first thousand are told apart.
    """

    _found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, unread: pl.DataFrame) -> None:
        """Add the rows ``rows, name, kind, example`` of one batch."""
        for row in unread.iter_rows(named=True):
            self._count(**row)

    def merge(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what :meth:`facts` says of other batches."""
        for name, found in facts.items():
            self._count(name, **found)

    def _count(self, name: str, rows: int, kind: str, example: str) -> None:
        names = len(self._found) - (_OTHERS in self._found)
        if name not in self._found and names >= _MOST_NAMES:
            name = _OTHERS
        known = self._found.setdefault(name, {"rows": 0, "kind": kind, "example": example})
        known["rows"] += rows

    def facts(self) -> dict[str, dict[str, Any]]:
        """Name -> ``rows`` that have it, ``kind`` and ``example`` of the first, most rows first."""
        order = sorted(self._found.items(), key=lambda item: (-item[1]["rows"], item[0]))
        return dict(order)

    def told(self) -> str:
        """The most frequent ones in one line; nothing where there is none."""
        facts = list(self.facts().items())
        shown = ", ".join(
            f"{name} ({found['kind']}, {found['rows']:,} rows)" for name, found in facts[:5]
        )
        more = f", and {len(facts) - 5} more (report.json)" if len(facts) > 5 else ""
        return f"fields that were not read: {shown}{more}" if facts else ""
