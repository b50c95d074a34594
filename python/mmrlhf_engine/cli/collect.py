"""The commands of the package ``collect``."""

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
from mmrlhf_engine.errors import ConfigError

__all__ = ["COMMANDS"]


@click.command()
@click.argument("sources", nargs=-1, type=FILE_OR_FOLDER)
@click.option("--out", required=True, type=FILE_OR_FOLDER, help="The run folder.")
@CONFIG
@SET
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="PART=FIELD",
    help="The field that holds a part, e.g. rank=overall_rank.",
)
@click.option(
    "--annotator", "annotators", multiple=True, metavar="NAME", help="Read these annotators alone."
)
@click.option("--pairs", type=click.Choice(["all", "hardest"]), help="Default all.")
@click.option("--ties", type=click.Choice(["keep", "drop"]), help="Pairs of equal rank.")
@click.option(
    "--contradictions",
    type=click.Choice(["keep", "drop", "by_score"]),
    help="A rank against the scores: by the rank (keep), none, or by the scores.",
)
@click.option(
    "--cycles", type=click.Choice(["tie", "drop"]), help="Pairs of majorities that go round."
)
@click.option(
    "--rank-from-scores/--no-rank-from-scores",
    default=None,
    help="Rows without ranks are ranked by their scores (default), or dropped.",
)
@click.option(
    "--margin-from-scores", is_flag=True, default=None, help="Write differences of mean scores."
)
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help="Share of families of queries for held_out.jsonl; default 0.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of what is held out.")
@click.option("--split", metavar="NAME", help="The split of folders with several; else train.")
@click.option(
    "--ignore-field",
    "ignore_fields",
    multiple=True,
    metavar="NAME",
    help="A field of rows to leave out, although it may be part of the prompt.",
)
@click.option("--root", type=FILE_OR_FOLDER, help="Media are named from here on.")
@click.option("--max-bad", metavar="SHARE", help="Stop when more of the rows are bad, e.g. 1%.")
@click.option("--restart", is_flag=True, help="Remove what is there, and begin again.")
@PROGRESS
def pair(
    sources: tuple[Path, ...],
    out: Path,
    config_file: Path | None,
    overrides: tuple[str, ...],
    restart: bool,
    progress: Any,
    **options: Any,
) -> None:
    """Turn annotations into preference pairs.

    SOURCES are jsonl, json and parquet files, or folders, of MM-RLHF's data.jsonl or of rows of a
    query, its answers and what one annotator says of them. OUT/08_pair has pairs.jsonl and
    held_out.jsonl, which mmrlhf-engine pack reads, and lists what was left out, and why.
    """
    from mmrlhf_engine.collect import pair as command
    from mmrlhf_engine.run.command import run_command
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    root = options["root"]
    named = {
        **options,
        "root": str(root) if root is not None else None,
        "sources": [str(source) for source in sources] or None,
        "fields": _fields(options["fields"]),
        "annotators": list(options["annotators"]) or None,
        "ignore_fields": list(options["ignore_fields"]) or None,
    }
    config = load_config(command.PairConfig, config_file, [*overrides, *as_overrides(named)])
    with interruptible("pair does not resume; run it again"):
        report = run_command(command.STAGE, config, out, Progress(progress), restart=restart)
    click.echo(command.describe(report))


def _fields(given: tuple[str, ...]) -> dict[str, str] | None:
    """``PART=FIELD`` as a dictionary."""
    fields = {}
    for argument in given:
        part, equals, name = argument.partition("=")
        if not equals or not part or not name:
            raise ConfigError(f"--field {argument!r}: expected PART=FIELD")
        fields[part] = name
    return fields or None


COMMANDS = (pair,)
