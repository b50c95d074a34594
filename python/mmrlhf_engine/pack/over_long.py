"""Sequences longer than the model reads: an error, left out, smaller images, or shorter answers.

The length of a response is the prompt with the tokens of its images, and the response with those
of its own. Images are cut by no policy: a token of a response goes whole or stays, and a prompt is
never touched. Cutting inside the tokens of an image is what breaks training elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.placeholders import SMALLEST_ID
from mmrlhf_engine.pack.gather import GatheredPair, Query, RowAccounting
from mmrlhf_engine.sources.pictures import Picture, shrink
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["CountTokens", "OverLongPolicy", "ReadyQuery", "ReadyResponse", "fit"]

OverLongPolicy = Literal["error", "drop", "shrink_image", "trim_text"]
CountTokens = Callable[[Sequence[tuple[int, int]], Sequence[int]], list[int]]
"""(width, height) in pixels of each picture, and its placeholder -> its number of tokens."""

# Less of an answer than this says nothing about why it was chosen or rejected.
_SHORTEST_ANSWER = 16
_SHRINK_STEP = 0.9
_SMALLEST_SIDE = 56


@dataclass(eq=False)
class ReadyResponse:
    """A response as it will be stored: ids (uint32, a placeholder a picture) and its own images."""

    tokens: np.ndarray
    pictures: list[Picture] = field(default_factory=list)
    instead: bool = False
    """Its images stand in the slots of the prompt, in place of those."""


@dataclass(eq=False)
class ReadyQuery:
    """A query as it will be stored; a response that cannot be used is None."""

    query: Query
    prompt: np.ndarray
    prompt_text: str
    pictures: list[Picture]
    responses: list[ReadyResponse | None]

    def seen_with(self, response: ReadyResponse | None) -> list[Picture]:
        """The pictures of the sequence of a response, in the order of their slots."""
        own = response.pictures if response is not None else []
        return own if response is not None and response.instead else [*self.pictures, *own]

    def placeholders_with(self, response: ReadyResponse | None) -> list[int]:
        """The placeholders of those pictures."""
        own = [response.tokens] if response is not None else []
        ids = np.concatenate([self.prompt, *own])
        return [int(number) for number in ids[ids >= SMALLEST_ID]]

    def live(self) -> list[int]:
        """The responses that a pair still needs."""
        return sorted(
            {end for pair in self.query.pairs if pair.alive for end in (pair.chosen, pair.rejected)}
        )

    def pairs_of(self, response: int) -> list[GatheredPair]:
        """The living pairs of a response."""
        pairs = self.query.pairs
        return [p for p in pairs if p.alive and response in (p.chosen, p.rejected)]

    def drop(self, response: int, reason: str, detail: str, accounting: RowAccounting) -> None:
        """Take a response out, with every pair that needs it."""
        for pair in self.pairs_of(response):
            accounting.drop(pair, reason, detail)


def fit(
    ready: ReadyQuery,
    max_length: int,
    policy: OverLongPolicy,
    count: CountTokens,
    accounting: RowAccounting,
) -> None:
    """Bring every living response of a query below ``max_length`` tokens, in place.

    Raises:
        InputError: the policy is ``error``, and one is too long.
    """
    while True:
        lengths = {number: _length(ready, number, count) for number in ready.live()}
        longest = max(lengths, key=lambda number: lengths[number], default=None)
        if longest is None or lengths[longest] <= max_length:
            return
        if policy == "error":
            row = ready.pairs_of(longest)[0].row
            raise InputError(
                f"{row.position} ({row.source}): {_describe(ready, longest, max_length, count)}",
                hint="--over-long drop, shrink_image or trim_text, or a larger --max-length",
            )
        mend = {"shrink_image": _shrink, "trim_text": _trim}.get(policy)
        if mend is None or not mend(ready, longest, max_length, count, accounting):
            detail = _describe(ready, longest, max_length, count)
            ready.drop(longest, "over_long", detail, accounting)


def _text_tokens(ids: np.ndarray) -> int:
    return int(np.count_nonzero(ids < SMALLEST_ID))


def _image_tokens(
    ready: ReadyQuery, response: ReadyResponse | None, count: CountTokens, scale: float = 1.0
) -> list[int]:
    """Tokens of each image of a sequence; those in the slots of the prompt brought to ``scale``."""
    pictures = ready.seen_with(response)
    slots = len(ready.pictures)
    sizes = [_scaled(picture, scale) for picture in pictures[:slots]]
    sizes += [(picture.width, picture.height) for picture in pictures[slots:]]
    return count(sizes, ready.placeholders_with(response))


def _length(ready: ReadyQuery, number: int, count: CountTokens, scale: float = 1.0) -> int:
    """Length of the sequence of a response, all images of the prompt brought to ``scale``."""
    response = ready.responses[number]
    if response is None:
        return 0
    images = sum(_image_tokens(ready, response, count, scale))
    return images + _text_tokens(ready.prompt) + _text_tokens(response.tokens)


def _describe(ready: ReadyQuery, number: int, max_length: int, count: CountTokens) -> str:
    response = ready.responses[number]
    answer = len(response.tokens) if response is not None else 0
    images = _image_tokens(ready, response, count)
    return (
        f"{_length(ready, number, count):,} tokens, {max_length:,} allowed: {sum(images):,} of "
        f"{len(images)} images, {_text_tokens(ready.prompt):,} of the prompt's text, "
        f"{answer:,} of response {number}"
    )


def _trim(
    ready: ReadyQuery, number: int, max_length: int, count: CountTokens, accounting: RowAccounting
) -> bool:
    """Keep the beginning of a response, without an end of turn: it does not end there."""
    response = ready.responses[number]
    if response is None:
        return False
    detail = _describe(ready, number, max_length, count)
    images = _image_tokens(ready, response, count)
    slots = len(ready.pictures)
    costs = np.ones(len(response.tokens), dtype=np.int64)
    costs[response.tokens >= SMALLEST_ID] = images[slots:]
    left = max_length - sum(images[:slots]) - _text_tokens(ready.prompt)
    kept = int(np.searchsorted(np.cumsum(costs), left, side="right"))
    if kept < _SHORTEST_ANSWER:
        return False
    tokens = response.tokens[:kept]
    kept_pictures = int(np.count_nonzero(tokens >= SMALLEST_ID))
    pictures = response.pictures if response.instead else response.pictures[:kept_pictures]
    ready.responses[number] = ReadyResponse(tokens, pictures, response.instead)
    for pair in ready.pairs_of(number):
        ends = [ready.responses[end] for end in (pair.chosen, pair.rejected)]
        if all(_same(end, ready.responses[number]) for end in ends):
            same = f"up to there the responses are the same; {detail}"
            accounting.drop(pair, "over_long", same)
        else:
            accounting.change(pair.row, "trimmed_text", detail)
            pair.truncated = True
    return True


def _same(one: ReadyResponse | None, other: ReadyResponse | None) -> bool:
    """Whether two responses are the same to the model: ids and images."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one.tokens, other.tokens) and one.pictures == other.pictures


