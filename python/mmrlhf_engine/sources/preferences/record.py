"""One shape for preference data of any format.

A record becomes a :class:`Preference`: the messages of the prompt, the responses to it, and which
of them was preferred to which. Pictures and videos stand in the messages at the place where the
model sees them. Every format parses into this, and nothing after parsing knows of formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "STRING_ROLE",
    "BadRecordError",
    "Media",
    "Message",
    "Pair",
    "Preference",
    "Response",
    "pairs_of_ranks",
    "ranks_of_scores",
]

STRING_ROLE = "string"
"""Role of text that is tokenised as it stands, outside of every chat template."""


class BadRecordError(Exception):
    """A record cannot be used: ``reason`` is counted, ``detail`` is for people who repair it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a video, as a record names it: by name below the root, or by content."""

    kind: Literal["image", "video"]
    names: tuple[str, ...] = ()
    """One name; several are the frames of a video, in order. Empty where there is content."""
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: text and media in the order in which the model sees them."""

    role: str
    parts: tuple[str | Media, ...]
    extras: str = ""
    """What else the message has for the chat template, such as ``tool_calls``: a JSON object."""

    @property
    def empty(self) -> bool:
        """Whether it says nothing: neither text nor media, nor anything for the template."""
        return not (self.text.strip() or self.media or self.extras)

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[Media, ...]:
        """The media alone."""
        return tuple(part for part in self.parts if isinstance(part, Media))


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to a prompt: one assistant message, or several turns that begin with one."""

    messages: tuple[Message, ...]
    rank: int | None = None
    """1 is the best; equal ranks are ties."""
    score: float | None = None
    critique: str | None = None
    instead: tuple[Media, ...] = ()
    """Media that this response goes with in place of those of the prompt, in their order."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses by their number; of a tie, the order means nothing."""

    chosen: int
    rejected: int
    tie: bool = False
    margin: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Preference:
    """What one record says."""

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...]
    tools: str = ""
    """Descriptions of the tools that the chat template is given: a JSON list, or nothing."""


def pairs_of_ranks(ranks: Sequence[int | None]) -> list[Pair]:
    """Every two responses of differing rank once, the better one chosen; equal ranks as ties.

    A response without a rank takes part in no pair. The paper trains on all such pairs, not on
    the hardest alone.

    >>> pairs_of_ranks([2, 1, 2])
    [Pair(chosen=1, rejected=0, tie=False, margin=None, weight=1.0), \
Pair(chosen=0, rejected=2, tie=True, margin=None, weight=1.0), \
Pair(chosen=1, rejected=2, tie=False, margin=None, weight=1.0)]
    """
    pairs = []
    for first, rank in enumerate(ranks):
        for second in range(first + 1, len(ranks)):
            other = ranks[second]
            if rank is None or other is None:
                continue
            chosen, rejected = (second, first) if other < rank else (first, second)
            pairs.append(Pair(chosen, rejected, tie=rank == other))
    return pairs


def ranks_of_scores(scores: Sequence[float | None]) -> list[int | None]:
    """Ranks from 1 on by falling score; equal scores have one rank, a missing score has none.

    >>> ranks_of_scores([2.5, None, 4.0, 2.5])
    [2, None, 1, 2]
    """
    best_first = sorted({score for score in scores if score is not None}, reverse=True)
    return [None if score is None else best_first.index(score) + 1 for score in scores]
