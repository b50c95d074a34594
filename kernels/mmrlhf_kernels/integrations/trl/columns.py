"""The columns of pairs that TRL does not know: checks of a data set, and a collator with them."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["COLUMNS", "REFERENCE", "MMDPOCollator", "check_columns", "has_reference"]

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
COLUMNS = ("margin", "weight", "tie", *REFERENCE)


class MMDPOCollator:
    """One of TRL's collators, with the columns of MM-DPO added to its batch.

    The batch of P pairs gets ``margin`` [P] float32 and, where the rows have them, ``weight``,
    ``ref_chosen_logps``, ``ref_rejected_logps`` [P] float32 and ``tie`` [P] bool.

    Args:
        collator: ``DataCollatorForPreference``, ``DataCollatorForVisionPreference``, or any
            function that returns their ``input_ids`` and ``completion_mask``, both [2 P, T] with
            the chosen answers first, and the other inputs of the model.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some rows.

        Raises:
            TypeError: A value is not of its column's kind.
            ValueError: A value is missing or not a number, or a weight is below 0.
        """
        # Before the collator: that of TRL for pictures changes the rows.
        named = [name for name in COLUMNS if name == "margin" or name in examples[0]]
        columns = {name: _column(name, examples) for name in named}
        return {**self.collator(examples), **columns}


def check_columns(dataset: Any, name: str, *, reference: bool) -> None:
    """Check the columns of a data set before anything is computed from it.

    Args:
        dataset: A ``Dataset`` or ``IterableDataset`` of ``datasets``.
        name: What messages call it.
        reference: Whether it must have the reference's log-probabilities.

    Raises:
        TypeError: A column is not of its kind.
        ValueError: A column is missing.
    """
    features = dataset.features or dict.fromkeys(next(iter(dataset)))
    if "margin" not in features:
        raise ValueError(
            f"data set '{name}' has no column margin; found {', '.join(features)}; hint: map one "
            "in, how far the chosen answer of each pair leads, or train with TRL's DPOTrainer"
        )
    found = [column for column in REFERENCE if column in features]
    if len(found) == 1 or (reference and not found):
        missing = " and ".join(column for column in REFERENCE if column not in features)
        has = found[0] if found else f"data set 'train' has {' and '.join(REFERENCE)}"
        raise ValueError(
            f"data set '{name}' has no {missing}, but {has}; hint: these columns come together, "
            "and in all data sets"
        )
    for column in COLUMNS:
        kind = getattr(features.get(column), "dtype", None)
        if kind is not None and not _fits(column, kind):
            wanted = "bool" if column == "tie" else "a number"
            raise TypeError(
                f"column {column} of data set '{name}' is {kind}; expected {wanted}; "
                f"hint: dataset.cast_column('{column}', ...)"
            )


def has_reference(names: Iterable[str]) -> bool:
    """Whether the reference's log-probabilities are among the columns."""
    return set(REFERENCE) <= set(names)


def _fits(column: str, dtype: str) -> bool:
    return dtype == "bool" if column == "tie" else dtype.startswith(("float", "int", "uint"))


def _column(name: str, examples: list[dict[str, Any]]) -> Tensor:
    """[P] of one column; see :class:`MMDPOCollator`."""
    values = [_value(name, example, place) for place, example in enumerate(examples)]
    return torch.tensor(values, dtype=torch.bool if name == "tie" else torch.float32)


def _value(name: str, example: dict[str, Any], place: int) -> float | bool:
    """One value, checked."""
    where, found = f"{name} of row {place} of a batch", example.get(name)
    if found is None:
        raise ValueError(f"{where} is missing; hint: filter such rows, or map a value in")
    if isinstance(found, bool) != (name == "tie") or not isinstance(found, int | float):
        wanted = "true or false" if name == "tie" else "a number"
        raise TypeError(f"{where} is {found!r}; expected {wanted}")
    if math.isnan(found) or (name == "weight" and found < 0):
        raise ValueError(f"{where} is {found!r}; expected a number{' >= 0' * (name == 'weight')}")
    return found
