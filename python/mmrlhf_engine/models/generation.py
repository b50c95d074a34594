"""Sampling answers from a model: batches in, token ids and log-probabilities out.

Prompts are read by the packed forward pass of training: all of them at once, pictures and shared
prefixes once, outputs of a frozen tower from where they are kept. Their keys and values are then
put together for decoding, so that no family has to know of padding. That is why this is not
``generate`` of transformers, which computes pictures and prompt again for each sample; without
randomness, both give the same tokens. Keys and values grow token by token: a static cache was
between .89 and 1.03 times as fast on a CPU, and cannot leave out answers that are done.

Each sample draws one number a token from a random stream of its own, which begins with the seed,
the key of the query and the number of the sample. What is drawn depends on nothing else: not on the
device, the other prompts, how many samples there are, or how long they may be. The probabilities do
depend on the other prompts, in their last bits, as sums of matrices of another shape are rounded
otherwise; an answer changes where a number falls between the two.
"""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from mmrlhf_engine.models.head import head_of, unwrapped
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.packed_attention import plain_attention
from mmrlhf_engine.models.policy import PackedPolicy
from mmrlhf_engine.models.sequences import joined, spans_of
from mmrlhf_engine.models.tails import Tail, with_tails
from mmrlhf_engine.run.config import Section

__all__ = ["Answer", "Prompts", "SamplingSettings", "sample_answers"]