def _shrink(
    ready: ReadyQuery, number: int, max_length: int, count: CountTokens, accounting: RowAccounting
) -> bool:
    """Bring all images in the prompt's slots to the largest scale (0.9, 0.81, ...) that fits."""
    detail = _describe(ready, number, max_length, count)
    response = ready.responses[number]
    shown = ready.seen_with(response)[: len(ready.pictures)]
    shortest = min((min(picture.width, picture.height) for picture in shown), default=0)
    scale = _SHRINK_STEP
    while _length(ready, number, count, scale) > max_length:
        scale *= _SHRINK_STEP
        if shortest * scale < _SMALLEST_SIDE:
            return False
    if shortest * scale < _SMALLEST_SIDE:
        return False
    try:
        smaller = [shrink(picture, *_scaled(picture, scale)) for picture in shown]
    except BadRecordError as error:
        for each in ready.live():
            ready.drop(each, error.reason, error.detail, accounting)
        return True
    if response is not None and response.instead:
        response.pictures = smaller
        changed = ready.pairs_of(number)
    else:
        ready.pictures = smaller
        changed = [pair for pair in ready.query.pairs if pair.alive]
    for row in {pair.row: None for pair in changed}:
        accounting.change(row, "shrunk_image", f"images to {scale:.2f} of their sides; {detail}")
    return True


def _scaled(picture: Picture, scale: float) -> tuple[int, int]:
    return max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
