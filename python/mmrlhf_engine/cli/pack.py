"""The command of the package ``pack``."""

import json
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import (
    CONFIG,
    FILE_OR_FOLDER,
    MEMORY,
    PROGRESS,
    SET,
    THREADS,
    as_overrides,
    interruptible,
)
from mmrlhf_engine.errors import ConfigError

__all__ = ["COMMANDS"]


@click.command()
@click.argument("sources", nargs=-1, type=FILE_OR_FOLDER)
@click.option(
    "--out", required=True, type=FILE_OR_FOLDER, help="The dataset; it appears when complete."
)
@CONFIG
@SET
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    help="A model whose processor gives tokenizer, chat template, image and video layout.",
)
@click.option("--tokenizer", metavar="NAME|FOLDER", help="For text alone, in place of --model.")
@click.option("--chat-template", metavar="FILE", help="A Jinja template in place of its own.")
@click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the chat template, e.g. enable_thinking=false (JSON).",
)
@click.option(
    "--image-rule",
    metavar="RULE",
    help="qwen2_vl, llava_onevision, internvl, none, or the folder of a processor.",
)
@click.option(
    "--strings",
    type=click.Choice(["chat", "plain"]),
    help="Bare texts: one turn each, or tokenised as they stand.",
)
@click.option(
    "--videos",
    type=click.Choice(["native", "frames"]),
    help="Videos as the model takes them, or each frame as an image.",
)
@click.option("--max-length", type=click.IntRange(min=1), help="Tokens of prompt and answer.")
@click.option("--over-long", type=click.Choice(["error", "drop", "shrink_image", "trim_text"]))
@click.option("--ties", type=click.Choice(["keep", "drop"]), help="Pairs of equal rank.")
@click.option("--format", metavar="NAME", help="The format of the rows; by content when not given.")
@click.option("--split", metavar="NAME", help="The split of folders with several; else train.")
@click.option(
    "--ignore-field",
    "ignore_fields",
    multiple=True,
    metavar="NAME",
    help="A field of rows or messages to leave out, although it may be part of the prompt.",
)
@click.option("--root", type=FILE_OR_FOLDER, help="Media are named from here on and lie below.")
@click.option("--max-bad", metavar="SHARE", help="Stop when more of the rows are bad, e.g. 1%.")
@click.option("--append", is_flag=True, default=None, help="Add to the dataset that is there.")
@THREADS
@MEMORY
@PROGRESS
def pack(
    sources: tuple[Path, ...],
    out: Path,
    config_file: Path | None,
    overrides: tuple[str, ...],
    progress: Any,
    **options: Any,
) -> None:
    """Pack preference pairs into memory-mapped shards.

    SOURCES are jsonl, json and parquet files, or folders, of MM-RLHF, TRL, ms-swift, LLaMA-Factory,
    RLAIF-V, UltraFeedback, HH-RLHF and other rows, which are told apart by content. OUT is the
    dataset; OUT/reports lists what was left out, and why.
    """
    from mmrlhf_engine.pack import pack as packing
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    root = options["root"]
    named = {
        **options,
        "root": str(root) if root is not None else None,
        "sources": [str(source) for source in sources] or None,
        "ignore_fields": list(options["ignore_fields"]) or None,
        "template_args": _template_args(options["template_args"]),
    }
    config = load_config(packing.PackConfig, config_file, [*overrides, *as_overrides(named)])
    with interruptible(
        "pack does not resume, and a dataset appears only when complete; run it again"
    ):
        report = packing.pack_dataset(config, out, Progress(progress))
    click.echo(packing.describe(report, out))


def _template_args(given: tuple[str, ...]) -> dict[str, Any] | None:
    """``NAME=VALUE`` as a dictionary; what is no JSON is text."""
    arguments: dict[str, Any] = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise ConfigError(f"--template-arg {argument!r}: expected NAME=VALUE")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments or None


COMMANDS = (pack,)
