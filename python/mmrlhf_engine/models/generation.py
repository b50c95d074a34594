"""Sampling answers from a model: arrays in, token ids and log-probabilities out.

A prompt and its pictures are computed once for all of its samples, and prompts of different lengths
are computed apart and only then put together, so that no family has to know of padding. That is why
this is not ``generate`` of transformers, which computes pictures and prompt again for each sample;
without randomness, both give the same tokens.

Each sample draws one number a token from a random stream of its own, which begins with the seed,
the key of the query and the number of the sample. What is drawn depends on nothing else: not on the
device, the other prompts, how many samples there are, or how long they may be. The probabilities do
depend on the other prompts, in their last bits, as sums of matrices of another shape are rounded
otherwise; an answer changes where a number falls between the two.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families import FAMILIES
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.tails import Tail, with_tails
from mmrlhf_engine.run.config import Section

__all__ = ["Answer", "Prompt", "SamplingSettings", "sample_answers"]


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
class Prompt:
    """T tokens that an answer follows, as tensors on the device of the model."""

    key: bytes
    """Of the query, from which its random numbers come."""
    input_ids: Tensor
    """int64 [1, T], tokens of pictures written out."""
    position_ids: Tensor
    """int64 [1, T], or [3, 1, T] where time, row and column are told apart."""
    pictures: Mapping[str, Any]
    """What pictures add to the arguments of ``forward``; empty without pictures."""
    unreadable: bool = False
    """Whether a picture is blank because it could not be read."""
    after: "Prompt | None" = None
    """What stands before, computed once for all prompts that are after it; None where these tokens
    are the whole prompt."""

    @property
    def length(self) -> int:
        """Tokens, those before included."""
        before = 0 if self.after is None else self.after.length
        return before + int(self.input_ids.shape[1])

    @classmethod
    def of(
        cls, batch: Any, sequence: int, key: bytes, device: Any = None, dtype: Any = None
    ) -> "Prompt":
        """The prompt of a sequence of a batch, its response left out.

        Args:
            batch: A :class:`mmrlhf_engine.PreferenceBatch`.
            sequence: Number of the sequence; a prompt that it continues is the prompt.
            key: Of the query.
            device: Where the tensors are put; None is the CPU.
            dtype: Of the pixels; None is float32.

        Raises:
            InputError: the prompt has pictures, and the dataset records no processor.
        """
        tensors = batch.to_torch(pin=False)
        if tensors.prefix_sequence[sequence] >= 0:
            sequence = int(tensors.prefix_sequence[sequence])
        start = int(tensors.cu_seqlens[sequence])
        end = start + int(tensors.prompt_lengths[sequence])
        return cls._between(tensors, start, end, key, device, dtype)

    @classmethod
    def after_answers(
        cls,
        batch: Any,
        keys: Mapping[int, bytes],
        request: np.ndarray,
        device: Any = None,
        dtype: Any = None,
    ) -> "dict[int, Prompt]":
        """Prompts of whole sequences, each with a request after its response.

        Sequences that continue one prompt share it.

        Args:
            batch: A :class:`mmrlhf_engine.PreferenceBatch`.
            keys: A key by number of the sequence.
            request: uint32 [a], the tokens that follow each response.
            device: Where the tensors are put; None is the CPU.
            dtype: Of the pixels; None is float32.

        Returns:
            A prompt by number of the sequence.

        Raises:
            InputError: a prompt has pictures, and the dataset records no processor.
        """
        tails = [
            Tail(request if n in keys else request[:0], 0) for n in range(len(batch.cu_seqlens) - 1)
        ]
        tensors = with_tails(batch.to_torch(pin=False), tails)
        ends, prefixes = tensors.cu_seqlens.tolist(), tensors.prefix_sequence.tolist()
        shared: dict[int, Prompt] = {}
        found = {}
        for number, key in keys.items():
            own = cls._between(tensors, ends[number], ends[number + 1], key, device, dtype)
            prefix = prefixes[number]
            if prefix >= 0:
                if prefix not in shared:
                    span = ends[prefix], ends[prefix + 1]
                    shared[prefix] = cls._between(tensors, *span, key, device, dtype)
                own = dataclasses.replace(
                    own,
                    after=shared[prefix],
                    unreadable=own.unreadable or shared[prefix].unreadable,
                )
            found[number] = own
        return found

    @classmethod
    def _between(
        cls, tensors: Any, start: int, end: int, key: bytes, device: Any, dtype: Any
    ) -> "Prompt":
        """The tokens of a batch from ``start`` to ``end``, with their pictures."""
        shown = _placeholders_between(tensors, start, end)
        blank = tensors.image_unreadable[shown.placeholder_image.long()]
        return cls(
            key=key,
            input_ids=shown.input_ids.long()[None].to(device),
            position_ids=tensors.position_ids[..., start:end].long().unsqueeze(-2).to(device),
            pictures=_pictures(shown, device, dtype or torch.float32),
            unreadable=bool(blank.any()),
        )


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
    model: Any, prompts: Sequence[Prompt], settings: SamplingSettings, stop: Collection[int]
) -> list[list[Answer]]:
    """Answers to several prompts, written together.

    Args:
        model: A ``PreTrainedModel`` with attention of its own, as
            :func:`mmrlhf_engine.models.checkpoint.read_model` gives it, in evaluation mode.
        prompts: On the device of the model. Keys and values of all of their samples are held at
            once: ``len(prompts) * samples * (longest prompt + max_new_tokens)`` tokens.
        settings: How answers are drawn.
        stop: Ids of tokens that end an answer.

    Returns:
        For each prompt its ``samples`` answers. The same seed and key give the same answers,
        whatever the number of samples and the other prompts; see the top of this module for what
        rounding does.
    """
    if not prompts:
        return []
    answers = _Answers(prompts, settings, stop)
    decoding = _Decoding(model, prompts, settings.samples)
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
        model: The model.
        prompts: P prompts.
        samples: Answers to each; A is all of them, and fewer as they end.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], samples: int) -> None:
        from transformers import DynamicCache

        self._model = model
        self._shared: dict[int, Any] = {}
        begun = [self._begin(prompt) for prompt in prompts]
        self._shared = {}
        lengths = [prompt.length for prompt in prompts]
        self._cache = DynamicCache()
        for number, layers in enumerate(zip(*(cache.layers for cache, _ in begun), strict=True)):
            keys = _padded_left([layer.keys for layer in layers])
            self._cache.update(keys, _padded_left([layer.values for layer in layers]), number)
        self._cache.batch_repeat_interleave(samples)
        self.logits = torch.cat([logits for _, logits in begun]).repeat_interleave(samples, 0)
        """[A, V]."""
        following = torch.stack([prompt.position_ids.amax() + 1 for prompt in prompts])
        self._position = following.repeat_interleave(samples)
        self._axes = prompts[0].position_ids.shape[:-2]
        self._mask: Tensor | None = None
        if len(set(lengths)) > 1:
            known = [torch.ones(1, 1, length, 1, dtype=torch.int64) for length in lengths]
            mask = _padded_left(known)[:, 0, :, 0].to(self.logits.device)
            self._mask = mask.repeat_interleave(samples, 0)

    def _begin(self, prompt: Prompt) -> tuple[Any, Tensor]:
        """Keys and values of a prompt, and the logits [1, V] of the first token of an answer."""
        output = self._model(
            input_ids=prompt.input_ids,
            position_ids=prompt.position_ids,
            past_key_values=self._before(prompt),
            use_cache=True,
            logits_to_keep=1,
            **prompt.pictures,
        )
        return output.past_key_values, output.logits[:, -1]

    def _before(self, prompt: Prompt) -> Any:
        """A cache with the keys and values of what stands before a prompt, its own to extend."""
        from transformers import DynamicCache

        cache = DynamicCache()
        if prompt.after is not None:
            if id(prompt.after) not in self._shared:
                self._shared[id(prompt.after)], _ = self._begin(prompt.after)
            for number, layer in enumerate(self._shared[id(prompt.after)].layers):
                # Extending concatenates into new tensors, and leaves these as they are.
                cache.update(layer.keys, layer.values, number)
        return cache

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


class _Answers:
    """The tokens chosen so far, and which answers go on.

    Args:
        prompts: P prompts.
        settings: How tokens are chosen.
        stop: Ids that end an answer.
    """

    def __init__(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, stop: Collection[int]
    ) -> None:
        device = prompts[0].input_ids.device
        count, longest = len(prompts) * settings.samples, settings.max_new_tokens
        self._greedy = settings.temperature == 0
        self._warpers = None if self._greedy else _warpers(settings)
        self._draws = torch.from_numpy(_draws(prompts, settings)).to(device)
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


def _draws(prompts: Sequence[Prompt], settings: SamplingSettings) -> np.ndarray:
    """float64 [P * samples, max_new_tokens] in [0, 1), a stream a sample."""
    streams = [
        np.random.default_rng([settings.seed, int.from_bytes(prompt.key), number])
        for prompt in prompts
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


def _placeholders_between(tensors: Any, start: int, end: int) -> Any:
    """A batch of torch tensors with the text and the placeholders of some of its tokens alone."""
    within = (tensors.placeholder_start >= start) & (tensors.placeholder_start < end)
    return dataclasses.replace(
        tensors,
        input_ids=tensors.input_ids[start:end],
        placeholder_sequence=tensors.placeholder_sequence[within],
        placeholder_start=tensors.placeholder_start[within] - start,
        placeholder_length=tensors.placeholder_length[within],
        placeholder_image=tensors.placeholder_image[within],
        placeholder_offset=tensors.placeholder_offset[within],
    )


def _pictures(shown: Any, device: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What the pictures of a batch add to the arguments of ``forward``."""
    if not len(shown.placeholder_start):
        return {}
    if shown.processor is None:
        raise InputError(
            "the prompt has pictures, and the dataset records no processor",
            hint="pack with --model",
        )
    family = FAMILIES[shown.processor["family"]]
    return family.forward_inputs(ShownPictures(shown, shown.processor["pictures"], device, dtype))
