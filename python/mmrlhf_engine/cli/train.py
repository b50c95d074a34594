"""The commands of the package ``train``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import (
    CONFIG,
    FILE_OR_FOLDER,
    PROGRESS,
    SET,
    as_overrides,
    interruptible,
)

__all__ = ["COMMANDS"]

MODEL = click.option("--model", metavar="NAME|FOLDER", help="The weights to begin with.")
OUT = click.option("--out", required=True, type=FILE_OR_FOLDER, help="The run folder.")
THREADS = click.option("--threads", type=click.IntRange(min=0), help="Threads of the loader.")
PRECISION = click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of products; by default bfloat16 on a GPU.",
)
RESUME = click.option(
    "--resume/--restart",
    default=True,
    help="Go on with what is there (default), or remove it and begin again.",
)
FEATURES = click.option(
    "--cache-features", metavar="FOLDER", help="Keep there what the frozen tower makes."
)
TOKENS = click.option("--tokens", type=click.IntRange(min=1), help="Tokens that a pack may hold.")


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that trains."""
    for option in (
        PROGRESS,
        click.option("--dry-run", is_flag=True, help="Say what would run and what it needs."),
        RESUME,
        click.option("--keep", type=click.IntRange(min=1), help="Checkpoints that are kept."),
        click.option("--save-every", type=click.IntRange(min=1), help="Steps between checkpoints."),
        click.option("--evaluate-every", type=click.IntRange(min=1), help="Steps."),
        click.option("--evaluation-share", type=float, help="Share of queries held out."),
        FEATURES,
        click.option("--compile", is_flag=True, default=None, help="Compile the text model."),
        click.option("--lora-rank", type=click.IntRange(min=1), help="Train adapters."),
        THREADS,
        PRECISION,
        TOKENS,
        click.option("--packs-per-step", type=click.IntRange(min=1), help="The global batch."),
        click.option("--learning-rate", type=float),
        click.option("--steps", type=click.IntRange(min=1), help="End after so many."),
        click.option("--epochs", type=click.IntRange(min=1)),
        click.option("--seed", type=click.IntRange(min=0)),
        SET,
        CONFIG,
        OUT,
        MODEL,
        click.argument("shards", required=False, type=FILE_OR_FOLDER),
    ):
        command = option(command)
    return command


@click.command("mm-dpo")
@training_options
@click.option("--beta", type=float, help="That of a pair whose answers are equally good.")
@click.option(
    "--beta-rule", metavar="RULE", help="paper, constant, released, or SET/FIELD, a column."
)
@click.option("--loss-type", type=click.Choice(["sigmoid", "ipo", "hinge", "robust", "bco_pair"]))
@click.option("--sft-weight", type=float, help="Factor of the supervised loss.")
@click.option("--reference", metavar="NAME", help="The reference's column; default: of the model.")
@click.option("--margin", metavar="SET/FIELD", help="Margins; default: those that were packed.")
def mm_dpo(out: Path, **options: Any) -> None:
    """Train a policy on preference shards by MM-DPO.

    SHARDS is a dataset with the log-probabilities of a reference model (mmrlhf-engine reference).
    The same command goes on from the newest checkpoint of OUT.
    """
    from mmrlhf_engine.train import mm_dpo as command

    _train(command.STAGE, out, options)


@click.command()
@training_options
def sft(out: Path, **options: Any) -> None:
    """Train a model on the chosen answers alone.

    SHARDS is the dataset.
    The same command goes on from the newest checkpoint of OUT/extra/sft.
    """
    from mmrlhf_engine.train import sft as command

    _train(command.STAGE, out, options)


@click.command()
@training_options
@click.option("--head", type=click.Choice(["tanh", "silu", "linear"]), help="Of a new model.")
@click.option("--critiques", metavar="SOURCE", help="packed (default), none, or SET/FIELD.")
@click.option("--critique-weight", type=float, help="Factor of the critiques' loss; default 1.")
@click.option("--critique-loss", type=click.Choice(["mean", "sum"]), help="Over tokens.")
@click.option("--tie-weight", type=float, help="Factor of the loss of ties; default 1.")
def reward(out: Path, **options: Any) -> None:
    """Train a reward model that writes critiques.

    SHARDS is a dataset of pairs, with critiques as they came with the answers.
    The same command goes on from the newest checkpoint of OUT.
    """
    from mmrlhf_engine.train import reward as command

    _train(command.STAGE, out, options)


