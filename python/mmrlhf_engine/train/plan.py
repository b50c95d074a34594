"""The plan of a training run: which units make up which pack."""

from typing import Literal

from mmrlhf_engine.shards.plan import Budget, HoldOut, PlanSettings
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["plan_of"]


def plan_of(
    settings: TrainSettings, part: Literal["train", "held_out"] | None = "train"
) -> PlanSettings:
    """The plan that a run under these settings follows.

    Args:
        settings: Of the run.
        part: The side of the held-out split; None is the whole dataset.
    """
    data, share, seed = settings.data, settings.evaluation.share, settings.evaluation.seed
    hold_out = HoldOut(share=share, seed=seed, part=part) if share and part is not None else None
    return PlanSettings(
        budget=Budget(tokens=data.tokens),
        packs_per_step=data.packs_per_step,
        unit=data.unit,
        seed=settings.seed,
        pairs_per_query=data.pairs_per_query,
        too_large=data.too_large,
        hold_out=hold_out,
    )
