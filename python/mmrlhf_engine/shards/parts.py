"""Parts of a dataset as rows of its tables: queries that are held out, pairs that are deleted."""

import polars as pl
import pyarrow as pa

from mmrlhf_engine import _core
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.export_trl import deleted_pairs
from mmrlhf_engine.shards.plan import Budget, HoldOut, PlanSettings, plan_json

__all__ = ["pairs_there", "queries_of"]


def queries_of(dataset: ShardDataset, hold_out: HoldOut) -> pl.Series:
    """Uint64, the rows of the queries of a part, ascending; the part that a loader would read."""
    any_plan = PlanSettings(budget=Budget(tokens=1), packs_per_step=1, hold_out=hold_out)
    rule = (dataset.processor or {}).get("image_rule")
    part = _core.DatasetPart(dataset._core, plan_json(any_plan, rule))
    return pl.Series(pa.array(part.queries()))


def pairs_there(dataset: ShardDataset) -> pl.Series:
    """Bool, a value a pair: whether it is not marked as deleted."""
    deleted = deleted_pairs(dataset._core)
    if deleted is None:
        return pl.Series([True], dtype=pl.Boolean).new_from_index(0, dataset.rows("pairs"))
    return ~deleted
