"""Arguments of loaders and datasets, checked where they are given."""

import json
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError

__all__ = [
    "added_tokens_of",
    "check_number",
    "check_rank",
    "cursor_json",
    "folder",
    "from_environment",
    "packs_of",
]


def added_tokens_of(counts: Any) -> tuple[pa.Array, str] | tuple[None, None]:
    """Tokens that are added to each response, as the core reads them, and their hash for a plan.

    Args:
        counts: Whole numbers [responses], or None.

    Raises:
        InputError: they are of another type, or out of range.
    """
    if counts is None:
        return None, None
    array = np.asarray(counts)
    whole = array.ndim == 1 and np.issubdtype(array.dtype, np.integer)
    if not whole or (len(array) and not 0 <= int(array.min()) <= int(array.max()) < 2**32):
        raise InputError(
            f"added_tokens: found {array.dtype} {list(array.shape)}, expected whole numbers from 0 "
            "to below 2^32, one for each response",
            hint="np.zeros(dataset.rows('responses'), np.uint32)",
        )
    numbers = pa.array(array.astype(np.uint32))
    return numbers, _core.added_tokens_hash(numbers)


def folder(path: Path | str) -> Path:
    """The folder of a dataset.

    Raises:
        InputError: it is not a path.
    """
    try:
        return Path(path)
    except TypeError:
        raise InputError(f"path: found {path!r}, expected the folder of a dataset") from None


def cursor_json(state: Mapping[str, Any] | str) -> str:
    """A state, or the cursor of a batch, as the JSON that the core reads.

    Raises:
        InputError: it is neither.
    """
    if isinstance(state, str):
        return state
    if isinstance(state, Mapping):
        return json.dumps(dict(state))
    raise InputError(
        f"state: found {type(state).__name__}, expected what state_dict() gave, or the cursor of "
        "a batch"
    )


def check_rank(rank: int, world_size: int) -> None:
    """Refuse a process that is not among those that share a step.

    Raises:
        InputError: the rank is not a whole number from 0 to below ``world_size``.
    """
    check_number("world_size", world_size, 1)
    check_number("rank", rank, 0)
    if rank >= world_size:
        raise InputError(
            f"rank: found {rank}, expected below {world_size}, the world_size",
            hint="ranks are counted from 0",
        )


def check_number(name: str, number: Any, lowest: int) -> None:
    """Refuse what is not a whole number, or is below the lowest.

    Raises:
        InputError: with the name of the argument.
    """
    if not isinstance(number, Integral):
        raise InputError(f"{name}: found {number!r}, expected a whole number")
    if int(number) < lowest:
        raise InputError(f"{name}: found {number}, expected at least {lowest}")


def packs_of(state: Mapping[str, Any] | str | None) -> int | None:
    """``packs_per_step`` of the plan of a state; None where it does not say."""
    if state is None:
        return None
    try:
        packs = json.loads(cursor_json(state))["settings"]["packs_per_step"]
    except (ValueError, KeyError, TypeError):
        return None  # The core says what is wrong with such a state.
    return packs if isinstance(packs, int) else None


def from_environment(variable: str) -> int:
    """The whole number in an environment variable, which is set.

    Raises:
        InputError: it is not a whole number.
    """
    try:
        return int(os.environ[variable])
    except ValueError:
        raise InputError(
            f"environment variable {variable}: found {os.environ[variable]!r}, "
            "expected a whole number",
            hint="unset it, or give rank and world_size",
        ) from None
