"""Settings of ``score``."""

from pydantic import NonNegativeFloat, PositiveInt

from mmrlhf_engine.models.generation import SamplingSettings
from mmrlhf_engine.train.margins import MarginRule
from mmrlhf_engine.train.settings import ModelSettings

__all__ = ["CritiqueSampling", "ScoreConfig"]


class CritiqueSampling(SamplingSettings):
    """How critiques are written: greedily, one for each answer, unless said otherwise."""

    samples: PositiveInt = 1
    """Critiques of each answer; its reward is their mean."""
    temperature: NonNegativeFloat = 0.0
    """Logits are divided by it; 0 takes the most likely token."""


class ScoreConfig(ModelSettings):
    """Settings of ``score``; ``model`` is the reward model."""

    scores: str | None = None
    """A JSONL file with the scores of another model, in place of a reward model."""
    name: str | None = None
    """Of the column sets, ``reward/NAME`` and ``margin/NAME``; null is the last part of the model's
    or the file's name."""
    critiques: str = "auto"
    """What is read before the reward: ``generate``, critiques of the model's own; ``packed``, those
    of the shards; ``none``; or ``SET/FIELD``, a sidecar column of responses with text. ``auto`` is
    ``generate`` for a model that was trained with critiques, else ``none``."""
    sampling: CritiqueSampling = CritiqueSampling()
    batch: PositiveInt = 8
    """Queries whose answers are criticised together; keys and values of all are held at once."""
    tokens: PositiveInt = 16_384
    """The most that a pack may hold, of text, images and critiques together."""
    normalise: MarginRule = "none"
    """How margins are scaled; see :func:`mmrlhf_engine.train.margins.normalised`."""
