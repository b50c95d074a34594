"""The content that every loader gets: preference pairs as MM-RLHF has them, made from a seed.

A query has a prompt, one photograph and four ranked responses, which make six pairs. Token counts
are drawn around those of MM-RLHF; the photographs are crops of two that scikit-learn carries, at
the given number of pixels, as JPEG of quality 90, no two alike.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

VOCABULARY = 151_936
RESPONSES = 4
PAIRS = RESPONSES * (RESPONSES - 1) // 2


@dataclass(frozen=True)
class Query:
    """One query: tokens are int32 arrays, the responses from best to worst."""

    prompt: np.ndarray
    responses: list[np.ndarray]
    image: bytes | None


def queries(count: int, megapixels: float | None, seed: int = 0) -> Iterator[Query]:
    """``count`` queries; without pictures where ``megapixels`` is None."""
    generator = np.random.default_rng(seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for _ in range(count):
        yield Query(
            prompt=_tokens(generator, 60),
            responses=[_tokens(generator, 180) for _ in range(RESPONSES)],
            image=None if megapixels is None else _photograph(generator, photographs, megapixels),
        )


def pair_records(content: Iterator[Query]) -> Iterator[dict[str, object]]:
    """What a loader of flat records stores: each pair with its own copy of prompt and picture."""
    for query in content:
        for chosen, rejected in combinations(query.responses, 2):
            record = {"prompt": query.prompt, "chosen": chosen, "rejected": rejected}
            yield record if query.image is None else record | {"image": query.image}


def _tokens(generator: np.random.Generator, median: float) -> np.ndarray:
    length = int(np.clip(generator.lognormal(np.log(median), 0.6), 4, 2048))
    return generator.integers(0, VOCABULARY, length, dtype=np.int32)


def _photograph(
    generator: np.random.Generator, photographs: list[Image.Image], megapixels: float
) -> bytes:
    source = photographs[generator.integers(len(photographs))]
    ratio = generator.uniform(0.75, 1.5)
    width, height = (round((megapixels * 1e6 * r) ** 0.5) for r in (ratio, 1 / ratio))
    scale = generator.uniform(0.6, 1.0) * min(source.width / width, source.height / height)
    left, top = (
        generator.uniform(0, whole - part * scale)
        for whole, part in ((source.width, width), (source.height, height))
    )
    box = (left, top, left + width * scale, top + height * scale)
    crop = source.resize((width, height), Image.Resampling.BICUBIC, box)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
