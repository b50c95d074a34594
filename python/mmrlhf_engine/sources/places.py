"""Where the names of media start, and in which folders the files they mean may lie."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmrlhf_engine._core import inspect_named_media

__all__ = ["NOWHERE", "MediaPlaces", "inspect_names", "repository_of"]


@dataclass(frozen=True)
class MediaPlaces:
    """The folders that a name in a record is looked for in, and those it may lead to."""

    starts: tuple[Path, ...]
    """A name is looked for from each of these on, in this order; the first file counts."""
    within: tuple[Path, ...]
    """A file must lie below one of these, after links are followed."""
    follow_links: bool = False
    """Whether links may lead elsewhere; a name itself, as by ``../``, never may."""

    @classmethod
    def of(
        cls, starts: Iterable[Path], within: Iterable[Path], *, follow_links: bool = False
    ) -> "MediaPlaces":
        """The places of a source; those a repository of the Hugging Face cache adds come along."""
        starts, within = tuple(dict.fromkeys(starts)), tuple(within)
        repositories = (repository_of(folder) for folder in (*starts, *within))
        allowed = (*within, *(folder for folder in repositories if folder is not None))
        return cls(starts, tuple(dict.fromkeys(allowed)), follow_links)

    def allow(self, path: Path) -> bool:
        """Whether an existing file that was found in the source, maybe a link, may be read."""
        if self.follow_links or not path.is_symlink():
            return True
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in self.within)


NOWHERE = MediaPlaces((), ())
"""Names lead nowhere."""


def repository_of(path: Path) -> Path | None:
    """The folder of the repository that a snapshot in the cache of the Hugging Face Hub is of.

    A snapshot is ``REPOSITORY/snapshots/COMMIT``; its files are links into ``REPOSITORY/blobs``.
    """
    for folder in (path, *path.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and (repository / "blobs").is_dir():
            return repository
    return None


def inspect_names(places: MediaPlaces, names: Iterable[str], **limits: int) -> Any:
    """What the files of these names are, as :func:`inspect_named_media` says it.

    ``limits`` are ``max_pixels`` and ``threads``.
    """
    return inspect_named_media(
        list(places.starts),
        pa.array(names, pa.large_string()),
        within=list(places.within),
        follow_links=places.follow_links,
        max_pixels=limits["max_pixels"],
        threads=limits["threads"],
    )
