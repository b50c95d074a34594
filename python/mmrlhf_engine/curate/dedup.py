"""Removes duplicates, each with the sample that stays and the measures that say so.

A duplicate is a near image *and* a near text (policy ``joint``): one picture with many questions
stays, up to ``max_per_image``, and one question on many pictures stays. Hashes and keys propose;
the pictures and the texts themselves decide. The work, in order:

1. Every distinct picture is decoded once and hashed (chunks of this survive a kill).
2. Samples whose picture turns out to be broken are rejected; a header does not show everything.
3. The samples are put in keep order: more pixels, then longer answer, then smaller id.
4. Those that match a question of a benchmark are removed (``contaminants``).
5. The core takes the others in this order: a sample is removed if it is a duplicate of one that
   stays.

The text compared is the prompt, with the system prompt, and with the turns before it where it
cannot be understood alone. Two answers to one question are one question, but short ones that differ
are evidence: both samples stay, unless the questions have the same words and the pictures are equal
pixel for pixel. Then one of the answers is wrong, and the removed sample is a ``conflict``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from mmrlhf_engine._core import find_duplicates
from mmrlhf_engine.curate.checks import check_writable
from mmrlhf_engine.curate.contaminants import (
    Benchmarks,
    MatchBy,
    counts_by_benchmark,
    hashes_of,
    open_indexes,
    samples_matching,
    state_of_indexes,
)
from mmrlhf_engine.curate.dedup_tables import (
    kept_rows,
    media_of_pairs,
    named_pairs,
    page_pairs,
    places,
    rejected_rows,
)
from mmrlhf_engine.curate.frequencies import FREQUENCIES, Frequencies, read_or_count
from mmrlhf_engine.curate.kept_files import KeptFiles
from mmrlhf_engine.curate.media_judge import MediaJudge
from mmrlhf_engine.curate.overrides import OVERRIDES, read_overrides
from mmrlhf_engine.curate.picture_hashes import (
    HASH_NAMES,
    HashKind,
    PictureHashes,
    hash_pictures,
)
from mmrlhf_engine.curate.sample_columns import SampleColumns, read_media, read_samples
from mmrlhf_engine.curate.signature_cache import check_cache
from mmrlhf_engine.curate.signatures import PICTURES, SIGNATURES, Signatures
from mmrlhf_engine.curate.tables import DUPLICATES, KEPT, NEAR_PAIRS
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.memory import held_memory
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext
from mmrlhf_engine.run.tables import REJECTED

__all__ = ["STAGE", "DedupConfig"]

_LEAST_ROOM = 128 << 20
"""Bytes for texts and keys, which go into files where there are more."""
_SAMPLE_BYTES = 80
_MEDIA_BYTES = 64
"""Of the columns that are held of every row; measured by benches/dedup_scale.py."""


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
    against: list[str] = Field(default_factory=list)
    """Indexes of benchmarks, as ``contaminants build`` makes them: samples that match a question of
    one are removed before anything else."""
    against_by: MatchBy = "both"
    """What of a question a sample has to match: ``both`` its text and its pictures (the text alone
    where it has none), ``text``, ``picture``, or ``either``."""
    hash: HashKind = "fast"
    """``fast``: JPEG is decoded at 1/8 to 1/2 of its size for the hash, which then differs in about
    .2 bits, and in 4 at most, of photographs (docs/decisions/0015); ``exact``: in full, so that
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
    benchmarks = open_indexes(config.against)
    media = read_media(stage, benchmarks.media)
    # The cap counts near pictures too, whatever the policy says of duplicates.
    needed = config.policy in ("joint", "image") or config.max_per_image is not None
    known = [hashes_of(Path(folder)) for folder in config.against]
    hashed = media if needed else media.clear()
    files = KeptFiles(stage.folder / SIGNATURES, stage.resources.progress, others=(PICTURES,))
    cache = config.cache or str(files.folder / PICTURES)
    pictures = hash_pictures(hashed, stage, config.hash, cache, known)
    overrides = read_overrides(stage.run_file(OVERRIDES))
    named = [name for pair in overrides for name in pair]
    broken = pictures.broken.unique("number", keep="first", maintain_order=True)
    samples = read_samples(stage, files, media, broken, named)
    rows = samples.named
    apart = [(rows[a], rows[b]) for a, b in overrides if a in rows and b in rows]
    given = {"thumbnails": config.thumbnails, "unverified_images": config.unverified_images}
    judge = MediaJudge(media, stage, **given)
    frequencies = None
    if config.judge and config.policy in ("joint", "text"):
        how = {"shingle_words": config.shingle_words, "common_from": config.common_from}
        frequencies = read_or_count(stage, samples.prompts, **how)
    signatures = Signatures(stage, files, config.model_dump(), frequencies)
    if (compared := signatures.compared()) is not None:
        judge.learn(compared)
    repeated = _contaminated(config, stage, samples, benchmarks, pictures, judge, frequencies)
    taking_part = samples.without(repeated["row"].to_numpy())
    found = _find(config, stage, taking_part, pictures, judge, apart, frequencies, signatures)
    signatures.keep_compared(judge.learned())
    duplicates = pl.concat([found.duplicates, repeated], how="diagonal")
    place = pl.Series(places(samples)).gather(duplicates["row"])
    duplicates = duplicates.with_columns(place=place).sort("place")
    rejected = rejected_rows(samples.rejected)
    with stage.table("kept", KEPT) as table:
        removed = duplicates["row"].to_numpy()
        for part in kept_rows(samples, removed, pictures.first(), media.height):
            table.write(part)
        kept = table.rows
    with stage.table("duplicates", DUPLICATES) as table:
        for part in named_pairs(duplicates, samples, "row", "kept", judge.evidence):
            kept_id = pl.coalesce("question_id", "other_id")
            table.write(part.with_columns(kept_id=kept_id, policy=pl.lit(config.policy)))
    with stage.table("rejected", REJECTED) as table:
        table.write(rejected)
    with stage.table("near_pairs", NEAR_PAIRS) as table:
        table.write(page_pairs(duplicates, found.misses, samples, judge.evidence))
    stage.finish(
        rows_in=len(samples) + rejected.height,
        rows_out=kept,
        dropped=_counts(duplicates["kind"]) | _counts(rejected["reason"]),
        hash=HASH_NAMES[config.hash],
        pictures_from_cache=pictures.cached,
        pictures=len(pictures.columns["phash"]),
        media_without_pictures=media.height - pictures.media_with_pictures(),
        texts_read=signatures.texts_read,
        pairs_compared=found.counts["compared"],
        pictures_judged=judge.asked,
        pictures_compared=judge.compared,
        unverified_pairs=judge.unverified_pairs,
        unverified_removals=judge.unverified_removals(media_of_pairs(duplicates, samples)),
        samples_not_all_judged=found.counts["not_all_judged"],
        texts_without_word_lists=found.counts["without_word_lists"],
        conflicts=int(duplicates["conflict"].sum()),
        frequencies=None if frequencies is None else frequencies.facts(),
        contaminated=counts_by_benchmark(benchmarks, repeated),
        signatures_bytes=files.finish(),
    )


