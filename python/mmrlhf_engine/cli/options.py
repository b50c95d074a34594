"""What several commands share: types of arguments, options, and the sentence after Ctrl-C."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

__all__ = [
    "CONFIG",
    "DATASET",
    "FILE_OR_FOLDER",
    "MEMORY",
    "PROGRESS",
    "SET",
    "THREADS",
    "VERSION",
    "Interrupted",
    "as_overrides",
    "interruptible",
    "run_options",
]

FILE_OR_FOLDER = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True)
DATASET = click.Path(path_type=Path, exists=True, file_okay=False)

CONFIG = click.option("--config", "config_file", type=EXISTING, help="Settings, as YAML.")
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting.")
THREADS = click.option("--threads", type=click.IntRange(min=0), help="Threads; 0 = one per core.")
MEMORY = click.option("--memory", metavar="SIZE", help="Memory to stay within, for example 4G.")
SEED = click.option("--seed", type=int, help="Seed of everything random.")
PROGRESS = click.option(
    "--progress",
    type=click.Choice(["human", "jsonl", "silent"]),
    default="human",
    show_default=True,
    help="What is written to stderr.",
)
VERSION = click.option("--version", type=click.IntRange(min=1), help="Default: the highest.")


class Interrupted(click.ClickException):
    """Ctrl-C, with what became of the work."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """Print the sentence to stderr."""
        click.echo(f"\n{self.message}", file=file, err=True)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that runs stages."""
    for option in (PROGRESS, SEED, MEMORY, THREADS):
        command = option(command)
    return command


def as_overrides(settings: dict[str, Any]) -> list[str]:
    """Options that were given as ``key=value``; JSON is YAML, so no text is taken for a number."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items() if value is not None]


@contextlib.contextmanager
def interruptible(sentence: str) -> Iterator[None]:
    """Ctrl-C within ends the command with this sentence and exit code 130.

    Raises:
        Interrupted: on KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {sentence}") from None