class SamplingSettings(Section):
    """How answers are drawn. A model's own ``generation_config.json`` has no say in it."""

    samples: PositiveInt = 8
    """Answers to each prompt."""
    temperature: NonNegativeFloat = 1.0
    """Logits are divided by it; 0 takes the most likely token, and then samples must be 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the most likely tokens that have this share together; 1 draws among all."""
    top_k: NonNegativeInt = 0
    """Draw among so many of the most likely tokens; 0 draws among all."""
    max_new_tokens: PositiveInt = 512
    """Where an answer is cut that has not stopped by then."""
    seed: NonNegativeInt = 0
    """Of everything random."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"temperature 0 gives {self.samples} equal samples, expected samples=1 with it"
            )
        return self


@dataclass(frozen=True, eq=False)
class Prompts:
    """Sequences that an answer follows, as torch tensors on the CPU; some may share a prefix."""

    batch: Any
    """The part of a :class:`mmrlhf_engine.PreferenceBatch` that has them."""
    keys: Mapping[int, bytes]
    """Of each sequence that is answered, by its number: what its random numbers come from."""

    @classmethod
    def of(cls, batch: Any, sequence: int, key: bytes) -> "Prompts":
        """The prompt of a sequence of a batch, its response left out.

        Args:
            batch: A :class:`mmrlhf_engine.PreferenceBatch`.
            sequence: Number of the sequence; a prompt that it continues is the prompt.
            key: Of the query.
        """
        tensors = batch.to_torch(pin=False)
        if tensors.prefix_sequence[sequence] >= 0:
            sequence = int(tensors.prefix_sequence[sequence])
        start = int(tensors.cu_seqlens[sequence])
        end = start + int(tensors.prompt_lengths[sequence])
        return cls(spans_of(tensors, [(sequence, start, end)]), {0: key})

    @classmethod
    def after_answers(cls, batch: Any, keys: Mapping[int, bytes], request: np.ndarray) -> "Prompts":
        """Whole sequences, each with a request after its response.

        Args:
            batch: A :class:`mmrlhf_engine.PreferenceBatch`.
            keys: A key by number of the sequence.
            request: uint32 [a], the tokens that follow each response.
        """
        count = len(batch.cu_seqlens) - 1
        tails = [Tail(request if number in keys else request[:0], 0) for number in range(count)]
        return cls(with_tails(batch.to_torch(pin=False), tails), keys)

    @property
    def unreadable(self) -> bool:
        """Whether a picture is blank because it could not be read."""
        return bool(self.batch.image_unreadable.any())


@dataclass(frozen=True, eq=False)
class Answer:
    """One sampled answer of n tokens."""

    tokens: np.ndarray
    """uint32 [n], the token that ended it included."""
    logp: float
    """Sum of the log-probabilities of the tokens under the model: of its logits as they are, before
    temperature, ``top_p`` and ``top_k``."""
    finish: Literal["stop", "length"]
    """Whether it ended by a stop token or at the limit."""


@torch.no_grad()
def sample_answers(
    policy: PackedPolicy,
    prompts: Sequence[Prompts],
    settings: SamplingSettings,
    stop: Collection[int],
) -> list[list[Answer]]:
    """Answers to several prompts, written together.

    Args:
        policy: In evaluation mode.
        prompts: Keys and values of all samples of all of them are held at once: ``prompts * samples
            * (longest prompt + max_new_tokens)`` tokens.
        settings: How answers are drawn.
        stop: Ids of tokens that end an answer.

    Returns:
        For each sequence that is answered, in order, its ``samples`` answers. The same seed and key
        give the same answers, whatever the number of samples and the other prompts; see the top of
        this module for what rounding does.
    """
    keys = [key for one in prompts for key in one.keys.values()]
    if not keys:
        return []
    decoding = _Decoding(policy, prompts, settings.samples)
    answers = _Answers(keys, decoding.logits.device, settings, stop)
    with plain_attention(unwrapped(policy.model)):
        for step in range(settings.max_new_tokens):
            tokens, going = answers.choose(decoding.logits, step)
            if step + 1 == settings.max_new_tokens or not going.any():
                break
            if not going.all():
                tokens = tokens[going]
                decoding.keep(going)
            decoding.advance(tokens)
    found = answers.finished()
    return [
        found[start : start + settings.samples] for start in range(0, len(found), settings.samples)
    ]


class _Decoding:
    """Keys and values of the answers that go on, and the logits of their next tokens.

    Args:
        policy: The model.
        prompts: With P sequences that are answered.
        samples: Answers to each; A is all of them, and fewer as they end.
    """

    def __init__(self, policy: PackedPolicy, prompts: Sequence[Prompts], samples: int) -> None:
        from transformers import DynamicCache

        self._model = unwrapped(policy.model)
        read = _read(policy, prompts)
        self._cache = DynamicCache()
        for number, (keys, values) in enumerate(read.layers):
            self._cache.update(_padded_left(keys), _padded_left(values), number)
        self._cache.batch_repeat_interleave(samples)
        self.logits = read.logits.repeat_interleave(samples, 0)
        """[A, V]."""
        self._position = read.following.repeat_interleave(samples)
        self._axes = read.axes
        self._mask: Tensor | None = None
        if len(set(read.lengths)) > 1:
            known = [torch.ones(1, 1, length, 1, dtype=torch.int64) for length in read.lengths]
            mask = _padded_left(known)[:, 0, :, 0].to(self.logits.device)
            self._mask = mask.repeat_interleave(samples, 0)

    def keep(self, going: Tensor) -> None:
        """Leave out the answers that have ended: bool [A]."""
        self._cache.batch_select_indices(going)
        self._position = self._position[going]
        if self._mask is not None:
            self._mask = self._mask[going]

    def advance(self, tokens: Tensor) -> None:
        """Read the token, int64 [A], that each answer goes on with."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        output = self._model(
            input_ids=tokens[:, None],
            position_ids=self._position[:, None].expand(*self._axes, -1, -1),
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = output.logits[:, -1]
        self._position = self._position + 1


class _Read(NamedTuple):
    """What decoding goes on from, of P sequences."""

    layers: list[tuple[list[Tensor], list[Tensor]]]
    """Of each layer, keys and values [1, heads, length, width] of each sequence."""
    logits: Tensor
    """[P, V], of the first token of an answer."""
    following: Tensor
    """int64 [P], its position."""
    lengths: list[int]
    """Tokens of each sequence, those of its prefix included."""
    axes: tuple[int, ...]
    """(3,) where time, row and column of a position are told apart."""


def _read(policy: PackedPolicy, prompts: Sequence[Prompts]) -> _Read:
    """Read all prompts in one packed forward pass; a shared prefix is read once."""
    from transformers import DynamicCache

    model = unwrapped(policy.model)
    # Without pictures there is no other rank that waits for the tower.
    batch = dataclasses.replace(joined([one.batch for one in prompts]), step_has_images=False)
    pack = ModelPack.of_tensors(batch, model.device, model.dtype)
    cache = DynamicCache()
    states = policy.states(pack, cache)
    firsts = itertools.accumulate((len(one.batch.prompt_lengths) for one in prompts), initial=0)
    chosen = [
        first + number for first, one in zip(firsts, prompts, strict=False) for number in one.keys
    ]
    starts, prefixes = batch.cu_seqlens.tolist(), batch.prefix_sequence.tolist()
    spans = [
        [(starts[one], starts[one + 1]) for one in (prefixes[number], number) if one >= 0]
        for number in chosen
    ]
    layers = [
        tuple(
            [torch.cat([values[:, :, a:b] for a, b in span], 2) for span in spans]
            for values in (layer.keys, layer.values)
        )
        for layer in cache.layers
    ]
    last = pack.ends[torch.tensor(chosen, device=pack.ends.device)]
    positions = pack.position_ids[..., 0, last]
    return _Read(
        layers,  # type: ignore[arg-type]  # Two of each.
        head_of(model).logits(states[last]),
        positions.reshape(-1, len(chosen)).amax(0) + 1,
        [sum(b - a for a, b in span) for span in spans],
        tuple(pack.position_ids.shape[:-2]),
    )


