"""The formats of preference data in the field, one file each, told apart by their content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.preferences import (
    columns,
    compared,
    dialog,
    mm_rlhf,
    ms_swift,
    ranked,
    sharegpt,
    trl,
)
from mmrlhf_engine.sources.preferences.record import Preference
from mmrlhf_engine.sources.preferences.unread import bookkeeping, without_fields

__all__ = ["FORMATS", "Format", "detect"]


@dataclass(frozen=True)
class Format:
    """How records of one format are known, and how they are read."""

    name: str
    matches: Callable[[dict[str, Any]], bool]
    parse: Callable[[dict[str, Any]], Preference]
    fields: frozenset[str]
    """What ``parse`` reads wherever it is there."""
    more_fields: Callable[[dict[str, Any]], frozenset[str]] | None = None
    """What it reads of one record besides, where several fields could hold the same thing."""
    unread_within: Callable[[dict[str, Any]], list[str]] | None = None
    """What it does not read of the objects in a field, as ``completions[].model``."""

    def read(
        self, record: dict[str, Any], ignored: frozenset[str] = frozenset()
    ) -> tuple[Preference, list[str]]:
        """What a record says, and the names of its fields that were not read.

        ``ignored`` are left out, whatever they hold, in its messages too.

        Raises:
            BadRecordError: it cannot be used, or an unread field may be part of the prompt.
        """
        left_out = sorted(ignored & record.keys())
        if ignored:
            record = without_fields(record, ignored)
        preference = self.parse(record)
        fields = self.fields | (self.more_fields(record) if self.more_fields else frozenset())
        unread = bookkeeping(record, fields, preference)
        within = self.unread_within(record) if self.unread_within else []
        return preference, [*left_out, *unread, *within]


# The order decides where a record fits two: MM-RLHF's pairs are also TRL's strings, and so are rows
# of columns, whose question TRL does not know.
FORMATS = {
    format.name: format
    for format in (
        Format(
            "mm_rlhf_queries", mm_rlhf.matches_queries, mm_rlhf.parse_query, mm_rlhf.QUERY_FIELDS
        ),
        Format("mm_rlhf_pairs", mm_rlhf.matches_pairs, mm_rlhf.parse_pair, mm_rlhf.FIELDS),
        Format("ms_swift", ms_swift.matches, ms_swift.parse, ms_swift.FIELDS),
        Format("sharegpt", sharegpt.matches, sharegpt.parse, sharegpt.FIELDS),
        Format(
            "ranked",
            ranked.matches,
            ranked.parse,
            ranked.FIELDS,
            ranked.columns_read,
            ranked.unread_within,
        ),
        Format(
            "compared", compared.matches, compared.parse, compared.FIELDS, compared.columns_read
        ),
        Format("hh_rlhf", dialog.matches, dialog.parse, dialog.FIELDS),
        Format(
            "columns",
            columns.matches,
            columns.parse,
            columns.FIELDS,
            columns.columns_read,
            columns.unread_within,
        ),
        Format("trl", trl.matches, trl.parse, trl.FIELDS),
    )
}


def detect(records: Sequence[object], where: str) -> Format:
    """The format that fits most of the first records of a source.

    Raises:
        InputError: none fits any of them.
    """
    rows = [record for record in records if isinstance(record, dict)]
    fits = {name: sum(map(format.matches, rows)) for name, format in FORMATS.items()}
    best = max(fits, key=lambda name: fits[name])
    if not fits[best]:
        keys = sorted({str(key) for row in rows for key in row})
        raise InputError(
            f"{where}: no format of preference data fits; keys found: {', '.join(keys) or 'none'}",
            hint=f"formats: {', '.join(FORMATS)}; one can be set by --format",
        )
    return FORMATS[best]
