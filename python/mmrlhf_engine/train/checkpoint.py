"""Checkpoints: a Hugging Face folder with the trainer's state beside the weights.

``checkpoints/step_000200/`` opens with ``from_pretrained``; ``trainer_state.pt`` in it has what
training needs to go on: optimizer, schedule, random generators, cursor of the data. A checkpoint is
written aside and renamed when every file is on disk, so that what has the name is whole.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mmrlhf_engine.errors import CorruptDataError, StageError

__all__ = ["SHARDED", "STATE", "Checkpoints", "copy_processor", "random_state", "set_random_state"]

_NAME = re.compile(r"step_(\d{6,})")
STATE = "trainer_state.pt"
SHARDED = "deepspeed"
"""Folder of the optimizer's states where DeepSpeed has them, a file a process."""
# What a folder of a model has besides weights and config.json, without which it is no whole model.
_OF_PROCESSOR = re.compile(
    r"(.*processor.*|tokenizer.*|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|.*\.jinja|.*\.model|generation_config\.json"
)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie.
        keep: How many are kept, the newest ones.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def newest(self) -> Path | None:
        """The checkpoint of the highest step; None where there is none."""
        found = self._found()
        return found[max(found)] if found else None

    def read_state(self, checkpoint: Path) -> dict[str, Any]:
        """The trainer's state of a checkpoint, tensors on the CPU.

        Raises:
            CorruptDataError: it cannot be read.
        """
        try:
            state: dict[str, Any] = torch.load(checkpoint / STATE, "cpu", weights_only=True)
        except Exception as error:
            raise CorruptDataError(
                f"{checkpoint / STATE}: cannot be read: {error}",
                hint="remove this checkpoint; the run goes on from the one before it",
            ) from None
        return state

    @contextlib.contextmanager
    def writing(self, step: int, accelerator: Accelerator) -> Iterator[Path]:
        """A folder to write the checkpoint of a step to, entered by all processes.

        On leaving it is whole and has its name, and the oldest ones are removed.

        Raises:
            StageError: the disk is full; checkpoints before this one are whole.
        """
        name = f"step_{step:06d}"
        partial = self.folder / f".{name}.partial"
        is_main = accelerator.is_main_process
        if is_main:
            self.remove_partial()
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            yield partial
            accelerator.wait_for_everyone()
            if is_main:
                _sync(partial)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not _is_full(error):
                raise
            newest = self.newest()
            raise StageError(
                f"{self.folder}: the disk is full; the checkpoint of step {step} was not written, "
                f"the newest one is {newest.name if newest else 'none'}",
                hint="make room, or checkpoint.keep=1; the same command goes on from there",
            ) from error
        if is_main:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            partial.rename(self.folder / name)
            _sync_folder(self.folder)
            self._remove_oldest()
        accelerator.wait_for_everyone()

    def _remove_oldest(self) -> None:
        found = self._found()
        for old in sorted(found)[: -self.keep]:
            # Renamed first: a folder that is half removed must not look like a checkpoint.
            gone = self.folder / f".{found[old].name}.partial"
            found[old].rename(gone)
            shutil.rmtree(gone)

    def remove_partial(self) -> None:
        """Remove what a killed process left half written or half removed."""
        for entry in self.folder.glob(".step_*.partial"):
            shutil.rmtree(entry, ignore_errors=True)

    def _found(self) -> dict[int, Path]:
        entries = self.folder.iterdir() if self.folder.is_dir() else iter(())
        named = {entry: _NAME.fullmatch(entry.name) for entry in entries}
        return {int(match[1]): entry for entry, match in named.items() if match}


def random_state() -> dict[str, Any]:
    """The state of the generators that a model may draw from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the generators of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def copy_processor(source: Path, target: Path) -> None:
    """Copy tokenizer, processor and generation settings of a model's folder."""
    for file in source.iterdir():
        if file.is_file() and _OF_PROCESSOR.fullmatch(file.name):
            shutil.copyfile(file, target / file.name)


def _is_full(error: Exception) -> bool:
    """Whether a disk is full; torch and safetensors say so in the text of their own errors."""
    return getattr(error, "errno", 0) == errno.ENOSPC or "No space left" in str(error)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _sync(folder: Path) -> None:
    """Wait until every file is on disk."""
    for file in _files(folder):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
