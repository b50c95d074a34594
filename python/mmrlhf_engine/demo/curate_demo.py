"""The first part of the demo: ``curate`` on a small real corpus, with its outcome known beforehand.

It builds the corpus of :mod:`mmrlhf_engine.demo.corpus`, runs the same pipeline as the ``curate``
command, and then holds the result against what was planted: every planted duplicate and every
planted bad row must have been found, for the right reason.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.curate import report
from mmrlhf_engine.demo.corpus import SOURCES, Corpus, Planted, build
from mmrlhf_engine.errors import StageError
from mmrlhf_engine.pipeline import CurateConfig, curate, with_sources
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.progress import Progress

__all__ = ["CURATE_ONLY", "curate_corpus", "found"]

CURATE_ONLY = {"select.count": 300}
"""Settings of the demo that ends with the curated queries."""


def curate_corpus(
    folder: Path, settings: dict[str, Any], conversations: int = 420, **options: Any
) -> tuple[Run, str]:
    """Build the corpus, curate queries from it; the run, and the text to print.

    Args:
        folder: The corpus is ``corpus`` in it, the run ``run``.
        settings: Of ``curate``, over those of the demo.
        conversations: Pictures with a conversation each in the corpus.
        options: ``threads``, ``memory``, ``seed`` and ``progress`` of the command.

    Raises:
        StageError: something planted was not found.
    """
    corpus = _built_again(folder / "corpus", conversations)
    given = {
        key: options[key] for key in ("threads", "memory", "seed") if options.get(key) is not None
    }
    chosen = {"embed.encoder": "lite0", "cluster.clusters": 24, **settings, **given}
    overrides = [f"{key}={value}" for key, value in chosen.items()]
    config = load_config(CurateConfig, overrides=overrides)
    config = with_sources(config, [corpus.folder / name for name in SOURCES])
    finished = curate(config, folder / "run", progress=Progress(options.get("progress", "human")))
    missed = [planted for planted in corpus.planted if not found(finished, planted)]
    if missed:
        listing = "\n".join(f"  {p.what}: {p.source} {p.position}, {p.expected}" for p in missed)
        raise StageError(f"demo: planted but not found as expected:\n{listing}")
    page = report.write(finished)
    text = [report.funnel(finished), "", _planted_table(corpus), "", f"page: {page}"]
    return finished, "\n".join(text)


def _built_again(folder: Path, conversations: int = 420) -> Corpus:
    """The corpus in ``folder``, whose files stay as they are where they would be the same.

    Ingest looks at size and time of its sources; a file that is written again runs it again.
    """
    made = build(folder.with_name(f".{folder.name}.new"), conversations=conversations)
    if _same_files(made.folder, folder):
        shutil.rmtree(made.folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        made.folder.rename(folder)
    return replace(made, folder=folder)


def _same_files(one: Path, other: Path) -> bool:
    first, second = (
        {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    )
    return first.keys() == second.keys() and all(
        path.read_bytes() == second[name].read_bytes() for name, path in first.items()
    )


def found(run: Run, planted: Planted) -> bool:
    """Whether the run removed the planted sample, or rejected the planted row, as it should."""
    rejected = pl.read_parquet(run.stage_folder("ingest") / "rejected" / "*.parquet")
    reasons = rejected.filter(
        (pl.col("source") == planted.source) & (pl.col("position") == planted.position)
    )["reason"]
    if planted.expected in reasons.to_list():
        return True
    samples = pl.read_parquet(run.stage_folder("ingest") / "samples" / "*.parquet")
    mine = samples.filter(
        (pl.col("source") == planted.source) & (pl.col("source_id") == planted.position)
    )
    duplicates = pl.read_parquet(run.stage_folder("dedup") / "duplicates" / "*.parquet")
    # Which of two duplicates stays is the keep rule's choice: either may be the one removed.
    pairs = duplicates.filter(
        (pl.col("id").is_in(mine["id"].implode()) | pl.col("kept_id").is_in(mine["id"].implode()))
        & (pl.col("kind") == planted.expected)
    )
    return pairs.height > 0


def _planted_table(corpus: Corpus) -> str:
    counts: dict[tuple[str, str], int] = {}
    for planted in corpus.planted:
        key = (planted.what, planted.expected)
        counts[key] = counts.get(key, 0) + 1
    lines = [f"planted and found: {len(corpus.planted)} of {len(corpus.planted)}"]
    lines += [f"  {what:32} {n:3}  {expected}" for (what, expected), n in counts.items()]
    return "\n".join(lines)
