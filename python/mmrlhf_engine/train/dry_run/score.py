"""What ``score`` would do, said without loading weights or decoding pictures."""

from pathlib import Path

from mmrlhf_engine.models.judge_turn import INSTRUCTION, judge_turn
from mmrlhf_engine.models.reward_model import judge_of
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer
from mmrlhf_engine.train.compatible import check_model_fits, model_folder
from mmrlhf_engine.train.device import with_precision
from mmrlhf_engine.train.dry_run.generation import (
    as_text,
    keys_and_values,
    sequence_tokens,
    work_of_text_model,
)
from mmrlhf_engine.train.dry_run.model_sizes import ModelSizes, build_on_meta, read_sizes
from mmrlhf_engine.train.given_scores import read_scores
from mmrlhf_engine.train.score_settings import ScoreConfig
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["describe_score"]


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
    return as_text(config, _rows(config, dataset, sizes))


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
    prompts, of_answers, longest_answers = sequence_tokens(config, dataset)
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
    written = 0
    if mode == "generate":
        samples, most = config.sampling.samples, config.sampling.max_new_tokens
        written = answers * samples * most
        longest = int((prompts + longest_answers).max(initial=0)) + around + most
        at_once = config.batch * -(-answers // max(1, dataset.rows("queries")))
        rows += [
            ("tokens written, at most", f"{written:,} ({samples} x {most} an answer)"),
            keys_and_values(config, sizes, at_once * samples, longest),
        ]
        # What was written is read again with its reward.
        read += written
    rows.append(work_of_text_model(sizes, read, written))
    return rows
