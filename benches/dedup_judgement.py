"""Copies that must go and look-alikes that must stay: the judges of dedup, dedup itself, peers.

Pairs of pictures and of texts whose truth is known (``judgement/``) are put to ``judge_pictures``
and ``judge_texts`` alone; to ``curate --to dedup`` over a corpus of all their members; and to other
tools. Each of these at its default; at the limit where the sum of both errors is least on these very
pairs; and at the one with most recall among those that merge at most .5 % of the look-alikes.

The pairs of ``--split tune`` may be looked at while rules are made; ``fresh`` ones are drawn from
other photographs, fonts, words and seeds. ``--sheet`` draws the worst errors of the engine. Pairs
whose truth is a matter of definition have a table of their own (``by design``).
"""
# ruff: noqa: E501

import os

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent / "judgement"))

import end_to_end
import passages
import peers
import picture_pairs
import text_pairs
from contact_sheet import Error, draw_sheet
from peers import Scores
from picture_pairs import PicturePair, png, scaled, stored
from text_pairs import Pair

from mmrlhf_engine._core import find_duplicates, hash_images, judge_pictures, judge_texts
from mmrlhf_engine.curate.dedup import DedupConfig
from record import write_record

SEEDS = {"tune": 11, "fresh": 19}
PICTURE_KINDS, TEXT_KINDS = 84, 66
MAX_PIXELS = 10**8
ENCODED = 300
"""Pairs that are given to lite0, which encodes some six pictures a second."""
WRONG = 0.005
LUMA, CHROMA = 5.5, 1.0

Row = dict[str, Any]
JUDGE, STAGE = "engine, judge alone", "engine, end to end"
LETTERS = (
    "upper case", "lower case", "title case", "end mark", "spacing", "quotes and dashes", "emphasis",
    "greeting", "thanks", "request", "greeting, request, thanks",
)  # fmt: skip
WORDS = ("function word", "two function words", "listed synonym", "synonym and case")
DOCUMENTS = ("passage", "document")
TYPOS = ("typo: swapped", "typo: lost", "typo: doubled", "typo: neighbouring key")


class Side:
    """The pairs of one medium, and what every tool says of them."""

    def __init__(
        self, medium: str, pairs: Sequence[Any], truth: list[str], kinds: list[str]
    ) -> None:
        self.medium, self.pairs = medium, pairs
        self.truth, self.kinds = np.array(truth), np.array(kinds)
        self.said: dict[str, np.ndarray] = {}
        """Of the engine and of each peer at its default, whether it merges each pair; NaN: unasked."""
        self.scores: list[Scores] = []
        self.errors: list[Error] = []

    def rate(self, said: np.ndarray, truth: str, among: np.ndarray | None = None) -> float:
        """The share that is merged among the pairs of a truth."""
        chosen = (self.truth == truth) & ~np.isnan(said)
        chosen = chosen if among is None else chosen & among
        return round(float(said[chosen].mean()), 4) if chosen.any() else float("nan")

    def both(self, said: np.ndarray) -> Row:
        """Recall of copies and share of wrong merges."""
        return {"recall": self.rate(said, "copy"), "wrong": self.rate(said, "look-alike")}

    def ask(self, scores: Scores) -> None:
        """Keep what a peer says."""
        self.scores.append(scores)
        self.said[scores.tool] = at_limit(scores, scores.default)

    def tools(self) -> Iterator[Row]:
        """Recall and wrong merges of every tool."""
        for name in (JUDGE, STAGE):
            yield {"tool": name, **self.both(self.said[name]), "pairs": len(self.pairs)}
        for scores in self.scores:
            known = ~np.isnan(scores.values)
            limits = scores.limits or tuple(np.unique(scores.values[known]))
            tried = [(float(limit), self.both(at_limit(scores, limit))) for limit in limits]
            best = min(tried, key=lambda t: 1 - t[1]["recall"] + t[1]["wrong"])
            careful = [t for t in tried if t[1]["wrong"] <= WRONG]
            strict = (
                max(careful, key=lambda t: t[1]["recall"]) if careful else (None, {"recall": 0.0})
            )
            self.said[f"{scores.tool}, best"] = at_limit(scores, best[0])
            row = {
                "tool": scores.tool,
                **self.both(self.said[scores.tool]),
                "pairs": int(known.sum()),
                "default": scores.default,
                "best_limit": best[0],
                "best": best[1],
                "recall_at_half_a_percent_wrong": strict[1]["recall"],
                "engine_on_these_pairs": self.both(np.where(known, self.said[JUDGE], np.nan)),
            }
            if scores.tool.startswith("image"):
                row["by_radius"] = {
                    str(radius): self.both(at_limit(scores, -radius))
                    for radius in (0, 2, 4, 8, 10, 12, 16)
                }
            yield row

    def of_kinds(self) -> Iterator[Row]:
        """The share merged of every kind by every tool: recall of copies, wrong look-alikes."""
        for truth in ("copy", "look-alike", "by design"):
            for kind in dict.fromkeys(self.kinds[self.truth == truth]):
                among = self.kinds == kind
                row: Row = {
                    "truth": truth,
                    "kind": str(kind),
                    "pairs": int((among & (self.truth == truth)).sum()),
                }
                yield row | {
                    tool: self.rate(said, truth, among) for tool, said in self.said.items()
                }


