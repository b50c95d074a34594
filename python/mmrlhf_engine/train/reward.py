"""The critique-based reward model: it learns to criticise an answer, and to score it.

    L = critique_weight * (critique loss of both answers) + score_weight * (Bradley-Terry, ties)
        + centring * mean (r_c + r_r)^2

Both losses are those of MM-RLHF (arXiv 2502.10391, section 3), with weights 1 and 1; centring is
that of its released code (arXiv 2312.09244). The reward is read at the last token, after the
critique of the annotator, which the model is given in training (teacher forcing). All answers of a
query share one forward pass of the prompt and its pictures.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.checkpoint import is_reward_model
from mmrlhf_engine.models.head import LinearHead
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import PackedPolicy
from mmrlhf_engine.models.reward_model import (
    RewardHeadSettings,
    load_reward_model,
    record_judge,
)
from mmrlhf_engine.models.tails import Tail
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset
from mmrlhf_engine.train.critiques import Critiques
from mmrlhf_engine.train.logps import row_logps
from mmrlhf_engine.train.objective import Head, Objective, PackOutput, Totals
from mmrlhf_engine.train.pair_columns import margin_request
from mmrlhf_engine.train.settings import TrainSettings
from mmrlhf_engine.train.training_stage import KEEPS, NO_EFFECT, WRITES, inputs_of, run_training
from mmrlhf_kernels import RewardOutput, pairwise_reward_loss, sequence_of_row, sequence_sums

__all__ = ["STAGE", "Reward", "RewardConfig"]


class RewardConfig(TrainSettings):
    """Settings of ``reward``."""

    head: RewardHeadSettings = RewardHeadSettings()
    """Of a model that has none yet; a reward model goes on with its own."""
    critiques: str = "packed"
    """``packed``: the reasons that came with the answers; ``none``: scores alone; or
    ``SET/FIELD``: a sidecar column of responses with text. Queries in which an answer lacks one are
    trained without."""
    instruction: str | None = None
    """What the judge is asked after an answer; null is the default. It is kept with the model."""
    critique_weight: NonNegativeFloat = 1.0
    """Factor of the critiques' loss."""
    critique_loss: Literal["mean", "sum"] = "mean"
    """Over the tokens of a critique: the mean, as the released code has it, or the paper's sum."""
    score_weight: NonNegativeFloat = 1.0
    """Factor of the loss of scores, that of ties included."""
    tie_weight: NonNegativeFloat = 1.0
    """Factor of the squared difference of two answers of equal rank; 0 leaves ties out."""
    centring: NonNegativeFloat = 0.01
    """Factor of the squared sum of both rewards, which keeps them around 0."""
    margin: str | None = None
    """By how much the chosen answer should lead: ``packed``, the pairs' own, or ``SET/FIELD``, a
    sidecar column of pairs; an unknown one is 0. Null is 0."""


