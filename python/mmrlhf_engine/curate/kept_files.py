"""Files that a stage keeps for its next run, by what they were made from.

The name of a file is a hash of what it was made from and a hash of its content. A file that is
damaged is said, and made again; what a run has not asked for is removed at its end. Files appear
when they are complete, and need not be synced, as their content is compared with their name.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrlhf_engine._core import file_hash
from mmrlhf_engine.run.progress import Progress

__all__ = ["KeptFiles"]


class KeptFiles:
    """The files below a folder, but for those of ``others``, which are somebody else's.

    Args:
        folder: Made when something is kept.
        progress: Where it is said that a file is damaged.
        others: Names of folders in it.
    """

    def __init__(self, folder: Path, progress: Progress, others: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._progress = progress
        self._others = others
        self._asked: set[Path] = set()

    def file(self, kind: str, suffix: str, made_from: list[Any]) -> Path:
        """What is made from these JSON values is called so; it is asked for by this run."""
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        file = self.folder / kind / f"{digest[:32]}.{suffix}"
        self._asked.add(file)
        return file

    def find(self, file: Path) -> Path | None:
        """Where it is, if it is there and as it was written."""
        for found in file.parent.glob(f"{file.stem}-*{file.suffix}"):
            if found.stem == f"{file.stem}-{file_hash(found)}":
                return found
            self._progress.say(f"{found} is damaged, and is made again")
            found.unlink()
        return None

    def put(self, file: Path, write: Callable[[Path], None]) -> Path:
        """Have it written, in the place of an older one; where it is."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.stem}.tmp{file.suffix}")
        try:
            write(temporary)
            new = file.with_name(f"{file.stem}-{file_hash(temporary)}{file.suffix}")
            for old in file.parent.glob(f"{file.stem}-*{file.suffix}"):
                old.unlink()
            return temporary.replace(new)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self) -> int:
        """Remove what was not asked for; the bytes of all that is left, those of others too."""
        left = 0
        for file in self.folder.rglob("*"):
            if not file.is_file():
                continue
            is_others = file.relative_to(self.folder).parts[0] in self._others
            if is_others or file.with_stem(file.stem.partition("-")[0]) in self._asked:
                left += file.stat().st_size
            else:
                file.unlink()
        return left
