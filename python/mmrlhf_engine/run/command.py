"""Running one command: in ``RUN/13_mm_dpo`` for a stage, in ``RUN/extra/sft`` else."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.differences import differences
from mmrlhf_engine.run.folder import STAGE_ORDER, folder_name, locked, read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import (
    Resources,
    Stage,
    StageContext,
    fingerprint,
    is_finished,
    run_stage,
)

__all__ = ["finished_report", "place_of", "run_command"]


def place_of(stage: Stage, out: Path) -> Path:
    """The folder of a command in a run folder."""
    if stage.name in STAGE_ORDER:
        return out / folder_name(stage.name)
    return out / "extra" / stage.name


def finished_report(stage: Stage, out: Path) -> dict[str, Any] | None:
    """The report of finished work in a run folder; None where there is none, or none is seen."""
    folder = place_of(stage, out)
    # Without a manifest the folder holds what an interrupted run has left.
    return (
        read_json(folder / "report.json") if os.access(folder / "manifest.json", os.R_OK) else None
    )


def run_command(
    stage: Stage,
    config: Section,
    out: Path,
    progress: Progress | None = None,
    *,
    restart: bool = False,
) -> dict[str, Any]:
    """Run one command; its report, with ``folder``. Of several processes the first one writes.

    Args:
        stage: The command.
        config: Its settings.
        out: The run folder.
        progress: What is said on the way.
        restart: Remove what an earlier attempt has left, and begin again.

    Raises:
        MmrlhfError: a setting or an input does not fit, or the work failed; the same call goes on
            where this one stopped.
    """
    folder = place_of(stage, out)
    if int(os.environ.get("RANK", "0")) != 0:
        return _follow(stage, config, folder, restart=restart)
    with locked(folder):
        if restart:
            _clear(folder)
        _refuse_other(stage, config, folder)
        resources = Resources(progress=progress or Progress("silent"))
        report = run_stage(stage, config, folder, resources)
    return {**report, "folder": str(folder)}


def _refuse_other(stage: Stage, config: Section, folder: Path) -> None:
    """Keep the finished work of other settings, which would be cleared.

    Raises:
        ConfigError: it is there; the message says what differs.
    """
    manifest = read_json(folder / "manifest.json")
    if manifest is None or not stage.writes:
        return
    made_from, kept = fingerprint(stage, config, 0, None), manifest["fingerprint"]
    if all(made_from[part] == kept[part] for part in ("config", "external")):
        return
    before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    now = config.model_dump(mode="json", exclude=set(stage.no_effect_on_output))
    lines = [line for key in now for line in differences(key, before.get(key), now[key])]
    raise ConfigError(
        f"{folder}: holds what was made under other settings or inputs: "
        + ("; ".join(lines) or "the shards, their columns or the model are others"),
        hint="--restart removes it and begins again; or another --out",
    )


class _Follower(StageContext):
    """The context of a process that takes part in a stage which another one runs."""

    def finish(self, **_: Any) -> None:
        """Leave the records to the first process."""


def _follow(stage: Stage, config: Section, folder: Path, *, restart: bool) -> dict[str, Any]:
    """Take part in the work of a stage; the first process skips one that is finished."""
    if restart or not is_finished(folder, fingerprint(stage, config, 0, None)):
        stage.run(config, _Follower(stage, config, folder, None, Resources()))
    return {"folder": str(folder)}


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()