@click.command()
@click.argument("shards", required=False, type=FILE_OR_FOLDER)
@click.option("--model", metavar="NAME|FOLDER", help="The reward model.")
@click.option("--scores", type=FILE_OR_FOLDER, help="Scores of another model, as JSONL.")
@OUT
@CONFIG
@SET
@click.option("--name", help="Of the columns; default: of the model or the file.")
@click.option("--critiques", metavar="SOURCE", help="auto, generate, packed, none or SET/FIELD.")
@click.option("--samples", type=click.IntRange(min=1), help="Critiques of each answer; default 1.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Default 0, which is greedy.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of a critique; default 512.")
@click.option("--batch", type=click.IntRange(min=1), help="Queries at once; default 8.")
@click.option("--normalise", metavar="RULE", help="How margins are scaled; default none.")
@TOKENS
@FEATURES
@PRECISION
@THREADS
@click.option("--dry-run", is_flag=True, help="Say what would run and what it needs.")
@RESUME
@PROGRESS
def score(
    out: Path, config_file: Path | None, overrides: tuple[str, ...], progress: Any, **options: Any
) -> None:
    """Score all answers, and write the margins of all pairs.

    SHARDS is the dataset; it gets sidecar columns. OUT keeps critiques and report.
    """
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress
    from mmrlhf_engine.train.score import run_in
    from mmrlhf_engine.train.score_settings import ScoreConfig

    resume, dry_run = options.pop("resume"), options.pop("dry_run")
    for name in ("shards", "scores"):
        options[name] = _text(options[name])
    named = {_PLACES_OF_SCORE.get(name, name): value for name, value in options.items()}
    config = load_config(ScoreConfig, config_file, [*overrides, *as_overrides(named)])
    if dry_run:
        from mmrlhf_engine.train.dry_run.score import describe_score

        click.echo(describe_score(config))
        return
    with interruptible("the same command goes on where it was"):
        report = run_in(config, out, Progress(progress), restart=not resume)
    agreement = report["agreement"]
    said = "" if agreement is None else f", {agreement:.1%} of them as they are ranked"
    known, pairs = report["pairs_with_margin"], report["pairs"]
    counted = f"{pairs:,}" if known == pairs else f"{known:,} of {pairs:,}"
    click.echo(f"{report['column']}: margins of {counted} pairs{said}")


_PLACES_OF_SCORE = {
    name: f"sampling.{name}" for name in ("samples", "temperature", "max_new_tokens")
}


@click.command()
@click.argument("shards", required=False, type=FILE_OR_FOLDER)
@MODEL
@OUT
@CONFIG
@SET
@click.option("--name", help="Of the column; default: the last part of the model's name.")
@TOKENS
@FEATURES
@PRECISION
@THREADS
@PROGRESS
def reference(
    out: Path, config_file: Path | None, overrides: tuple[str, ...], progress: Any, **options: Any
) -> None:
    """Write the log-probabilities of a reference model.

    SHARDS is the dataset; it gets a sidecar column. OUT keeps the report.
    """
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress
    from mmrlhf_engine.train import reference as command

    named = {**options, "shards": _text(options["shards"])}
    config = load_config(command.ReferenceConfig, config_file, [*overrides, *as_overrides(named)])
    with interruptible("the same command goes on where it was"):
        report = command.run_in(config, out, Progress(progress))
    click.echo(f"{report['column_set']}: {report['rows_out']:,} responses have log-probabilities")


