"""Removes duplicates, each with the sample that stays and the measures that say so.

A duplicate is a near image *and* a near text (policy ``joint``): one picture with many questions
stays, up to ``max_per_image``, and one question on many pictures stays. Hashes and keys propose;
the pictures and the texts themselves decide. The work, in order:

1. Every distinct picture is decoded once and hashed (chunks of this survive a kill).
2. Samples whose picture turns out to be broken are rejected; a header does not show everything.
3. The samples are put in keep order: more pixels, then longer answer, then smaller id.
4. The core takes them in this order: a sample is removed if it is a duplicate of one that stays.

The text compared is the prompt, with the system prompt, and with the turns before it where it
cannot be understood alone. Two answers to one question are one question, but short ones that differ
are evidence: both samples stay, unless the questions have the same words and the pictures are equal
pixel for pixel. Then one of the answers is wrong, and the removed sample is a ``conflict``.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from mmrlhf_engine._core import find_duplicates
from mmrlhf_engine.curate.frequencies import FREQUENCIES, Frequencies, read_or_count
from mmrlhf_engine.curate.media_judge import MediaJudge
from mmrlhf_engine.curate.overrides import OVERRIDES, read_overrides
from mmrlhf_engine.curate.picture_hashes import (
    HASH_NAMES,
    HashKind,
    PictureHashes,
    hash_pictures,
)
from mmrlhf_engine.curate.tables import DUPLICATES, KEPT, NEAR_PAIRS
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext
from mmrlhf_engine.run.tables import REJECTED

__all__ = ["STAGE", "DedupConfig", "compared_text"]

_PAGE_PAIRS = 200


class DedupConfig(Section):
    """What counts as a duplicate."""

    policy: Literal["joint", "image", "text", "exact"] = "joint"
    """``joint``: near image and near text, and text alone where there is no picture; ``image``:
    near image; ``text``: near text; ``exact``: equal picture bytes and equal normalised text."""
    text_threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard index of the shingle sets from which two documents are near; all texts where they are
    not judged."""
    image_radius: int = Field(default=4, ge=0, le=16)
    """Bits of the 64-bit pHash in which near pictures may differ. At ten million random hashes two
    lie within 4 bits by chance about twice, within 10 half a million times."""
    colour_tolerance: int | None = Field(default=24, ge=0, le=255)
    """Largest difference of mean colours on an 8 by 8 grid, of 255, for the hash sees luma alone:
    photographs saved again differ by up to 7, made a tenth brighter by up to 22, drawings of
    another colour or place nearly always by more than 24 (docs/log.md). Null looks at the hash."""
    judge: bool = True
    """Whether near pictures and texts are compared closely, and short answers count; otherwise
    hashes and thresholds decide."""
    text_rule: Literal["prompts", "documents", "auto"] = "prompts"
    """Of texts that are judged. ``prompts``: every difference has to be explained (courtesy,
    function words, synonyms, spelling); ``documents``: ``text_threshold`` decides; ``auto``:
    documents where both texts are long and ask no question. Differences are explained in English;
    in other languages texts are the same up to case, punctuation and spacing."""
    document_tokens: int = Field(default=200, ge=1)
    """Tokens from which ``auto`` takes a text for a document."""
    common_from: int = Field(default=1000, ge=1)
    """Shingles of more texts than this propose no pair where texts are judged: they belong to a
    template."""
    hash: HashKind = "fast"
    """``fast``: JPEG is decoded at 1/8 to 1/2 of its size for the hash, which then differs in about
    .2 bits, and in 2 at most, of 22 photographs (docs/decisions/0015); ``exact``: in full, so that
    hashes equal those of the Python package imagehash."""
    cache: str | None = None
    """A folder that keeps hashes of pictures, by the hash of their content, for later runs."""
    unverified_images: bool = False
    """Whether near pictures are taken for copies where they cannot be compared, since only the hash
    of one was given."""
    thumbnails: bool = False
    """Whether a picture of a third of the size or less may be a copy: at such a size a digit of a
    document is no longer seen."""
    max_per_image: int | None = Field(default=32, ge=1)
    """Samples that may stay on one picture; null for any number."""
    shingle_words: int = Field(default=3, ge=1)
    """Words in a shingle (characters in scripts without spaces)."""
    bands: int = Field(default=16, ge=1)
    """MinHash bands; with s the Jaccard index, a pair is found with 1 - (1 - s^rows)^bands."""
    rows_per_band: int = Field(default=4, ge=1)
    """MinHash values in a band."""

    def candidate_probability(self, jaccard: float) -> float:
        """The chance that two texts of this Jaccard index are compared (Leskovec, Rajaraman,
        Ullman, Mining of Massive Datasets, 3.4)."""  # noqa: D205, D209
        return float(1 - (1 - jaccard**self.rows_per_band) ** self.bands)


