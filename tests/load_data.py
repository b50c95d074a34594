"""Small datasets of preference shards for the loader's tests, with all that can be in one."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from mmrlhf_engine._core import DatasetWriter
from mmrlhf_engine.shards.loader import PictureSettings
from mmrlhf_engine.shards.plan import PlanSettings, plan_json

SENTINEL = 0xFFFF_FFFF
TOKENIZER = {"name": "test", "sha256": "0" * 64, "template_sha256": ""}
RULES = {
    "none": None,
    "qwen2_vl": {
        "family": "qwen2_vl",
        "patch": 4,
        "merge": 2,
        "min_pixels": 64,
        "max_pixels": 24 * 24,
    },
    "llava_onevision": {
        "family": "llava_onevision",
        "tile": 12,
        "tile_tokens": 9,
        "max_tiles": 2,
        "drop_class_token": False,
        "canvases": [[12 * down, 12 * across] for down in (1, 2, 3) for across in (1, 2, 3)],
    },
    "internvl": {
        "family": "internvl",
        "tile_width": 10,
        "tile_height": 10,
        "tile_tokens": 4,
        "min_tiles": 1,
        "max_tiles": 4,
        "crop": True,
    },
}
PICTURES = {
    "none": None,
    "qwen2_vl": PictureSettings(image_token=990),
    "llava_onevision": PictureSettings(image_token=990, background=(10, 20, 30)),
    "internvl": PictureSettings(image_token=990, image_start_token=991, image_end_token=992),
}

_METADATA = {"step", "pack", "ends_step", "zero_weight_pairs"}


def plan(family="qwen2_vl", **settings):
    """The JSON of a plan, small enough that a few hundred pairs make several windows."""
    small = {
        "unit": "pair",
        "seed": 3,
        "window": 64,
        "budget": {"tokens": 400},
        "packs_per_step": 6,
        "too_large": "alone",
    }
    return plan_json(PlanSettings(**{**small, **settings}), RULES[family])


def picture(random, kind):
    """A file of a small picture."""
    width, height = (int(side) for side in random.integers(1, 40, 2))
    if kind == "wide":
        width, height = 450, 2  # Qwen2-VL refuses it.
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = int(random.integers(2, 9))
        image.save(buffer, "JPEG", exif=exif)
    else:
        image.save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    if kind == "broken":  # The header and the end are whole; what is between is not.
        at = content.index(b"IDAT") + 8
        content[at] ^= 0xFF
    return bytes(content)


def tokens(random, least, most, placeholders=0):
    """Token ids, with sentinels at random places."""
    ids = random.integers(1, 900, int(random.integers(least, most)))
    ids = [int(number) for number in ids]
    for _ in range(placeholders):
        ids.insert(int(random.integers(0, len(ids) + 1)), SENTINEL)
    return ids


@dataclass
class Rows:
    """Rows of the three tables, as they are appended."""

    queries: list[dict]
    responses: list[dict]
    pairs: list[dict]


def rows(random, queries, blobs, *, text_only=False):
    """Queries of 2 to 4 responses: without picture, with some, and with other ones in an answer."""
    made = Rows([], [], [])
    for number in range(queries):
        placeholders = 0 if text_only else int(random.choice([0, 1, 1, 1, 2, 3]))
        media = [int(blob) for blob in random.choice(blobs, placeholders)] if placeholders else []
        prompt = [*tokens(random, 2, 30, placeholders), 900]
        made.queries.append({"prompt": prompt, "media": media, "weight": 1.0})
        first = len(made.responses)
        count = int(random.integers(2, 5))
        for _ in range(count):
            own = 0 if text_only else int(random.choice([0, 0, 0, 0, 1]))
            seen = [int(blob) for blob in random.choice(blobs, own)] if own else []
            ids = tokens(random, 1, 25, own)
            if placeholders and not own and random.random() < 0.1:  # Other images for the prompt.
                seen = [int(blob) for blob in random.choice(blobs, placeholders)]
            made.responses.append({"q": number, "tokens": ids, "media": seen})
        for chosen in range(count):
            for rejected in range(chosen + 1, count):
                margin = None if random.random() < 0.2 else float(random.random())
                made.pairs.append(
                    {
                        "chosen": first + chosen,
                        "rejected": first + rejected,
                        "margin": margin,
                        "weight": float(random.integers(1, 4)),
                        "flags": int(random.integers(0, 32)),
                    }
                )
    return made


def struct(dictionaries, **types):
    columns = {
        name: pa.array([row.get(name) for row in dictionaries], kind)
        for name, kind in types.items()
    }
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))


def write(
    folder: Path,
    *,
    queries=60,
    seed=0,
    text_only=False,
    kinds=None,
    shard_pairs=100,
    vocabulary=1000,
) -> Path:
    """Write a dataset of several shards, of a tokenizer with so many ids."""
    tokenizer = json.dumps(TOKENIZER | {"vocabulary": vocabulary})
    random = np.random.default_rng(seed)
    kinds = kinds or ["plain"] * 16 + ["turned"] * 4 + ["broken"] * 2 + ["wide"]
    writer = DatasetWriter(folder, tokenizer=tokenizer, shard_pairs=shard_pairs, threads=1)
    files = pa.array([picture(random, kind) for kind in kinds], pa.large_binary())
    stored = pa.array(writer.add_media(bytes=files)).to_pylist()
    assert not any(row["problem"] for row in stored)
    made = rows(random, queries, [row["id"] for row in stored], text_only=text_only)
    ids, blobs = pa.large_list(pa.uint32()), pa.large_list(pa.uint64())
    # The items of a list are never null by the profile, which pyarrow's literals do not say.
    writer.append(
        struct(made.queries, prompt=ids, media=blobs, weight=pa.float32()),
        struct(made.responses, q=pa.uint32(), tokens=ids, media=blobs),
        struct(
            made.pairs,
            chosen=pa.uint32(),
            rejected=pa.uint32(),
            margin=pa.float32(),
            weight=pa.float32(),
            flags=pa.uint16(),
        ),
    )
    writer.commit()
    return folder


def assert_same(batch, expected):
    """A batch is what the reference implementation says."""
    for name, value in expected.items():
        found = getattr(batch, name)
        if name in _METADATA:
            assert found == value, name
        elif value is None:
            assert found.size == 0, name
        else:
            assert found.dtype == value.dtype, name
            assert np.array_equal(found, value, equal_nan=value.dtype.kind == "f"), name
