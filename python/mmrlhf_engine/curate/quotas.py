"""Floors and caps of modalities and sources: from the settings to what the core is told."""

import difflib
import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.run.config import Section

__all__ = ["NO_CAP", "Bound", "Groups"]

NO_CAP = 2**63 - 1


class Bound(Section):
    """How few and how many of a group: a whole number is a count, a fraction a share of all."""

    floor: int | float = Field(default=0, ge=0)
    """At least so many, as far as they are there."""
    cap: int | float | None = Field(default=None, ge=0)
    """At most so many; null for no cap."""

    @field_validator("floor", "cap")
    @classmethod
    def _check_share(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value > 1:
            raise ValueError("a share is at most 1.0; write a count as a whole number")
        return value


class Groups:
    """The groups of one column as the core knows them: each bounded one, and all others as one.

    Attributes:
        column: ``modality`` or ``source``.
        bounds: (floor, cap) in queries, by the name of each bounded group.
    """

    def __init__(self, column: str, bounds: Iterable[tuple[str, Bound]], count: int) -> None:
        self.column = column
        self.bounds = {
            name: (
                _units(bound.floor, count, math.ceil),
                NO_CAP if bound.cap is None else _units(bound.cap, count, math.floor),
            )
            for name, bound in sorted(bounds, key=lambda item: item[0])
        }
        for name, (floor, cap) in self.bounds.items():
            if floor > cap:
                raise ConfigError(f"select.{column}.{name}: floor {floor} is above cap {cap}")
        total = sum(floor for floor, _ in self.bounds.values())
        if total > count:
            raise ConfigError(f"select.{column}: floors add up to {total}, count is {count}")

    @property
    def core_bounds(self) -> list[tuple[int, int]]:
        """(floor, cap) by code: code 0 stands for every group without bounds."""
        return [(0, NO_CAP), *self.bounds.values()]

    def codes(self, names: pl.Series) -> pa.Array:
        """The code of each name, uint32: its place among the bounded ones plus 1, else 0.

        ``names`` is an enumeration.
        """
        assert isinstance(names.dtype, pl.Enum)
        codes = {name: code for code, name in enumerate(self.bounds, start=1)}
        of_category = [codes.get(name, 0) for name in names.dtype.categories]
        return pa.array(np.array(of_category, np.uint32)[names.to_physical().to_numpy()])

    def name(self, code: int) -> str:
        """The bounded group of a code above 0."""
        return list(self.bounds)[code - 1]

    def expect_known(self, names: list[str]) -> None:
        """Refuse a bound on a group that is not among ``names``: most likely it is misspelt.

        Raises:
            ConfigError: and names the nearest known one.
        """
        for name in self.bounds:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1)
                raise ConfigError(
                    f"select.{self.column}: no sample is of the {self.column} {name}",
                    hint=f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(names)}",
                )


def _units(bound: int | float, count: int, rounding: Callable[[Fraction], int]) -> int:
    """A bound in queries; 0.1 of 30 is 3, not the 4 that binary fractions would round up to."""
    return bound if isinstance(bound, int) else rounding(Fraction(str(bound)) * count)
