"""Images per second of the perceptual hash, of imagehash, and of imagehash on a reduced decode.

``exact`` decodes the same JPEG files in full, as imagehash does, and has the same hashes; ``fast``
decodes at 1/8 to 1/2 of the size, as Pillow's draft mode does before imagehash in the other column.
How far the hashes of ``fast`` drift is told in bits. ``exact_and_pixels`` and ``fast_and_pixels``
also make the 224 by 224 pixels that an encoder takes, always from a full decode: what a picture
costs on its way through dedup and embed. One thread each; the rounds of all are interleaved, so
that a noisy moment hits each of them.
"""

import io
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imagehash
import pyarrow as pa
from PIL import Image

from mmrlhf_engine._core import decode_images, hash_images
from record import write_record

ROUNDS = 7
COPIES = 12


def main() -> None:
    rows = [
        measure(width, height, quality)
        for width, height in ((640, 480), (1280, 960))
        for quality in (75, 90, 95)
    ]
    path = write_record(
        "image_hash",
        {"rounds": ROUNDS, "images": 2 * COPIES, "figure": "median images per second"},
        rows,
        [
            "formats other than JPEG",
            "cold files: everything was in memory",
            "more than one thread",
        ],
    )
    for row in rows:
        print(
            f"{row['size']:>9} q{row['quality']}  imagehash {row['imagehash']:6.1f}/s  "
            f"draft {row['imagehash_draft']:6.1f}/s  exact {row['exact']:6.1f}/s "
            f"({row['exact_over_imagehash']:.2f}x)  fast {row['fast']:6.1f}/s "
            f"({row['fast_over_imagehash']:.2f}x)  drift {row['drift_bits']}"
        )
    print(path)


def measure(width: int, height: int, quality: int) -> dict[str, object]:
    """Both hashes over the same pictures in memory."""
    contents = [encode(path, width, height, quality) for path in photographs()] * COPIES
    reference = [peer(content) for content in contents]
    runs: dict[str, Callable[[], Any]] = {
        "imagehash": lambda: [peer(content) for content in contents],
        "imagehash_draft": lambda: [peer(content, draft=True) for content in contents],
        "exact": lambda: ours(contents, reduced=False),
        "fast": lambda: ours(contents, reduced=True),
        "exact_and_pixels": lambda: (ours(contents, reduced=False), pixels(contents)),
        "fast_and_pixels": lambda: (ours(contents, reduced=True), pixels(contents)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(clock(run))
    speed = {name: len(contents) / statistics.median(taken) for name, taken in times.items()}
    equal = sum(a == b for a, b in zip(runs["exact"](), reference, strict=True))
    drift = [(a ^ b).bit_count() for a, b in zip(runs["fast"](), reference, strict=True)]
    return {
        "size": f"{width}x{height}",
        "quality": quality,
        **{name: round(value, 1) for name, value in speed.items()},
        "exact_over_imagehash": round(speed["exact"] / speed["imagehash"], 2),
        "fast_over_imagehash": round(speed["fast"] / speed["imagehash"], 2),
        "fast_over_exact_with_pixels": round(
            speed["fast_and_pixels"] / speed["exact_and_pixels"], 2
        ),
        "spread": {name: round(max(taken) / min(taken), 2) for name, taken in times.items()},
        "exact_equal": f"{equal} of {len(contents)}",
        "drift_bits": {"mean": statistics.mean(drift), "max": max(drift)},
    }


def photographs() -> list[Path]:
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.glob("**/images/*.jpg"))


def encode(path: Path, width: int, height: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(path).resize((width, height)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def peer(content: bytes, *, draft: bool = False) -> int:
    picture = Image.open(io.BytesIO(content))
    if draft:
        picture.draft("L", (64, 64))
    bits = imagehash.phash(picture).hash.flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def ours(contents: list[bytes], *, reduced: bool) -> list[int]:
    absent = [None] * len(contents)
    made = hash_images(
        pa.array(absent, pa.large_string()),
        pa.array(absent, pa.uint64()),
        pa.array(absent, pa.uint64()),
        pa.array(contents, pa.large_binary()),
        max_pixels=10**8,
        threads=1,
        reduced=reduced,
    )
    hashes: list[int] = pa.array(made).field("phash").to_pylist()
    return hashes


def pixels(contents: list[bytes]) -> None:
    absent = [None] * len(contents)
    decode_images(
        pa.array(absent, pa.large_string()),
        pa.array(absent, pa.uint64()),
        pa.array(absent, pa.uint64()),
        pa.array(contents, pa.large_binary()),
        size=224,
        fit="crop",
        filter="bicubic",
        max_pixels=10**8,
        threads=1,
    )


def clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
