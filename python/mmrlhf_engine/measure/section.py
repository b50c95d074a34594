"""Sections of the scorecard: each evaluation has a folder in ``OUT/14_evaluate``, and is one.

``OUT/scorecard.json`` holds the sections of all finished evaluations, and ``OUT/report.html`` shows
them. Several commands into one ``OUT`` add to each other; a command that runs again replaces its
own section.
"""

import json
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.report import write_page
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import folder_name, locked, read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Resources, Stage, StageContext, run_stage

__all__ = ["read_scorecard", "run_evaluation", "write_section"]


def write_section(context: StageContext, section: dict[str, Any]) -> None:
    """Write what an evaluation found, for the scorecard."""
    content = json.dumps(section, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(context.folder / "section.json", content + "\n")


def run_evaluation(
    stage: Stage, config: Section, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Run one evaluation in ``out/14_evaluate/NAME``, then write the scorecard and its page.

    Args:
        stage: The evaluation; its name is that of its section.
        config: Its settings.
        out: The run folder.
        progress: What is said on the way.

    Returns:
        The section.

    Raises:
        MmrlhfError: a setting or an input does not fit; the sections that are there stay.
    """
    for file in (out / "scorecard.json", out / "report.html"):
        if file.is_dir():
            raise InputError(
                f"{file}: found a folder, expected a file or none", hint="another --out"
            )
    folder = out / folder_name("evaluate")
    with locked(folder):
        resources = Resources(progress=progress or Progress("silent"))
        run_stage(stage, config, folder / stage.name, resources)
        found = read_scorecard(out)
        content = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(out / "scorecard.json", content + "\n")
        write_page(out.resolve().name, found, out / "report.html")
    section: dict[str, Any] = found[stage.name]
    return section


def read_scorecard(out: Path) -> dict[str, Any]:
    """The sections of all finished evaluations of a run folder, by name in alphabetical order."""
    folder = out / folder_name("evaluate")
    finished = sorted(file.parent for file in folder.glob("*/manifest.json"))
    return {one.name: read_json(one / "section.json") for one in finished}
