"""Commands of the package ``shards``: inspect, verify, diff, gc, rekey, export."""

import json
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import DATASET, EXISTING, FILE_OR_FOLDER, VERSION

__all__ = ["COMMANDS"]


@click.command()
@click.argument("table", type=EXISTING)
@click.option("--rows", type=click.IntRange(min=0), help="To show; default: 5, on a page 20.")
@click.option("--tokenizer", metavar="NAME|FOLDER", help="Default: the one that is recorded.")
@click.option("--image-rule", metavar="FAMILY|FOLDER", help="Counts the tokens of images.")
@click.option("--tokens", type=click.IntRange(min=1), help="Budget of a pack; default: 16384.")
@click.option("--unit", type=click.Choice(["pair", "response", "query"]), help="Default: query.")
@click.option("--html", "page", type=FILE_OR_FOLDER, help="Write one page with pictures instead.")
@VERSION
def inspect(
    table: Path, rows: int | None, page: Path | None, version: int | None, **options: Any
) -> None:
    """Show what preference shards or a table hold.

    TABLE is a dataset of preference shards, a folder of Parquet parts, or a file. Of a dataset:
    totals, lengths, how full packs are, and pairs evenly spaced over it. A table has --rows alone.
    """
    from mmrlhf_engine.shards.dataset import is_dataset

    chosen = {name: value for name, value in options.items() if value is not None}
    if not is_dataset(table):
        from mmrlhf_engine.curate.explain import inspect_table

        if chosen or page is not None or version is not None:
            raise click.UsageError(f"{table} is no dataset of preference shards: --rows alone")
        click.echo(inspect_table(table, 5 if rows is None else rows))
        return
    from mmrlhf_engine.shards.inspect import InspectSettings
    from mmrlhf_engine.shards.inspect import inspect as describe
    from mmrlhf_engine.shards.inspect_page import write_page

    count = rows if rows is not None else 5 if page is None else 20
    settings = InspectSettings(rows=count, **chosen)
    if page is None:
        click.echo(describe(table, settings, version=version))
        return
    write_page(table, page, settings, version=version)
    click.echo(f"page: {page}")


@click.command()
@click.argument("path", type=DATASET)
@click.option("--deep", is_flag=True, help="Recompute content hashes, row keys and references too.")
@VERSION
@click.pass_context
def verify(context: click.Context, path: Path, deep: bool, version: int | None) -> None:
    """Check every byte of the shards at PATH.

    Exit code 0: good, 1: damaged, 2: a version of the format that this one does not read.
    """
    from mmrlhf_engine.shards import maintenance

    found = maintenance.verify(path, version=version, deep=deep)
    click.echo(found)
    context.exit({"good": 0, "damaged": 1, "wrong_version": 2}[found.status])


@click.command()
@click.argument("path", type=DATASET)
@click.argument("other", required=False, type=DATASET)
@click.option("--first", type=click.IntRange(min=1), help="Default: the one before the second.")
@click.option("--second", type=click.IntRange(min=1), help="Default: the highest.")
def diff(path: Path, other: Path | None, first: int | None, second: int | None) -> None:
    """Print the difference of two versions as JSON.

    Both are versions of PATH, or one of PATH and one of OTHER.
    """
    from mmrlhf_engine.shards import maintenance

    click.echo(json.dumps(maintenance.diff(path, other, first=first, second=second), indent=2))


@click.command()
@click.argument("path", type=DATASET)
@click.option("--keep", type=click.IntRange(min=1), help="Versions to keep; default: all.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed.")
def gc(path: Path, keep: int | None, dry_run: bool) -> None:
    """Remove files that no version needs, and old versions.

    Old versions of the dataset at PATH are removed with --keep alone.
    """
    from mmrlhf_engine.shards import maintenance

    removed = maintenance.gc(path, keep=keep, dry_run=dry_run)
    for file in removed.files:
        click.echo(file)
    verb = "would be removed" if dry_run else "removed"
    versions = len(removed.versions)
    click.echo(f"{verb}: {versions} versions, {len(removed.files)} files, {removed.bytes:,} bytes")


@click.command()
@click.argument("source", type=DATASET)
@click.argument("target", type=DATASET)
@click.option("--set", "column_set", required=True, help="For example reflogp/qwen2.5-vl-7b.")
def rekey(source: Path, target: Path, column_set: str) -> None:
    """Copy sidecar columns between datasets, row by content.

    Rows of TARGET get the values of the rows of SOURCE that have the same content.
    """
    from mmrlhf_engine.shards import maintenance

    done = maintenance.rekey(source, target, column_set)
    click.echo(f"version {done.version}: {done.matched:,} of {done.rows:,} rows have values")


@click.command()
@click.argument("path", type=DATASET)
@click.argument("out", type=FILE_OR_FOLDER)
@click.option("--to", required=True, type=click.Choice(["parquet", "trl", "webdataset"]))
@click.option(
    "--tokenizer",
    metavar="NAME|FOLDER",
    help="Decodes the text for trl; by default the one that the dataset records.",
)
@click.option(
    "--image-token", metavar="TEXT", help="Marks an image in the text; by default the tokenizer's."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
@VERSION
def export(path: Path, out: Path, to: Any, **options: Any) -> None:
    """Write shards in a form that other tools read.

    PATH is the dataset, OUT the file, or the folder for parquet.

    parquet: a file per table. trl: one Parquet file for TRL's DPOTrainer. webdataset: one tar.
    """
    from mmrlhf_engine.shards.export import export as write

    for file in write(path, out, to=to, **options):
        click.echo(file)


COMMANDS = (inspect, verify, diff, gc, rekey, export)
