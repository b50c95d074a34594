"""Annotations to preference pairs, with a part of the queries held out.

1. Rows are gathered into items: a query, its answers, and what each annotator says (`items.py`).
2. Each item is judged: ranks become verdicts on every two answers, annotators vote, cycles are
   resolved, and verdicts become pairs (`votes.py`).
3. Items are put into families that share pictures or texts; whole families are held out, chosen by
   a hash (`families.py`).
4. ``pairs.jsonl`` and ``held_out.jsonl`` are rows of MM-RLHF's ``dpo_pairs.jsonl``.

What an item gives does not depend on the order of the rows, but for its id, the order of its
answers and the reasons, which are those of its first row.
"""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmrlhf_engine.collect.families import (
    Families,
    hash_pictures,
    is_held_out,
    near_hashes,
    unite_near_texts,
)
from mmrlhf_engine.collect.items import AnnotatedRow, Item, ItemReader
from mmrlhf_engine.collect.pair_rows import common_root, rows_of
from mmrlhf_engine.collect.pair_settings import PairConfig, source_files
from mmrlhf_engine.collect.votes import (
    agreement,
    find_cycles,
    majority,
    resolve_cycles,
    to_pairs,
    verdicts_of,
)
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.run.tables import REJECTED, TableSchema
from mmrlhf_engine.sources.preferences.record import Pair
from mmrlhf_engine.sources.preferences.rows import read_rows

__all__ = ["CONTRADICTIONS", "STAGE", "PairConfig", "describe"]

CONTRADICTIONS: TableSchema = {
    "id": pl.String(),  # of the query, as in the pairs
    "kind": pl.String(),  # rank_against_scores, equal_answers, cycle
    "detail": pl.String(),
}

_ROWS_PER_REPORT = 256


def run(config: PairConfig, context: StageContext) -> None:
    """Read the annotations; write ``pairs.jsonl``, ``held_out.jsonl`` and what was left out."""
    files = source_files(config)
    root = common_root(file.root for file in files)
    judged = _Judged(config)
    with context.table("rejected", REJECTED) as rejected:
        reader = ItemReader(config, rejected, by_content=len({one.root for one in files}) > 1)
        for file in files:
            for position, record in read_rows(file):
                reader.take(file, position, record)
                if reader.rows_in % _ROWS_PER_REPORT == 0:
                    context.progress("rows", reader.rows_in)
        for item in reader.items:
            for row in judged.judge(item):
                reader.reject(row.source, row.position, "no_pairs", "nothing is left to compare")
        reader.finish()
    with context.table("contradictions", CONTRADICTIONS) as table:
        table.write(pl.DataFrame(judged.contradictions, schema=CONTRADICTIONS, orient="row"))
    held, split = _sides(config, context, judged.items)
    sides = {}
    for name, side in (("pairs", False), ("held_out", True)):
        numbers = [number for number, out in enumerate(held) if out == side]
        sides[name] = judged.write(context.folder / f"{name}.jsonl", numbers, root)
    totals = {name: sum(side[name] for side in sides.values()) for name in sides["pairs"]}
    facts: dict[str, Any] = {
        **totals,
        "ties_dropped": judged.ties_dropped,
        "merged": reader.merged,
        "answers_without_rank": reader.without_rank,
        "ranks_from_scores": reader.ranks_from_scores,
        "contradictions": dict(sorted(judged.kinds.items())),
        "annotators": dict(sorted(reader.annotators.items())),
        "annotators_absent": reader.absent,
        "agreement": judged.agreement,
        "sides": sides,
        "split": split,
        "root": str(root),
        "with_media": sum(bool(item.media) for item in judged.items),
        "fields_ignored": dict(sorted(reader.fields_ignored.items())),
    }
    context.finish(
        rows_in=reader.rows_in,
        rows_out=reader.rows_in - reader.dropped.total(),
        dropped=dict(reader.dropped),
        **facts,
    )


