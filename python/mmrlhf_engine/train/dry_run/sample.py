"""What ``sample`` would do, said without loading weights or decoding pictures."""

from mmrlhf_engine.shards.dataset import open_dataset
from mmrlhf_engine.train.compatible import check_model_fits
from mmrlhf_engine.train.device import with_precision
from mmrlhf_engine.train.dry_run.generation import (
    as_text,
    keys_and_values,
    sequence_tokens,
    work_of_text_model,
)
from mmrlhf_engine.train.dry_run.model_sizes import build_on_meta, read_sizes
from mmrlhf_engine.train.sample import SampleConfig
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["describe_sample"]


def describe_sample(config: SampleConfig) -> str:
    """Answers, tokens, work and memory of keys and values, as text.

    Of a random subset of the queries, the tokens of prompts are as many as the mean has it.

    Raises:
        ConfigError: the model's configuration cannot be read, or a setting does not fit.
        InputError: there is no dataset, or it was packed for another model.
    """
    dataset = open_dataset(config.shards)
    config = with_precision(config)
    check_model_fits(dataset, config.model, other_template=config.other_template)
    sizes = read_sizes(build_on_meta(config.model), TrainSettings(model=config.model))
    prompts, _, _ = sequence_tokens(config, dataset)
    with_pairs = int((prompts > 0).sum())
    queries = min(with_pairs, config.queries or with_pairs)
    read = round(int(prompts.sum()) * queries / max(1, with_pairs))
    samples, most = config.samples, config.max_new_tokens
    written = queries * samples * most
    rows = [
        ("queries", f"{queries:,} of {dataset.rows('queries'):,}"),
        ("answers", f"{queries * samples:,}"),
        ("tokens of prompts, once a query", f"{read:,}"),
        ("tokens written, at most", f"{written:,} ({samples} x {most} a query)"),
    ]
    if config.endpoint is None:
        longest = int(prompts.max(initial=0)) + most
        rows.append(keys_and_values(config, sizes, config.batch * samples, longest))
    rows.append(work_of_text_model(sizes, read, written))
    return as_text(config, rows)
