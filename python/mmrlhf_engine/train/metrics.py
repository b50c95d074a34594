"""Metrics of a run: ``metrics.jsonl``, TensorBoard, Weights & Biases, and the line of progress.

``metrics.jsonl`` is the record, one JSON object a line: ``{"step": 12, "loss": 0.61, ...}``. An
evaluation is a line of its own whose names begin with ``eval_``. A run that is resumed at a
checkpoint removes what an earlier process logged after it, so that no step is there twice.
"""

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from mmrlhf_engine.errors import ConfigError, CorruptDataError, MissingExtraError
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.train.progress import StepLine, is_evaluation

__all__ = ["MetricsWriter", "read_metrics", "require_trackers"]

_WANDB_PROJECT = "mmrlhf-engine"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none if there is no such file.

    A last line that was not written to its end is left out.

    Raises:
        CorruptDataError: another line is not a JSON object with a ``step``.
    """
    return [record for _, record in _lines(file)]


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as text and as what it says."""
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode()
            record = json.loads(text)
            record["step"] + 0
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                return
            raise CorruptDataError(
                f"{file}, line {number}: {line[:80]!r} is not a JSON object with a number `step`",
                hint="remove the line",
            ) from None
        yield text, record


def _remove_after(file: Path, step: int) -> None:
    """Remove the lines of later steps and a half line; step 0 is before the run: every line."""
    if not file.exists():
        return
    kept = [text for text, record in _lines(file) if 0 < step >= record["step"]]
    content = "".join(f"{text}\n" for text in kept)
    if content.encode() != file.read_bytes():
        write_atomically(file, content)


def require_trackers(track: Sequence[str]) -> None:
    """Import what trackers need, so that a missing package is known before any work.

    Raises:
        ConfigError: a name is no tracker.
        MissingExtraError: a package is not installed.
    """
    for name in track:
        if name not in _TRACKERS:
            raise ConfigError(f"track: {name!r} is unknown; expected one of {sorted(_TRACKERS)}")
        try:
            _TRACKERS[name].require()
        except ImportError:
            raise MissingExtraError(name, extra="track", needed_for=f"track: {name}") from None


class MetricsWriter:
    """Writes the metrics of a run to its folder, to trackers and to the progress.

    One process of a run has one; :meth:`close` ends it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        track: Sequence[str] = (),
        run_name: str,
        config: Mapping[str, Any],
        progress: Progress,
        command: str,
        after_step: int = 0,
    ) -> None:
        """Open the files of a run.

        Args:
            folder: the run's; ``metrics.jsonl``, ``tensorboard/``, ``wandb/`` and
                ``wandb_run_id`` are written there.
            track: of ``tensorboard`` and ``wandb``.
            run_name: shown by trackers.
            config: the settings of the run, shown by trackers.
            progress: told of every line.
            command: named on the line of progress.
            after_step: the step that a resumed run goes on from; what was logged after it is
                removed; with 0 that is all of them.

        Raises:
            ConfigError: a name in ``track`` is unknown, or wandb does not start.
            MissingExtraError: the package of a tracker is not installed.
            CorruptDataError: ``metrics.jsonl`` is damaged.
        """
        require_trackers(track)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "metrics.jsonl"
        _remove_after(file, after_step)
        self._progress = progress
        self._line = StepLine(command)
        self._command = command
        self._unkept: tuple[str, dict[str, object]] | None = None
        self._trackers: list[_Tracker] = []
        self._file = file.open("a", encoding="utf-8")
        try:
            for name in track:
                tracker = _TRACKERS[name](folder, run_name, config, after_step)
                self._trackers.append(tracker)
                if tracker.place:
                    progress.say(f"{name}: {tracker.place}")
        except BaseException:
            self.close()
            raise

    def log(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        """Write one line: of a training step, or of an evaluation if every name says ``eval_``.

        Args:
            step: of the optimizer, from 1; an evaluation before the first has 0.
            total_steps: how many the run is to have.
            values: name -> number. What is not finite is null in ``metrics.jsonl``.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}, sort_keys=True, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(step, values)
        text = self._line.text(step, total_steps, values)
        stage = {"stage": self._command, "step": step, "total_steps": total_steps}
        facts: dict[str, object] = {**stage, "values": finite}
        keep = is_evaluation(values)
        self._progress.measure(text, facts, keep=keep)
        if not keep:
            self._unkept = text, facts

    def close(self) -> None:
        """Leave the line of the last step on the terminal and close every file and tracker."""
        if self._unkept is not None:
            self._progress.measure(*self._unkept, keep=True)
            self._unkept = None
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


class _Tracker(Protocol):
    """Where metrics go as well."""

    place: str | None
    """What to tell the user about where they are."""

    def __init__(
        self, folder: Path, run_name: str, config: Mapping[str, Any], after_step: int
    ) -> None: ...

    @staticmethod
    def require() -> None:
        """Raise ImportError if a package is missing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of a step."""

    def close(self) -> None:
        """Write what is left."""


class _TensorBoard:
    """Event files under ``tensorboard/``."""

    place: str | None = None

    def __init__(
        self, folder: Path, run_name: str, config: Mapping[str, Any], after_step: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers leave out what earlier files hold of this step and later ones.
        purge_step = after_step + 1 if after_step else 0
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        settings = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        # Four spaces make it a block of code in Markdown, which the page of TensorBoard shows.
        block = "".join(f"    {line}\n" for line in settings.splitlines())
        self._writer.add_text("config", f"{run_name}\n\n{block}", after_step)
        self._writer.flush()

    @staticmethod
    def require() -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # A process that is killed loses nothing of the steps before its checkpoint.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, which a resumed run goes on with.

    wandb keeps one row a step and takes no step twice: of steps that an earlier process logged
    after the checkpoint, the earlier values stay.
    """

    place: str | None

    def __init__(
        self, folder: Path, run_name: str, config: Mapping[str, Any], after_step: int
    ) -> None:
        import wandb

        id_file = folder / "wandb_run_id"
        if not after_step or not id_file.exists():
            write_atomically(id_file, secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _WANDB_PROJECT),
                dir=folder,
                id=id_file.read_text().strip(),
                name=run_name,
                config=dict(config),
                allow_val_change=True,
                resume="allow",
                # The moving line of progress is not to be sent to the server.
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"track: wandb does not start: {error}",
                hint="`wandb login`, or WANDB_MODE=offline to upload later by `wandb sync`",
            ) from error
        self._first_step = self._run.step
        self.place = self._run.settings.sync_dir if self._run.offline else self._run.url

    @staticmethod
    def require() -> None:
        # A folder `wandb` in the working directory can be imported too, but has no such name.
        from wandb import init  # noqa: F401

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, type[_Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}
