"""Images per second of the perceptual hash and of imagehash, and whether the hashes are equal.

Both decode the same JPEG files in full, on one thread; ours also on two. The rounds of the two are
interleaved, so that a noisy moment hits both.
"""

import io
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import imagehash
import pyarrow as pa
from PIL import Image

from mmrlhf_engine._core import hash_images
from record import write_record

ROUNDS = 7
COPIES = 24


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
            "more than two threads",
            "decoding at reduced scale, which is faster and gives other hashes",
        ],
    )
    for row in rows:
        print(
            f"{row['size']:>9} q{row['quality']}  imagehash {row['imagehash']:7.1f}/s  "
            f"ours {row['ours_1_thread']:7.1f}/s ({row['ratio']:.2f}x)  "
            f"2 threads {row['ours_2_threads']:7.1f}/s  equal {row['equal']}"
        )
    print(path)


def measure(width: int, height: int, quality: int) -> dict[str, object]:
    """Both hashes over the same pictures in memory."""
    contents = [encode(path, width, height, quality) for path in photographs()] * COPIES
    reference = [peer(content) for content in contents]
    times: dict[str, list[float]] = {"imagehash": [], "one": [], "two": []}
    for _ in range(ROUNDS):
        times["imagehash"].append(clock(lambda: [peer(content) for content in contents]))
        times["one"].append(clock(lambda: ours(contents, 1)))
        times["two"].append(clock(lambda: ours(contents, 2)))
    speed = {name: len(contents) / statistics.median(t) for name, t in times.items()}
    return {
        "size": f"{width}x{height}",
        "quality": quality,
        "imagehash": round(speed["imagehash"], 1),
        "ours_1_thread": round(speed["one"], 1),
        "ours_2_threads": round(speed["two"], 1),
        "ratio": round(speed["one"] / speed["imagehash"], 2),
        "equal": f"{sum(a == b for a, b in zip(ours(contents, 1), reference, strict=True))}"
        f" of {len(contents)}",
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


def peer(content: bytes) -> int:
    bits = imagehash.phash(Image.open(io.BytesIO(content))).hash.flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def ours(contents: list[bytes], threads: int) -> list[int]:
    absent = [None] * len(contents)
    made = hash_images(
        pa.array(absent, pa.large_string()),
        pa.array(absent, pa.uint64()),
        pa.array(absent, pa.uint64()),
        pa.array(contents, pa.large_binary()),
        max_pixels=10**8,
        threads=threads,
    )
    hashes: list[int] = pa.array(made).field("phash").to_pylist()
    return hashes


def clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