def _contaminated(
    config: DedupConfig,
    stage: StageContext,
    samples: SampleColumns,
    benchmarks: Benchmarks,
    pictures: PictureHashes,
    judge: MediaJudge,
    frequencies: Frequencies | None,
) -> pl.DataFrame:
    """Samples that match a question of a benchmark, with the columns of duplicates that they have;
    none of them is compared with other samples."""  # noqa: D205, D209
    found = samples_matching(
        benchmarks,
        {"texts": samples.prompts, "media": samples.media},
        judge.numbers(benchmarks.media["hash"]),
        pictures.columns,
        by=config.against_by,
        settings=config.model_dump(),
        judge=judge,
        threads=stage.threads,
        frequencies=None if frequencies is None else frequencies.to_arrow(),
    )
    return found.with_columns(kept="row", kind=pl.lit("contaminated"), conflict=pl.lit(value=False))


@dataclass(frozen=True)
class _Found:
    """Duplicates and near misses, by row of the samples."""

    duplicates: pl.DataFrame
    misses: pl.DataFrame
    counts: dict[str, int]


def _find(
    config: DedupConfig,
    stage: StageContext,
    samples: SampleColumns,
    pictures: PictureHashes,
    judge: MediaJudge,
    apart: list[tuple[int, int]],
    frequencies: Frequencies | None,
    signatures: Signatures,
) -> _Found:
    known: dict[str, Any] = {}
    if config.policy in ("joint", "text"):
        known["text_keys"] = signatures.text_keys(samples)
        known["text_measures"] = signatures.text_measures()
    held = _held(len(samples), stage.rows("media"), stage.resources.cores)
    duplicates, misses, counts = find_duplicates(
        {
            "prompts": samples.prompts,
            "answers": samples.answers,
            "media": samples.media,
            "rank": samples.rank,
            "overrides": apart,
        },
        pictures.columns,
        settings=config.model_dump(),
        judge=judge,
        threads=stage.threads,
        frequencies=None if frequencies is None else frequencies.to_arrow(),
        **known,
        memory=max(_LEAST_ROOM, stage.resources.memory_budget - held_memory() - held),
        scratch=str(stage.scratch),
    )
    if known:
        signatures.keep_measures(known["text_measures"])
    found, missed = (
        pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(table))))
        for table in (duplicates, misses)
    )
    return _Found(found, missed, counts)


def check(config: DedupConfig) -> None:
    """Refuse a cache that cannot be read or written."""
    if config.cache is not None:
        check_writable(Path(config.cache), "--cache")
        check_cache(Path(config.cache), HASH_NAMES[config.hash])


def external(config: DedupConfig) -> list[object]:
    """The indexes of benchmarks, by what they were made from."""
    return state_of_indexes(config.against)


def _counts(values: pl.Series) -> dict[str, int]:
    return dict(values.value_counts().iter_rows())


def memory(_config: DedupConfig, inputs: Inputs, threads: int) -> int:
    """A few numbers of every sample, media and picture, and room for texts and keys; what does not
    fit there is in files."""  # noqa: D205, D209
    return _LEAST_ROOM + _held(inputs.rows("samples"), inputs.rows("media"), threads)


def _held(samples: int, media: int, threads: int) -> int:
    return (96 << 20) + threads * (32 << 20) + samples * _SAMPLE_BYTES + media * _MEDIA_BYTES


STAGE = Stage(
    name="dedup",
    config=DedupConfig,
    run=run,
    reads=("samples", "media"),
    writes=("kept", "duplicates", "near_pairs", "rejected"),
    keeps=(FREQUENCIES,),
    stores=(SIGNATURES,),
    run_files=(OVERRIDES,),
    external=external,
    check=check,
    no_effect_on_output=frozenset({"cache"}),
    memory=memory,
)
