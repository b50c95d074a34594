"""The settings that decide the order of training.

A plan is settings here, canonical JSON in the core, and a hash in every cursor. How many tokens an
image becomes is a rule of its model (:mod:`mmrlhf_engine.models.families`), a part of the plan.
"""

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mmrlhf_engine import _core
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.config import Section

__all__ = [
    "Budget",
    "HoldOut",
    "MixtureSettings",
    "MixtureStage",
    "PlanSettings",
    "plan_hash",
    "plan_json",
    "whole_weights",
]


class Budget(Section):
    """The most that a pack may hold; at least one limit, null is none."""

    tokens: PositiveInt | None = Field(default=None, lt=2**32)
    """Tokens of text and of images together."""
    text_tokens: PositiveInt | None = Field(default=None, lt=2**32)
    """Tokens of text."""
    image_tokens: NonNegativeInt | None = Field(default=None, lt=2**32)
    """Tokens that stand for images."""
    images: NonNegativeInt | None = Field(default=None, lt=2**32)
    """Images, a frame of a video being one."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> "Budget":
        if not self.model_dump(exclude_none=True):
            raise ValueError("at least one limit is needed")
        return self


class HoldOut(Section):
    """Queries that are held out from training, and which part a plan is of.

    Queries that share a picture or a frame, in the prompt or in a response, or that are equal, go
    to one part together. Which part it is depends on their content and the settings here, not on
    the order of the rows or the seed of the plan. A larger share holds out more queries, and all
    of those of a smaller one.
    """

    share: float = Field(gt=0, lt=1)
    """The expected share of the queries that are held out."""
    part: Literal["train", "held_out"] = "train"
    """Those that are trained on, or those that are held out."""
    seed: NonNegativeInt = Field(default=0, lt=2**64)
    """Of the choice; another seed holds out other queries."""


class MixtureStage(Section):
    """Other weights from a block on."""

    from_block: PositiveInt
    """The first block they hold for, counted in blocks of the mixture."""
    weights: dict[str, float]
    """A weight for each source of the mixture."""


class MixtureSettings(Section):
    """Shares of several sources, exact in every block."""

    weights: dict[str, float]
    """The sources in the order of the dataset, each with its weight, of any sum."""
    later: tuple[MixtureStage, ...] = ()
    """Weights that change on the way, by rising block."""
    block: PositiveInt = Field(default=65536, le=131072)
    """Units in which the shares are exact; a weight is 0 or worth at least one of them."""
    ends: Literal["restart", "stop_first", "stop_all"] = "stop_first"
    """After ``units_per_epoch``, before the first source runs out, or once each was seen whole."""
    units_per_epoch: PositiveInt | None = Field(default=None, lt=2**64)
    """The length of an epoch that restarts its sources; null is as many as they have together."""


class PlanSettings(Section):
    """What decides, with the dataset, which units make up which step."""

    budget: Budget
    """The most that a pack may hold."""
    packs_per_step: PositiveInt = Field(lt=2**32)
    """Packs of a step over all ranks: the global batch."""
    unit: Literal["pair", "response", "query"] = "query"
    """What is drawn and packed as a whole; a query shares its prompt and images."""
    seed: NonNegativeInt = Field(default=0, lt=2**64)
    """Of every random choice."""
    window: PositiveInt | None = Field(default=None, le=131072)
    """Units that are packed together; going on from any place costs the planning of one window.
    Null is 4,096, or 1,024 where queries are drawn."""
    pairs_per_query: Annotated[PositiveInt, Field(lt=2**32)] | Literal["all"] = "all"
    """Pairs taken of each query, chosen again each epoch."""
    too_large: Literal["error", "alone", "drop"] = "error"
    """What becomes of a unit that fits no pack: a pack of its own, or left out and counted."""
    draw: Literal["unit", "query"] | None = None
    """What is drawn one after the other: units, or queries, whose pairs are then in one window and
    in different packs, so that the images that they share are decoded once. A window holds as many
    queries as have ``window`` pairs on average. Null is queries where the units are pairs and there
    is an image rule, else units."""
    hold_out: HoldOut | None = None
    """The part of the dataset that is trained on, or the rest; null is the whole dataset."""
    added_tokens: str | None = None
    """The hash of tokens that are added to each response after loading, which packs leave room for;
    null adds none. :func:`mmrlhf_engine.shards.arguments.added_tokens_of` gives it."""
    shuffle: Literal["full", "block"] = "full"
    """Over the whole dataset, or with neighbours kept near for slow storage."""
    modality: Literal["mixed", "separate", "image_in_each"] = "mixed"
    """Whether the packs of a step must all have images or all have none."""
    mixture: MixtureSettings | None = None
    """Shares of the dataset's sources, of what is drawn; null draws from all alike."""


def plan_json(settings: PlanSettings, image_rule: Mapping[str, Any] | None = None) -> str:
    """The canonical JSON of a plan, which the core reads and hashes.

    Raises:
        ConfigError: the settings do not fit together.
    """
    return _canonical(settings, image_rule)[0]


def plan_hash(settings: PlanSettings, image_rule: Mapping[str, Any] | None = None) -> str:
    """The hash that a cursor carries: ``b3:`` and 64 hexadecimal digits.

    Raises:
        ConfigError: the settings do not fit together.
    """
    return _canonical(settings, image_rule)[1]


_WINDOW_OF = {"unit": 4096, "query": 1024}
"""By what is drawn: the images of a window of queries are decoded once if a cache holds them."""


def _canonical(settings: PlanSettings, image_rule: Mapping[str, Any] | None) -> tuple[str, str]:
    fields = settings.model_dump(mode="json", exclude={"mixture"})
    if settings.pairs_per_query == "all":
        fields["pairs_per_query"] = None
    if fields["draw"] is None:
        shared = image_rule is not None and settings.unit == "pair"
        fields["draw"] = "query" if shared else "unit"
    if fields["window"] is None:
        fields["window"] = _WINDOW_OF[fields["draw"]]
    fields["mixture"] = None if settings.mixture is None else _mixture(settings.mixture)
    fields["image_rule"] = None if image_rule is None else dict(image_rule)
    try:
        return _core.plan_hash(json.dumps(fields))
    except InputError as error:
        raise ConfigError(str(error)) from None


def _mixture(settings: MixtureSettings) -> dict[str, Any]:
    sources = list(settings.weights)
    stages = [{"from_block": 0, "weights": whole_weights(list(settings.weights.values()))}]
    for stage in settings.later:
        if set(stage.weights) != set(sources):
            raise ConfigError(
                f"mixture: weights from block {stage.from_block}: found those of "
                f"{sorted(stage.weights)}, expected those of {sorted(sources)}"
            )
        weights = whole_weights([stage.weights[source] for source in sources])
        stages.append({"from_block": stage.from_block, "weights": weights})
    return {
        "sources": sources,
        "stages": stages,
        "block": settings.block,
        "ends": settings.ends,
        "units_per_epoch": settings.units_per_epoch,
    }


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights in whole numbers of the same ratios, as small as they can be: 0.7, 0.3 are 7, 3.

    Raises:
        ConfigError: a weight is negative or not a number, all are 0, or their ratios are not
            simple enough for 64 bits.
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ConfigError(
            f"mixture: found weights {list(weights)}, expected some above 0, none below"
        )
    # The shortest decimal that gives the float is what the user wrote.
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if sum(whole) >= 2**64:
        raise ConfigError(f"mixture: weights {list(weights)} need more than 64 bits; round them")
    return whole
