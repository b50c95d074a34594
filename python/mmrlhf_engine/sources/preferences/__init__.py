"""The formats of preference data in the field, one file each, told apart by their content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.preferences import mm_rlhf, ms_swift, sharegpt, trl
from mmrlhf_engine.sources.preferences.record import Preference

__all__ = ["FORMATS", "Format", "detect"]


@dataclass(frozen=True)
class Format:
    """How records of one format are known, and how they are read."""

    name: str
    matches: Callable[[dict[str, Any]], bool]
    parse: Callable[[dict[str, Any]], Preference]
    fields: frozenset[str]
    """What ``parse`` makes use of; other fields are counted and named in the report."""


# The order decides where a record fits two: MM-RLHF's pairs are also TRL's strings.
FORMATS = {
    format.name: format
    for format in (
        Format(
            "mm_rlhf_queries", mm_rlhf.matches_queries, mm_rlhf.parse_query, mm_rlhf.QUERY_FIELDS
        ),
        Format("mm_rlhf_pairs", mm_rlhf.matches_pairs, mm_rlhf.parse_pair, mm_rlhf.FIELDS),
        Format("ms_swift", ms_swift.matches, ms_swift.parse, ms_swift.FIELDS),
        Format("sharegpt", sharegpt.matches, sharegpt.parse, sharegpt.FIELDS),
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
