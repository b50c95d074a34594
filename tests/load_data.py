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

IMAGE, VIDEO, RUN, FRAME = 0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFD, 0xFFFF_FFFC
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
    "llava_next": {
        "family": "llava_next",
        "tile": 12,
        "tile_tokens": 9,
        "extra_tokens": -1,
        "canvases": [[12, 24], [24, 12], [24, 24], [36, 12], [12, 36]],
    },
    "stretch": {"family": "fixed", "width": 12, "height": 9, "tokens": 6, "fit": "stretch"},
    "crop": {"family": "fixed", "width": 11, "height": 11, "tokens": 5, "fit": "crop"},
    "pad": {"family": "fixed", "width": 12, "height": 12, "tokens": 5, "fit": "pad"},
}
VIDEO_RULES = {
    "qwen2_vl": {"over": "frame", "min_pixels": 64, "max_pixels": 256, "max_video_pixels": 700},
    "qwen2_5_vl": {"over": "frame", "min_pixels": 64, "max_pixels": 256, "tokens_per_second": 3},
    "qwen3_vl": {"over": "video", "min_pixels": 256, "max_pixels": 1500},
}
for _name, _video in VIDEO_RULES.items():
    RULES[f"{_name}_video"] = RULES["qwen2_vl"] | {"video": {"temporal": 2, **_video}}
RULES["llava_onevision_video"] = RULES["llava_onevision"] | {
    "video": {"width": 12, "height": 12, "frame_tokens": 4, "extra_tokens": 1}
}
RULES["internvl_framed_video"] = RULES["internvl"] | {
    "video": {"width": 10, "height": 10, "frame_tokens": 4, "extra_tokens": 0}
}
RULES["internvl_video"] = RULES["internvl_framed_video"] | {"framing_tokens": 0}
PICTURES = {
    "none": None,
    "qwen2_vl": PictureSettings(image_token=990),
    "llava_onevision": PictureSettings(image_token=990, background=(10, 20, 30)),
    "internvl": PictureSettings(image_token=990, image_start_token=991, image_end_token=992),
    "llava_next": PictureSettings(image_token=990),
    "stretch": PictureSettings(image_token=990),
    "crop": PictureSettings(image_token=990),
    "pad": PictureSettings(image_token=990, background=(10, 20, 30)),
}
for _name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"):
    PICTURES[f"{_name}_video"] = PictureSettings(image_token=990, video_token=993)
PICTURES["internvl_framed_video"] = PICTURES["internvl"]

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


def picture(random, kind, size=None):
    """A file of a small picture."""
    width, height = size or (int(side) for side in random.integers(1, 40, 2))
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
    """Token ids, with placeholders of images at random places."""
    ids = random.integers(1, 900, int(random.integers(least, most)))
    ids = [int(number) for number in ids]
    for _ in range(placeholders):
        ids.insert(int(random.integers(0, len(ids) + 1)), IMAGE)
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
    random = np.random.default_rng(seed)
    kinds = kinds or ["plain"] * 16 + ["turned"] * 4 + ["broken"] * 2 + ["wide"]
    return store(
        folder,
        [picture(random, kind) for kind in kinds],
        lambda blobs: rows(random, queries, blobs, text_only=text_only),
        shard_pairs=shard_pairs,
        vocabulary=vocabulary,
    )


def store(folder, files, make_rows, *, shard_pairs=100, vocabulary=1000) -> Path:
    """Write files of pictures, and the rows that a function makes of their blob ids."""
    tokenizer = json.dumps(TOKENIZER | {"vocabulary": vocabulary})
    writer = DatasetWriter(folder, tokenizer=tokenizer, shard_pairs=shard_pairs, threads=1)
    stored = writer.add_media(bytes=pa.array(files, pa.large_binary()))
    stored = pa.array(stored).to_pylist()
    assert not any(row["problem"] for row in stored)
    add(writer, make_rows([row["id"] for row in stored]))
    writer.commit()
    return folder


def add(writer, made):
    """Append rows of the three tables to what a writer is to commit."""
    ids, blobs = pa.large_list(pa.uint32()), pa.large_list(pa.uint64())
    queries = [{"media_t": [], **query} for query in made.queries]
    # The items of a list are never null by the profile, which pyarrow's literals do not say.
    writer.append(
        struct(
            queries,
            prompt=ids,
            media=blobs,
            media_t=pa.large_list(pa.float32()),
            weight=pa.float32(),
        ),
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
