"""Questions of benchmarks, that no sample may repeat: a saved index, and the search in it.

``mmrlhf-engine contaminants build INDEX BENCH...`` reads benchmarks as ``ingest`` reads any source,
and hashes their pictures. ``curate --against INDEX`` removes the samples that match a question,
before duplicates are looked for: each is a row of ``duplicates`` of the kind ``contaminated``, with
the question and the measures. What a match is, the core says (``dedup/contaminated.rs``).

    INDEX/01_ingest/          samples and media of the benchmarks, as in a run
    INDEX/hashes/             hash and colours of each picture, as `curate --cache` keeps them
    INDEX/benchmarks.json     written last: the number of questions of each benchmark
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import find_contaminated, hash_images
from mmrlhf_engine.curate import checks, ingest
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.curate.media_judge import MAX_PIXELS, MediaJudge
from mmrlhf_engine.curate.picture_hashes import HASH_NAMES
from mmrlhf_engine.curate.sample_columns import compared_text
from mmrlhf_engine.curate.signature_cache import SignatureCache
from mmrlhf_engine.curate.tables import MEDIA
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import Run, read_json
from mmrlhf_engine.run.stage import Resources, run_stage
from mmrlhf_engine.sources.splits import split_of

__all__ = [
    "Benchmarks",
    "MatchBy",
    "build_index",
    "check_index",
    "counts_by_benchmark",
    "hashes_of",
    "open_indexes",
    "samples_matching",
    "state_of_indexes",
]

MatchBy = Literal["both", "text", "picture", "either"]

_INDEX = "benchmarks.json"
_HASHED_AT_ONCE = 256


_QUESTIONS = {
    "id": pl.String(),
    "benchmark": pl.String(),
    "text": pl.String(),
    "media": pl.List(pl.String()),  # hashes
}


@dataclass(frozen=True)
class Benchmarks:
    """The questions of one or more indexes."""

    questions: pl.DataFrame
    """``id, benchmark, text, media`` (hashes into ``media``)."""
    media: pl.DataFrame
    """Rows of ``media``, each once by content."""


def build_index(
    folder: Path, sources: Iterable[SourceConfig], resources: Resources
) -> dict[str, int]:
    """Read benchmarks into an index, and count their questions by name.

    A finished index of the same files is left as it is.

    Raises:
        InputError: a benchmark is missing, empty or of no known format; or the folder holds
            something else, or an index of other benchmarks.
    """
    if folder.exists() and any(folder.iterdir()) and not hashes_of(folder).is_dir():
        raise InputError(f"{folder}: is not empty, and no index", hint="name a new folder")
    run = Run(folder)
    config = IngestConfig(sources=[_of_tests(source) for source in sources])
    _check_benchmarks(run, config)
    ingest.external(config)  # Refuses benchmarks that are not there before anything is made.
    with run.locked():
        # Made first: it tells an index, even one that is not finished, from a run.
        hashes_of(folder).mkdir(exist_ok=True)
        run_stage(ingest.STAGE, config, run.stage_folder("ingest"), resources, run)
        _hash_pictures(run, resources)
        counts = _questions_read(run)
        write_atomically(folder / _INDEX, json.dumps(counts, indent=2) + "\n")
    return counts or {}


def _check_benchmarks(run: Run, config: IngestConfig) -> None:
    """Refuse to make an index of others out of a finished one."""
    before = sorted(checks.sources_of(run))
    now = sorted(checks.absolute(source.path) for source in config.sources)
    if before and before != now:
        raise InputError(
            f"{run.folder}: is an index of {', '.join(before)}; found {', '.join(now)}",
            hint="name a new folder: curate --against may be given several times",
        )


def check_index(folder: Path) -> dict[str, int]:
    """Questions by benchmark of an index.

    Raises:
        InputError: it is no finished index.
    """
    counts: dict[str, int] | None = read_json(folder / _INDEX)
    # A build that was killed, or refused by what it read, leaves the counts of the one before.
    if counts is None or counts != _questions_read(Run(folder)):
        raise InputError(
            f"{folder}: no index of benchmarks",
            hint=f"mmrlhf-engine contaminants build {folder} BENCHMARK...",
        )
    return counts


def _questions_read(run: Run) -> dict[str, int] | None:
    """Questions by benchmark of a finished ingest."""
    report = run.report("ingest")
    return report and {name: found["samples"] for name, found in report["sources"].items()}


def hashes_of(folder: Path) -> Path:
    """The folder of the hashes that an index keeps."""
    return folder / "hashes"


def state_of_indexes(folders: Iterable[str]) -> list[object]:
    """What each of these indexes was made from, as JSON values.

    Raises:
        InputError: one of them is no finished index.
    """
    states: list[object] = []
    for folder in map(Path, folders):
        check_index(folder)
        states.append([str(folder), Run(folder).manifest("ingest")])
    return states


def open_indexes(folders: Iterable[str]) -> Benchmarks:
    """The questions and pictures of all these indexes; of none, no questions.

    Raises:
        InputError: one of them is no finished index.
    """
    questions = [pl.DataFrame(schema=_QUESTIONS)]
    media = [pl.DataFrame(schema=MEDIA)]
    for folder in map(Path, folders):
        check_index(folder)
        run = Run(folder)
        columns = ("id", "source", "prompt", "media", "history", "needs_history")
        samples = pl.read_parquet(run.stage_folder("ingest") / "samples" / "*.parquet")
        samples = samples.select(columns)
        of_index = samples.with_columns(benchmark="source", text=compared_text(samples))
        questions.append(of_index.select(*_QUESTIONS))
        media.append(pl.read_parquet(run.stage_folder("ingest") / "media" / "*.parquet"))
    distinct = pl.concat(media).unique("hash", keep="first", maintain_order=True)
    return Benchmarks(pl.concat(questions), distinct)


def samples_matching(
    benchmarks: Benchmarks,
    samples: Mapping[str, pa.Array],
    numbers: Mapping[str, int],
    pictures: Mapping[str, pa.Array],
    *,
    by: MatchBy,
    settings: Mapping[str, Any],
    judge: MediaJudge,
    threads: int,
    frequencies: pa.StructArray | None = None,
) -> pl.DataFrame:
    """The samples that match a question: a row each, ascending by ``row``.

    Args:
        benchmarks: The questions.
        samples: ``texts`` (large_string) and ``media`` (large_list<uint32>), a row a sample.
        numbers: The number of each media of the questions, by hash, as in ``pictures``.
        pictures: As ``find_duplicates`` takes them, of the media of samples and questions.
        by: What of a question has to match.
        settings: Of ``dedup``.
        judge: Compares pictures.
        threads: 0 is one per core.
        frequencies: As ``find_duplicates`` takes them.

    Returns:
        ``row`` (of the sample), ``question_id, benchmark, text_jaccard, contained`` (share of the
        question's runs of words that the sample has), ``image_hamming, text_differences,
        question_media`` (by number).
    """
    questions = benchmarks.questions
    media = [[numbers[name] for name in names] for names in questions["media"].to_list()]
    asked = {
        "texts": questions["text"].to_arrow().cast(pa.large_string()),
        "media": pa.array(media, pa.large_list(pa.uint32())),
    }
    found = find_contaminated(
        samples,
        asked,
        pictures,
        by=by,
        settings=settings,
        judge=judge,
        threads=threads,
        frequencies=frequencies,
    )
    frame = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(found))))
    of = questions[frame["question"]]
    return frame.drop("question").with_columns(
        question_id=of["id"],
        benchmark=of["benchmark"],
        question_media=pl.Series(media, dtype=pl.List(pl.UInt32)).gather(frame["question"]),
    )


def counts_by_benchmark(benchmarks: Benchmarks, found: pl.DataFrame) -> dict[str, dict[str, int]]:
    """For the report: the questions of each benchmark, and the samples that match one by their
    text, their pictures, or both."""  # noqa: D205, D209
    questions = benchmarks.questions["benchmark"].value_counts(name="questions")
    text, picture = pl.col("text_jaccard").is_not_null(), pl.col("image_hamming").is_not_null()
    samples = found.group_by("benchmark").agg(
        by_text=(text & ~picture).sum(),
        by_picture=(picture & ~text).sum(),
        by_both=(text & picture).sum(),
    )
    counts = questions.join(samples, on="benchmark", how="left").fill_null(0).sort("benchmark")
    return {str(row.pop("benchmark")): row for row in counts.to_dicts()}


def _of_tests(source: SourceConfig) -> SourceConfig:
    """Of a folder with splits the one that is tested on, unless one is named."""
    folder = Path(source.path)
    if source.split is not None or not folder.is_dir():
        return source
    splits = {split_of(file, folder) for file in folder.rglob("*") if file.is_file()}
    tested = next((name for name in ("test", "validation") if name in splits), None)
    return source.model_copy(update={"split": tested})


def _hash_pictures(run: Run, resources: Resources) -> None:
    """Keep the hash and colours of every image of the index; broken ones are left out."""
    media = pl.read_parquet(run.stage_folder("ingest") / "media" / "*.parquet")
    media = media.filter(pl.col("kind") == "image").sort("hash")
    parts = []
    for batch in picture_batches(media, _HASHED_AT_ONCE):
        hashed = hash_images(
            *(batch.paths, batch.offsets, batch.lengths, batch.inline),
            max_pixels=MAX_PIXELS,
            threads=resources.threads,
            reduced=True,
        )
        rows = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(hashed))))
        named = rows.with_columns(hash=media["hash"].gather(batch.rows))
        parts.append(named.filter(pl.col("phash").is_not_null()))
        resources.progress.update("contaminants", "pictures", int(batch.rows[-1]) + 1, media.height)
    SignatureCache(hashes_of(run.folder), HASH_NAMES["fast"]).add(parts)
