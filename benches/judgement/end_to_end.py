"""What dedup makes of pairs in a corpus of all of their members, and what it costs."""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from picture_pairs import Photos, PicturePair, scaled, stamped, stored
from PIL import Image
from text_pairs import Draw, mistyped

from given_stage import begin, finish_with
from mmrlhf_engine import run_curate
from mmrlhf_engine._core import hash_images
from mmrlhf_engine.curate import dedup
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.tables import MEDIA, SAMPLES
from mmrlhf_engine.run.folder import Run

QUESTION = "What does the picture show?"
SIDES = ("left", "right")
# All pictures have one question: a cap on the samples of a picture would remove look-alikes.
SETTINGS = {"dedup.max_per_image": None}
ROUNDS = 5
TURNS = [Image.Transpose[name] for name in ("FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "ROTATE_180")]

Row = dict[str, Any]
Removed = list[tuple[str, str]]


def merged(
    records: Sequence[Row], pairs: int, folder: Path, **settings: object
) -> tuple[list[bool], Removed]:
    """Of each pair whether both members are one sample after ``curate --to dedup``.

    Also what was removed with what stays, as identifiers (``12 left``) of the records.
    """
    corpus = folder / "pairs.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    named = {f"dedup.{name}": value for name, value in settings.items()}
    run = run_curate(corpus, folder / "run", {**SETTINGS, **named}, last="dedup")
    samples = pl.read_parquet(run.find("samples") / "*.parquet").select("id", "source_id")
    assert samples.height == len(records), f"{samples.height} of {len(records)} records"
    names = dict(samples.iter_rows())
    gone = pl.read_parquet(run.find("duplicates") / "*.parquet").select("id", "kept_id")
    removed = [(names[one], names[other]) for one, other in gone.iter_rows()]
    stays = dict(removed)
    roots = [[stays.get(f"{at} {side}", f"{at} {side}") for side in SIDES] for at in range(pairs)]
    return [left == right for left, right in roots], removed


def merged_pictures(pairs: Sequence[PicturePair]) -> tuple[list[bool], Removed]:
    """Pictures with one question; see :func:`merged`."""
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for at, pair in enumerate(pairs):
            for side in SIDES:
                name = f"{at}-{side}"
                (Path(folder) / name).write_bytes(getattr(pair, side))
                records.append({"id": f"{at} {side}", "image": name, "question": QUESTION})
        return merged(records, len(pairs), Path(folder))


def merged_texts(pairs: Sequence[tuple[str, str]], **settings: object) -> list[bool]:
    """Texts without pictures, in corpora of some 200 pairs; see :func:`merged`.

    In one of all pairs, mistakes in the few sentences that texts are drawn from occur so often that
    they are taken for words.
    """
    found = np.zeros(len(pairs), bool)
    parts = -(-len(pairs) // 200)
    for part in range(parts):
        records = [
            {"id": f"{at} {side}", "question": text}
            for at, pair in enumerate(pairs[part::parts])
            for side, text in zip(SIDES, pair, strict=True)
        ]
        with tempfile.TemporaryDirectory() as folder:
            found[part::parts] = merged(records, len(pairs[part::parts]), Path(folder), **settings)[
                0
            ]
    return found.tolist()


# --- cost


def cost(half: str, material: Path, documents: int, images: int) -> list[Row]:
    """Documents and images a second on one thread, with the judge and without."""
    rows = []
    for share in (0.0, 0.2):
        rows.append(beside(f"{share:.0%} candidates", "documents", *texts(half, documents, share)))
        with tempfile.TemporaryDirectory() as folder:
            given = pictures(half, material, images, share, Path(folder))
            rows.append(beside(f"{share:.0%} candidates", "images", *given))
    return rows


def beside(corpus: str, what: str, samples: list[Row], media: list[Row]) -> Row:
    """Rounds with and without the judge take turns; the best of each counts."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for judge, times in seconds.items():
            taken, report = timed(samples, media, judge=judge)
            times.append(taken)
    off, on = (min(times) for times in seconds.values())
    spread = [round(statistics.median(times) / min(times) - 1, 3) for times in seconds.values()]
    return {
        "what": what,
        "corpus": corpus,
        "rows": len(samples),
        "per_second_judge_off": round(len(samples) / off, 1),
        "per_second_judge_on": round(len(samples) / on, 1),
        "slower_by": round(on / off - 1, 4),
        "median_over_best": spread,
        **{name: report[name] for name in ("pairs_compared", "pictures_judged", "dropped")},
    }


def timed(samples: list[Row], media: list[Row], *, judge: bool) -> tuple[float, Row]:
    """Processor seconds of the stage, and its report."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        filled = [{**dict.fromkeys(SAMPLES), "source": "cost", **row} for row in samples]
        files = [{**dict.fromkeys(MEDIA), "kind": "image", **row} for row in media]
        tables = {
            "samples": (SAMPLES, pl.DataFrame(filled, schema=SAMPLES)),
            "media": (MEDIA, pl.DataFrame(files, schema=MEDIA)),
        }
        finish_with(run, "ingest", tables)
        stage = begin(run, "dedup", DedupConfig(judge=judge), threads=1)
        start = time.process_time()
        dedup.run(stage.config, stage)  # type: ignore[arg-type]
        seconds = time.process_time() - start
        return seconds, json.loads((stage.folder / "report.json").read_text())


COMMON = Path(__file__).parents[2] / "rust_core/src/judge/text/data/words.txt"


def texts(half: str, count: int, share: float) -> tuple[list[Row], list[Row]]:
    """Sixty words each; of the candidates half have a spelling mistake, half another word."""
    draw, slips = random.Random(f"cost {half}"), Draw(7, half)
    lines = COMMON.read_text(encoding="utf-8").split()
    common = [
        line[:-1] for line in lines if line.endswith("+") and len(line) > 5 and line.isascii()
    ]
    found = [draw.choices(common, k=60) for _ in range(count - round(share * count))]
    edited = []
    for at in range(round(share * count)):
        words = list(found[at])
        if at % 2:
            words[30] = draw.choice(common)
        edited.append(" ".join(words) if at % 2 else mistyped(slips, " ".join(words), "any"))
    everything = [" ".join(words) for words in found] + edited
    return [{"id": f"{at}", "prompt": text, "media": []} for at, text in enumerate(everything)], []


def phash(content: bytes) -> int:
    """Of one picture."""
    nothing = [[None], [None], [None]]
    kinds = (pa.large_string(), pa.uint64(), pa.uint64())
    columns = (pa.array(none, kind) for none, kind in zip(nothing, kinds, strict=True))
    inline = pa.array([content], pa.large_binary())
    made = pa.array(hash_images(*columns, inline, max_pixels=10**8, threads=1))
    return int(made.field("phash")[0].as_py())


def pictures(
    half: str, material: Path, count: int, share: float, folder: Path
) -> tuple[list[Row], list[Row]]:
    """JPEG of 640 by 480, no two near each other; then of the candidates half are saved again, half
    have another date."""  # noqa: D205, D209
    draw = Draw(8, half)
    photos = Photos(draw, half, material)
    contents: list[bytes] = []
    known: list[int] = []
    while len(contents) < count:
        image = photos.next()[1].resize((640, 480)).transpose(draw.random.choice(TURNS))
        key = draw.number(0, 2**40)
        dated = [stamped(Draw(key, half), image, change) for change in ("", "digit")]
        content = stored(dated[0], "JPEG", quality=90)
        found = phash(content)
        if any((found ^ other).bit_count() <= 2 * DedupConfig().image_radius for other in known):
            continue
        known.append(found)
        contents.append(content)
        if len(known) <= round(share * count):
            other = scaled(dated[0], 0.8) if len(known) % 2 else dated[1]
            contents.append(stored(other, "JPEG", quality=75))
    samples, media = [], []
    for at, content in enumerate(contents[:count]):
        path = folder / f"{at}.jpg"
        path.write_bytes(content)
        samples.append({"id": f"{at}", "prompt": QUESTION, "media": [f"p{at}"]})
        media.append({"hash": f"p{at}", "path": str(path), "width": 640, "height": 480})
    return samples, media
