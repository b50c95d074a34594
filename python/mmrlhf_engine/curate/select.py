"""Stage ``select``: exactly N queries under quotas, and for each the reason it was chosen.

Four wishes, in this order: as many queries as asked for, no group above its cap, no group below its
floor, question types by their ratios. Within a question type the picks go round the clusters, each
to the one that has given least, so that rare kinds of pictures are asked about as often as common
ones; within a cluster they follow a seeded order or go farthest first. What a type cannot fill goes
to the others in proportion, and the report says so. The choosing itself is done by the core
(``rust_core/src/select``); this file prepares its columns and writes down what it chose.

The paper (MM-RLHF, section 2.2) takes N random samples from each of 100 clusters, with
long : short : multiple choice = 4 : 5 : 1.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator

from mmrlhf_engine._core import select_queries, share_by_ratio
from mmrlhf_engine.curate.quotas import Bound, Groups
from mmrlhf_engine.curate.reasons import (
    Selection,
    coverage,
    diversity,
    quota_facts,
    shortfalls,
    with_reasons,
)
from mmrlhf_engine.curate.semantic import BLOCK, semantic_duplicates
from mmrlhf_engine.curate.tables import QUERIES, SAMPLES, SEMANTIC_DUPLICATES
from mmrlhf_engine.errors import StageError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.stage import Inputs, Stage, StageContext

__all__ = ["STAGE", "SelectConfig"]

QuestionType = Literal["long", "short", "mcq"]
Modality = Literal["image", "multi_image", "video", "text"]

NO_ROW = 2**32 - 1
"""The row of a sample without an embedding, as the core knows it."""


class SelectConfig(Section):
    """Settings of ``select``."""

    count: int = Field(default=30_000, ge=1, le=100_000_000)
    """Queries to choose; everything that is left if there are fewer."""
    question_types: dict[QuestionType, float] = Field(
        default_factory=lambda: {"long": 4, "short": 5, "mcq": 1}, validate_default=True
    )
    """Ratio of each question type; one that is not named, or has 0, is not chosen."""
    modality: dict[Modality, Bound] = Field(default_factory=dict)
    """Floor and cap of modalities, for example ``{text: {cap: 0.2}}``."""
    source: dict[str, Bound] = Field(default_factory=dict)
    """Floor and cap of sources, for example ``{safety: {floor: 500}, web: {cap: 0.5}}``."""
    order: Literal["seeded", "farthest"] = "seeded"
    """Within a cluster: seeded random order, or the farthest by cosine from those chosen so far
    (each pick then compares the whole cluster with the one before it)."""
    semantic_threshold: float | None = Field(default=None, ge=-1, le=1)
    """Pass over samples whose picture has at least this cosine to that of another of the same
    cluster; two questions about one picture then count as equal. Null passes over none."""
    semantic_keep: Literal["chosen", "hard", "easy"] = "chosen"
    """Which of two stays. ``chosen``: the one that is chosen first; others are passed over while
    queries are chosen. ``hard``, ``easy``: the one farther from or nearer to the centroid of their
    cluster; the others are removed before anything is chosen (SemDeDup), which compares every
    picture of a cluster."""

    @field_validator("question_types")
    @classmethod
    def _check_ratios(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(0 <= ratio < math.inf for ratio in value.values()) or not any(value.values()):
            raise ValueError("expected ratios of at least 0, one of them above 0")
        return value


def run(config: SelectConfig, stage: StageContext) -> None:
    """Write the table ``queries``, and ``semantic_duplicates``, empty where no threshold is set."""
    groups = {
        "modality": Groups("modality", config.modality.items(), config.count),
        "source": Groups("source", config.source.items(), config.count),
    }
    sources = stage.scan("samples").select("source").unique().collect(engine="streaming")
    groups["source"].expect_known(sorted(sources["source"]))
    kept = _candidates(stage, sorted(sources["source"]))
    removed = _semantic_duplicates(config, stage, kept)
    pool = kept if removed.is_empty() else kept.remove(pl.col("id").is_in(removed["id"].implode()))
    picks, passed_over = _choose(config, stage, pool, groups)
    picks = pl.concat([pool[picks["candidate"]], picks.drop("candidate")], how="horizontal")
    picks = picks.cast({pl.Enum: pl.String})
    selection = Selection(config.count, config.order, _quotas(config), groups, pool, picks)
    _write_queries(stage, with_reasons(selection))
    close = pl.concat([removed, _named(passed_over, pool["id"])])
    with stage.table("semantic_duplicates", SEMANTIC_DUPLICATES) as table:
        table.write(close.sort("id"))
    stage.finish(
        rows_in=kept.height,
        rows_out=picks.height,
        dropped={
            "not_chosen": kept.height - picks.height - close.height,
            "semantic_duplicate": close.height,
        },
        quotas=quota_facts(selection),
        shortfalls=shortfalls(selection),
        coverage=coverage(selection, stage.seed),
        diversity=diversity(selection, stage.array("embeddings.npy"), stage.seed),
    )


def _candidates(stage: StageContext, sources: list[str]) -> pl.DataFrame:
    """The kept samples by id: what quotas and clusters need of them, and nothing more.

    ``question_type``, ``modality`` and ``source`` are enumerations: names by the million would take
    most of the memory.
    """
    names = {
        "question_type": get_args(QuestionType),
        "modality": get_args(Modality),
        "source": sources,
    }
    types = {column: pl.Enum(values) for column, values in names.items()}
    parts = (part.cast(types) for part in stage.parts("samples", *types))  # type: ignore[arg-type]
    samples = pl.concat([pl.DataFrame(schema=types), *parts])
    kept = pl.concat(stage.parts("kept", "id", "sample"))
    clusters = pl.concat(stage.parts("clusters", "cluster", "distance"))
    rows = pl.concat(stage.parts("embedding_ids", "row"))
    if not kept.height == clusters.height == rows.height:
        found = f"{kept.height}, {clusters.height} and {rows.height}"
        raise StageError(f"select: kept, clusters and embedding_ids have {found} rows")
    of_samples = samples[kept["sample"]]
    return pl.concat([kept.drop("sample"), of_samples, clusters, rows], how="horizontal")


def _semantic_duplicates(
    config: SelectConfig, stage: StageContext, kept: pl.DataFrame
) -> pl.DataFrame:
    """Those that are removed before anything is chosen, with the columns of SEMANTIC_DUPLICATES."""
    threshold, keep = config.semantic_threshold, config.semantic_keep
    if threshold is None or keep == "chosen":
        return pl.DataFrame(schema=SEMANTIC_DUPLICATES)
    found = semantic_duplicates(kept, stage.array("embeddings.npy"), threshold, keep, stage)
    return _named(found, kept["id"])


def _named(pairs: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """``candidate`` and ``close_to``, rows of ``ids``, as the columns of SEMANTIC_DUPLICATES."""
    return pl.DataFrame(
        {
            "id": ids[pairs["candidate"]],
            "kept_id": ids[pairs["close_to"]],
            "cosine": pairs["cosine"],
        }
    )


def _choose(
    config: SelectConfig, stage: StageContext, kept: pl.DataFrame, groups: dict[str, Groups]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The picks in order and the semantic duplicates met, both by row of ``kept``."""
    types = get_args(QuestionType)
    columns = {
        "id": kept["id"].to_arrow().cast(pa.large_string()),
        "question_type": _uint32(kept["question_type"].to_physical().cast(pl.UInt32)),
        "modality": groups["modality"].codes(kept["modality"]),
        "source": groups["source"].codes(kept["source"]),
        "cluster": pa.array(kept["cluster"].to_numpy(), pa.int32()),
        "row": _uint32(kept["row"].fill_null(NO_ROW)),
    }
    threshold = config.semantic_threshold if config.semantic_keep == "chosen" else None
    measured = config.order == "farthest" or threshold is not None
    picks, skips = select_queries(
        pa.StructArray.from_arrays(columns.values(), names=list(columns)),
        _embeddings(stage) if measured else None,
        count=config.count,
        ratios=[config.question_types.get(name, 0.0) for name in types],
        modality_bounds=groups["modality"].core_bounds,
        source_bounds=groups["source"].core_bounds,
        order=config.order,
        seed=stage.seed % 2**64,
        semantic_threshold=threshold,
        threads=stage.threads,
    )
    return _frame(picks), _frame(skips)


