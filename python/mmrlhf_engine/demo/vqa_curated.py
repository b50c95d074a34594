"""From the queries that ``curate`` chose to questions with known answers."""

import re
from pathlib import PurePath

import polars as pl

from mmrlhf_engine.demo.vqa_questions import Question, questions_of
from mmrlhf_engine.run.folder import Run

__all__ = ["curated_questions"]

_PICTURE = re.compile(r"(?:shape|table)_(\d+)")


def curated_questions(run: Run) -> list[Question]:
    """The chosen queries that easy-vqa has an answer to, each once.

    The picture is known by the name of its file, or by the id of its row in ``shapes.parquet``.
    """
    known = {(question.picture, question.text): question for question in questions_of("train")}
    media = pl.scan_parquet(run.stage_folder("ingest") / "media" / "*.parquet").select(
        "hash", "path"
    )
    queries = (
        pl.scan_parquet(run.stage_folder("select") / "queries" / "*.parquet")
        .filter(pl.col("source").str.starts_with("shapes.") & (pl.col("media").list.len() == 1))
        .select("id", "source_id", "prompt", hash=pl.col("media").list.first())
        .join(media, on="hash", how="left")
        .sort("id")
        .collect()
    )
    found = {}
    for name, prompt, path in queries.select("source_id", "prompt", "path").iter_rows():
        number = _PICTURE.match(PurePath(path).name) or _PICTURE.match(name)
        question = known.get((int(number[1]), prompt)) if number else None
        if question is not None:
            found[question.id] = question
    return list(found.values())
