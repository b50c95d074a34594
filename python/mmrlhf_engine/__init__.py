"""From raw multimodal samples to an aligned model: curate, collect, train, measure.

``run_curate``, ``run_pack``, ``run_reference`` and ``run_mm_dpo`` run the pipeline,
``open_dataset`` and ``PreferenceLoader`` read what it wrote; the command ``mmrlhf-engine`` does the
same from a shell. Importing this package imports nothing heavy: each name is imported when it is
first used, and only ``PreferenceDataset`` and the functions that train import torch then.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrlhf_engine.api import (
        run_curate,
        run_evaluate,
        run_mm_dpo,
        run_pack,
        run_pair,
        run_reference,
        run_reward,
        run_sample,
        run_score,
        run_sft,
    )
    from mmrlhf_engine.errors import MmrlhfError
    from mmrlhf_engine.models.layout import answer_rows, attention_mask
    from mmrlhf_engine.shards.batch import PreferenceBatch
    from mmrlhf_engine.shards.columns import ColumnRequest, provenance
    from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
    from mmrlhf_engine.shards.image_rule import ImageRule, read_rule
    from mmrlhf_engine.shards.loader import PictureSettings, PreferenceLoader, normalise
    from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json
    from mmrlhf_engine.shards.torch_dataset import PreferenceDataset

__all__ = [
    "Budget",
    "ColumnRequest",
    "ImageRule",
    "MmrlhfError",
    "PictureSettings",
    "PlanSettings",
    "PreferenceBatch",
    "PreferenceDataset",
    "PreferenceLoader",
    "ShardDataset",
    "__version__",
    "answer_rows",
    "attention_mask",
    "normalise",
    "open_dataset",
    "plan_json",
    "provenance",
    "read_rule",
    "run_curate",
    "run_evaluate",
    "run_mm_dpo",
    "run_pack",
    "run_pair",
    "run_reference",
    "run_reward",
    "run_sample",
    "run_score",
    "run_sft",
]

__version__ = "0.1.0"

# Modules by string: the modules below import __version__ from here, and import nothing above them.
_MODULES = {
    "api": (
        *("run_curate", "run_evaluate", "run_mm_dpo", "run_pack", "run_pair"),
        *("run_reference", "run_reward", "run_sample", "run_score", "run_sft"),
    ),
    "errors": ("MmrlhfError",),
    "models.layout": ("answer_rows", "attention_mask"),
    "shards.batch": ("PreferenceBatch",),
    "shards.columns": ("ColumnRequest", "provenance"),
    "shards.dataset": ("ShardDataset", "open_dataset"),
    "shards.image_rule": ("ImageRule", "read_rule"),
    "shards.loader": ("PictureSettings", "PreferenceLoader", "normalise"),
    "shards.plan": ("Budget", "PlanSettings", "plan_json"),
    "shards.torch_dataset": ("PreferenceDataset",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