def _uint32(column: pl.Series) -> pa.Array:
    return pa.array(column.to_numpy(), pa.uint32())


def _embeddings(stage: StageContext) -> pa.Array:
    """``embeddings.npy`` as the bits of its rows, mapped, not read."""
    rows = stage.array("embeddings.npy")
    bits = pa.array(rows.view(np.uint16).reshape(-1))
    # Without any picture there are no rows and no width, which Arrow refuses.
    return pa.FixedSizeListArray.from_arrays(bits, max(1, rows.shape[1]))


def _frame(result: Any) -> pl.DataFrame:
    frame = pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(result)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _quotas(config: SelectConfig) -> dict[str, int]:
    """What each question type is asked for: ``count`` shared by the ratios."""
    names = [name for name in get_args(QuestionType) if config.question_types.get(name)]
    ratios = [config.question_types[name] for name in names]
    shares = share_by_ratio(config.count, ratios, [config.count] * len(names))
    return dict(zip(names, shares, strict=True))


def _write_queries(stage: StageContext, picks: pl.DataFrame) -> None:
    """Write the chosen rows of `samples`, read part by part: all of them need not fit in memory."""
    picks = picks.select("id", "cluster", "distance", "why").sort("id")
    chosen = pl.col("id").is_in(picks["id"].implode())
    # By Arrow, which copies: rows that polars takes keep all texts of their part in memory.
    parts = [part.to_arrow() for part in stage.parts("samples", where=chosen)]
    rows = pl.concat([pl.DataFrame(schema=SAMPLES), *(pl.DataFrame(part) for part in parts)])
    with stage.table("queries", QUERIES) as table:
        table.write(pl.concat([rows.sort("id"), picks.drop("id")], how="horizontal"))


def memory(config: SelectConfig, inputs: Inputs, threads: int) -> int:
    """The columns that quotas need of every sample, and the whole of those chosen; blocks of rows
    where pictures are compared."""  # noqa: D205, D209
    rows = inputs.rows("kept")
    compared = 0
    if config.semantic_threshold is not None and config.semantic_keep != "chosen":
        compared = rows * 100 + threads * 8 * BLOCK * inputs.width("embeddings.npy") * 4
    return (96 << 20) + rows * 100 + min(config.count, rows) * 8_000 + compared


STAGE = Stage(
    name="select",
    config=SelectConfig,
    run=run,
    reads=("samples", "kept", "embeddings.npy", "embedding_ids", "clusters"),
    writes=("queries", "semantic_duplicates"),
    memory=memory,
)
