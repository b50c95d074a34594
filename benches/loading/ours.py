"""Our side of the loader bench: the same content as shards, and one epoch of batches.

A batch here is a finished pack: tokens laid end to end under a token budget with the tokens of
the picture written out, and the pixels resized and cut into patches as Qwen2-VL wants them. That
is more than the peers are asked for.
"""

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loading.content import PAIRS, RESPONSES, Query, queries
from mmrlhf_engine import _core
from mmrlhf_engine.shards.loader import PictureSettings, PreferenceLoader
from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json

SENTINEL = 0xFFFF_FFFF
QUERIES_PER_APPEND = 512
BUDGET = 16_384
TOKENIZER = json.dumps({"name": "bench", "sha256": "0" * 64, "vocabulary": 151_936})
QWEN = {
    "family": "qwen2_vl",
    "patch": 14,
    "merge": 2,
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 1280,
}
PICTURES = PictureSettings(image_token=151_655)


def write(folder: Path, count: int, megapixels: float | None) -> None:
    """Pack the content; pictures are stored once."""
    writer = _core.DatasetWriter(folder, tokenizer=TOKENIZER)
    held: list[Query] = []
    for query in queries(count, megapixels):
        held.append(query)
        if len(held) == QUERIES_PER_APPEND:
            _append(writer, held)
            held = []
    if held:
        _append(writer, held)
    writer.commit()


def _append(writer: Any, held: list[Query]) -> None:
    images = [query.image for query in held]
    media: list[list[int]] = [[] for _ in held]
    if images[0] is not None:
        stored = pa.array(writer.add_media(pa.array(images, pa.large_binary())))
        media = [[blob] for blob in stored.field("id").to_pylist()]
    prompts = [
        np.append(np.full(len(blobs), SENTINEL, np.uint32), query.prompt.astype(np.uint32))
        for blobs, query in zip(media, held, strict=True)
    ]
    asked = pa.StructArray.from_arrays(
        [_lists(prompts), pa.array(media, pa.large_list(pa.uint64()))], ["prompt", "media"]
    )
    answers = [tokens for query in held for tokens in query.responses]
    owner = np.repeat(np.arange(len(held), dtype=np.uint32), RESPONSES)
    given = pa.StructArray.from_arrays([pa.array(owner), _lists(answers)], ["q", "tokens"])
    first = np.arange(len(held), dtype=np.uint32)[:, None] * RESPONSES
    of_query = np.array([*combinations(range(RESPONSES), 2)], np.uint32).T
    sides = [pa.array((first + side).ravel(), pa.uint32()) for side in of_query]
    writer.append(asked, given, pa.StructArray.from_arrays(sides, ["chosen", "rejected"]))


def _lists(tokens: list[np.ndarray]) -> pa.Array:
    """Lists of ids, joined once, without an object a token."""
    ends = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    joined = pa.array(np.concatenate(tokens).astype(np.uint32))
    kind = pa.large_list(pa.field("item", pa.uint32(), nullable=False))
    return pa.LargeListArray.from_arrays(pa.array(ends), joined, type=kind)


def loader(folder: Path, request: dict[str, Any]) -> PreferenceLoader:
    """The loader of a request: its unit, its number of threads, with pictures or without."""
    settings = PlanSettings(
        budget=Budget(tokens=BUDGET),
        packs_per_step=request["ranks"],
        unit=request["unit"],
        too_large="alone",
    )
    pictured = request["megapixels"] is not None
    return PreferenceLoader(
        folder,
        plan_json(settings, QWEN if pictured else None),
        rank=request.get("rank", 0),
        world_size=request["ranks"],
        pictures=PICTURES if pictured else None,
        threads=request["workers"],
        epochs=1,
    )


def pairs_by_batch(folder: Path, request: dict[str, Any]) -> Iterator[int]:
    """Pairs of each batch of one epoch."""
    for batch in loader(folder, request):
        yield len(batch.pair_row)


def pairs_by_bare_decoding(request: dict[str, Any]) -> Iterator[int]:
    """The pictures decoded, resized and cut, and nothing else: pairs that their queries have.

    By the same code on as many threads as the loader takes, from files held in memory.
    """
    files = [query.image for query in queries(600, request["megapixels"])]
    settings = json.dumps({"filter": "bicubic", "temporal": 2})
    threads = request["workers"] or max(1, (os.cpu_count() or 1) - 1)
    while True:
        for start in range(0, len(files), 60):
            contents = pa.array(files[start : start + 60], pa.large_binary())
            _core.preprocess_images(json.dumps(QWEN), contents, processor=settings, threads=threads)
            yield PAIRS * len(contents)


def fill(folder: Path, request: dict[str, Any]) -> float:
    """Tokens in the packs of an epoch over what they could hold, but for the last pack."""
    tokens = [len(batch.input_ids) for batch in loader(folder, request)]
    return sum(tokens[:-1]) / (BUDGET * (len(tokens) - 1))
