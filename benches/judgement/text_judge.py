"""The text judge on pairs whose truth is known, and the keys by which texts meet.

Recall by kind of copy and wrong merges by kind of look-alike, on pairs that the rules were made
with and on fresh ones; pairs judged in a second; on 200,000 rows of three templates, how many
copies meet and how many pairs of rows share a bucket; what the keys cost where all texts differ.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"

import random
import statistics
import sys
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent.parent))

from text_pairs import Draw, Pair, mistyped, pairs

from mmrlhf_engine._core import count_frequencies, find_duplicates, judge_texts, text_keys
from mmrlhf_engine.curate.dedup import DedupConfig
from record import write_record

EACH = 60
ROWS = 200_000
CAP = 1_000
BANDS = {"shingle_words": 3, "bands": 16, "rows_per_band": 4}


def main() -> None:
    rows: list[dict[str, Any]] = []
    for half, seed in (("tune", 1), ("fresh", 2)):
        rows += judged(pairs(seed, half, EACH), half)
    rows += [speed(), *proposal(), *cost()]
    for row in rows:
        print(row)
    path = write_record(
        "text_judge",
        {"pairs_of_a_kind": EACH, "rows": ROWS, "common_from": CAP, "threads": 1},
        rows,
        ["pairs of real corpora", "recall of two typos in the content keys"],
    )
    print(path)


def judge(found: list[Pair]) -> list[dict[str, Any]]:
    left, right = (pa.array([pair[side] for pair in found], pa.large_string()) for side in (0, 1))
    settings = {"rule": "prompts", "threshold": 0.8, "document_tokens": 200, "shingle_words": 3}
    return pa.array(judge_texts(left, right, threads=1, **settings)).to_pylist()


def judged(found: list[Pair], half: str) -> list[dict[str, Any]]:
    """One row a kind, and one for all look-alikes and all copies."""
    said: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    by_jaccard: dict[bool, list[bool]] = defaultdict(list)
    for pair, verdict in zip(found, judge(found), strict=True):
        said[pair.same, pair.kind].append(verdict["same"])
        by_jaccard[pair.same].append(verdict["jaccard"] >= 0.8)
        if "--wrong" in sys.argv and pair.same != verdict["same"]:
            print(half, pair, verdict["differences"])
    rows = []
    for same in (True, False):
        of_kind = {kind: values for (truth, kind), values in said.items() if truth == same}
        everything = list(chain.from_iterable(of_kind.values()))
        rows.append(
            summary(half, same, "all", everything) | {"jaccard_0.8": share(by_jaccard[same])}
        )
        rows += [summary(half, same, kind, values) for kind, values in of_kind.items()]
    return rows


def share(values: list[bool]) -> float:
    return round(statistics.mean(values), 4)


def summary(half: str, same: bool, kind: str, values: list[bool]) -> dict[str, Any]:
    what = "copies" if same else "look-alikes"
    return {
        "pairs": half,
        "truth": what,
        "kind": kind,
        "count": len(values),
        "merged": share(values),
    }


def speed() -> dict[str, Any]:
    """Both texts read and compared, of each pair."""
    found = pairs(3, "fresh", 200)
    judge(found[:100])
    start = time.process_time()
    judge(found)
    seconds = time.process_time() - start
    return {"what": "pairs judged", "pairs": len(found), "per_second": round(len(found) / seconds)}


TEMPLATES = [
    "Below is an instruction that describes a task. Write a response that completes the request.\n"
    "### Instruction:\nWhat is the {a} of the {b}?\n### Response:",
    "You are given a picture of a document. Extract the requested field from the document and "
    "return it as JSON, without any text before or after it. Field: {a} {b}",
    "Look carefully at every part of the picture, read all of the text that you can see, and then "
    "tell me whether the {a} is near the {b} in the scene.",
]
COMMON = Path(__file__).parents[2] / "rust_core/src/judge/text/data/words.txt"


def common_words() -> list[str]:
    lines = COMMON.read_text(encoding="utf-8").split()
    return [line[:-1] for line in lines if line.endswith("+") and len(line) > 5 and line.isascii()]


def proposal() -> list[dict[str, Any]]:
    """Distinct questions under three templates, and copies of 2,000 of them."""
    draw = random.Random(4)
    common = common_words()
    drawn = (
        draw.choice(TEMPLATES).format(a=draw.choice(common), b=draw.choice(common))
        for _ in range(ROWS)
    )
    texts = list(dict.fromkeys(drawn))
    slips = Draw(5, "fresh")
    edits = {
        "case": str.upper,
        "courtesy": lambda text: "Hello! " + text + " Thank you!",
        "synonym": lambda text: text.replace("picture", "photo"),
        "one typo": lambda text: mistyped(slips, text, "any"),
    }
    kinds = list(edits) * 500
    originals = draw.sample(range(len(texts)), len(kinds))
    copies = [edits[kind](texts[row]) for row, kind in zip(originals, kinds, strict=True)]
    everything = [*texts, *copies]
    rows = []
    for name, cap in (("all shingles", NO_CAP), ("rare shingles", CAP)):
        keys, seconds, common_shingles = keys_of(everything, cap)
        met = defaultdict(list)
        for place, (row, kind) in enumerate(zip(originals, kinds, strict=True), len(texts)):
            if everything[place] != texts[row]:
                met[kind].append(bool(set(keys[row]) & set(keys[place])))
        values = np.concatenate(keys)
        sizes = np.unique(values, return_counts=True)[1].astype(np.int64)
        rows.append(
            {
                "what": "proposal",
                "shingles": name,
                "rows": len(everything),
                "pairs_in_buckets": int((sizes * (sizes - 1) // 2).sum()),
                "copies_that_meet": {kind: share(values) for kind, values in met.items()},
                "keys_a_row": round(len(values) / len(everything), 2),
                "common": common_shingles,
                "texts_per_second": round(len(everything) / seconds),
            }
        )
    return rows


NO_CAP = 1 << 30


def keys_of(texts: list[str], cap: int) -> tuple[list[np.ndarray], float, int]:
    """The keys of every text, processor seconds, and how many shingles and words are common."""
    column = pa.array(texts, pa.large_string())
    start = time.process_time()
    words = BANDS["shingle_words"]
    table = count_frequencies(column, shingle_words=words, common_from=cap, threads=1)
    keys = text_keys(column, frequencies=table, threads=1, **BANDS)
    seconds = time.process_time() - start
    lists = pa.array(keys)
    values, offsets = np.asarray(lists.values), np.asarray(lists.offsets)
    return np.split(values, offsets[1:-1]), seconds, len(table)


def cost() -> list[dict[str, Any]]:
    """Texts that nothing is common to: all keys, beside the whole search without the judge."""
    draw = random.Random(6)
    common = common_words()
    rows = []
    for words, count in ((12, 100_000), (60, 40_000), (500, 4_000)):
        texts = [" ".join(draw.choices(common, k=words)) for _ in range(count)]
        ours, today = [], []
        for _ in range(5):
            ours.append(keys_of(texts, CAP)[1])
            today.append(search(texts))
        rows.append(
            {
                "what": "cost",
                "words": words,
                "texts": count,
                "keys_per_second": round(count / min(ours)),
                "find_per_second": round(count / min(today)),
            }
        )
    return rows


def search(texts: list[str]) -> float:
    """Processor seconds of the duplicates of texts by bands of all shingles alone."""
    nothing = {
        "media": pa.array([], pa.uint32()),
        "phash": pa.array([], pa.uint64()),
        "colour": pa.array([], pa.uint8()),
    }
    samples = {
        "prompts": pa.array(texts, pa.large_string()),
        "answers": pa.array([None] * len(texts), pa.large_string()),
        "media": pa.array([[]] * len(texts), pa.large_list(pa.uint32())),
        "rank": pa.array(range(len(texts)), pa.uint32()),
        "overrides": [],
    }
    settings = DedupConfig(policy="text", judge=False).model_dump()
    start = time.process_time()
    find_duplicates(samples, nothing, settings=settings, judge=None, threads=1)
    return time.process_time() - start


if __name__ == "__main__":
    main()
