"""What ``score`` and ``sample`` need for what they read and write, said without weights."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.loader import PreferenceLoader
from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json
from mmrlhf_engine.train.dry_run.model_sizes import ModelSizes
from mmrlhf_engine.train.sample import SampleConfig
from mmrlhf_engine.train.score_settings import ScoreConfig

__all__ = ["as_text", "keys_and_values", "sequence_tokens", "work_of_text_model"]

_NAME = 34
_GIB = 2**30

Row = tuple[str, str]
"""A name and its value, as they are printed."""


def as_text(config: SampleConfig | ScoreConfig, rows: Iterable[Row]) -> str:
    """A headline, and a line for each row."""
    head = f"dry run of {config.model} on {config.shards}: no weight loaded, no picture decoded"
    return "\n".join([head, *(f"  {name:{_NAME}}{value}" for name, value in rows)])


def keys_and_values(
    config: SampleConfig | ScoreConfig, sizes: ModelSizes, sequences: int, longest: int
) -> Row:
    """The most memory of so many sequences at once, of at most ``longest`` tokens each."""
    size = 2 if config.precision == "bfloat16" else 4
    kept = 2 * sizes.text.layers * sizes.text.attention_width * size
    return (
        "keys and values, at most",
        f"{sequences * longest * kept / _GIB:,.2f} GiB for {sequences} sequences at once, as if "
        "all heads had keys of their own",
    )


def work_of_text_model(sizes: ModelSizes, read: int, written: int) -> Row:
    """Two operations for each weight and token, the output head for written tokens alone."""
    weights = sizes.products["text"] + sizes.text.hidden * sizes.text.vocabulary
    work = 2 * sizes.products["text"] * read + 2 * weights * written
    return "work of the text model, at most", f"{work / 1e12:,.1f} TFLOP"


def sequence_tokens(
    config: SampleConfig | ScoreConfig, dataset: ShardDataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By query: tokens of the prompt with pictures, of all answers, and of the longest answer.

    Returns:
        Three int64 [queries].
    """
    rule = dataset.processor and dataset.processor["image_rule"]
    settings = PlanSettings(
        budget=Budget(tokens=config.tokens), packs_per_step=1, unit="query", too_large="alone"
    )
    loader = PreferenceLoader(
        Path(config.shards), plan_json(settings, rule), threads=config.threads, pixels=False
    )
    queries = dataset.rows("queries")
    prompts, answers, longest = (np.zeros(queries, np.int64) for _ in range(3))
    try:
        for batch in loader:
            own = np.diff(batch.cu_seqlens) - batch.prompt_lengths
            np.maximum.at(prompts, batch.sequence_query, batch.prompt_lengths)
            np.add.at(answers, batch.sequence_query, own)
            np.maximum.at(longest, batch.sequence_query, own)
    finally:
        loader.close()
    return prompts, answers, longest
