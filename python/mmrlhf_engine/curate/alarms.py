"""What a person should look at before the chosen queries are used: alarms, each with an example.

An alarm is no statistic: it says that something was probably read, compared or encoded wrongly.
Each is a function of the run's tables, which are scanned and need not fit in memory; a run without
alarms says nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from mmrlhf_engine._core import answers_contradict
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.tables import REJECTED

__all__ = [
    "Alarm",
    "as_text",
    "collapsed_rows",
    "crowded_removals",
    "differing_answers",
    "find_alarms",
    "frequent_reasons",
    "marks_and_media",
    "unnamed_pictures",
    "unread_fields",
    "unverified_removals",
]

MOST_REMOVED = 20
"""Near duplicates that one sample may remove."""
SHORT_WORDS = 5
"""Words of a short answer, at most."""
ANSWERS_SHARE = 0.01
"""Share of removed samples with short answers that may have another one than the sample kept."""
REASON_SHARE = 0.05
"""Share of a source that may be rejected for one reason."""
MARKS_SHARE = 0.01
"""Share of all rows whose marks and pictures may differ in number."""
UNREAD_SHARE = 0.01
"""Share of all rows that may have a field that is not read."""
SAMPLED_ROWS = 1_000
FEWEST_ROWS = 10
"""Embeddings from which on they are looked at."""
EQUAL_COSINE = 0.999
"""Cosine from which two pictures are one to the encoder."""
EQUAL_SHARE = 0.5
MEAN_COSINE = 0.995
"""Means of lite0 over different pictures (random pairs; share with a neighbour above .999):
photographs 0.18 and 0, drawn shapes 0.64 and 0, digits 0.86 and 0, pages of text 0.972 and 0,
invoices of one layout 0.992 and 0.09; pictures that all look black to it 1.0 and 1."""
_MOST_ALARMS = 5
"""Of one kind."""
_TEXT_LENGTH = 80
_PAIRS_AT_ONCE = 1_000
"""That are looked through for an example."""


@dataclass(frozen=True)
class Alarm:
    """Something that is probably wrong.

    Attributes:
        kind: Its name, for machines.
        text: One sentence.
        count: Rows it is about.
        example: One of them.
        hint: What to do about it.
    """

    kind: str
    text: str
    count: int
    example: str
    hint: str

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def as_text(alarms: list[Alarm]) -> str:
    """The alarms as lines for a terminal; empty where there is none."""
    return "\n".join(
        f"alarm: {alarm.text}\n       example: {alarm.example}\n       hint: {alarm.hint}"
        for alarm in alarms
    )


def find_alarms(run: Run) -> list[Alarm]:
    """The alarms of a run, as far as it has gone; hints name its folder."""
    return [
        replace(alarm, hint=alarm.hint.replace("RUN", str(run.folder))) for alarm in _alarms(run)
    ]


def _alarms(run: Run) -> Iterator[Alarm]:
    ingest = run.report("ingest") or {}
    rejected = _rejected(run)
    yield from marks_and_media(rejected, ingest.get("rows_in", 0))
    yield from unnamed_pictures(ingest.get("unnamed_pictures", {}))
    yield from unread_fields(ingest.get("unread_fields", {}), ingest.get("rows_in", 0))
    yield from frequent_reasons(rejected, ingest.get("sources", {}))
    duplicates, samples = _scan(run, "duplicates"), _scan(run, "samples")
    if duplicates is not None and samples is not None:
        yield from crowded_removals(duplicates)
        yield from differing_answers(duplicates, samples)
        removals = (run.report("dedup") or {}).get("unverified_removals", 0)
        if removals and (media := _scan(run, "media")) is not None:
            yield from unverified_removals(removals, duplicates, samples, media)
    embedded, rows = _scan(run, "embedding_ids"), run.find("embeddings.npy")
    if embedded is not None and rows is not None:
        yield from collapsed_rows(np.load(rows, mmap_mode="r"), embedded)


def _scan(run: Run, name: str) -> pl.LazyFrame | None:
    folder = run.find(name)
    return None if folder is None else pl.scan_parquet(folder / "*.parquet")


def _rejected(run: Run) -> pl.LazyFrame:
    """``source, position, reason, detail`` of ingest and dedup."""
    parts = [
        pl.scan_parquet(folder / "*.parquet")
        for stage in ("ingest", "dedup")
        if run.manifest(stage) is not None
        and (folder := run.stage_folder(stage) / "rejected").is_dir()
    ]
    return pl.concat(parts) if parts else pl.LazyFrame(schema=REJECTED)


def crowded_removals(duplicates: pl.LazyFrame) -> Iterator[Alarm]:
    """Samples that have removed more near duplicates than there are likely to be.

    Args:
        duplicates: ``id, kept_id, kind``.
    """
    crowds = (
        duplicates.filter(pl.col("kind") == "near")
        .group_by("kept_id")
        .agg(pl.len().alias("count"), pl.col("id").min())
        .filter(pl.col("count") > MOST_REMOVED)
        .sort("count", "kept_id", descending=[True, False])
        .collect(engine="streaming")
    )
    if crowds.height:
        worst = crowds.row(0, named=True)
        together = f" each, {crowds['count'].sum():,} together" if crowds.height > 1 else ""
        yield Alarm(
            "crowded_removals",
            f"{_samples(crowds.height)} removed more than {MOST_REMOVED} near duplicates{together}",
            crowds.height,
            f"{worst['kept_id']} removed {worst['count']:,}, among them {worst['id']}",
            "compare some of them with `mmrlhf-engine explain RUN ID KEPT_ID`; if they are not "
            "copies, --judge on compares them closely, and --policy exact keeps them",
        )


def differing_answers(duplicates: pl.LazyFrame, samples: pl.LazyFrame) -> Iterator[Alarm]:
    """Removed samples whose short answer is another one than that of the sample that stays.

    Args:
        duplicates: ``id, kept_id, kind``.
        samples: ``id, answer`` of at least these.
    """
    removals = duplicates.filter(pl.col("kind").is_in(["exact", "near"])).select("id", "kept_id")
    answers = _named_in(removals, samples).select("id", "answer", plain=_plain(pl.col("answer")))
    pairs = (
        removals.join(answers, on="id", how="left")
        .join(answers.rename({"id": "kept_id"}), on="kept_id", how="left", suffix="_kept")
        .filter(
            pl.col("plain").str.split(" ").list.len() <= SHORT_WORDS,
            pl.col("plain") != "",
            pl.col("plain_kept") != "",
        )
        .with_columns(equal=pl.col("plain") == pl.col("plain_kept"))
    )
    everything = pairs.select(pl.len()).collect(engine="streaming").item()
    unequal = pairs.filter(~pl.col("equal")).collect(engine="streaming").sort("id")
    answered = zip(unequal["answer"], unequal["answer_kept"], strict=True)
    differing = unequal.filter(pl.Series([_differ(*two) for two in answered], dtype=pl.Boolean))
    other = differing.height
    if other and other >= ANSWERS_SHARE * everything:
        row = differing.row(0, named=True)
        yield Alarm(
            "differing_answers",
            f"{_samples(other)} of {everything:,} with a short answer {_were(other)} removed for "
            "one with another answer: the questions may differ",
            other,
            f"{row['id']} ({_short(row['answer'])}) was removed for {row['kept_id']} "
            f"({_short(row['answer_kept'])})",
            "compare them with `mmrlhf-engine explain RUN ID KEPT_ID`; a part of the question may "
            "be in a field that is not read; `mmrlhf-engine disagree` keeps one",
        )


def unverified_removals(
    removals: int, duplicates: pl.LazyFrame, samples: pl.LazyFrame, media: pl.LazyFrame
) -> Iterator[Alarm]:
    """Samples that were removed for a near picture that could not be compared.

    Args:
        removals: How many there are; at least one.
        duplicates: ``id, kept_id, image_hamming``.
        samples: ``id, media``.
        media: ``hash, phash``.
    """
    near = duplicates.filter(pl.col("image_hamming").is_not_null())
    near = near.select("id", "kept_id", "image_hamming")
    farthest = near.sort("image_hamming", "id", descending=[True, False])
    pairs = farthest.select("id", "kept_id").collect(engine="streaming")
    # The first pairs nearly always have one: a join with all media would hold all of them.
    parts = (_by_hash_alone(part, samples, media) for part in pairs.iter_slices(_PAIRS_AT_ONCE))
    found = next((part.row(0) for part in parts if part.height), None)
    example = "" if found is None else "{} was removed for {}".format(*found)
    yield Alarm(
        "unverified_removals",
        f"{_samples(removals)} {_were(removals)} removed for a near picture by hashes alone: the "
        "pictures could not be compared",
        removals,
        example,
        "set `--unverified-images off` to keep them, or give the pictures",
    )


def _by_hash_alone(pairs: pl.DataFrame, samples: pl.LazyFrame, media: pl.LazyFrame) -> pl.DataFrame:
    """Those of the pairs of which one sample has a picture that is known by its hash alone."""
    media_of = _named_in(pairs.lazy(), samples).select("id", hash="media").explode("hash")
    named = media_of.collect(engine="streaming")
    of_these = pl.col("phash").is_not_null() & pl.col("hash").is_in(named["hash"].implode())
    by_hash = media.filter(of_these).select("hash").collect(engine="streaming")
    alone = named.join(by_hash, on="hash", how="semi")["id"]
    either = [pl.col(side).is_in(alone.implode()) for side in ("id", "kept_id")]
    return pairs.filter(pl.any_horizontal(either))


def _named_in(pairs: pl.LazyFrame, samples: pl.LazyFrame) -> pl.LazyFrame:
    """The samples that one of the pairs names, few beside all: a join with all holds all."""
    names = pl.concat([pairs.select("id"), pairs.select(id="kept_id")]).unique()
    return samples.join(names, on="id", how="semi")


def _differ(short: str, kept: str) -> bool:
    """Whether a short answer is contradicted, or the kept one is too long to say."""
    return len(kept.split()) > SHORT_WORDS or answers_contradict(short, kept)


def _plain(text: pl.Expr) -> pl.Expr:
    """In small letters, with one blank between words, and without signs at both ends."""
    blanks = text.str.to_lowercase().str.replace_all(r"\s+", " ")
    return blanks.str.strip_chars(" .,;:!?\"'()")


def marks_and_media(rejected: pl.LazyFrame, rows_read: int) -> Iterator[Alarm]:
    """Records whose marks of pictures and whose pictures do not agree in number, of many.

    Args:
        rejected: ``source, position, reason, detail``.
        rows_read: Rows in all.
    """
    rows = rejected.filter(pl.col("reason") == "marks_and_media_differ")
    found = rows.select(pl.len(), pl.col("position", "detail").first()).collect()
    row = found.row(0, named=True)
    if row["len"] and row["len"] >= MARKS_SHARE * rows_read:
        yield Alarm(
            "marks_and_media",
            f"{row['len']:,} row{'s' * (row['len'] != 1)} {_were(row['len'])} rejected: marks such "
            "as <image> and pictures differ in number",
            row["len"],
            f"{row['position']}: {row['detail']}",
            "a picture may be in a field that is not read: name it with "
            "`ingest: {sources: [{path: ..., columns: {image: FIELD}}]}`",
        )


def unnamed_pictures(sources: Mapping[str, int]) -> Iterator[Alarm]:
    """Sources with pictures beside their tables, of which no record names any.

    Args:
        sources: Name -> number of pictures and videos in its folder.
    """
    for name, count in sorted(sources.items()):
        yield Alarm(
            "unnamed_pictures",
            f"{count:,} picture{'s' * (count != 1)} in the folder of {name}, and no record names "
            "one: its questions have no picture",
            count,
            name,
            "name the field of the picture with "
            "`ingest: {sources: [{path: ..., columns: {image: FIELD}}]}`, or write the file name "
            "into each record",
        )


def unread_fields(fields: Mapping[str, Any], rows: int) -> Iterator[Alarm]:
    """Fields of the input that look like a part of the sample and are not read.

    Args:
        fields: Name -> ``rows`` that have it, and perhaps ``kind`` and ``example``.
        rows: Rows read in all.
    """
    found = {
        name: fact if isinstance(fact, Mapping) else {"rows": fact} for name, fact in fields.items()
    }
    found = {
        name: fact for name, fact in found.items() if fact.get("rows", 0) >= UNREAD_SHARE * rows
    }
    if found:
        order = sorted(found, key=lambda name: (-found[name].get("rows", 0), name))
        first = found[order[0]]
        named = ", ".join(f"{name} ({found[name].get('rows', 0):,})" for name in order[:5])
        more = f" and {len(order) - 5} more" if len(order) > 5 else ""
        example = first.get("example")
        shown = "" if example is None else f": {_short(example)}"
        yield Alarm(
            "unread_fields",
            f"{len(order)} field{'s that look' if len(order) > 1 else ' that looks'} like a part "
            f"of the samples {'are' if len(order) > 1 else 'is'} not read (rows): {named}{more}",
            int(first.get("rows", 0)),
            f"{order[0]}{shown}",
            "name it with `ingest: {sources: [{path: ..., columns: {prompt: FIELD}}]}` if it is "
            "what is asked, shown or answered",
        )


def frequent_reasons(
    rejected: pl.LazyFrame, sources: Mapping[str, Mapping[str, int]]
) -> Iterator[Alarm]:
    """Reasons for which a large part of a source was rejected.

    Args:
        rejected: ``source, position, reason, detail``.
        sources: Name -> number of ``samples`` and of ``rejected`` rows of ingest.
    """
    rows = {
        name: counts.get("samples", 0) + counts.get("rejected", 0)
        for name, counts in sources.items()
    }
    counts = (
        rejected.filter(pl.col("reason") != "marks_and_media_differ")
        .group_by("source", "reason")
        .agg(pl.len().alias("count"), pl.col("position", "detail").first())
        .sort("count", "source", "reason", descending=[True, False, False])
        .collect()
    )
    found = [
        row
        for row in counts.iter_rows(named=True)
        if row["count"] > max(REASON_SHARE * rows.get(row["source"], 0), 1)
    ]
    for row in found[:_MOST_ALARMS]:
        total = max(rows.get(row["source"], 0), row["count"])
        yield Alarm(
            "frequent_reason",
            f"{row['count']:,} of {total:,} rows of {row['source']} "
            f"({100 * row['count'] / total:.0f} %) were rejected: {row['reason']}",
            row["count"],
            f"{row['position']}: {row['detail']}",
            "`mmrlhf-engine inspect RUN/01_ingest/rejected` shows where; fields of other names "
            "are given with `columns`",
        )


def collapsed_rows(embeddings: np.ndarray, ids: pl.LazyFrame) -> Iterator[Alarm]:
    """An encoder to which different pictures are equal, by an even sample of its rows.

    Args:
        embeddings: float16 [n, d], unit rows, one for each distinct picture.
        ids: ``id, row``.
    """
    if len(embeddings) < FEWEST_ROWS:
        return
    taken = np.unique(np.linspace(0, len(embeddings) - 1, SAMPLED_ROWS).astype(np.int64))
    rows = np.asarray(embeddings[taken], dtype=np.float32)
    # Rows are rounded to half precision: a unit row times itself is not 1.
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    mean = float((cosines.sum() + len(rows)) / (len(rows) * (len(rows) - 1)))
    nearest = cosines.max(axis=1)
    share = float((nearest > EQUAL_COSINE).mean())
    if mean <= MEAN_COSINE and share <= EQUAL_SHARE:
        return
    one = int(nearest.argmax())
    pair = [int(taken[one]), int(taken[int(cosines[one].argmax())])]
    names = [
        str(ids.filter(pl.col("row") == row).select(pl.col("id").min()).collect().item())
        for row in pair
    ]
    yield Alarm(
        "collapsed_rows",
        f"to the encoder {100 * share:.0f} % of the pictures are equal to another one, and two at "
        f"random have a mean cosine of {mean:.3f}: clusters say little",
        len(embeddings),
        f"{names[0]} and {names[1]}: cosine {float(nearest[one]):.4f}",
        "look at the two pictures: the middle square is what most encoders see; another --encoder "
        "may tell them apart",
    )


def _short(value: Any) -> str:
    """A value in quotes, cut where it is long."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value, default=str)).split())
    return f'"{text}"' if len(text) <= _TEXT_LENGTH else f'"{text[: _TEXT_LENGTH - 1]}…"'


def _samples(count: int) -> str:
    return f"{count:,} sample{'s' * (count != 1)}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