def run(config: DedupConfig, stage: StageContext) -> None:
    """Read `samples` and `media`; write `kept`, `duplicates`, `near_pairs` and `rejected`."""
    columns = ("id", "prompt", "answer", "media", "history", "needs_history")
    samples = stage.scan("samples").select(columns).collect().sort("id")
    media = stage.scan("media").collect().sort("hash")
    media = media.with_row_index("number").with_columns(pl.col("number").cast(pl.UInt32))
    # The cap counts near pictures too, whatever the policy says of duplicates.
    needed = config.policy in ("joint", "image") or config.max_per_image is not None
    pictures = hash_pictures(media if needed else media.clear(), stage, config.hash, config.cache)
    samples, rejected = _reject_broken(samples, media, pictures.broken)
    samples = _in_keep_order(samples, media)
    given = {"thumbnails": config.thumbnails, "unverified_images": config.unverified_images}
    judge = MediaJudge(media, stage, **given)
    found = _find(config, stage, samples, pictures, judge)
    duplicates = _with_evidence(found.duplicates, samples, "row", "kept", judge.evidence)
    duplicates = duplicates.rename({"other_id": "kept_id"}).sort("id")
    duplicates = duplicates.with_columns(policy=pl.lit(config.policy))
    misses = _with_evidence(found.misses, samples, "row", "other", judge.evidence)
    kept = samples.filter(~pl.col("id").is_in(duplicates["id"].implode()))
    with stage.table("kept", KEPT) as table:
        table.write(_with_hashes(kept, pictures.first()))
    with stage.table("duplicates", DUPLICATES) as table:
        table.write(duplicates)
    with stage.table("rejected", REJECTED) as table:
        table.write(rejected)
    with stage.table("near_pairs", NEAR_PAIRS) as table:
        table.write(_page_pairs(duplicates, misses))
    stage.finish(
        rows_in=kept.height + duplicates.height + rejected.height,
        rows_out=kept.height,
        dropped=_counts(duplicates["kind"]) | _counts(rejected["reason"]),
        hash=HASH_NAMES[config.hash],
        pictures_from_cache=pictures.cached,
        pictures=len(pictures.columns["phash"]),
        media_without_pictures=media.height - pictures.media_with_pictures(),
        pairs_compared=found.counts["compared"],
        pictures_judged=judge.evidence.height,
        unverified_pairs=judge.unverified_pairs,
        unverified_removals=judge.unverified_removals(found.duplicates, samples["numbers"]),
        samples_not_all_judged=found.counts["not_all_judged"],
        texts_without_word_lists=found.counts["without_word_lists"],
        conflicts=int(duplicates["conflict"].sum()),
        frequencies=None if found.frequencies is None else found.frequencies.facts(),
    )


