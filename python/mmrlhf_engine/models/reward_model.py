"""A model that reads packs and gives each sequence a reward, with its output head kept.

The reward is read at the last token of a sequence. The output head stays, as a reward model of
MM-RLHF (arXiv 2502.10391, section 3) also writes the critique that it then reads.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmrlhf_engine.models.adapters import Lora
from mmrlhf_engine.models.checkpoint import read_reward_model
from mmrlhf_engine.models.feature_cache import FeatureCache
from mmrlhf_engine.models.head import LinearHead, head_of, unwrapped
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import PackedPolicy, prepared
from mmrlhf_engine.models.reward_head import RewardHead, RewardHeadSettings
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json

__all__ = [
    "PackedRewardModel",
    "RewardHead",
    "RewardHeadSettings",
    "judge_of",
    "load_reward_model",
    "record_judge",
]

Result = TypeVar("Result")

_JUDGE = "judge.json"


class PackedRewardModel(PackedPolicy):
    """A model with ``rm_head``, and how it reads a :class:`ModelPack`; see its base."""

    def forward(  # type: ignore[override]  # The caller's function is given the rewards as well.
        self, pack: ModelPack, head: Callable[[Tensor, LinearHead, ModelPack, Tensor], Result]
    ) -> Result:
        """What ``head`` makes of the hidden states of the answers and the rewards.

        Args:
            pack: On the device of the model.
            head: Takes hidden states [N, H] of ``pack.rows``, the output head, the pack, and the
                rewards float32 [S] of its sequences, read at ``pack.ends``. Weights may be
                partitioned between ranks outside this call.

        Raises:
            InputError: as :class:`PackedPolicy`.
        """
        states = self.states(pack)
        model = unwrapped(self.model)
        rewards = model.rm_head(states.index_select(0, pack.ends))
        return head(states.index_select(0, pack.rows), head_of(model), pack, rewards)


def load_reward_model(
    name: str,
    *,
    new_head: RewardHeadSettings | None = None,
    dtype: torch.dtype = torch.float32,
    lora: Mapping[str, Any] | None = None,
    features: FeatureCache | None = None,
    **settings: Any,
) -> PackedRewardModel:
    """A reward model that reads packs, in evaluation mode.

    Args:
        name: A folder or a name on the hub. An adapter alone gives its base with it merged.
        new_head: Gives a policy a new head, drawn by torch's generator (see
            :meth:`RewardHead.draw`); None reads a reward model, whose configuration says which
            head it has.
        dtype: Of the weights; those of the reward head are float32.
        lora: As for :func:`mmrlhf_engine.models.policy.load_policy`; the reward head is trained
            with the adapter, and saved with it.
        features: As for ``load_policy``.
        settings: ``device``, ``freeze``, ``gradient_checkpointing`` and ``compile``, as for
            ``load_policy``. The reward head is always trained.

    Raises:
        ConfigError: there is no such model, it cannot read packs, it is a policy where a reward
            model is expected or the other way round, or an argument does not fit it.
        MissingExtraError: an adapter is wanted, and peft is not installed.
    """
    adapter = None if lora is None else Lora.of(lora)
    model, family = read_reward_model(name, dtype, new_head)
    model = prepared(name, model, family, lora=adapter, **settings)
    return PackedRewardModel(model, family, features=features).eval()


def record_judge(folder: Path, instruction: str | None) -> None:
    """Say beside the weights what the model is asked before a critique; None: it writes none."""
    write_atomically(folder / _JUDGE, json.dumps({"instruction": instruction}) + "\n")


def judge_of(folder: Path) -> str | None:
    """What :func:`record_judge` has said; None also of a model that says nothing."""
    return (read_json(folder / _JUDGE) or {}).get("instruction")
