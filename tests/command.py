"""Running the command line in this process, and as installed."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

from mmrlhf_engine.cli import main

INSTALLED = Path(sys.executable).with_name("mmrlhf-engine")


def engine(*arguments, cwd=None):
    """The entry point in this process, as it would run in one of its own."""
    words = ["mmrlhf-engine", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def installed(*arguments, cwd=None):
    """The installed command in a process of its own."""
    return subprocess.run(
        [INSTALLED, *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )
