"""Public benchmarks by lmms-eval, which is not part of this package: a checkpoint is handed to it.

It runs as a process of its own, ``python -m lmms_eval``, and what it writes becomes the section
``benchmarks``. ``tasks`` are its names, or ``paper``, the benchmarks of ``paper_benchmarks.yaml``.
"""

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import PositiveInt

from mmrlhf_engine.errors import ConfigError, InputError, MissingExtraError, StageError
from mmrlhf_engine.measure.section import write_section
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.folder import folder_name, read_json
from mmrlhf_engine.run.stage import Stage, StageContext

__all__ = [
    "KINDS",
    "STAGE",
    "Benchmark",
    "BenchmarksConfig",
    "command_line",
    "command_text",
    "paper_benchmarks",
]

KINDS = {
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "internvl": "internvl_hf",
    "gemma3": "gemma3",
}
"""Models of lmms-eval by ``model_type``; checkpoints here are those of transformers."""


_RESULTS = "results"


class BenchmarksConfig(Section):
    """Settings of ``benchmarks``."""

    model: str
    """A checkpoint of transformers: a folder, or a name on the hub with ``kind``."""
    tasks: tuple[str, ...]
    """Names of lmms-eval, or ``paper``."""
    kind: str | None = None
    """The model class of lmms-eval; null is by the ``model_type`` of the checkpoint."""
    batch_size: PositiveInt = 1
    """Questions that are answered at once."""
    limit: PositiveInt | None = None
    """Questions of each task, the first ones; null is all."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper."""

    name: str
    dimension: str
    tasks: tuple[str, ...]
    """Of lmms-eval; none if it does not have it."""
    better: str
    """``higher`` or ``lower``."""
    judge: bool
    """Whether it asks a judge over the network."""


def paper_benchmarks() -> list[Benchmark]:
    """The 27 benchmarks of MM-RLHF in the order of its dimensions."""
    text = files("mmrlhf_engine.measure").joinpath("paper_benchmarks.yaml").read_text("utf-8")
    return [Benchmark(**{**row, "tasks": tuple(row["tasks"])}) for row in yaml.safe_load(text)]


def command_line(config: BenchmarksConfig, out: Path) -> list[str]:
    """The words of the command.

    Args:
        config: What to run.
        out: The folder that lmms-eval writes its results to.

    Raises:
        ConfigError: no task is named, the model's class is not known, or its path has a comma.
    """
    if "," in config.model:
        raise ConfigError(
            f"model: found {config.model!r}: lmms-eval reads a comma as the end of a value",
            hint="a link without a comma to the folder",
        )
    words = [sys.executable, "-m", "lmms_eval", "--model", _kind(config)]
    words += ["--model_args", f"pretrained={config.model}"]
    words += ["--tasks", ",".join(_tasks(config.tasks)), "--batch_size", str(config.batch_size)]
    if config.limit is not None:
        words += ["--limit", str(config.limit)]
    return [*words, "--output_path", str(out)]


def command_text(config: BenchmarksConfig, out: Path) -> str:
    """The command of a run folder as a line for a shell."""
    folder = out / folder_name("evaluate") / STAGE.name
    return shlex.join(command_line(config, folder / _RESULTS))


def _tasks(names: Sequence[str]) -> list[str]:
    known = [task for benchmark in paper_benchmarks() for task in benchmark.tasks]
    tasks = [task for name in names for task in (known if name == "paper" else [name])]
    if not tasks:
        raise ConfigError("tasks: found none, expected names of lmms-eval, or paper")
    return list(dict.fromkeys(tasks))


def _kind(config: BenchmarksConfig) -> str:
    if config.kind is not None:
        return config.kind
    file = Path(config.model) / "config.json"
    found = str((read_json(file) or {}).get("model_type"))
    if found not in KINDS:
        where = f"{file}: model_type: found {found}" if file.exists() else f"{file}: no such file"
        raise ConfigError(
            f"{where}, expected one of {', '.join(KINDS)}",
            hint="--kind NAME, the model class of lmms-eval",
        )
    return KINDS[found]


def read_results(folder: Path) -> dict[str, dict[str, float]]:
    """Numbers by task and metric, from the newest results that lmms-eval has written.

    Raises:
        StageError: there are none.
    """
    found = sorted(folder.rglob("*results.json"), key=lambda file: file.stat().st_mtime)
    results = (read_json(found[-1]) or {}).get("results") if found else None
    if not isinstance(results, Mapping):
        raise StageError(f"{folder}: lmms-eval has ended without results")
    return {
        task: {
            # Names are "metric,filter"; the filter "none" is no part of a metric.
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, metrics in results.items()
    }


def run(config: BenchmarksConfig, context: StageContext) -> None:
    """Run lmms-eval on the checkpoint, and take over its results."""
    results = context.folder / _RESULTS
    results.mkdir()
    words = command_line(config, results)
    # Results of a command go to stdout, and what a process says on the way does not.
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            sys.stderr.write(line)
    if process.returncode:
        code = process.returncode
        raise StageError(f"lmms-eval ended with exit code {code}: {shlex.join(words)}")
    found, tasks = read_results(results), _tasks(config.tasks)
    facts = {task: one for one in paper_benchmarks() for task in one.tasks}
    section = {
        "model": config.model,
        "tasks": {
            task: {
                "benchmark": facts[task].name if task in facts else None,
                "dimension": facts[task].dimension if task in facts else None,
                "better": facts[task].better if task in facts else None,
                "metrics": metrics,
            }
            for task, metrics in found.items()
        },
        "not_in_lmms_eval": [one.name for one in paper_benchmarks() if not one.tasks]
        if "paper" in config.tasks
        else [],
        "limit": config.limit,
    }
    write_section(context, json.loads(json.dumps(section)))
    missing = sum(task not in found for task in tasks)
    dropped = {"no_result": missing} if missing else {}
    context.finish(rows_in=len(tasks), rows_out=len(tasks) - missing, dropped=dropped)


def _external(config: BenchmarksConfig) -> list[object]:
    command_line(config, Path())
    if importlib.util.find_spec("lmms_eval") is None:
        raise MissingExtraError("lmms-eval", extra="evaluate", needed_for="evaluate lmms-eval")
    folder = Path(config.model)
    if config.kind is not None and not folder.exists():
        return [config.model]
    if not folder.is_dir():
        raise InputError(f"{folder}: found no folder, expected a checkpoint")
    entries = sorted(entry for entry in folder.iterdir() if entry.is_file())
    return [[entry.name, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in entries]


STAGE = Stage(
    name="benchmarks",
    config=BenchmarksConfig,
    run=run,
    writes=("section.json", _RESULTS),
    external=_external,
)
