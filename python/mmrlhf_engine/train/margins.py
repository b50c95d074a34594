"""Reward margins of pairs on a scale of their own: as they are, by deviation, or by rank.

The margin of a pair is the reward of the chosen answer less that of the rejected one. Reward models
differ in scale, and MM-DPO's ``w (1 - exp(-k margin))`` depends on it: where margins are large, all
pairs get the same beta.
"""

from typing import Any, Literal

import numpy as np

from mmrlhf_engine.errors import InputError

__all__ = ["MarginRule", "normalised"]

MarginRule = Literal["none", "std", "rank"]
"""How margins are normalised; see :func:`normalised`."""


def normalised(
    margins: np.ndarray, rule: MarginRule, ties: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins under a rule of normalisation, and what the rule was made of.

    Let D be the known margins of pairs that are no ties, n their number::

        none   m
        std    m / s,          s = sqrt(mean((d - mean(D))^2)), over d in D
        rank   sign(m) q(m),   q(m) = |{d in D : |d| <= |m|}| / n

    ``std`` does not shift, so that a margin keeps its sign. q is 1 for the largest margin and at
    least 1/n for any of D; equal sizes have equal quantiles. Ties are mapped by the same numbers,
    of which they are no part; a margin of 0 stays 0.

    Args:
        margins: Float [pairs]; NaN is a margin that is not known.
        rule: The rule.
        ties: Bool [pairs], whether a pair is a tie.

    Returns:
        Float32 [pairs], NaN where it was NaN; and the rule with its numbers, for the provenance.

    Raises:
        InputError: the rule has no number to divide by: no margin of D is known, or for ``std``
            all of them are equal, among them a single one.
    """
    values = np.asarray(margins, dtype=np.float64)
    if rule == "none":
        return values.astype(np.float32), {"rule": rule}
    decided = values[~np.asarray(ties, dtype=bool) & ~np.isnan(values)]
    if not len(decided):
        raise InputError(
            f"margins: {rule!r} cannot be computed: no pair that is no tie has a margin",
            hint="none leaves margins as they are",
        )
    if rule == "rank":
        sizes = np.sort(np.abs(decided))
        quantiles = np.searchsorted(sizes, np.abs(values), side="right") / len(sizes)
        ranked = np.where(np.isnan(values), np.nan, np.sign(values) * quantiles)
        return ranked.astype(np.float32), {"rule": rule, "pairs": len(decided)}
    if decided.min() == decided.max():
        raise InputError(
            f"margins: 'std' cannot be computed: all {len(decided):,} margins of pairs that are "
            f"no ties are {decided[0]:g}",
            hint="none leaves margins as they are",
        )
    deviation = float(decided.std())
    numbers = {"rule": rule, "pairs": len(decided), "standard_deviation": deviation}
    return (values / deviation).astype(np.float32), numbers
