"""Near-duplicate texts, from raw strings to the decision: ours, rensa and datasketch.

Everybody gets the same Python strings, the same word 3-grams and one thread; the peers 128 values
as 32 bands of 4 (and 16 of 8), ours its default of 16 bands of 4. The peers get shingles as their
users write them in Python. Time is processor time, which other work on the machine does not
stretch. Ours compares every candidate exactly,
the peers report what meets in a bucket. All are judged by exact Jaccard indices of all pairs.

text-dedup is a program over a dataset on disk, run here in one process; it makes its shingles
itself. Its time is what it says it took to sketch and to cluster, by the clock, without start,
reading and writing. It says which texts to keep: flagged are the others.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"

import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_from_disk
from datasketch import MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH

from mmrlhf_engine._core import find_duplicates
from mmrlhf_engine.curate.dedup import DedupConfig
from record import write_record

THRESHOLD = 0.8
BANDS, ROWS = 32, 4
PERMUTATIONS = BANDS * ROWS
ROUNDS = 5
DATASKETCH_TEXTS = 1_000
BINS = ((0.8, 0.85), (0.85, 0.9), (0.9, 1.0), (1.0, 1.01))

Pairs = dict[tuple[int, int], float]
Finder = Callable[[list[str]], tuple[set[int], float]]
"""From texts to the rows flagged and the seconds it took."""


def main() -> None:
    rows = [row for words, texts in ((60, 20_000), (500, 4_000)) for row in measure(words, texts)]
    path = write_record(
        "text_dedup",
        {"threshold": THRESHOLD, "bands": BANDS, "rows": ROWS, "shingle": 3, "rounds": ROUNDS,
         "threads": 1, "datasketch_texts": DATASKETCH_TEXTS},
        rows,
        ["reading files", "more than one thread", "texts that are not ASCII",
         "rensa's rho path, which samples positions and misses shifted copies"],
    )  # fmt: skip
    for row in rows:
        recalls = "  ".join(f"{name} {value}" for name, value in row["recall"].items())
        print(
            f"{row['words']:>4} words  {row['who']:14} {row['texts_per_second']:>9,.0f}/s  "
            f"ours is {row['ours_is_faster_by']:>5.1f}x  precision {row['precision']:.4f}  "
            f"recall {recalls}"
        )
    print(path)


def measure(words: int, count: int) -> list[dict[str, object]]:
    """One row for each contestant over the same texts."""
    texts = corpus(words, count)
    truth = exact_pairs(texts)
    contestants: dict[str, tuple[Finder, list[str]]] = {
        "ours": (timed(ours), texts),
        "rensa 32x4": (timed(lambda t: rensa(t, BANDS)), texts),
        "rensa 16x8": (timed(lambda t: rensa(t, 16)), texts),
        "datasketch": (timed(datasketch), texts[:DATASKETCH_TEXTS]),
        "text-dedup": (text_dedup, texts),
    }
    times: dict[str, list[float]] = {who: [] for who in contestants}
    flagged: dict[str, set[int]] = {}
    for _ in range(ROUNDS):
        for who, (find, given) in contestants.items():
            flagged[who], seconds = find(given)
            times[who].append(seconds)
    speed = {who: len(contestants[who][1]) / statistics.median(t) for who, t in times.items()}
    return [
        {
            "words": words,
            "texts": len(given),
            "who": who,
            "texts_per_second": round(speed[who], 1),
            "spread": round((max(times[who]) - min(times[who])) / statistics.median(times[who]), 3),
            "ours_is_faster_by": round(speed["ours"] / speed[who], 2),
            **judge(flagged[who], truth, len(given)),
        }
        for who, (_, given) in contestants.items()
    ]


def corpus(words: int, count: int, seed: int = 0) -> list[str]:
    """Seeded texts over a Zipf vocabulary; a third are edited copies of earlier ones."""
    randomness = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [
        "".join(randomness.choices(letters, k=randomness.randint(2, 9))) for _ in range(20_000)
    ]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and randomness.random() < 1 / 3:
            texts.append(edited(randomness.choice(texts), vocabulary, randomness))
        else:
            length = randomness.randint(words * 4 // 5, words * 6 // 5)
            texts.append(randomness.choices(vocabulary, cum_weights=weights, k=length))
    return [sentence(text) for text in texts]


def edited(text: list[str], vocabulary: list[str], randomness: random.Random) -> list[str]:
    """A copy with a word in front, some share of words replaced, or its end cut off."""
    how = randomness.random()
    if how < 0.25:
        return [randomness.choice(vocabulary), *text]
    if how < 0.4:
        return text[: len(text) * randomness.randint(80, 99) // 100]
    share = randomness.choice((0.01, 0.02, 0.04, 0.08))
    return [randomness.choice(vocabulary) if randomness.random() < share else w for w in text]


def sentence(words: list[str]) -> str:
    return " ".join(words).capitalize() + "."


def shingle(text: str) -> list[str]:
    """Word 3-grams as users of the peers write them."""
    words = text.lower().split()
    return [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]


def exact_pairs(texts: list[str]) -> Pairs:
    """The Jaccard index of every pair that shares a shingle, where it reaches the threshold."""
    sets = [{part.rstrip(".") for part in shingle(text)} for text in texts]
    holders: dict[str, list[int]] = {}
    pairs: Pairs = {}
    for later, shingles in enumerate(sets):
        shared = Counter(earlier for part in shingles for earlier in holders.get(part, ()))
        for earlier, common in shared.items():
            jaccard = common / (len(shingles) + len(sets[earlier]) - common)
            if jaccard >= THRESHOLD:
                pairs[earlier, later] = jaccard
        for part in shingles:
            holders.setdefault(part, []).append(later)
    return pairs


def ours(texts: list[str]) -> set[int]:
    nothing = pa.array([], pa.uint32())  # no pictures
    samples = {
        "prompts": pa.array(texts, pa.large_string()),
        "answers": pa.nulls(len(texts), pa.large_string()),
        "media": pa.LargeListArray.from_arrays(np.zeros(len(texts) + 1, np.int64), nothing),
        "rank": pa.array(np.arange(len(texts), dtype=np.uint32)),
        "overrides": [],
    }
    kinds = {"media": pa.uint32(), "phash": pa.uint64(), "colour": pa.large_list(pa.uint8())}
    duplicates, _, _ = find_duplicates(
        samples,
        {name: pa.array([], kind) for name, kind in kinds.items()},
        settings=DedupConfig(policy="text", judge=False).model_dump(),
        judge=None,
        threads=1,
    )
    return set(pa.array(duplicates).field("row").to_pylist())


def rensa(texts: list[str], bands: int) -> set[int]:
    matrix = RMinHash.digest_matrix_from_token_sets([shingle(t) for t in texts], PERMUTATIONS, 42)
    lsh = RMinHashLSH(THRESHOLD, PERMUTATIONS, bands)
    flags = lsh.query_duplicate_flags_matrix_one_shot(matrix)
    return {row for row, flag in enumerate(flags) if flag}


def datasketch(texts: list[str]) -> set[int]:
    lsh = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
    flagged = set()
    for row, text in enumerate(texts):
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([part.encode() for part in shingle(text)])
        if lsh.query(sketch):
            flagged.add(row)
        lsh.insert(row, sketch)
    return flagged


def text_dedup(texts: list[str]) -> tuple[set[int], float]:
    with tempfile.TemporaryDirectory() as folder:
        table = {"row": list(range(len(texts))), "text": texts}
        Dataset.from_dict(table).save_to_disk(f"{folder}/texts")
        options = {
            "path": f"{folder}/texts", "output": f"{folder}/kept", "cache_dir": f"{folder}/cache",
            "split": "train", "column": "text", "num_proc": "1", "ngram": "3", "min_length": "1",
            "num_perm": str(PERMUTATIONS), "b": str(BANDS), "r": str(ROWS),
            "hash_func": "xxh3", "hash_bits": "32",
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        done = subprocess.run(
            [sys.executable, "-m", "text_dedup.minhash", "--local", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},  # its lines must not wrap
            check=True,
        )
        kept = set(load_from_disk(f"{folder}/kept")["row"])
    parts = re.findall(r"(MinHashing|Clustering) *: ([0-9.]+)s", done.stdout + done.stderr)
    assert [name for name, _ in parts] == ["MinHashing", "Clustering"], done.stdout
    return set(range(len(texts))) - kept, sum(float(seconds) for _, seconds in parts)


def timed(find: Callable[[list[str]], set[int]]) -> Finder:
    """The rows that ``find`` flags, with the processor time it took."""

    def run(texts: list[str]) -> tuple[set[int], float]:
        started = time.process_time()
        flagged = find(texts)
        return flagged, time.process_time() - started

    return run


def judge(flagged: set[int], truth: Pairs, count: int) -> dict[str, object]:
    """Precision over flagged texts; recall over true pairs, of which one must be flagged."""
    pairs = {pair: jaccard for pair, jaccard in truth.items() if max(pair) < count}
    true = {text for pair in pairs for text in pair}
    recall = {}
    for low, high in BINS:
        inside = [pair for pair, jaccard in pairs.items() if low <= jaccard < high]
        found = sum(bool(flagged & set(pair)) for pair in inside)
        name = "J = 1" if low == 1 else f"J {low:.2f}-{high:.2f}"
        recall[name] = f"{found / len(inside):.4f} of {len(inside)}" if inside else "none"
    precision = len(flagged & true) / len(flagged) if flagged else 1.0
    return {"precision": round(precision, 4), "recall": recall}


if __name__ == "__main__":
    main()
