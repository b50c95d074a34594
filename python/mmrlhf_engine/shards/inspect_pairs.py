"""One pair of a dataset as people read it: texts, token pieces, and how many tokens images take."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.models.families.placeholders import IMAGE, PLACEHOLDER_IDS, SMALLEST_ID
from mmrlhf_engine.shards.dataset import FLAGS
from mmrlhf_engine.shards.image_rule import ImageRule
from mmrlhf_engine.shards.tokenizer import TokenDecoder
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = ["PairText", "Picture", "Piece", "TextOfTokens", "read_pair"]


@dataclass(frozen=True)
class Picture:
    """An image and its place in a text."""

    blob: int
    width: int
    height: int
    tokens: int | None
    """None where no rule is known, or the model's processor refuses the image. Those of a video are
    all counted at its first frame."""
    kind: str = "image"
    """Or ``frame``, of a video."""

    def __str__(self) -> str:
        counted = "" if self.tokens is None else f", {self.tokens:,} tokens"
        return f"[{self.kind} {self.width} x {self.height}{counted}]"


@dataclass(frozen=True)
class Piece:
    """One token as text, or the place of an image."""

    text: str
    picture: Picture | None = None


@dataclass(frozen=True)
class TextOfTokens:
    """A prompt or an answer."""

    name: str
    text: str
    pieces: list[Piece]
    """One a token id."""
    pictures: list[Picture]

    def __str__(self) -> str:
        return f"  {self.name} ({len(self.pieces):,} ids): {self.text}"


@dataclass(frozen=True)
class PairText:
    """A pair with its prompt and both answers."""

    row: int
    query: int
    margin: float | None
    flags: list[str]
    prompt: TextOfTokens
    chosen: TextOfTokens
    rejected: TextOfTokens

    def texts(self) -> list[TextOfTokens]:
        """Prompt, chosen answer, rejected answer."""
        return [self.prompt, self.chosen, self.rejected]

    def title(self) -> str:
        """Row, query, margin and flags in one line."""
        margin = "unknown" if self.margin is None else f"{self.margin:g}"
        return ", ".join(
            [f"pair {self.row}", f"query {self.query}", f"margin {margin}", *self.flags]
        )

    def __str__(self) -> str:
        return "\n".join([self.title(), *map(str, self.texts())])


def read_pair(
    dataset: _core.Dataset, row: int, decoder: TokenDecoder | None, rule: ImageRule
) -> PairText:
    """A pair by its row; without a decoder the text is the stored one of the prompt, or the ids.

    Raises:
        CorruptDataError: a row of it is damaged.
    """
    query, chosen, rejected, margin, _, flags = dataset.pair(row)
    stored, *_ = dataset.query(query)
    media = _numbers(dataset.media(query))
    prompt = _text(dataset, "prompt", dataset.prompt(query), media, decoder, rule)
    if decoder is None and stored is not None:
        prompt = TextOfTokens(prompt.name, stored, prompt.pieces, prompt.pictures)
    answers = [
        _text(
            dataset,
            name,
            dataset.tokens(response),
            _numbers(dataset.response_media(response)),
            decoder,
            rule,
        )
        for name, response in (("chosen", chosen), ("rejected", rejected))
    ]
    named = [name for name, bit in FLAGS.items() if flags & bit]
    return PairText(row, query, margin, named, prompt, *answers)


def _text(
    dataset: _core.Dataset,
    name: str,
    tokens: "_core.ArrowArray",
    media: list[int],
    decoder: TokenDecoder | None,
    rule: ImageRule,
) -> TextOfTokens:
    ids = _numbers(tokens)
    kinds = [token for token in ids if token >= SMALLEST_ID]
    pictures = _pictures(dataset, media, kinds, rule)
    slots = iter(pictures)
    if decoder is None:
        pieces = list(_pieces(ids, [str(token) for token in ids], slots))
        return TextOfTokens(name, " ".join(piece.text for piece in pieces), pieces, pictures)
    array = np.array(ids, np.uint32)
    pieces = list(_pieces(ids, decoder.decode(list(array.reshape(-1, 1))), slots))
    # Decoded as a whole: a character may have several tokens.
    runs = [run for run in np.split(array, np.flatnonzero(array >= SMALLEST_ID)) if len(run)]
    texts = iter(decoder.decode([run[run < SMALLEST_ID] for run in runs]))
    slots = iter(pictures)
    text = "".join(
        (str(next(slots, "[image]")) if run[0] >= SMALLEST_ID else "") + next(texts) for run in runs
    )
    return TextOfTokens(name, text, pieces, pictures)


def _pieces(ids: list[int], texts: list[str], slots: Iterator[Picture]) -> Iterator[Piece]:
    for token, text in zip(ids, texts, strict=True):
        picture = next(slots, None) if token >= SMALLEST_ID else None
        yield Piece("[image]" if token >= SMALLEST_ID else text, picture)


def _pictures(
    dataset: _core.Dataset, media: list[int], kinds: list[int], rule: ImageRule
) -> list[Picture]:
    """``kinds`` are the placeholders of the text; images of an answer may have none there."""
    if len(kinds) != len(media):
        kinds = [PLACEHOLDER_IDS[IMAGE]] * len(media)
    sizes = []
    for blob in media:
        width, height, orientation = dataset.blob_size(blob)
        sizes.append((height, width) if orientation >= 5 else (width, height))
    counts: list[int | None] = [None] * len(media)
    if rule.parameters is not None:
        with contextlib.suppress(BadRecordError):
            counts = list(rule.count(sizes, kinds))
    pictures = []
    for blob, size, count, kind in zip(media, sizes, counts, kinds, strict=True):
        is_image = kind == PLACEHOLDER_IDS[IMAGE]
        known = count if is_image or count else None  # of a video, at its first frame
        pictures.append(Picture(blob, *size, known, "image" if is_image else "frame"))
    return pictures


def _numbers(array: "_core.ArrowArray") -> list[int]:
    return list(pa.array(array).to_pylist())
