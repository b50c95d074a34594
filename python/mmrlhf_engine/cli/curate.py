"""Commands of the package ``curate``: curate, explain, config."""

import importlib
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import (
    CONFIG,
    DATASET,
    EXISTING,
    FILE_OR_FOLDER,
    SET,
    as_overrides,
    interruptible,
    run_options,
)

__all__ = ["COMMANDS"]

_STAGES = click.Choice(["ingest", "dedup", "embed", "cluster", "select"])


@click.command()
@click.argument("sources", nargs=-1)  # texts: a path type would make s3:/ of s3://
@click.option(
    "--out", required=True, type=FILE_OR_FOLDER, help="The run folder; a run there is resumed."
)
@CONFIG
@SET
@click.option("--select", "count", type=click.IntRange(min=1), help="Queries to choose.")
@click.option("--encoder", help="open_clip:MODEL/WEIGHTS, transformers:NAME, lite0, precomputed:F.")
@click.option("--policy", type=click.Choice(["joint", "image", "text", "exact"]))
@click.option("--max-bad", metavar="SHARE", help="Stop when more of the input is bad, e.g. 1%.")
@click.option("--follow-links", is_flag=True, help="Let links lead out of the sources.")
@click.option("--from", "first", type=_STAGES, default="ingest", show_default=True)
@click.option("--to", "last", type=_STAGES, default="select", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print what would run, and what it needs.")
@run_options
def curate(sources: tuple[str, ...], out: Path, **options: Any) -> None:
    """Choose diverse queries from raw corpora and write a report.

    SOURCES are jsonl, json, parquet, csv, tsv and tar files, folders, quoted patterns such as
    'data/*.parquet', and addresses (s3://, gs://, hf://, https://). A finished and unchanged stage
    is skipped, and an interrupted run resumes. The report is OUT/report.html.
    """
    from mmrlhf_engine import pipeline
    from mmrlhf_engine.curate import report
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    config = load_config(pipeline.CurateConfig, options["config_file"], _overrides(options))
    config = pipeline.with_sources(config, sources, follow_links=options["follow_links"])
    stages = pipeline.stage_slice(options["first"], options["last"])
    if options["dry_run"]:
        click.echo(pipeline.describe_plan(config, out, stages))
        return
    progress = Progress(options["progress"])
    with interruptible("the same command resumes the run"):
        run = pipeline.curate(config, out, first=stages[0], last=stages[-1], progress=progress)
        click.echo(report.funnel(run))
        click.echo(f"\npage: {report.write(run)}")


def _overrides(options: dict[str, Any]) -> list[str]:
    """The named options as the dotted settings they stand for, after those of --set."""
    named = {
        "select.count": options["count"],
        "embed.encoder": options["encoder"],
        "dedup.policy": options["policy"],
        "ingest.max_bad": options["max_bad"],
        "threads": options["threads"],
        "memory": options["memory"],
        "seed": options["seed"],
    }
    return [*options["overrides"], *as_overrides(named)]


@click.command()
@click.argument("run", type=DATASET)
@click.argument("sample_id", metavar="ID")
def explain(run: Path, sample_id: str) -> None:
    """Print what became of sample ID in RUN, and why."""
    from mmrlhf_engine.curate.explain import explain as story
    from mmrlhf_engine.run.folder import Run

    click.echo(story(Run(run), sample_id))


@click.command()
@click.argument("file", required=False, type=EXISTING)
@click.option(
    "--of",
    "command",
    type=click.Choice(["curate", "pair", "pack", "reference", "mm-dpo", "sft", "sample"]),
    default="curate",
    show_default=True,
    help="The command whose settings are printed.",
)
@SET
def config(file: Path | None, command: str, overrides: tuple[str, ...]) -> None:
    """Print every setting of a command as YAML.

    FILE has settings that differ from the defaults.
    """
    from mmrlhf_engine.run.config import load_config, to_yaml

    click.echo(to_yaml(load_config(_settings_of(command), file, overrides)), nl=False)


def _settings_of(command: str) -> Any:
    if command == "curate":
        from mmrlhf_engine.pipeline import CurateConfig

        return CurateConfig
    package = {"pair": "collect", "pack": "pack"}.get(command, "train")
    name = command.replace("-", "_")
    module = importlib.import_module(f"mmrlhf_engine.{package}.{name}")
    return module.STAGE.config


COMMANDS = (curate, explain, config)
