"""MM-DPO: direct preference optimisation with a beta for each pair, by the margin of its rewards.

The loss of a pair is ``-log sigmoid(beta (gap of the policy - gap of the reference))`` with
``beta = beta0 (1 + w (1 - exp(-k margin)))`` (MM-RLHF, arXiv 2502.10391, section 4), where a gap is
the log-probability of the chosen answer minus that of the rejected one. The reference is a sidecar
column that ``mmrlhf-engine reference`` has made: no second model is in memory.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import LinearHead
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.columns import ColumnRequest
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset
from mmrlhf_engine.train.logps import IGNORED, sequence_logps
from mmrlhf_engine.train.objective import Head, Objective, PackOutput, Totals, targets_of
from mmrlhf_engine.train.pair_columns import columns_of
from mmrlhf_engine.train.settings import TrainSettings
from mmrlhf_engine.train.training_stage import KEEPS, NO_EFFECT, WRITES, inputs_of, run_training
from mmrlhf_kernels import (
    MMDPOOutput,
    dynamic_beta,
    fused_linear_mm_dpo,
    mm_dpo_loss,
)

__all__ = ["MMDPO", "STAGE", "MMDPOConfig"]


class MMDPOConfig(TrainSettings):
    """Settings of ``mm-dpo``."""

    beta: PositiveFloat = 0.1
    """beta0, that of a pair whose answers are equally good."""
    beta_rule: str = "paper"
    """``paper``: by the margin; ``constant``: beta0; ``released``: what the code released with the
    paper computes; or ``SET/FIELD``: a sidecar column of pairs that holds each pair's beta."""
    beta_w: NonNegativeFloat = 0.5
    """Largest relative increase of beta0 under the rule ``paper``."""
    beta_k: NonNegativeFloat = 0.5
    """How fast it is reached, per unit of margin."""
    margin: str | None = None
    """``SET/FIELD``: a sidecar column of pairs with margins; null is the column that was packed."""
    missing_margin: Literal["error", "constant"] = "error"
    """Pairs without a margin under the rule ``paper``: refused, or beta0."""
    reference: str | None = None
    """The column set with the reference's log-probabilities; null is that of ``model``."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "bco_pair"] = "sigmoid"
    """The loss of a pair, as ``mmrlhf_kernels`` has them; ``ipo`` is of log-probabilities averaged
    over the tokens of an answer, as in TRL."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the two answers of a pair were swapped."""
    sft_weight: NonNegativeFloat = 0.0
    """Factor of the supervised loss of the chosen answers."""
    sft_mean: Literal["token", "sequence"] = "token"
    """Over what that loss is a mean."""
    ties: Literal["leave_out", "fair_coin"] = "leave_out"
    """Pairs of equal rank: not trained on, or with a label that is a fair coin."""


