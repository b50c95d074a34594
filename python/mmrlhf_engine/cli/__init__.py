"""The command line: reads what was asked, calls one function, maps the outcome to an exit code.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the work failed (for
``verify``: damage), 2 the command or a setting is wrong (for ``verify``: a version of the format
that this one does not read), 130 interrupted. Commands import what they call when they are called,
so that ``--help`` answers at once.
"""

import sys

import click

from mmrlhf_engine import __version__
from mmrlhf_engine.cli import collect, curate, demo, measure, pack, shards, train

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """From raw multimodal samples to an aligned model."""


for _package in (curate, collect, pack, shards, train, measure, demo):
    for _command in _package.COMMANDS:
        cli.add_command(_command)


def main() -> None:
    """Entry point: an error that a user can act on is printed without a traceback."""
    try:
        # Without standalone mode click returns the code of context.exit() in place of exiting.
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        sys.exit(130)
    except Exception as error:
        from mmrlhf_engine.errors import ConfigError, describe_error

        text = describe_error(error)
        if text is None:
            raise
        click.echo(f"error: {text}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    sys.exit(code if isinstance(code, int) else 0)