@click.command()
@click.argument("shards", required=False, type=FILE_OR_FOLDER)
@MODEL
@OUT
@CONFIG
@SET
@click.option("--samples", type=click.IntRange(min=1), help="Answers to each query; default 8.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Default 1; 0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Default 1.")
@click.option("--top-k", type=click.IntRange(min=0), help="Default 0, which is all tokens.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of an answer; default 512.")
@click.option("--queries", type=click.IntRange(min=1), help="A random subset of so many.")
@click.option("--batch", type=click.IntRange(min=1), help="Queries answered at once; default 4.")
@click.option("--seed", type=click.IntRange(min=0))
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens that a query may hold.")
@click.option("--endpoint", metavar="URL", help="A server that answers, such as vLLM's.")
@click.option("--endpoint-model", metavar="NAME", help="The model's name there.")
@FEATURES
@PRECISION
@THREADS
@click.option("--dry-run", is_flag=True, help="Say what would run and what it needs.")
@RESUME
@PROGRESS
def sample(
    out: Path, config_file: Path | None, overrides: tuple[str, ...], progress: Any, **options: Any
) -> None:
    """Answer each query several times by a local model.

    SHARDS is the dataset. The answers are the table OUT/extra/sample/responses.
    """
    from mmrlhf_engine.run.command import run_command
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress
    from mmrlhf_engine.train import sample as command

    resume, dry_run = options.pop("resume"), options.pop("dry_run")
    named = {**options, "shards": _text(options["shards"])}
    named["endpoint.url"], named["endpoint.model"] = (
        named.pop(name) for name in ("endpoint", "endpoint_model")
    )
    config = load_config(command.SampleConfig, config_file, [*overrides, *as_overrides(named)])
    if dry_run:
        from mmrlhf_engine.train.dry_run.sample import describe_sample

        click.echo(describe_sample(config))
        return
    with interruptible("the same command goes on where it was"):
        report = run_command(command.STAGE, config, out, Progress(progress), restart=not resume)
    click.echo(
        f"{Path(report['folder']) / 'responses'}: {report['responses']:,} answers to "
        f"{report['rows_out']:,} queries"
    )


@click.command("import-checkpoint")
@click.argument("source", type=FILE_OR_FOLDER)
@click.option("--out", required=True, type=FILE_OR_FOLDER, help="The new folder of the model.")
@click.option(
    "--processor", metavar="NAME|FOLDER", help="Whose tokenizer and processor are copied."
)
def import_checkpoint(source: Path, out: Path, processor: str | None) -> None:
    """Convert a checkpoint of LLaVA-NeXT for transformers.

    SOURCE is its folder: LLaVA-OneVision on Qwen2, with a reward head or without one. --processor
    is a LLaVA-OneVision of transformers; without it the new folder has no tokenizer.
    """
    from mmrlhf_engine.train import import_checkpoint as command

    found = command.import_checkpoint(source, out, processor=processor)
    head = "" if found.activation is None else f", reward head {found.activation}"
    click.echo(f"{out}: {found.kind}{head}, {found.weights:,} weights")
    if found.left_out:
        click.echo(f"left out, as they are computed: {', '.join(found.left_out)}", err=True)


_PLACES = {
    "tokens": "data.tokens",
    "packs_per_step": "data.packs_per_step",
    "learning_rate": "optimizer.learning_rate",
    "evaluation_share": "evaluation.share",
    "evaluate_every": "evaluation.every",
    "save_every": "checkpoint.every",
    "keep": "checkpoint.keep",
    "lora_rank": "lora.rank",
    "head": "head.activation",
}
"""Where options go that are not settings of the first level."""


def _train(stage: Any, out: Path, options: dict[str, Any]) -> None:
    from mmrlhf_engine.run.command import run_command
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    file, overrides = options.pop("config_file"), options.pop("overrides")
    progress, resume = options.pop("progress"), options.pop("resume")
    dry_run = options.pop("dry_run")
    options["shards"] = _text(options["shards"])
    named = {_PLACES.get(name, name): value for name, value in options.items()}
    config = load_config(stage.config, file, [*overrides, *as_overrides(named)])
    if dry_run:
        from mmrlhf_engine.train.dry_run.describe import describe_training

        click.echo(describe_training(config))
        return
    with interruptible("what was kept is there, and the same command goes on from it"):
        report = run_command(stage, config, out, Progress(progress), restart=not resume)
    folder = Path(report["folder"])
    click.echo(f"{folder / 'model'}: {report['steps']:,} steps; the page is {folder}/report.html")
    if config.steps is not None and report["steps"] < config.steps:
        click.echo(
            f"steps={config.steps:,} was not reached: epochs={config.epochs} has "
            f"{report['steps']:,}; another value for either needs --restart or another --out",
            err=True,
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


COMMANDS = (reward, score, mm_dpo, sft, reference, sample, import_checkpoint)
