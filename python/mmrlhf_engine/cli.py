"""The command line: reads what was asked, calls one function, maps the outcome to an exit code.

Results go to standard output, talk to standard error. Exit codes: 0 done, 1 the work failed, 2 the
command was wrong. Imports are inside the commands, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine import __version__

__all__ = ["cli", "main"]

_PATH = click.Path(path_type=Path)
_VOICES = click.Choice(["human", "jsonl", "silent"])
_STAGES = click.Choice(["ingest", "dedup", "embed", "cluster", "select"])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    r"""From raw multimodal samples to an aligned model.

    \b
    curate   raw corpora to a few thousand diverse, explained queries
    explain  the whole story of one sample
    inspect  schema and rows of a table
    config   every setting with its default, as YAML
    demo     curate a real corpus offline and write the page
    """


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--threads", type=click.IntRange(min=0), help="Threads; 0 = one per core."),
        click.option("--memory", metavar="SIZE", help="Memory to stay within, for example 4G."),
        click.option("--seed", type=int, help="Seed of everything random."),
        click.option("--progress", type=_VOICES, default="human", show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("sources", nargs=-1, type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The run folder; a run there is resumed.")
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A dotted setting.")
@click.option("--select", "count", type=click.IntRange(min=1), help="Queries to choose.")
@click.option("--encoder", help="open_clip:MODEL/WEIGHTS, transformers:NAME, lite0, precomputed:F.")
@click.option("--policy", type=click.Choice(["joint", "image", "text", "exact"]))
@click.option("--max-bad", metavar="SHARE", help="Stop when more of the input is bad, e.g. 1%.")
@click.option("--from", "first", type=_STAGES, default="ingest", show_default=True)
@click.option("--to", "last", type=_STAGES, default="select", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say what would run, and what it needs.")
@_run_options
def curate(out: Path, sources: tuple[Path, ...], **options: Any) -> None:
    """Take SOURCES (jsonl, json, parquet, tar, folders) to chosen queries.

    A finished and unchanged stage is skipped; a killed run goes on where it was. The page to look
    at is OUT/report.html.
    """
    from mmrlhf_engine import pipeline
    from mmrlhf_engine.config import load_config
    from mmrlhf_engine.curate import report
    from mmrlhf_engine.log import Progress

    config = load_config(pipeline.CurateConfig, options["config_file"], _overrides(options))
    config = pipeline.with_sources(config, list(sources))
    stages = pipeline.stage_slice(options["first"], options["last"])
    if options["dry_run"]:
        click.echo(pipeline.describe_plan(config, out, stages))
        return
    progress = Progress(options["progress"])
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
    given = [f"{key}={value}" for key, value in named.items() if value is not None]
    return [*options["overrides"], *given]


@cli.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("sample_id", metavar="ID")
def explain(run: Path, sample_id: str) -> None:
    """Tell what became of the sample ID in RUN, stage by stage, and why."""
    from mmrlhf_engine.curate.explain import explain as tell
    from mmrlhf_engine.store import Run

    click.echo(tell(Run(run), sample_id))


@cli.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", default=5, show_default=True, type=click.IntRange(min=0))
def inspect(table: Path, rows: int) -> None:
    """Print the schema, the number of rows and the first rows of TABLE (a folder or a file)."""
    from mmrlhf_engine.curate.explain import inspect_table

    click.echo(inspect_table(table, rows))


@cli.command(name="config")
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
def show_config(file: Path | None, overrides: tuple[str, ...]) -> None:
    """Print every setting as resolved from FILE (or the defaults), as YAML."""
    from mmrlhf_engine.config import load_config, to_yaml
    from mmrlhf_engine.pipeline import CurateConfig

    click.echo(to_yaml(load_config(CurateConfig, file, overrides)), nl=False)


@cli.command()
@click.option("--out", default="demo_run", show_default=True, type=_PATH)
@click.option("--select", "count", default=300, show_default=True, type=click.IntRange(min=1))
@_run_options
def demo(out: Path, count: int, **options: Any) -> None:
    """Curate a real corpus from installed packages, offline, and write the page."""
    from mmrlhf_engine import demo as demonstration

    click.echo(demonstration.run(out, count, **options))


def main() -> None:
    """Entry point: every error a user can act on is printed without a traceback, exit code 1."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted; the same command goes on from here", err=True)
        sys.exit(130)
    except Exception as error:
        from mmrlhf_engine.errors import ConfigError, describe_error

        text = describe_error(error)
        if text is None:
            raise
        click.echo(f"error: {text}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