@dataclass
class _Judged:
    """Items with their pairs, and what was found on the way."""

    config: PairConfig
    items: list[Item] = field(default_factory=list)
    pairs: list[list[Pair]] = field(default_factory=list)
    contradictions: list[tuple[str, str, str]] = field(default_factory=list)
    ties_dropped: int = 0
    _equal: int = 0
    _compared: int = 0

    @property
    def kinds(self) -> Counter[str]:
        """Contradictions by kind."""
        return Counter(kind for _, kind, _ in self.contradictions)

    @property
    def agreement(self) -> dict[str, Any]:
        """Verdicts of two annotators on the same two answers: how many are equal."""
        share = self._equal / self._compared if self._compared else None
        return {"equal": self._equal, "compared": self._compared, "share": share}

    def judge(self, item: Item) -> list[AnnotatedRow]:
        """Take an item with its pairs; the rows of one that has none."""
        votes = []
        for row in item.rows:
            verdicts, found = verdicts_of(
                row.ranks, row.annotation.scores, row.places, self.config.contradictions
            )
            votes.append(verdicts)
            self.contradictions += [(item.id, one[0], _detail(row, *one)) for one in found]
        equal, compared = agreement(votes)
        self._equal += equal
        self._compared += compared
        verdicts = majority(votes)
        cycles = find_cycles(verdicts)
        self.contradictions += [(item.id, "cycle", _shown(item, cycle)) for cycle in cycles]
        verdicts = resolve_cycles(verdicts, cycles, self.config.cycles)
        pairs = to_pairs(verdicts, self.config.pairs)
        if self.config.ties == "drop":
            kept = [pair for pair in pairs if not pair.tie]
            self.ties_dropped += len(pairs) - len(kept)
            pairs = kept
        if not pairs:
            return item.rows
        self.items.append(item)
        self.pairs.append(pairs)
        return []

    def write(self, file: Path, numbers: Sequence[int], root: Path) -> dict[str, int]:
        """Write the pairs of some items; how many queries, pairs and ties these are."""
        margins = self.config.margin_from_scores
        with appearing(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
            for number in numbers:
                for row in rows_of(self.items[number], self.pairs[number], root, margins=margins):
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        pairs = [pair for number in numbers for pair in self.pairs[number]]
        ties = sum(pair.tie for pair in pairs)
        return {"queries": len(numbers), "pairs": len(pairs), "ties": ties}


def _detail(row: AnnotatedRow, kind: str, better: int, worse: int) -> str:
    """What a row contradicts itself in; answers are numbered from 1, as in ``1>2=3``."""
    name = row.annotation.annotator
    who = f"{row.position} ({row.source})" + ("" if name is None else f", annotator {name!r}")
    ranks = f"ranks {row.ranks[better]} and {row.ranks[worse]}"
    text = f"{who}: answers {better + 1} and {worse + 1} have {ranks}"
    if kind == "equal_answers":
        return f"{text}, and are equal"
    scores = row.annotation.scores
    return f"{text}, and mean scores {scores[better]:.6g} and {scores[worse]:.6g}"


def _shown(item: Item, cycle: Sequence[int]) -> str:
    rows = ", ".join(f"{row.position} ({row.source})" for row in item.rows)
    first = item.rows[0].places
    numbers = ", ".join(str(first.index(number) + 1) for number in cycle)
    return f"{rows}: the majorities on answers {numbers} (as numbered in the first row) go round"


def _sides(
    config: PairConfig, context: StageContext, items: Sequence[Item]
) -> tuple[list[bool], dict[str, Any]]:
    """Whether each item is held out, and what is said of the families."""
    if not config.hold_out:
        return [False] * len(items), {"hold_out": 0.0}
    wanted = [(item.root, media) for item in items for media in item.media]
    total = len({*wanted})
    hashes = hash_pictures(
        wanted,
        threads=context.threads,
        progress=lambda done: context.progress("hashing pictures", done, total),
    )
    families = Families()
    for item in items:
        named = [(item.root, media) for media in item.media]
        families.add([*named, *(value for place in named for value in hashes[place])])
    texts = {number: item.prompt for number, item in enumerate(items) if not item.media}
    unite_near_texts(families, texts, threads=context.threads)
    values = sorted({value for several in hashes.values() for value in several})
    for first, second in near_hashes(np.array(values, dtype=np.uint64)).tolist():
        families.unite_names(values[first], values[second])
    family = [families.of(number) for number in range(len(items))]
    keys: dict[int, str] = {}
    for number, item in zip(family, items, strict=True):
        key = _key(item)
        keys[number] = min(key, keys.get(number, key))
    out = {number: is_held_out(key, config.hold_out, config.seed) for number, key in keys.items()}
    split = {
        "hold_out": config.hold_out,
        "seed": config.seed,
        "families": len(keys),
        "families_held_out": sum(out.values()),
        "largest_family": max(Counter(family).values()),
        "media": total,
        "media_not_decoded": sum(not several for several in hashes.values()),
    }
    return [out[number] for number in family], split


def _key(item: Item) -> str:
    """A hash of what is asked, with media by name or content, wherever their root lies."""
    media = [
        [one.kind, *one.names, hashlib.blake2b(one.content or b"").hexdigest()]
        for one in item.media
    ]
    asked = json.dumps([item.prompt.strip(), media])
    return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def describe(report: dict[str, Any]) -> str:
    """The report in a few lines, for people."""
    agreed = report["agreement"]
    found = ", ".join(f"{count:,} {kind}" for kind, count in report["contradictions"].items())
    lines = [
        f"rows in = out + dropped: {report['rows_in']:,} = {report['rows_out']:,} + "
        f"{report['rows_in'] - report['rows_out']:,}",
        *(f"  {count:>10,}  {reason}" for reason, count in report["dropped"].items()),
        f"pairs          {report['pairs']:,} ({report['ties']:,} ties) of "
        f"{report['queries']:,} queries",
        f"contradictions {found or 'none'}",
    ]
    if report["merged"]:
        lines.append(f"merged         {report['merged']:,} answers that equal another")
    if report["ranks_from_scores"]:
        lines.append(f"ranked         {report['ranks_from_scores']:,} rows by their scores")
    if report["annotators_absent"]:
        lines.append(f"absent         no row is of: {', '.join(report['annotators_absent'])}")
    if agreed["compared"]:
        lines.append(
            f"agreement      {100 * agreed['share']:.1f} % of {agreed['compared']:,} verdicts of "
            "two annotators are equal"
        )
    if report["split"]["hold_out"]:
        held = report["sides"]["held_out"]
        lines.append(
            f"held out       {held['pairs']:,} pairs of {held['queries']:,} queries, "
            f"{report['split']['families_held_out']:,} of {report['split']['families']:,} families"
        )
    if report["fields_ignored"]:
        names = ", ".join(f"{name} ({n:,})" for name, n in report["fields_ignored"].items())
        lines.append(f"ignored        fields that say nothing about the prompt: {names}")
    if not report["sides"]["pairs"]["pairs"]:
        lines.append("nothing to pack: pairs.jsonl is empty, for all families are held out")
        return "\n".join(lines)
    words = ["mmrlhf-engine", "pack", f"{report['folder']}/pairs.jsonl"]
    words += ["--root", str(report["root"])] if report["with_media"] else []
    lines.append(f"next           {shlex.join(words)} ...")
    return "\n".join(lines)


def _external(config: PairConfig) -> list[object]:
    """The source files, with size and time of change; media are not listed."""
    files = [file.path for file in source_files(config)]
    return [[str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]


STAGE = Stage(
    name="pair",
    config=PairConfig,
    run=run,
    writes=("pairs.jsonl", "held_out.jsonl", "rejected", "contradictions"),
    external=_external,
)
