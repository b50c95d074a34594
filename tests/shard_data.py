"""Small datasets of preference shards for tests."""

import json
import struct
import zlib

import pyarrow as pa

from mmrlhf_engine import _core

TOKENIZER = json.dumps({"name": "small", "vocabulary": 100})
TOKENS = pa.large_list(pa.uint32())
TABLES = ("queries", "responses", "pairs", "blobs")


def png(width, height, shade=0):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes([shade]) * (width * 3) for _ in range(height)))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + end


def struct_array(**columns):
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))


def queries_of(groups, media):
    return struct_array(
        prompt=pa.array([group["prompt"] for group in groups], TOKENS),
        media=pa.array(
            [[media[i] for i in g["media"]] for g in groups], pa.large_list(pa.uint64())
        ),
        media_t=pa.array([g["seconds"] for g in groups], pa.large_list(pa.float32())),
        source=pa.array([group["source"] for group in groups], pa.uint16()),
        prompt_text=pa.array([group["text"] for group in groups], pa.large_string()),
    )


def responses_of(groups):
    rows = [(q, row) for q, group in enumerate(groups) for row in group["responses"]]
    return struct_array(
        q=pa.array([q for q, _ in rows], pa.uint32()),
        tokens=pa.array([row["tokens"] for _, row in rows], TOKENS),
        score=pa.array([row["score"] for _, row in rows], pa.float32()),
        rank=pa.array([row["rank"] for _, row in rows], pa.int16()),
        critique=pa.array([row["critique"] for _, row in rows], pa.large_string()),
    )


def pairs_of(groups):
    chosen, rejected, margin, first = [], [], [], 0
    for group in groups:
        count = len(group["responses"])
        for one, other, size in group["pairs"]:
            if one % count != other % count:
                chosen.append(first + one % count)
                rejected.append(first + other % count)
                margin.append(size)
        first += count
    return struct_array(
        chosen=pa.array(chosen, pa.uint32()),
        rejected=pa.array(rejected, pa.uint32()),
        margin=pa.array(margin, pa.float32()),
    )


def pack(path, groups, calls=1, **cut):
    writer = _core.DatasetWriter(path, tokenizer=TOKENIZER, threads=1, **cut)
    pictures = pa.array([png(4, 3, shade) for shade in range(3)], pa.large_binary())
    media = pa.array(writer.add_media(pictures)).field("id").to_pylist()
    for _ in range(calls):
        writer.append(queries_of(groups, media), responses_of(groups), pairs_of(groups))
    return writer.commit()


ONE = {
    "prompt": [1, 2, 3],
    "media": [0, 1],
    "seconds": [],
    "source": 7,
    "text": "which?",
    "responses": [
        {"tokens": [4, 5], "score": 0.5, "rank": 1, "critique": "fine"},
        {"tokens": [6], "score": None, "rank": None, "critique": None},
    ],
    "pairs": [(0, 1, 0.25)],
}


def listed(array):
    return pa.array(array).to_pylist()
