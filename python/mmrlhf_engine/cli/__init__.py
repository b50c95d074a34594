"""The command line: reads what was asked, calls one function, maps the outcome to an exit code.

Results go to standard output, talk to standard error. Exit codes: 0 done, 1 the work failed, 2 the
command was wrong. Imports are inside the commands, so that ``--help`` answers at once.
"""

import json
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
    pack     preference pairs to memory-mapped shards
    inspect  schema and rows of a table, or of preference shards
    verify   check every byte of shards; diff, gc, rekey and export work on them too
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
    from mmrlhf_engine.curate import report
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

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


def _named(options: dict[str, Any]) -> list[str]:
    """Options that were given as overrides; JSON is YAML, so no text is taken for a number."""
    return [f"{key}={json.dumps(v)}" for key, v in options.items() if v is not None]


@cli.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("sample_id", metavar="ID")
def explain(run: Path, sample_id: str) -> None:
    """Tell what became of the sample ID in RUN, stage by stage, and why."""
    from mmrlhf_engine.curate.explain import explain as tell
    from mmrlhf_engine.run.folder import Run

    click.echo(tell(Run(run), sample_id))


@cli.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", default=5, show_default=True, type=click.IntRange(min=0))
def inspect(table: Path, rows: int) -> None:
    """Print the schema, the number of rows and the first rows of TABLE.

    TABLE is a folder of Parquet parts, a file, or a dataset of preference shards.
    """
    from mmrlhf_engine.curate.explain import inspect_table
    from mmrlhf_engine.shards import dataset

    shards = dataset.is_dataset(table)
    click.echo(dataset.inspect(table, rows) if shards else inspect_table(table, rows))


_DATASET = click.Path(path_type=Path, exists=True, file_okay=False)
_VERSION = click.option("--version", type=click.IntRange(min=1), help="Default: the highest.")


@cli.command()
@click.argument("path", type=_DATASET)
@click.option("--deep", is_flag=True, help="Compute hashes, names and references anew.")
@_VERSION
@click.pass_context
def verify(context: click.Context, path: Path, deep: bool, version: int | None) -> None:
    """Check every byte of the shards at PATH: exit code 0 good, 1 damaged, 2 another version."""
    from mmrlhf_engine.shards import dataset

    found = dataset.verify(path, version=version, deep=deep)
    click.echo(found)
    context.exit({"good": 0, "damaged": 1, "wrong_version": 2}[found.status])


@cli.command()
@click.argument("path", type=_DATASET)
@click.argument("other", required=False, type=_DATASET)
@click.option("--first", type=click.IntRange(min=1), help="Default: the one before the second.")
@click.option("--second", type=click.IntRange(min=1), help="Default: the highest.")
def diff(path: Path, other: Path | None, first: int | None, second: int | None) -> None:
    """Tell what changed between two versions at PATH, or from PATH to OTHER, as JSON."""
    import json

    from mmrlhf_engine.shards import dataset

    click.echo(json.dumps(dataset.diff(path, other, first=first, second=second), indent=2))


@cli.command()
@click.argument("path", type=_DATASET)
@click.option("--keep", type=click.IntRange(min=1), help="Versions to keep; default: all.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def gc(path: Path, keep: int | None, dry_run: bool) -> None:
    """Remove from PATH what no version needs, and all but the newest versions."""
    from mmrlhf_engine.shards import dataset

    removed = dataset.gc(path, keep=keep, dry_run=dry_run)
    for file in removed.files:
        click.echo(file)
    verb = "would be removed" if dry_run else "removed"
    versions = len(removed.versions)
    click.echo(f"{verb}: {versions} versions, {len(removed.files)} files, {removed.bytes:,} bytes")


@cli.command()
@click.argument("source", type=_DATASET)
@click.argument("target", type=_DATASET)
@click.option("--set", "column_set", required=True, help="For example reflogp/qwen2.5-vl-7b.")
def rekey(source: Path, target: Path, column_set: str) -> None:
    """Carry a column set from SOURCE to the rows of TARGET that have the same content."""
    from mmrlhf_engine.shards import dataset

    done = dataset.rekey(source, target, column_set)
    click.echo(f"version {done.version}: {done.matched:,} of {done.rows:,} rows have values")


@cli.command()
@click.argument("path", type=_DATASET)
@click.argument("out", type=_PATH)
@click.option("--to", required=True, type=click.Choice(["parquet", "trl", "webdataset"]))
@_VERSION
def export(path: Path, out: Path, to: Any, version: int | None) -> None:
    """Write the shards at PATH to OUT in a form others read."""
    from mmrlhf_engine.shards import dataset

    for file in dataset.export(path, out, to=to, version=version):
        click.echo(file)


@cli.command(name="config")
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
def show_config(file: Path | None, overrides: tuple[str, ...]) -> None:
    """Print every setting as resolved from FILE (or the defaults), as YAML."""
    from mmrlhf_engine.pipeline import CurateConfig
    from mmrlhf_engine.run.config import load_config, to_yaml

    click.echo(to_yaml(load_config(CurateConfig, file, overrides)), nl=False)


@cli.command()
@click.argument("sources", nargs=-1, type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The dataset; it appears when complete.")
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting.")
@click.option("--tokenizer", metavar="NAME|FOLDER", help="A fast tokenizer with a chat template.")
@click.option("--chat-template", metavar="FILE", help="A Jinja template in place of its own.")
@click.option(
    "--image-rule",
    metavar="RULE",
    help="qwen2_vl, llava_onevision, internvl, none, or the folder of a processor.",
)
@click.option("--max-length", type=click.IntRange(min=1), help="Tokens of prompt and answer.")
@click.option("--over-long", type=click.Choice(["error", "drop", "shrink_image", "trim_text"]))
@click.option("--ties", type=click.Choice(["keep", "drop"]), help="Pairs of equal rank.")
@click.option("--format", metavar="NAME", help="The format of the rows; by content when not given.")
@click.option("--root", type=_PATH, help="Media are named from here on and lie below.")
@click.option("--max-bad", metavar="SHARE", help="Stop when more of the rows are bad, e.g. 1%.")
@click.option("--append", is_flag=True, default=None, help="Add to the dataset that is there.")
@click.option("--threads", type=click.IntRange(min=0), help="Threads; 0 = one per core.")
@click.option("--progress", type=_VOICES, default="human", show_default=True)
def pack(
    sources: tuple[Path, ...],
    out: Path,
    config_file: Path | None,
    overrides: tuple[str, ...],
    progress: Any,
    **options: Any,
) -> None:
    """Pack preference data from SOURCES (jsonl, json, parquet) into the dataset OUT.

    MM-RLHF, TRL, ms-swift and LLaMA-Factory rows are told apart by content. What is left out, and
    why, is in OUT/reports.
    """
    from mmrlhf_engine.pack import pack as packing
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    root = options["root"]
    named = {
        **options,
        "root": str(root) if root is not None else None,
        "sources": [str(source) for source in sources] or None,
    }
    config = load_config(packing.PackConfig, config_file, [*overrides, *_named(named)])
    report = packing.pack_dataset(config, out, Progress(progress))
    click.echo(packing.describe(report, out))


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
