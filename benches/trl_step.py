"""One step beside TRL's ``DPOTrainer``: seconds, tokens, memory, time until the first step.

Tiny LLaVA-OneVision and Qwen2-VL (``training/models.py``), the same pairs, frozen tower, AdamW and
weights; our pack, reference column and loop against the trainer as it ships and with the rows of
answers alone in its head, which TRL does on a GPU only. The trainer gets the pairs of each of our
steps, in our order, so that the losses of the steps must be equal::

    pip install trl datasets
    python benches/trl_step.py        # prints a line a case, writes benches/records
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from record import write_record

HERE = Path(__file__).parent
STEPS = 6
LATER_STEPS = {"ours": 3, "trl": 2, "trl_compact": 3}
"""Of a run in the rounds after the first; the first step of a run is in no ratio of steps."""
MANY = 240
"""Queries of the raw file that the time until the first step begins with."""
FAMILIES = ("llava_onevision", "qwen2_vl")
PEERS = ("trl", "trl_compact")
NOT_MEASURED = [
    "a GPU, bfloat16, several processes",
    "a model of a released size: widths, layers and pictures are small",
    "prompts and answers of different lengths, where a padded batch wastes more",
    "several pictures a query, videos, adapters, a tower that trains",
    "checkpointing of activations, except where it is asked for",
    "memory of MKL and oneDNN, of NumPy and of Rust; inputs that lie there before a step",
]


@dataclass(frozen=True)
class Case:
    """What is trained on."""

    family: str
    answer: int
    """Tokens of an answer; a prompt has 360."""
    answers: int
    """Of a query; every pair of them is trained on."""

    @property
    def queries(self) -> int:
        """Of a step: four pairs of two answers, or the six pairs of four."""
        return 4 if self.answers == 2 else 1

    @property
    def pairs(self) -> int:
        """Of a step."""
        return self.queries * self.answers * (self.answers - 1) // 2

    @property
    def tokens(self) -> int:
        """Of our step: the budget holds so many queries and no more."""
        return self.queries * (360 + self.answers * self.answer)


CASES = [
    Case(family, answer, answers)
    for answer, answers in ((24, 2), (90, 2), (24, 4))
    for family in FAMILIES
]
"""Answers of 24 and 90 tokens: prompt to answer 15:1 and 4:1."""


def main() -> None:
    """Measure, print and record, after each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-runs", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true", help="Of activations, in all.")
    arguments = parser.parse_args()
    parameters = vars(arguments) | {"steps": STEPS, "later_steps": LATER_STEPS, "many": MANY}
    rows = []
    with tempfile.TemporaryDirectory() as base:
        for case in CASES:
            folder = Path(base) / f"{case.family}-{case.answer}-{case.answers}"
            rows.append(_case(case, folder, arguments))
            print(json.dumps(rows[-1]), flush=True)
            print(write_record("trl_step", parameters, rows, NOT_MEASURED), flush=True)


def _case(case: Case, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    common = {
        "folder": str(folder),
        "tokens": case.tokens,
        "steps": STEPS,
        "checkpointing": arguments.checkpointing,
        "pairs_of_step": case.pairs,
    }
    sizes = {"queries": STEPS * case.queries, "many": MANY}
    common["rows"] = _run({**asdict(case), **common, **sizes, "what": "prepare"})
    steps = {
        name: [STEPS, *[later] * (arguments.rounds - 1)] for name, later in LATER_STEPS.items()
    }
    found = _run(common | {"what": "steps", "steps_of_rounds": steps})
    row = {**asdict(case), "pairs_of_step": case.pairs, **_summary(found)}
    row["memory"] = _memory(
        {name: _run(common | {"what": "memory", "contender": name}) for name in LATER_STEPS}
    )
    if case.answer == 24 and case.answers == 2:
        row["first_step"] = _first(common, arguments.first_runs)
    return row


def _summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of seconds, and of ratios of the runs of one round, with their spread."""
    seconds = {name: [_seconds(run) for run in runs] for name, runs in found.items()}
    losses = {name: runs[0]["losses"] for name, runs in found.items()}
    return {
        "losses": losses,
        "largest_difference": {
            name: max(abs(a - b) for a, b in zip(losses["ours"], losses[name], strict=True))
            for name in PEERS
        },
        "tokens_of_step": {name: runs[0]["tokens"][0] for name, runs in found.items()},
        "pictures_of_step": {name: runs[0]["pictures"][0] for name, runs in found.items()},
        "seconds_of_step": {
            name: {what: round(statistics.median(run[what] for run in runs), 4) for what in runs[0]}
            for name, runs in seconds.items()
        },
        "times_ours": {
            name: {
                what: _spread(
                    [b[what] / a[what] for a, b in zip(seconds["ours"], runs, strict=True)]
                )
                for what in runs[0]
            }
            for name, runs in seconds.items()
            if name in PEERS
        },
    }


def _seconds(run: dict[str, Any]) -> dict[str, float]:
    """Of a step: the mean without the first; with data, the whole run by its steps."""
    later = run["seconds"][1:]
    return {
        "wall": statistics.mean(step[0] for step in later),
        "processor": statistics.mean(step[1] for step in later),
        "wall_with_data": run["whole"][0] / len(run["seconds"]),
        "processor_with_data": run["whole"][1] / len(run["seconds"]),
    }


def _memory(found: dict[str, Any]) -> dict[str, Any]:
    """Bytes of each, and ours as a share of theirs, without and with their second model."""
    mine = found["ours"]
    return found | {
        "share_of": {
            name: {
                "step": round(mine["peak"] / found[name]["peak"], 3),
                "step_and_second_model": round(
                    mine["peak"] / (found[name]["peak"] + found[name]["second_model"]), 3
                ),
                "with_gradients": round(mine["with_gradients"] / found[name]["with_gradients"], 3),
            }
            for name in PEERS
        }
    }


def _first(common: dict[str, Any], runs: int) -> dict[str, Any]:
    """Medians of [wall, processor] seconds of each part."""
    parts: dict[str, list[dict[str, list[float]]]] = {name: [] for name in LATER_STEPS}
    for _ in range(runs):
        for name, found in parts.items():
            out = Path(common["folder"]) / "first"
            found.append(_run(common | {"what": "first", "contender": name, "out": str(out)}))
            shutil.rmtree(out)
    return {
        name: {
            part: [round(statistics.median(run[part][k] for run in found), 3) for k in (0, 1)]
            for part in found[0]
        }
        for name, found in parts.items()
    }


def _spread(values: list[float]) -> list[float]:
    """[median, smallest, largest]."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def _run(request: dict[str, Any]) -> Any:
    done = subprocess.run(
        [sys.executable, str(HERE / "training" / "measure.py"), json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{request}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
