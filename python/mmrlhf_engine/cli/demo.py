"""The command ``demo``."""

from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import FILE_OR_FOLDER, interruptible, run_options

__all__ = ["COMMANDS"]


@click.command()
@click.option("--out", default="demo_run", show_default=True, type=FILE_OR_FOLDER)
@click.option("--select", "count", default=300, show_default=True, type=click.IntRange(min=1))
@run_options
def demo(out: Path, count: int, **options: Any) -> None:
    """Curate a small real corpus offline and write the report."""
    from mmrlhf_engine import demo as demonstration

    with interruptible("the same command resumes the run"):
        click.echo(demonstration.run(out, count, **options))


COMMANDS = (demo,)
