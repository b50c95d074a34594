"""Pictures that stand in records as base64, kept as byte ranges of one file of the stage.

Stages after ingest read media from where `media` says they are stored, and base64 within a JSON
text is no such place. Each distinct content of a source is written once.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import polars as pl

from mmrlhf_engine.run.files import appearing

__all__ = ["EmbeddedFile"]


class EmbeddedFile:
    """The file; it exists only if something was written, and appears when it is closed.

    Args:
        path: Where it is written.
        named: Where it will lie, as ``media`` says.
    """

    def __init__(self, path: Path, named: Path) -> None:
        self._path = path
        self._named = str(named)
        self._file: BinaryIO | None = None
        self._stack = ExitStack()
        self._end = 0

    def __enter__(self) -> "EmbeddedFile":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._stack.close()

    def place(self, media: pl.DataFrame) -> pl.DataFrame:
        """Rows of media with ``content`` (null where it is stored elsewhere), with their place.

        Returns:
            The rows with ``path``, ``offset`` and ``length`` set for those with content, which is
            dropped.
        """
        if media["content"].null_count() == media.height:
            return media.drop("content")
        places = [self._append(content) for content in media["content"]]
        schema = {"own_path": pl.String(), "own_offset": pl.UInt64(), "own_length": pl.UInt64()}
        own = pl.DataFrame(places, schema=schema, orient="row")
        placed = pl.concat([media.drop("content"), own], how="horizontal")
        columns = {name: pl.coalesce(f"own_{name}", name) for name in ("path", "offset", "length")}
        return placed.with_columns(**columns).drop(own.columns)

    def _append(self, content: bytes | None) -> tuple[str, int, int] | tuple[None, None, None]:
        if content is None:
            return (None, None, None)
        if self._file is None:
            temporary = self._stack.enter_context(appearing(self._path))
            self._file = self._stack.enter_context(temporary.open("wb"))
        self._file.write(content)
        start, self._end = self._end, self._end + len(content)
        return (self._named, start, len(content))
