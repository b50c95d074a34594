"""Our side of the loader bench: the same content as shards, and one epoch of batches.

A batch here is a finished pack: tokens laid end to end under a token budget with the tokens of
the picture written out, and the pixels resized and cut into patches as Qwen2-VL wants them. That
is more than the peers are asked for.
"""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from loading.content import RESPONSES, Query, queries
from mmrlhf_engine import _core
from mmrlhf_engine.train.loader import PictureSettings, PreferenceLoader
from mmrlhf_engine.train.plan import Budget, PlanSettings, plan_json

SENTINEL = 0xFFFF_FFFF
QUERIES_PER_APPEND = 512
TOKENIZER = json.dumps({"name": "bench", "sha256": "0" * 64, "vocab": 151_936})
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
    slots = [[SENTINEL] * len(blobs) for blobs in media]
    prompts = [[*slot, *query.prompt.tolist()] for slot, query in zip(slots, held, strict=True)]
    lists = pa.large_list(pa.uint32())
    asked = pa.StructArray.from_arrays(
        [pa.array(prompts, lists), pa.array(media, pa.large_list(pa.uint64()))],
        ["prompt", "media"],
    )
    answers = [tokens for query in held for tokens in query.responses]
    owner = [row for row in range(len(held)) for _ in range(RESPONSES)]
    given = pa.StructArray.from_arrays(
        [pa.array(owner, pa.uint32()), pa.array(answers, lists)], ["q", "tokens"]
    )
    rows = [
        (row * RESPONSES + better, row * RESPONSES + worse)
        for row in range(len(held))
        for better, worse in combinations(range(RESPONSES), 2)
    ]
    chosen, rejected = (pa.array(side, pa.uint32()) for side in zip(*rows, strict=True))
    pairs = pa.StructArray.from_arrays([chosen, rejected], ["chosen", "rejected"])
    writer.append(asked, given, pairs)


def loader(folder: Path, request: dict[str, Any]) -> PreferenceLoader:
    """The loader of a request: its unit, its number of threads, with pictures or without."""
    settings = PlanSettings(
        budget=Budget(tokens=request.get("tokens", 16384)),
        packs_per_step=1,
        unit=request["unit"],
        too_large="alone",
    )
    pictures = PICTURES if request["megapixels"] is not None else None
    rule = QWEN if request["megapixels"] is not None else None
    threads = request["workers"]
    return PreferenceLoader(
        folder, plan_json(settings, rule), pictures=pictures, threads=threads, epochs=1
    )


def pairs_by_batch(folder: Path, request: dict[str, Any]) -> Iterator[int]:
    """Pairs of each batch of one epoch."""
    for batch in loader(folder, request):
        yield len(batch.pair_row)
