"""A reward model at work: critiques written, then rewards read after them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrlhf_engine.errors import ConfigError, StageError
from mmrlhf_engine.models.generation import Answer, Prompts, sample_answers
from mmrlhf_engine.models.head import LinearHead
from mmrlhf_engine.models.judge_turn import judge_turn
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import FeatureCache, weights_hash
from mmrlhf_engine.models.reward_model import judge_of, load_reward_model
from mmrlhf_engine.models.tails import Tail
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer
from mmrlhf_engine.train.compatible import model_folder
from mmrlhf_engine.train.critiques import Critiques
from mmrlhf_engine.train.sample import end_tokens
from mmrlhf_engine.train.score_settings import ScoreConfig

__all__ = ["Scorer"]


class Scorer:
    """The reward model, and how its critiques and rewards become rows.

    Args:
        config: The settings, resolved.
        dataset: The shards.
        device: Where the model is put.

    Raises:
        ConfigError: the model is no reward model, or was trained without critiques that it is to
            write.
    """

    def __init__(self, config: ScoreConfig, dataset: ShardDataset, device: torch.device) -> None:
        self._config, self._device = config, device
        self._dtype = getattr(torch, str(config.precision))
        kept = config.cache_features
        self._model = load_reward_model(
            config.model,
            dtype=self._dtype,
            device=device,
            features=None if kept is None else FeatureCache(kept),
        )
        self._model.requires_grad_(False).eval()
        judge = judge_of(model_folder(config.model))
        self.critiques = config.critiques
        """Where they come from, ``auto`` resolved."""
        if self.critiques == "auto":
            self.critiques = "none" if judge is None else "generate"
        if judge is None and self.critiques != "none":
            raise ConfigError(
                f"{config.model}: trained without critiques, and critiques is {self.critiques!r}",
                hint="critiques=none",
            )
        self._tokenizer = load_fast_tokenizer(config.model, needed_for="score")
        self._turn = None if judge is None else judge_turn(self._tokenizer, judge)
        self._given: Critiques | None = None
        if self.critiques not in ("generate", "none"):
            self._given = Critiques(dataset, self.critiques, config.model, judge)
        self._keys = dataset.responses.select("rid").collect()["rid"]
        self.stated: dict[str, Any] = {
            "model": {"weights": weights_hash(config.model)},
            "precision": config.precision,
            "critiques": self.critiques if self._given is None else self._given.version(),
            "instruction": judge if self.critiques != "none" else None,
        }
        """What the values depend on, beside tokenizer and pictures."""
        if self.critiques == "generate":
            self.stated["sampling"] = config.sampling.model_dump()
            self._stop = self._stop_tokens()

    @property
    def added_tokens(self) -> npt.NDArray[np.uint32] | None:
        """uint32 [responses], the most tokens that follow each answer."""
        if self._given is not None:
            return self._given.lengths
        if self.critiques == "none":
            return None
        assert self._turn is not None
        around = len(self._turn.opening) + len(self._turn.closing)
        return np.full(len(self._keys), around + self._config.sampling.max_new_tokens, np.uint32)

    def rows(self, batches: Sequence[Any]) -> list[dict[str, Any]]:
        """Rows of the table ``critiques`` of all answers of some batches."""
        written = self._write(batches) if self.critiques == "generate" else None
        rows = []
        for number, batch in enumerate(batches):
            samples = 1 if written is None else self._config.sampling.samples
            for sample in range(samples):
                texts = None if written is None else written[number]
                rows += self._rows_of(batch, sample, texts)
        return rows

    def _rows_of(
        self, batch: Any, sample: int, written: dict[int, list[Answer]] | None
    ) -> list[dict[str, Any]]:
        tails, facts = [], {}
        for place, response in enumerate(batch.sequence_response.tolist()):
            tail, fact = self._tail(place, response, sample, written)
            tails.append(tail)
            if response >= 0:
                facts[place] = {"response": response, "sample": sample, **fact}
        rewards = self._rewards(batch, tails)
        for place, row in facts.items():
            row["reward"] = float(rewards[place])
            if not np.isfinite(row["reward"]):
                raise StageError(
                    f"response {row['response']}: the reward is {row['reward']}",
                    hint="precision=float32; or the weights are damaged",
                )
        return list(facts.values())

    def _tail(
        self, place: int, response: int, sample: int, written: dict[int, list[Answer]] | None
    ) -> tuple[Tail, dict[str, Any]]:
        """What follows a sequence, all of it given, and what a row says of it."""
        nothing = Tail(np.empty(0, np.uint32), 0)
        if response < 0:
            return nothing, {}
        if written is not None:
            assert self._turn is not None
            answer = written[place][sample]
            stopped = answer.finish == "stop"
            tokens = answer.tokens[:-1] if stopped else answer.tokens
            parts = self._turn.opening, tokens, self._turn.closing
            tail = np.concatenate(parts)
            written_as = {"critique": self._text(tokens), "n_tok": len(answer.tokens)}
            return Tail(tail, len(tail)), {**written_as, "finish": answer.finish}
        given = nothing if self._given is None else self._given.tail(response)
        count = len(given.tokens) - given.given
        text = None if self._given is None or not count else self._given.text(response)
        fact = {"critique": text, "n_tok": count, "finish": "given"}
        return Tail(given.tokens, len(given.tokens)), fact

    @torch.no_grad()
    def _rewards(self, batch: Any, tails: list[Tail]) -> npt.NDArray[np.float32]:
        pack = ModelPack.of(batch, self._device, self._dtype, tails=tails)
        rewards: Tensor = self._model(pack, _rewards_alone)
        found: npt.NDArray[np.float32] = rewards.float().cpu().numpy()
        return found

    def _write(self, batches: Sequence[Any]) -> list[dict[int, list[Answer]]]:
        """Critiques of every answer of some batches, by its sequence."""
        assert self._turn is not None
        prompts = []
        for batch in batches:
            responses = batch.sequence_response.tolist()
            keys = {place: self._keys[row] for place, row in enumerate(responses) if row >= 0}
            prompts.append(Prompts.after_answers(batch, keys, self._turn.opening))
        answers = iter(sample_answers(self._model, prompts, self._config.sampling, self._stop))
        return [{place: next(answers) for place in one.keys} for one in prompts]

    def _stop_tokens(self) -> list[int]:
        """What ends a critique: the ends of text of the model, and the first closing token."""
        assert self._turn is not None
        return sorted({*end_tokens(self._model.model), *self._turn.closing[:1].tolist()})

    def _text(self, tokens: npt.NDArray[np.uint32]) -> str:
        text = self._tokenizer.decode(
            tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)


def _rewards_alone(_hidden: Tensor, _head: LinearHead, _pack: ModelPack, rewards: Tensor) -> Tensor:
    return rewards
