"""Ratings of models from pairwise results, by maximum likelihood.

Bradley and Terry's model: i beats j with probability 1 / (1 + 10^((r_j - r_i) / 400)); a tie counts
as half a win of each. The likelihood is that of a logistic regression and is concave, so Newton's
method finds its maximum (Hunter, *MM algorithms for generalized Bradley-Terry models*, 2004). It
has one only if every model can be reached from every other one along wins (Ford, 1957): a model
that has won everything has no finite rating.
"""

import math

import numpy as np
import numpy.typing as npt

from mmrlhf_engine.measure.bootstrap import Floats

__all__ = ["INITIAL", "SCALE", "has_maximum", "ratings"]

SCALE = 400.0
"""Points between models of which one wins ten times as often as it loses."""
INITIAL = 1000.0
"""Mean rating of all models."""
_STEPS = 100
_LONGEST_STEP = 1.0
"""Of a strength, natural logarithm of odds: Newton's steps are too long far from the maximum."""


def ratings(wins: Floats) -> Floats:
    """Float64 [..., models], ratings with the mean 1000; NaN where there is no maximum.

    Args:
        wins: Float64 [..., models, models]: how often the row's model beat the column's, ties half.
    """
    models = wins.shape[-1]
    flat = wins.reshape(-1, models, models)
    played = flat + flat.transpose(0, 2, 1)
    exists = has_maximum(flat)
    strengths = np.zeros(flat.shape[:2])
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
        gradient = (flat - played * expected).sum(axis=2)
        weights = played * expected * (1 - expected)
        hessian = np.eye(models) * weights.sum(axis=2)[:, :, None] - weights
        # Strengths are known up to a constant; adding 1 to every entry fixes their mean. A matrix
        # of a problem without a maximum may be singular: its step is that of the identity.
        hessian = np.where(exists[:, None, None], hessian + 1, np.eye(models))
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        step = np.where(exists[:, None], np.clip(step, -_LONGEST_STEP, _LONGEST_STEP), 0)
        strengths = strengths + step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    strengths -= strengths.mean(axis=1, keepdims=True)
    found = INITIAL + SCALE / math.log(10) * strengths
    return np.where(exists[:, None], found, np.nan).reshape(wins.shape[:-1])


def has_maximum(wins: Floats) -> npt.NDArray[np.bool_]:
    """Bool [...], whether each model is reached from each other one along wins or ties.

    Args:
        wins: Float64 [..., models, models], as for :func:`ratings`.
    """
    models = wins.shape[-1]
    reached = (wins > 0) | np.eye(models, dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(max(models, 2))))):
        reached = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
    return np.asarray(reached.all(axis=(-1, -2)))
