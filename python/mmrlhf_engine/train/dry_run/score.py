"""What ``score`` would do, said without loading weights or decoding pictures."""

from pathlib import Path

import numpy as np

from mmrlhf_engine.models.judge_turn import INSTRUCTION, judge_turn
from mmrlhf_engine.models.reward_model import judge_of
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.shards.loader import PreferenceLoader
from mmrlhf_engine.shards.plan import Budget, PlanSettings, plan_json
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer
from mmrlhf_engine.train.compatible import check_model_fits, model_folder
from mmrlhf_engine.train.device import with_precision
from mmrlhf_engine.train.dry_run.model_sizes import ModelSizes, build_on_meta, read_sizes
from mmrlhf_engine.train.given_scores import read_scores
from mmrlhf_engine.train.score_settings import ScoreConfig
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["describe_score"]

_NAME = 34
_GIB = 2**30


def describe_score(config: ScoreConfig) -> str:
    """Answers, tokens, work and memory of keys and values, as text.

    Raises:
        ConfigError: the model's configuration cannot be read, or a setting does not fit.
        InputError: there is no dataset, it was packed for another model, or scores do not fit it.
    """
    dataset = open_dataset(config.shards)
    if config.scores is not None:
        given = read_scores(Path(config.scores), dataset)
        return (
            f"dry run of {config.scores} on {config.shards}: {given.missing:,} rows have no score"
        )
    config = with_precision(config)
    check_model_fits(dataset, config.model, other_template=config.other_template)
    sizes = read_sizes(build_on_meta(config.model), TrainSettings(model=config.model))
    rows = _rows(config, dataset, sizes)
    head = f"dry run of {config.model} on {config.shards}: no weight loaded, no picture decoded"
    return "\n".join([head, *(f"  {name:{_NAME}}{value}" for name, value in rows)])


def _rows(config: ScoreConfig, dataset: ShardDataset, sizes: ModelSizes) -> list[tuple[str, str]]:
    judge = judge_of(model_folder(config.model))
    mode = config.critiques
    if mode == "auto":
        mode = "none" if judge is None else "generate"
    around = 0
    if mode != "none":
        tokenizer = load_fast_tokenizer(config.model, needed_for="score")
        turn = judge_turn(tokenizer, judge or INSTRUCTION)
        around = len(turn.opening) + len(turn.closing)
    prompts, of_answers, longest_answers = _sequence_tokens(config, dataset)
    shared, own = int(prompts.sum()), int(of_answers.sum())
    answers = dataset.rows("responses")
    rows = [
        ("queries", f"{dataset.rows('queries'):,}"),
        ("answers", f"{answers:,}"),
        ("critiques", mode),
        ("tokens of prompts, once a query", f"{shared:,}"),
        ("tokens of answers", f"{own:,}"),
    ]
    read = shared + own + answers * around
    weights = sizes.products["text"] + sizes.text.hidden * sizes.text.vocabulary
    written = 0
    if mode == "generate":
        samples, most = config.sampling.samples, config.sampling.max_new_tokens
        written = answers * samples * most
        longest = int((prompts + longest_answers).max(initial=0)) + around + most
        at_once = config.batch * int(np.ceil(answers / max(1, dataset.rows("queries"))))
        size = 2 if config.precision == "bfloat16" else 4
        kept = 2 * sizes.text.layers * sizes.text.attention_width * size
        rows += [
            ("tokens written, at most", f"{written:,} ({samples} x {most} an answer)"),
            (
                "keys and values, at most",
                f"{at_once * samples * longest * kept / _GIB:,.2f} GiB for {at_once} answers at "
                "once, as if all heads had keys of their own",
            ),
        ]
        # What was written is read again with its reward.
        read += written
    work = 2 * sizes.products["text"] * read + 2 * weights * written
    rows.append(("work of the text model, at most", f"{work / 1e12:,.1f} TFLOP"))
    return rows


def _sequence_tokens(
    config: ScoreConfig, dataset: ShardDataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By query: tokens of the prompt with pictures, of all answers, and of the longest answer."""
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
