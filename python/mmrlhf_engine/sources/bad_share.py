"""When too large a share of the rows of a run is bad, the run stops."""

from collections import Counter
from pathlib import Path

from mmrlhf_engine.errors import InputError

__all__ = ["check_bad_share", "shown_rejected"]

_FEWEST_ROWS = 1000


def shown_rejected(table: Path) -> str:
    """Where to look up the bad rows of a run that stopped."""
    return f'each of them with its reason: pl.read_parquet("{table}/*.parquet")'


def check_bad_share(
    rows: int,
    bad: Counter[str],
    max_bad: float | None,
    *,
    final: bool = False,
    table: Path | None = None,
) -> None:
    """Stop early, once there are rows enough to judge by, and at the end.

    Args:
        rows: Rows read so far.
        bad: How many of them are bad, by reason.
        max_bad: The largest share, 0 to 1, at which the run goes on; None never stops it.
        final: Every row has been read.
        table: The folder of the table that lists the bad rows, which outlives the error.

    Raises:
        InputError: more than ``max_bad`` of the rows are bad.
    """
    count = bad.total()
    if max_bad is None or not (final or rows >= _FEWEST_ROWS) or count <= max_bad * rows:
        return
    most = ", ".join(f"{number:,} {reason}" for reason, number in bad.most_common(3))
    raise InputError(
        f"{count:,} of {rows:,} rows are bad ({100 * count / rows:.1f} %), "
        f"more than --max-bad allows ({max_bad:.6g}): {most}",
        hint="without --max-bad the run goes on, and each row is in the table `rejected`"
        if table is None
        else f"{shown_rejected(table)}; without --max-bad the run goes on",
    )