class Reward(Objective):
    """The objective of a reward model over packs.

    Args:
        config: Its settings.
        shards: The dataset that it is of.
    """

    name = "reward"

    def __init__(self, config: RewardConfig, shards: ShardDataset) -> None:
        self.config, self._shards = config, shards
        self.ties_train = config.tie_weight > 0
        given = config.margin not in (None, "packed")
        self.columns = {"margin": margin_request(shards, str(config.margin))} if given else {}

    @cached_property
    def critiques(self) -> Critiques:
        """What follows the answers."""
        config = self.config
        return Critiques(self._shards, config.critiques, config.model, config.instruction)

    def load_model(self, name: str, **options: Any) -> PackedPolicy:
        """The model with its head; one that has none gets a new one."""
        new_head = None if is_reward_model(name) else self.config.head
        return load_reward_model(name, new_head=new_head, **options)

    def save(self, folder: Path) -> None:
        """Say in a checkpoint what the judge is asked."""
        record_judge(folder, self.critiques.instruction)

    def inputs(self) -> dict[str, Any]:
        """The tokens that follow answers, as a hash."""
        return {"critiques": self.critiques.version()}

    @property
    def added_tokens(self) -> npt.NDArray[np.uint32] | None:
        """uint32 [responses], of critiques and what is around them."""
        return self.critiques.lengths

    def tails(self, batch: PreferenceBatch[Any]) -> list[Tail]:
        """The critique after each answer."""
        return [self.critiques.tail(int(response)) for response in batch.sequence_response]

    def totals(self, batch: PreferenceBatch[Any]) -> Totals:
        """Live pairs of a pack, those of them that are ties, and tokens of critiques."""
        live = self._live(batch)
        answers = np.unique(np.concatenate([batch.pair_chosen[live], batch.pair_rejected[live]]))
        tails = [self.critiques.tail(int(batch.sequence_response[answer])) for answer in answers]
        tokens = sum(len(tail.tokens) - tail.given for tail in tails)
        return Totals(int(live.sum()), tokens, int(self._ties(batch)[live].sum()))

    def head(self, batch: PreferenceBatch[Any], totals: Totals, device: torch.device) -> Head:
        """The loss of the live pairs of a pack, as a part of a step with these totals."""
        live = self._live(batch)

        def column(values: Any) -> Tensor:
            return torch.as_tensor(values).to(device)

        chosen, rejected = (
            column(places[live]).long() for places in (batch.pair_chosen, batch.pair_rejected)
        )
        tie, weight = column(self._ties(batch)[live]), column(batch.pair_weight[live])
        rows, margin = column(batch.pair_row[live]), self._margin(batch, live, column)

        def loss(hidden: Tensor, head: LinearHead, pack: ModelPack, rewards: Tensor) -> PackOutput:
            config = self.config
            scores = pairwise_reward_loss(
                rewards[chosen],
                rewards[rejected],
                tie=tie,
                tie_weight=config.tie_weight,
                margin=margin,
                weight=weight,
                num_ranked=totals.pairs - totals.ties,
                num_ties=totals.ties,
            )
            both = (weight * (rewards[chosen] + rewards[rejected]).square()).sum() / totals.pairs
            # An answer counts once for each of its pairs, as if each pair were computed alone.
            counts = rewards.new_zeros(len(rewards))
            counts = counts.index_add(0, chosen, weight).index_add(0, rejected, weight)
            critique = self._critique_loss(hidden, head, pack, counts) / totals.pairs
            total = (
                config.score_weight * scores.loss
                + config.centring * both
                + config.critique_weight * critique
            )
            parts = {"loss/critique": critique.detach(), "loss/centring": both.detach()}
            return _output(total, scores, parts, rewards, (chosen, rejected), tie, rows)

        return loss

    def means(self, sums: Mapping[str, float], totals: Totals) -> dict[str, float]:
        """Losses, summed under totals of one, as means over pairs, ranked pairs and ties."""
        config, pairs = self.config, max(1, totals.pairs)
        found = {
            "loss/score": sums["loss/score"] / max(1, totals.pairs - totals.ties),
            "loss/tie": sums["loss/tie"] / max(1, totals.ties),
            "loss/centring": sums["loss/centring"] / pairs,
            "loss/critique": sums["loss/critique"] / pairs,
        }
        score = found["loss/score"] + config.tie_weight * found["loss/tie"]
        loss = (
            config.score_weight * score
            + config.centring * found["loss/centring"]
            + config.critique_weight * found["loss/critique"]
        )
        return {**sums, **found, "loss": loss}

    def _critique_loss(
        self, hidden: Tensor, head: LinearHead, pack: ModelPack, counts: Tensor
    ) -> Tensor:
        """The sum over sequences of ``counts`` [S] times the loss of their critique."""
        targets = pack.targets
        if not len(targets) or not self.config.critique_weight:
            return hidden.sum() * 0.0
        sequence = sequence_of_row(pack.cu_rows, len(targets))
        sums = sequence_sums(row_logps(hidden, head, targets), sequence, len(counts))
        if self.config.critique_loss == "mean":
            sums = sums / pack.cu_rows.diff().clamp(min=1)
        return -(counts * sums).sum()

    def _ties(self, batch: PreferenceBatch[Any]) -> Any:
        return (batch.pair_flags & FLAGS["tie"]) != 0

    def _live(self, batch: PreferenceBatch[Any]) -> Any:
        """Bool [P], the pairs that are trained on."""
        live = batch.pair_weight > 0
        return live if self.ties_train else live & ~self._ties(batch)

    def _margin(self, batch: PreferenceBatch[Any], live: Any, column: Any) -> Tensor | None:
        if self.config.margin is None:
            return None
        packed = self.config.margin == "packed"
        values = batch.pair_margin if packed else batch.column("margin")
        margin: Tensor = column(values[live]).nan_to_num(0.0)
        return margin


def _output(
    total: Tensor,
    scores: RewardOutput,
    parts: dict[str, Tensor],
    rewards: Tensor,
    pairs: tuple[Tensor, Tensor],
    tie: Tensor,
    rows: Tensor,
) -> PackOutput:
    """The loss of a pack, and what is logged of its live pairs."""
    parts = {"loss/score": scores.ranked_loss, "loss/tie": scores.tie_loss, **parts}
    rewards = rewards.detach()
    per_pair = {
        "rewards/chosen": rewards[pairs[0]],
        "rewards/rejected": rewards[pairs[1]],
        "rewards/margins": scores.margins,
        # A tie has no better answer that could be right.
        "rewards/accuracies": scores.accuracies[~tie],
        "rewards/tie_gaps": scores.margins[tie].abs(),
    }
    return PackOutput(total, parts, per_pair, rows)


def objective_of(config: RewardConfig, shards: ShardDataset) -> Reward:
    """The objective, its margins checked.

    Raises:
        ConfigError: nothing would be trained.
    """
    if not config.score_weight and not config.critique_weight:
        raise ConfigError(
            "reward: found score_weight 0 and critique_weight 0, expected one above 0"
        )
    return Reward(config, shards)


def run(config: RewardConfig, context: StageContext) -> None:
    """Train a reward model in the folder of the stage."""
    run_training(config, context, objective_of)


STAGE = Stage(
    name="reward",
    config=RewardConfig,
    run=run,
    writes=WRITES,
    keeps=KEEPS,
    external=lambda config: [inputs_of(config, objective_of)],
    no_effect_on_output=NO_EFFECT,
)
