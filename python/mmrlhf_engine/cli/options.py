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
    "Grouped",
    "Interrupted",
    "as_overrides",
    "interruptible",
    "option",
    "run_options",
    "setting",
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


class _GroupedOption(click.Option):
    """An option with the heading it stands under in ``--help``, and the setting it is."""

    def __init__(
        self, *arguments: Any, group: str = "Options", key: str | None = None, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self.group = group
        self.key = key

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in brackets; without the range, which the error of a wrong value says."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class Grouped(click.Command):
    """A command whose ``--help`` shows its options under headings, in the order they first come."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group with its heading, those of no group last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        # Equal names make equal columns in all groups.
        width = max(len(name) for records in groups.values() for name, _ in records)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in records])

    @property
    def settings(self) -> dict[str, str]:
        """Name of a parameter -> the dotted setting that it stands for."""
        options = (entry for entry in self.params if isinstance(entry, _GroupedOption))
        return {str(entry.name): entry.key for entry in options if entry.key is not None}


def option(*names: str, group: str, **more: Any) -> Callable[[Any], Any]:
    """An option of a :class:`Grouped` command, under this heading."""
    return click.option(*names, cls=_GroupedOption, group=group, **more)


def setting(name: str, key: str, *, group: str, **more: Any) -> Callable[[Any], Any]:
    """An option that is short for ``--set KEY=VALUE``."""
    return option(name, key.replace(".", "_"), group=group, key=key, **more)


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