def at_limit(scores: Scores, limit: float) -> np.ndarray:
    merged = (scores.values >= limit).astype(float)
    return np.where(np.isnan(scores.values), np.nan, merged)


# --- pictures


def columns(contents: Sequence[bytes]) -> tuple[pa.Array, ...]:
    nothing = [None] * len(contents)
    kinds = (pa.large_string(), pa.uint64(), pa.uint64())
    return (*(pa.array(nothing, kind) for kind in kinds), pa.array(contents, pa.large_binary()))


def judged(pairs: Sequence[Any]) -> tuple[list[Row], float]:
    """What ``judge_pictures`` says, and processor seconds with decoding."""
    pictures, first = (
        columns([side for pair in pairs for side in pair[:2]]),
        2 * np.arange(len(pairs)),
    )
    rows = (pa.array(side, pa.uint32()) for side in (first, first + 1))
    start = time.process_time()
    found = judge_pictures(*pictures, *rows, thumbnails=False, max_pixels=MAX_PIXELS, threads=1)
    seconds = time.process_time() - start
    return pa.array(found).to_pylist(), seconds


def proposed(pairs: Sequence[PicturePair]) -> np.ndarray:
    """Whether dedup would ask its judge about each pair."""
    made = pa.array(
        hash_images(
            *columns([side for pair in pairs for side in pair[:2]]),
            max_pixels=MAX_PIXELS,
            threads=1,
        )
    )
    count, asked = 2 * len(pairs), np.zeros(len(pairs), bool)

    def judge(first: list[int], _: list[int]) -> tuple[list[bool], list[bool]]:
        asked[np.array(first) // 2] = True
        return [False] * len(first), [False] * len(first)

    find_duplicates(
        {
            # Members of one pair alone have one text.
            "prompts": pa.array([f"What is {at // 2}?" for at in range(count)], pa.large_string()),
            "answers": pa.nulls(count, pa.large_string()),
            "media": pa.array([[at] for at in range(count)], pa.large_list(pa.uint32())),
            "rank": pa.array(range(count), pa.uint32()),
            "overrides": [],
        },
        {
            "media": pa.array(range(count), pa.uint32()),
            "phash": made.field("phash"),
            "colour": made.field("colour").cast(pa.large_list(pa.uint8())),
        },
        settings=DedupConfig(max_per_image=None).model_dump(),
        judge=judge,
        threads=1,
    )
    return asked


def severity(found: Row) -> float:
    """How far beyond the limits a difference is; infinite where the shapes differ."""
    if found["luma"] is None:
        return float("inf")
    return max(found["luma"] / LUMA, (found["chroma"] or 0) / CHROMA)


def pictures(split: str, each: int, material: Path) -> tuple[Side, list[Row]]:
    pairs = picture_pairs.pairs(SEEDS[split], split, each, material)
    side = Side("pictures", pairs, [pair.truth for pair in pairs], [pair.kind for pair in pairs])
    say(f"{len(pairs)} pairs of pictures")
    found, seconds = judged(pairs)
    near = proposed(pairs)
    side.said[JUDGE] = np.array([row["copy"] for row in found], float)
    merged, removed = end_to_end.merged_pictures(pairs)
    side.said[STAGE] = np.array(merged, float)
    say("judged")
    for pair, row, copy in zip(pairs, found, side.said[JUDGE], strict=True):
        if pair.truth != "by design" and copy != (pair.truth == "copy"):
            luma, chroma = (
                f"{row[name]:.2f}" if row[name] is not None else "-" for name in ("luma", "chroma")
            )
            what = f"{pair.kind} ({pair.source}): luma {luma}, chroma {chroma}, {row['cause']}"
            wrong = pair.truth == "look-alike"
            bad = severity(row)
            side.errors.append(
                Error(wrong, 1 / bad if wrong and bad else bad, what, pair.left, pair.right)
            )
    chosen = np.random.default_rng(0).permutation(len(pairs))
    decided = [at for at in chosen if pairs[at].truth != "by design"]
    for scores in peers.of_pictures(pairs, sorted(decided[:ENCODED])):
        side.ask(scores)
        say(scores.tool)
    rows = [
        {"what": "copies proposed by hash and colour", "value": side.rate(near.astype(float), "copy")},
        {"what": "look-alikes proposed", "value": side.rate(near.astype(float), "look-alike")},
        {"what": "recall of the judge among those proposed",
         "value": side.rate(side.said[JUDGE], "copy", near)},
        {"what": "removed in favour of another picture, in the whole corpus",
         "value": strangers(pairs, removed), "of": 2 * len(pairs)},
        {"what": "pairs judged per second and thread, decoding included",
         "value": round(len(pairs) / seconds, 1)},
        *speeds(split, material),
    ]  # fmt: skip
    return side, rows


def strangers(pairs: Sequence[PicturePair], removed: Sequence[tuple[str, str]]) -> int:
    """How many were removed for a picture of another drawing or photograph, or a look-alike."""

    def origin(name: str) -> tuple[str, str]:
        at, side = name.split()
        pair = pairs[int(at)]
        return pair.source, pair.bases[side == "right"]

    def strange(one: str, other: str) -> bool:
        (source, base), (_, other_base) = origin(one), origin(other)
        if one.split()[0] == other.split()[0]:
            return pairs[int(one.split()[0])].truth == "look-alike"
        # Parts of one photograph, and the same cut-out stored in several ways, are drawn again.
        return base != other_base and not (
            source != "drawing" and base.split()[0] == other_base.split()[0]
        )

    return sum(strange(one, other) for one, other in removed)


def speeds(split: str, material: Path) -> Iterator[Row]:
    """Pairs judged in a second by the long side: copies, which need no alignment, and crops."""
    photos = picture_pairs.Photos(text_pairs.Draw(3, split), split, material)
    images = [photos.next()[1] for _ in range(8)]
    for side in (384, 512, 768, 1024):
        sized = [scaled(image, side / max(image.size)) for image in images]
        for what, edit in (
            ("re-encoded", lambda i: i),
            ("cropped", lambda i: picture_pairs.cropped(i, 0.03)),
        ):
            pairs = [(png(i), stored(edit(i), "JPEG", quality=80)) for i in sized]
            seconds = min(judged(pairs)[1] for _ in range(3))
            yield {
                "what": f"pairs per second and thread, {side} pixels, {what}",
                "value": round(len(pairs) / seconds, 1),
            }


# --- texts


def texts(split: str, each: int) -> tuple[Side, list[Row]]:
    drawn = [
        (pair, "copy" if pair.same else "look-alike")
        for pair in text_pairs.pairs(SEEDS[split], split, each)
    ]
    drawn += passages.pairs(SEEDS[split], split, each)
    pairs, truth = [pair for pair, _ in drawn], [truth for _, truth in drawn]
    side = Side("texts", pairs, truth, [pair.kind for pair in pairs])
    sides = [(pair.left, pair.right) for pair in pairs]
    say(f"{len(pairs)} pairs of texts")
    start = time.process_time()
    found = judged_texts(sides, DedupConfig().text_rule)
    seconds = time.process_time() - start
    side.said[JUDGE] = np.array([row["same"] for row in found], float)
    side.said[STAGE] = np.array(end_to_end.merged_texts(sides), float)
    say("judged")
    for pair, known, row in zip(pairs, truth, found, strict=True):
        if known != "by design" and row["same"] != (known == "copy"):
            side.errors.append(
                Error(
                    not pair.same,
                    row["jaccard"],
                    f"{pair.kind}: {row['differences']}",
                    pair.left,
                    pair.right,
                )
            )
    for scores in peers.of_texts(sides):
        side.ask(scores)
        say(scores.tool)
    speed = {"what": "pairs judged per second and thread", "value": round(len(pairs) / seconds)}
    return side, [speed, *as_documents(pairs)]


def judged_texts(sides: Sequence[tuple[str, str]], rule: str) -> list[Row]:
    """What ``judge_texts`` says with the settings of dedup and this rule."""
    left, right = (pa.array([pair[at] for pair in sides], pa.large_string()) for at in (0, 1))
    config = DedupConfig()
    found = judge_texts(
        left,
        right,
        rule=rule,
        threshold=config.text_threshold,
        document_tokens=config.document_tokens,
        shingle_words=config.shingle_words,
        threads=1,
    )
    return pa.array(found).to_pylist()


def as_documents(pairs: Sequence[Pair]) -> Iterator[Row]:
    """Long passages under the rules for documents, alone and end to end."""
    kinds = dict.fromkeys(pair.kind for pair in pairs if pair.kind.startswith(DOCUMENTS))
    for rule, kind in itertools.product(("documents", "auto"), kinds):
        sides = [(pair.left, pair.right) for pair in pairs if pair.kind == kind]
        alone = [row["same"] for row in judged_texts(sides, rule)]
        yield {
            "what": f"merged by text_rule {rule}: {kind}",
            "value": round(float(np.mean(alone)), 4),
            "end_to_end": round(float(np.mean(end_to_end.merged_texts(sides, text_rule=rule))), 4),
            "pairs": len(sides),
        }


# --- what is reported


def targets(pictures: Side, texts: Side, rows: Sequence[Row]) -> Iterator[Row]:
    """The figures that were aimed at."""
    among_proposed = next(row["value"] for row in rows if "among those proposed" in row["what"])
    yield target(
        "pictures: wrongly removed look-alikes",
        pictures.both(pictures.said[STAGE])["wrong"],
        WRONG,
        at_most=True,
    )
    yield target(
        "pictures: the judge alone, wrong",
        pictures.both(pictures.said[JUDGE])["wrong"],
        WRONG,
        at_most=True,
    )
    yield target("pictures: recall of copies proposed", among_proposed, 0.97)
    yield target("pictures: recall end to end", pictures.both(pictures.said[STAGE])["recall"], 0.93)
    yield target(
        "texts: wrongly removed look-alikes",
        texts.both(texts.said[STAGE])["wrong"],
        WRONG,
        at_most=True,
    )
    yield target(
        "texts: the judge alone, wrong", texts.both(texts.said[JUDGE])["wrong"], WRONG, at_most=True
    )
    for what, kinds, least in (
        ("casing, punctuation, courtesy", LETTERS, 1.0),
        ("function words, synonyms", WORDS, 0.95),
        ("single typos", TYPOS, 0.85),
    ):
        for tool in (JUDGE, STAGE):
            value = texts.rate(texts.said[tool], "copy", np.isin(texts.kinds, kinds))
            yield target(f"texts: recall of {what} ({tool})", value, least)
    for side in (pictures, texts):
        beaten = [row["tool"] for row in side.tools() if "best" in row and as_good(side, row)]
        yield {
            "what": f"{side.medium}: tools that at some limit are no worse than the judge in both errors",
            "value": beaten,
            "met": not beaten,
        }


def as_good(side: Side, row: Row) -> bool:
    """Whether a tool at some limit has the engine's recall or more, and no more wrong merges."""
    scores = next(scores for scores in side.scores if scores.tool == row["tool"])
    ours = row["engine_on_these_pairs"]
    known = scores.values[~np.isnan(scores.values)]
    tried = (
        side.both(at_limit(scores, limit))
        for limit in (*(scores.limits or np.unique(known)), scores.default)
    )
    return any(t["recall"] >= ours["recall"] and t["wrong"] <= ours["wrong"] for t in tried)


def target(what: str, value: float, limit: float, *, at_most: bool = False) -> Row:
    met = value <= limit if at_most else value >= limit
    return {"what": what, "value": value, "target": limit, "met": bool(met)}


def say(text: str) -> None:
    print(f"{time.process_time():7.1f} s  {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3000, help="about so many, half of them texts")
    parser.add_argument("--split", choices=list(SEEDS), default="fresh")
    parser.add_argument("--sheet", type=Path, help="draw the twenty worst errors to this PNG file")
    parser.add_argument(
        "--material", type=Path, default=Path("/"), help="where Debian's packages are installed"
    )
    given = parser.parse_args()
    side, more = pictures(
        given.split, max(1, round(given.pairs / 2 / PICTURE_KINDS)), given.material
    )
    other, text_rows = texts(given.split, max(1, round(given.pairs / 2 / TEXT_KINDS)))
    costs = end_to_end.cost(
        given.split, given.material, documents=8 * given.pairs, images=given.pairs // 10
    )
    rows = [{"table": "targets", **row} for row in targets(side, other, more)]
    for medium in (side, other):
        rows += [{"table": f"{medium.medium}, tools", **row} for row in medium.tools()]
        rows += [{"table": f"{medium.medium}, kinds", **row} for row in medium.of_kinds()]
    rows += [{"table": "pictures, more", **row} for row in more]
    rows += [{"table": "texts, more", **row} for row in text_rows]
    rows += [{"table": "cost", **row} for row in costs]
    report(rows)
    parameters = {
        "split": given.split, "pairs": {"pictures": dict(Counter(side.truth.tolist())), "texts": dict(Counter(other.truth.tolist()))},
        "seed": SEEDS[given.split], "threads": 1, "pairs_for_lite0": ENCODED, "dedup": DedupConfig().model_dump(mode="json"),
    }  # fmt: skip
    unmeasured = [
        *dict.fromkeys(peers.NOT_RUN),
        "videos",
        "pictures of less than 224 pixels",
        "scans of real paper",
    ]
    written = [{key: known(value) for key, value in row.items()} for row in rows]
    print(write_record(f"dedup_judgement-{given.split}", parameters, written, unmeasured))
    if given.sheet:
        draw_sheet(given.sheet, side.errors, other.errors)
        print(given.sheet)


def known(value: Any) -> Any:
    """None for NaN, which JSON does not have: a tool was not asked about these pairs."""
    return None if isinstance(value, float) and np.isnan(value) else value


def report(rows: Sequence[Row]) -> None:
    """Prints the tables: of kinds, the shares merged in columns that are numbered."""
    for table in dict.fromkeys(row["table"] for row in rows):
        print(f"\n{table}")
        found = [row for row in rows if row["table"] == table]
        if not table.endswith("kinds"):
            for row in found:
                shown = (f"{k} {v}" for k, v in row.items() if k not in ("table", "by_radius"))
                print("  " + "  ".join(shown))
            continue
        tools = list(found[0])[4:]
        print("  " + "; ".join(f"[{number}] {tool}" for number, tool in enumerate(tools)))
        print(f"  {'':50} pairs" + "".join(f"{f'[{number}]':>6}" for number in range(len(tools))))
        for row in found:
            shares = "".join(f"{row[tool]:6.2f}" for tool in tools)
            print(f"  {row['truth'] + ': ' + row['kind']:50} {row['pairs']:5}{shares}")


if __name__ == "__main__":
    main()