class _Answers:
    """The tokens chosen so far, and which answers go on.

    Args:
        keys: Of P prompts.
        device: Of the logits.
        settings: How tokens are chosen.
        stop: Ids that end an answer.
    """

    def __init__(
        self,
        keys: Sequence[bytes],
        device: torch.device,
        settings: SamplingSettings,
        stop: Collection[int],
    ) -> None:
        count, longest = len(keys) * settings.samples, settings.max_new_tokens
        self._greedy = settings.temperature == 0
        self._warpers = None if self._greedy else _warpers(settings)
        self._draws = torch.from_numpy(_draws(keys, settings)).to(device)
        self._stop = torch.tensor(sorted(stop), dtype=torch.int64, device=device)
        self._going = torch.arange(count, device=device)
        self._tokens = torch.zeros(count, longest, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self._logp = torch.zeros(count, dtype=torch.float64, device=device)
        self._stopped = torch.zeros(count, dtype=torch.bool, device=device)

    def choose(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The next token of each answer that went on, int64 [A], and which go on: bool [A].

        Args:
            logits: [A, V].
            step: How many tokens the answers have.
        """
        going, logits = self._going, logits.float()
        if self._warpers is None:
            tokens = logits.argmax(-1)
        else:
            tokens = _drawn(self._warpers(None, logits), self._draws[going, step])
        self._tokens[going, step] = tokens
        self._lengths[going] += 1
        self._logp[going] += logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].double()
        ended = torch.isin(tokens, self._stop)
        self._stopped[going] = ended
        self._going = going[~ended]
        return tokens, ~ended

    def finished(self) -> list[Answer]:
        """All answers, those of a prompt one after the other."""
        tokens, lengths = self._tokens.cpu().numpy().astype(np.uint32), self._lengths.tolist()
        facts = zip(tokens, lengths, self._logp.tolist(), self._stopped.tolist(), strict=True)
        return [
            Answer(row[:length].copy(), logp, "stop" if stopped else "length")
            for row, length, logp, stopped in facts
        ]


def _warpers(settings: SamplingSettings) -> Any:
    """The processors of transformers, in the order of its ``generate``."""
    from transformers.generation import logits_process

    chosen: list[Any] = []
    if settings.temperature != 1:
        chosen.append(logits_process.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chosen.append(logits_process.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chosen.append(logits_process.TopPLogitsWarper(settings.top_p))
    return logits_process.LogitsProcessorList(chosen)


def _draws(keys: Sequence[bytes], settings: SamplingSettings) -> np.ndarray:
    """float64 [P * samples, max_new_tokens] in [0, 1), a stream a sample."""
    streams = [
        np.random.default_rng([settings.seed, int.from_bytes(key), number])
        for key in keys
        for number in range(settings.samples)
    ]
    return np.stack([stream.random(settings.max_new_tokens) for stream in streams])


def _drawn(scores: Tensor, draws: Tensor) -> Tensor:
    """int64 [A], the token at which the cumulative probability passes a number in [0, 1).

    Args:
        scores: float32 [A, V], logarithms of probabilities up to a constant.
        draws: float64 [A].
    """
    cumulative = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    whole = cumulative[:, -1]
    # A product that is rounded up to the whole would lie behind every token.
    below = torch.minimum(draws * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, below[:, None], right=True)[:, 0]


def _padded_left(parts: Sequence[Tensor]) -> Tensor:
    """[P, heads, longest, width] of [1, heads, tokens, width], zeros before the shorter ones."""
    longest = max(part.shape[2] for part in parts)
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, 0, longest - part.shape[2], 0)) for part in parts])
