"""Supervised training on the chosen answers of preference shards, by the same loop as MM-DPO.

The loss is the mean of ``-log p`` over the tokens of the chosen answers of a step. An answer that
is chosen in several pairs of a pack counts once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import LinearHead
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.train.logps import row_logps
from mmrlhf_engine.train.objective import Head, Objective, PackOutput, Totals, targets_of
from mmrlhf_engine.train.settings import TrainSettings
from mmrlhf_engine.train.training_stage import KEEPS, NO_EFFECT, WRITES, inputs_of, run_training

__all__ = ["STAGE", "Supervised", "SupervisedConfig"]


class SupervisedConfig(TrainSettings):
    """Settings of ``sft``."""


class Supervised(Objective):
    """The objective of supervised training over packs."""

    name = "sft"
    ties_train = True

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {}

    def totals(self, batch: PreferenceBatch[Any]) -> Totals:
        """Distinct chosen answers of a pack, and their tokens."""
        lengths = batch.cu_seqlens[1:] - batch.cu_seqlens[:-1] - batch.prompt_lengths
        chosen = _chosen(batch)
        return Totals(len(chosen), int(lengths[chosen].sum()))

    def head(self, batch: PreferenceBatch[Any], totals: Totals, device: torch.device) -> Head:
        """The loss of the chosen answers of a pack, as a part of a step with these totals."""
        chosen = torch.as_tensor(_chosen(batch)).long().to(device)

        def loss(hidden: Tensor, head: LinearHead, pack: ModelPack) -> PackOutput:
            targets = targets_of(pack, chosen)
            logp = row_logps(hidden, head, targets)
            return PackOutput(-logp.sum() / totals.tokens, {}, {}, None)

        return loss

    def means(self, sums: Mapping[str, float], totals: Totals) -> dict[str, float]:
        """The loss, summed under totals of one, as the mean over the tokens."""
        return {**sums, "loss": sums["loss"] / max(1, totals.tokens)}


def _chosen(batch: PreferenceBatch[Any]) -> Any:
    """The sequences that are the chosen answer of a pair whose pictures could be read."""
    return np.unique(batch.pair_chosen[batch.pair_weight > 0])


def objective_of(*_: Any) -> Supervised:
    """The objective; it reads no columns of the shards."""
    return Supervised()


def run(config: SupervisedConfig, context: StageContext) -> None:
    """Train on the chosen answers in the folder of the stage."""
    run_training(config, context, objective_of)


STAGE = Stage(
    name="sft",
    config=SupervisedConfig,
    run=run,
    writes=WRITES,
    keeps=KEEPS,
    external=lambda config: [inputs_of(config, objective_of)],
    no_effect_on_output=NO_EFFECT,
)
