"""The command ``demo``."""

from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import FILE_OR_FOLDER, interruptible, run_options

__all__ = ["COMMANDS"]


@click.command()
@click.option("--out", default="demo_run", show_default=True, type=FILE_OR_FOLDER)
@click.option(
    "--select",
    "count",
    type=click.IntRange(min=1),
    help="Queries to choose; default 12000, with --curate-only 300.",
)
@click.option("--curate-only", is_flag=True, help="End with the curated queries.")
@run_options
def demo(out: Path, count: int | None, curate_only: bool, **options: Any) -> None:
    """Curate a small real corpus and align a small model, offline.

    OUT/report.html is the page: what became of the rows, and how much better the model answers.
    """
    from mmrlhf_engine import demo as demonstration

    with interruptible("the same command resumes the run"):
        click.echo(demonstration.run(out, count, curate_only=curate_only, **options))


COMMANDS = (demo,)
