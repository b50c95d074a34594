"""Stages of a run for benches: one that is begun, and finished ones with given tables."""

import dataclasses

import polars as pl

from mmrlhf_engine.pipeline import STAGES
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import Resources, StageContext
from mmrlhf_engine.run.tables import TableSchema

__all__ = ["begin", "finish_with"]


def begin(run: Run, name: str, config: Section, threads: int = 0) -> StageContext:
    """A begun stage, to be given to its ``run``."""
    folder = run.stage_folder(name)
    context = StageContext(STAGES[name], config, folder, run, Resources(threads=threads))
    context.begin({})
    return context


def finish_with(run: Run, name: str, tables: dict[str, tuple[TableSchema, pl.DataFrame]]) -> None:
    """Finish a stage with tables given as schema and rows; absent columns are null."""
    stage = dataclasses.replace(STAGES[name], writes=tuple(tables))
    context = StageContext(stage, Section(), run.stage_folder(name), run, Resources())
    context.begin({})
    for table, (schema, rows) in tables.items():
        absent = [pl.lit(None, kind).alias(c) for c, kind in schema.items() if c not in rows]
        with context.table(table, schema) as writer:
            writer.write(rows.with_columns(absent))
    context.finish(rows_in=0, rows_out=0, dropped={})