class MMDPO(Objective):
    """The objective of MM-DPO over packs.

    Args:
        config: Its settings.
        columns: Requests named ``reference`` (of responses) and, where a rule needs them,
            ``margin`` and ``beta`` (of pairs).
    """

    name = "mm_dpo"

    def __init__(self, config: MMDPOConfig, columns: Mapping[str, ColumnRequest]) -> None:
        self.ties_train = config.ties == "fair_coin"
        self.config, self.columns = config, dict(columns)
        self._rewards_seen = 0
        self._mean_reward = 0.0

    def totals(self, batch: PreferenceBatch[Any]) -> Totals:
        """Live pairs of a pack, and the tokens of their chosen answers."""
        live = self._live(batch)
        lengths = batch.cu_seqlens[1:] - batch.cu_seqlens[:-1] - batch.prompt_lengths
        chosen = batch.pair_chosen[live]
        return Totals(int(live.sum()), int(lengths[chosen].sum()))

    def head(self, batch: PreferenceBatch[Any], totals: Totals, device: torch.device) -> Head:
        """MM-DPO of the live pairs of a pack, as a part of a step with these totals."""
        live = self._live(batch)

        def column(values: Any) -> Tensor:
            return torch.as_tensor(values).to(device)

        pairs = column(batch.pair_chosen[live]).long(), column(batch.pair_rejected[live]).long()
        reference = column(batch.column("reference"))
        beta = self._beta(batch, live, column)
        weight = column(batch.pair_weight[live])
        tie = column(self._ties(batch)[live]) if self.config.ties == "fair_coin" else None
        rows = column(batch.pair_row[live])

        def loss(hidden: Tensor, head: LinearHead, pack: ModelPack) -> PackOutput:
            targets = targets_of(pack, torch.cat(pairs))
            config = self.config
            if config.loss_type == "ipo":
                lengths = pack.cu_rows.diff().clamp(min=1).to(reference.dtype)
                sums = sequence_logps(hidden, head, pack, targets)
                means, before = sums / lengths, reference / lengths
                found = mm_dpo_loss(
                    means[pairs[0]],
                    means[pairs[1]],
                    before[pairs[0]],
                    before[pairs[1]],
                    beta,
                    loss_type="ipo",
                    label_smoothing=config.label_smoothing,
                    tie=tie,
                    weight=weight,
                    beta_rule=self._kernel_rule(len(rows)),
                    num_pairs=totals.pairs,
                )
                sft = self._supervised(sums[pairs[0]], means[pairs[0]], totals)
                total = found.loss + config.sft_weight * sft
                return _output(found._replace(loss=total, sft_loss=sft.detach()), rows)
            found = fused_linear_mm_dpo(
                hidden,
                head.weight,
                targets,
                reference[pairs[0]],
                reference[pairs[1]],
                beta,
                cu_seqlens=pack.cu_rows,
                pair_index=torch.stack(pairs, dim=1),
                bias=head.bias,
                softcap=head.softcap,
                logit_scale=head.logit_scale,
                ignore_index=IGNORED,
                loss_type=config.loss_type,
                label_smoothing=config.label_smoothing,
                tie=tie,
                pair_weight=weight,
                sft_weight=config.sft_weight,
                sft=config.sft_mean,
                reward_shift=self._mean_reward,
                beta_rule=self._kernel_rule(len(rows)),
                num_pairs=totals.pairs,
                num_tokens=totals.tokens,
            )
            return _output(found, rows)

        return loss

    def means(self, sums: Mapping[str, float], totals: Totals) -> dict[str, float]:
        """Loss and its terms, summed under totals of one, as means over these totals."""
        pairs, tokens = max(1, totals.pairs), max(1, totals.tokens)
        dpo = sums["loss/dpo"] / pairs
        sft = sums["loss/sft"] / (tokens if self.config.sft_mean == "token" else pairs)
        terms = {"loss/dpo": dpo, "loss/sft": sft}
        return {**sums, **terms, "loss": dpo + self.config.sft_weight * sft}

    def after_step(self, metrics: Mapping[str, float], totals: Totals) -> None:
        """Move the shift of ``bco_pair``: the running mean of the rewards of both answers."""
        if self.config.loss_type == "bco_pair" and "rewards/chosen" in metrics:
            mean = (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2
            self._rewards_seen += totals.pairs
            self._mean_reward += (mean - self._mean_reward) * totals.pairs / self._rewards_seen

    def state_dict(self) -> dict[str, Any]:
        """The running mean, as JSON."""
        return {"rewards_seen": self._rewards_seen, "mean_reward": self._mean_reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._rewards_seen, self._mean_reward = state["rewards_seen"], state["mean_reward"]

    def _supervised(self, sums: Tensor, means: Tensor, totals: Totals) -> Tensor:
        """The supervised loss of the chosen answers [P], by their sums or means over tokens."""
        if self.config.sft_mean == "token":
            return -sums.sum() / totals.tokens
        return -means.sum() / totals.pairs

    def _ties(self, batch: PreferenceBatch[Any]) -> Any:
        return (batch.pair_flags & FLAGS["tie"]) != 0

    def _live(self, batch: PreferenceBatch[Any]) -> Any:
        """Bool [P], the pairs that are trained on."""
        live = batch.pair_weight > 0
        return live & ~self._ties(batch) if self.config.ties == "leave_out" else live

    def _kernel_rule(self, pairs: int) -> str:
        """The released rule needs the spread of a pack's gaps, which one pair has not."""
        return "released" if self.config.beta_rule == "released" and pairs > 1 else "fixed"

    def _beta(self, batch: PreferenceBatch[Any], live: Any, column: Any) -> float | Tensor:
        config = self.config
        if config.beta_rule in ("constant", "released"):
            return config.beta
        if config.beta_rule != "paper":
            given: Tensor = column(batch.column("beta")[live])
            return given
        values = batch.column("margin") if "margin" in self.columns else batch.pair_margin
        margin = column(values[live])
        # A tie has no better answer: its beta is that of equally good ones.
        margin = margin.masked_fill(column(self._ties(batch)[live]), 0.0)
        if config.missing_margin == "constant":
            margin = margin.nan_to_num(0.0)
        return dynamic_beta(margin, config.beta, config.beta_w, config.beta_k)


def objective_of(config: MMDPOConfig, shards: ShardDataset) -> MMDPO:
    """The objective with the columns that the settings ask for, checked."""
    return MMDPO(config, columns_of(config, shards))


def _output(found: MMDPOOutput, rows: Tensor) -> PackOutput:
    """The loss of a pack, and what is logged of its live pairs."""
    return PackOutput(
        found.loss,
        {"loss/dpo": found.preference_loss, "loss/sft": found.sft_loss},
        {
            "rewards/chosen": found.chosen_rewards,
            "rewards/rejected": found.rejected_rewards,
            "rewards/margins": found.margins,
            "rewards/accuracies": found.accuracies,
            "logps/chosen": found.chosen_logp,
            "logps/rejected": found.rejected_logp,
            "beta": found.beta,
        },
        rows,
    )


def run(config: MMDPOConfig, context: StageContext) -> None:
    """Train by MM-DPO in the folder of the stage."""
    run_training(config, context, objective_of)


STAGE = Stage(
    name="mm_dpo",
    config=MMDPOConfig,
    run=run,
    writes=WRITES,
    keeps=KEEPS,
    external=lambda config: [inputs_of(config, objective_of)],
    no_effect_on_output=NO_EFFECT,
)
