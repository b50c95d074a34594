"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["appearing", "link_or_copy", "write_atomically"]


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A place to write to; on leaving, what lies there becomes ``path``, whole.

    Whatever goes wrong, ``path`` is either absent, the old file, or the whole new one.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str) -> None:
    """Write a small text file by :func:`appearing`."""
    with appearing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def link_or_copy(file: Path, path: Path) -> None:
    """Make ``path`` another name of ``file``, or a copy where the file system has no hard links."""
    try:
        path.hardlink_to(file)
    except OSError:
        with appearing(path) as temporary:
            shutil.copyfile(file, temporary)
