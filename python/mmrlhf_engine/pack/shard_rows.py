"""Prepared queries as the three Arrow tables that the dataset writer takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmrlhf_engine.pack.over_long import ReadyQuery
from mmrlhf_engine.shards.tables import arrow_schema
from mmrlhf_engine.sources.pictures import Picture

__all__ = ["FLAG_TIE", "FLAG_TRUNCATED", "PAIRS", "QUERIES", "RESPONSES", "to_tables"]

# Bits of the column `flags` of pairs; bits 1 and 2 say who judged (human, synthetic).
FLAG_TIE = 1 << 0
FLAG_TRUNCATED = 1 << 3


# The columns that the dataset writer does not compute itself.
QUERIES = arrow_schema("queries", computed=False)
RESPONSES = arrow_schema("responses", computed=False)
PAIRS = arrow_schema("pairs", computed=False)


def to_tables(
    queries: Sequence[ReadyQuery],
    blobs: dict[Picture, int],
    critiques: dict[str, list[int]],
) -> tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch]:
    """Record batches of QUERIES, RESPONSES and PAIRS; only responses that a pair needs are in.

    Args:
        queries: What to store; queries without a living pair are left out.
        blobs: The blob of each picture.
        critiques: Token ids of each critique.

    Returns:
        The three batches; ``q``, ``chosen`` and ``rejected`` number rows of these batches.
    """
    query_rows: list[dict[str, Any]] = []
    response_rows: list[dict[str, Any]] = []
    pair_rows: list[dict[str, Any]] = []
    for ready in queries:
        live = ready.live()
        if not live:
            continue
        place = {number: len(response_rows) + order for order, number in enumerate(live)}
        pair_rows += _pair_rows(ready, place)
        response_rows += [
            _response_row(ready, number, len(query_rows), blobs, critiques) for number in live
        ]
        query_rows.append(_query_row(ready, blobs))
    return (
        _batch(query_rows, QUERIES),
        _batch(response_rows, RESPONSES),
        _batch(pair_rows, PAIRS),
    )


def _batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        list_type = pa.types.is_large_list(field.type)
        columns.append(_lists(values, field.type) if list_type else pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _lists(values: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Lists from numpy arrays, joined once, without an object per token."""
    ends = np.cumsum([0, *(len(value) for value in values)], dtype=np.int64)
    dtype = kind.value_type.to_pandas_dtype()
    joined = np.concatenate([np.empty(0, dtype), *values]).astype(dtype, copy=False)
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(joined), type=kind)


def _query_row(ready: ReadyQuery, blobs: dict[Picture, int]) -> dict[str, Any]:
    seconds = [picture.seconds for picture in ready.pictures]
    timed = any(second is not None for second in seconds)
    times = [0.0 if second is None else second for second in seconds] if timed else []
    return {
        "prompt": ready.prompt,
        "media": np.array([blobs[picture] for picture in ready.pictures], np.uint64),
        "media_t": np.array(times, np.float32),
        "source": ready.query.source,
        "weight": 1.0,
        "prompt_text": ready.prompt_text,
    }


def _response_row(
    ready: ReadyQuery,
    number: int,
    query: int,
    blobs: dict[Picture, int],
    critiques: dict[str, list[int]],
) -> dict[str, Any]:
    response, known = ready.responses[number], ready.query.responses[number]
    pictures = response.pictures if response is not None else []
    return {
        "q": query,
        "tokens": response.tokens if response is not None else np.empty(0, np.uint32),
        "media": np.array([blobs[picture] for picture in pictures], np.uint64),
        "rank": known.rank,
        "score": known.score,
        "critique": known.critique,
        "critique_tok": np.array(critiques.get(known.critique or "", []), np.uint32),
        "model": 0,
    }


def _pair_rows(ready: ReadyQuery, place: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {
            "chosen": place[pair.chosen],
            "rejected": place[pair.rejected],
            "margin": pair.margin,
            "weight": pair.weight,
            "flags": FLAG_TIE * pair.tie | FLAG_TRUNCATED * pair.truncated,
        }
        for pair in ready.query.pairs
        if pair.alive
    ]