def _reject_broken(
    samples: pl.DataFrame, media: pl.DataFrame, pictures: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples whose media decode (with the numbers of their media), and the rejected others."""
    broken = (
        pictures.filter(pl.col("reason").is_not_null())
        .unique("number", keep="first", maintain_order=True)
        .select("number", "reason", "detail")
    )
    numbers = media.select("hash", "number").join(broken, on="number", how="left")
    exploded = (
        samples.with_row_index("sample")
        .select("sample", pl.col("media").alias("hash"))
        .explode("hash", empty_as_null=False)
        .join(numbers, on="hash", how="left", maintain_order="left")
    )
    bad = pl.col("reason").is_not_null()
    grouped = exploded.group_by("sample", maintain_order=True).agg(
        pl.col("number").alias("numbers"),
        pl.col("reason").filter(bad).first(),
        pl.col("detail").filter(bad).first(),
    )
    joined = samples.with_row_index("sample").join(
        grouped, on="sample", how="left", maintain_order="left"
    )
    good = joined.filter(~bad).drop("sample", "reason", "detail")
    good = good.with_columns(pl.col("numbers").fill_null([]))
    rejected = joined.filter(bad).with_columns(
        source=pl.col("id").str.extract(r"^([^:]*):"), position=pl.col("id")
    )
    return good, rejected


def _in_keep_order(samples: pl.DataFrame, media: pl.DataFrame) -> pl.DataFrame:
    """With ``rank``: more pixels first, then the longer answer, then the smaller id."""
    pixels = media.select(
        "number", pixels=pl.col("width").cast(pl.UInt64) * pl.col("height").cast(pl.UInt64)
    )
    totals = (
        samples.select("id", number="numbers")
        .explode("number", empty_as_null=False)
        .join(pixels, on="number", how="left")
        .group_by("id")
        .agg(pl.col("pixels").sum())
    )
    ranked = (
        samples.select("id", length=pl.col("answer").str.len_chars().fill_null(0))
        .join(totals, on="id", how="left")
        .with_columns(pl.col("pixels").fill_null(0))
        .sort("pixels", "length", "id", descending=[True, True, False])
        .select("id")
        .with_row_index("rank")
    )
    return samples.join(ranked, on="id", how="left", maintain_order="left")


@dataclass(frozen=True)
class _Found:
    """Duplicates and near misses, by row of the samples."""

    duplicates: pl.DataFrame
    misses: pl.DataFrame
    counts: dict[str, int]
    frequencies: Frequencies | None
    """None where texts were not judged."""


def _find(
    config: DedupConfig,
    stage: StageContext,
    samples: pl.DataFrame,
    pictures: PictureHashes,
    judge: MediaJudge,
) -> _Found:
    overrides = read_overrides(stage.run_file(OVERRIDES))
    rows = dict(samples.select("id", pl.int_range(pl.len())).iter_rows())
    known = [(rows[a], rows[b]) for a, b in overrides if a in rows and b in rows]
    texts = compared_text(samples).to_arrow().cast(pa.large_string())
    frequencies = None
    if config.judge and config.policy in ("joint", "text"):
        how = {"shingle_words": config.shingle_words, "common_from": config.common_from}
        frequencies = read_or_count(stage, texts, **how)
    duplicates, misses, counts = find_duplicates(
        {
            "prompts": texts,
            "answers": samples["answer"].to_arrow().cast(pa.large_string()),
            "media": samples["numbers"].to_arrow().cast(pa.large_list(pa.uint32())),
            "rank": samples["rank"].to_arrow().cast(pa.uint32()),
            "overrides": known,
        },
        pictures.columns,
        settings=config.model_dump(),
        judge=judge,
        threads=stage.threads,
        frequencies=None if frequencies is None else frequencies.to_arrow(),
    )
    tables = (pa.RecordBatch.from_struct_array(pa.array(table)) for table in (duplicates, misses))
    found, missed = (pl.DataFrame(pl.from_arrow(table)) for table in tables)
    return _Found(found, missed, counts, frequencies)


def compared_text(samples: pl.DataFrame) -> pl.Series:
    """The prompt behind what it depends on: the system prompt, and all turns before it where it
    cannot be understood alone or is about nothing else than these turns."""  # noqa: D205, D209
    alone = ~pl.col("needs_history").fill_null(value=False) & (pl.col("media").list.len() > 0)
    turn = pl.element().struct.field
    said = pl.concat_str(turn("role"), turn("text"), separator=": ", ignore_nulls=True)
    system = pl.col("history").list.eval(said.filter(turn("role") == "system"))
    before = pl.when(alone).then(system).otherwise(pl.col("history").list.eval(said))
    text = pl.concat_str(before.list.join("\n"), "prompt", separator="\n", ignore_nulls=True)
    without = pl.col("history").is_null() | (before.list.len() == 0)
    return samples.select(pl.when(without).then("prompt").otherwise(text)).to_series()


def _with_evidence(
    pairs: pl.DataFrame, samples: pl.DataFrame, row: str, other: str, evidence: pl.DataFrame
) -> pl.DataFrame:
    """The same pairs in the same order, named by id, with what their pictures were found to be."""
    ids, numbers = samples["id"], samples["numbers"]
    rows, others = pairs[row], pairs[other]
    named = pairs.with_columns(id=ids.gather(rows), other_id=ids.gather(others))
    media = pl.DataFrame({"a": numbers.gather(rows), "b": numbers.gather(others)})
    media = media.with_row_index("pair").filter(pl.col("a").list.len() == pl.col("b").list.len())
    compared = (
        media.explode("a", "b", empty_as_null=False)
        .with_columns(first=pl.min_horizontal("a", "b"), second=pl.max_horizontal("a", "b"))
        .join(evidence.drop("copy", "equal"), on=["first", "second"])
        .sort("image_difference", descending=True, nulls_last=True, maintain_order=True)
        .unique("pair", keep="first", maintain_order=True)
        .drop("a", "b", "first", "second")
    )
    joined = named.drop(row, other).with_row_index("pair")
    return joined.join(compared, on="pair", how="left", maintain_order="left").drop("pair")


def _with_hashes(kept: pl.DataFrame, pictures: pl.DataFrame) -> pl.DataFrame:
    """Kept samples with the hash of the first picture of each of their media."""
    first = pictures.unique("number", keep="first", maintain_order=True).select("number", "phash")
    hashes = (
        kept.select("id", number="numbers")
        .explode("number", empty_as_null=False)
        .join(first, on="number", how="left", maintain_order="left")
        .group_by("id", maintain_order=True)
        .agg("phash")
    )
    joined = kept.select("id").join(hashes, on="id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("phash").fill_null([]))


def _page_pairs(duplicates: pl.DataFrame, misses: pl.DataFrame) -> pl.DataFrame:
    """Pairs for people to look at: removed ones nearest to a threshold, then near misses.

    Those on which text decided and those on which pictures did take turns.
    """
    columns = [name for name in NEAR_PAIRS if name != "verdict"]
    near = duplicates.filter(pl.col("kind") == "near").rename({"kept_id": "other_id"})
    near = near.sort(
        *("text_jaccard", "image_hamming", "id"), descending=[False, True, False], nulls_last=True
    )
    by_text = {"removed": pl.col("text_jaccard") < 1, "kept": pl.col("text_jaccard").is_not_null()}
    return pl.concat(
        [
            pairs.with_columns(text=by_text[verdict].fill_null(False))
            .with_columns(turn=pl.int_range(pl.len()).over("text"))
            .sort("turn", "text", descending=[False, True], maintain_order=True)
            .head(_PAGE_PAIRS)
            .select(*columns, verdict=pl.lit(verdict))
            for pairs, verdict in ((near, "removed"), (misses, "kept"))
        ]
    )


def _counts(values: pl.Series) -> dict[str, int]:
    return dict(values.value_counts().iter_rows())


def memory(config: DedupConfig, inputs: Inputs, threads: int) -> int:
    """Texts, shingle hashes and band keys of every sample, hashes and colours of every picture."""
    texts = 3 * inputs.text_bytes("samples", "prompt", "answer")
    samples = inputs.rows("samples") * (1_000 + 16 * config.bands)
    pictures = inputs.rows("media") * 1_500
    return (256 << 20) + threads * (128 << 20) + texts + samples + pictures


STAGE = Stage(
    name="dedup",
    config=DedupConfig,
    run=run,
    reads=("samples", "media"),
    writes=("kept", "duplicates", "near_pairs", "rejected"),
    keeps=(FREQUENCIES,),
    run_files=(OVERRIDES,),
    memory=memory,
)
