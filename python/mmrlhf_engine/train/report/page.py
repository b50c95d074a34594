"""The page of a training run: one HTML file that needs no script and no other file.

It says how far the run is, what its measures were at first and at last, draws every measure over
the steps, and lists what was unusual and what the run was made of. Everything is read from
``metrics.jsonl``, ``config.yaml`` and ``facts.json`` of the run's folder.
"""

import datetime
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from mmrlhf_engine import __version__
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.train.metrics import read_metrics
from mmrlhf_engine.train.progress import format_duration
from mmrlhf_engine.train.report.charts import BINS, HEIGHT, WIDTH
from mmrlhf_engine.train.report.measures import Measures, Section, charts_of, measure_of

__all__ = ["write_training_page"]

_TILES = ("loss", "rewards/accuracies", "rewards/margins", "mean_token_accuracy")
"""Measures that stand large at the top, as far as a run has them."""
_UNUSUAL = ("unreadable", "skipped", "dropped")
"""Parts of the names of measures that count what should not happen."""
_NOT_ROWS = {"notes", "parameters_total", "parameters_trained", "pairs_held_out", "stopped"}
"""Facts that are told elsewhere than in a row of their own."""


def write_training_page(folder: Path, page: Path) -> None:
    """Write the page of the run in ``folder``; what the run has not written yet is left out.

    Raises:
        InputError: nothing in the folder is of a training run.
        CorruptDataError: a line of ``metrics.jsonl`` is damaged.
    """
    metrics, config, facts_file = (
        folder / name for name in ("metrics.jsonl", "config.yaml", "facts.json")
    )
    if not any(file.exists() for file in (metrics, config, facts_file)):
        raise InputError(
            f"{folder} has none of metrics.jsonl, config.yaml and facts.json",
            hint="name the folder of a training run",
        )
    facts = json.loads(facts_file.read_text("utf-8")) if facts_file.exists() else {}
    measures = Measures.of(read_metrics(metrics))
    resumed = sorted({int(step) for step in facts.get("resumed_at") or ()})
    template = files("mmrlhf_engine.train.report").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    sections = charts_of(measures, marks=resumed)
    text = environment.from_string(template).render(
        name=folder.resolve().name,
        version=__version__,
        command=facts.get("command", "training"),
        state=_state(measures, facts),
        notes=_notes(measures, facts),
        tiles=_tiles(measures),
        ends=_ends(measures),
        sections=sections,
        legend=_legend(sections, resumed),
        facts=_fact_rows(measures, facts),
        config=config.read_text("utf-8") if config.exists() else "",
        written=_time_of(metrics) if metrics.exists() else None,
        width=WIDTH,
        height=HEIGHT,
    )
    write_atomically(page, text)


@dataclass(frozen=True)
class _State:
    word: str
    """``finished``, ``running`` or ``stopped``."""
    text: str


def _state(measures: Measures, facts: Mapping[str, Any]) -> _State:
    step, total = measures.last_step, facts.get("steps")
    done = f"step {step:,}" + (f" of {total:,}" if total else "")
    if facts.get("stopped"):
        return _State("stopped", f"at {done}: {facts['stopped']}")
    if total and step >= total:
        return _State("finished", f"{total:,} steps")
    return _State("running", f"at {done} when this page was written")


def _notes(measures: Measures, facts: Mapping[str, Any]) -> list[str]:
    """What is unusual."""
    notes = [str(note) for note in facts.get("notes") or ()]
    for name, series in measures.training.items():
        lost = np.flatnonzero(~np.isfinite(series.values))
        if len(lost):
            notes.append(
                f"{name} is not a finite number in {len(lost):,} of {len(series.steps):,} steps, "
                f"first in step {series.steps[lost[0]]:,.0f}."
            )
        if any(part in name for part in _UNUSUAL) and np.nansum(series.values) > 0:
            first = series.steps[np.flatnonzero(series.values > 0)[0]]
            notes.append(
                f"{name}: {np.nansum(series.values):,.6g} in all steps, first in step {first:,.0f}."
            )
    steps = measures.training_steps
    gaps = np.diff(steps)
    absent = np.flatnonzero(gaps > np.median(gaps)) if len(gaps) else np.empty(0, np.int64)
    if len(absent):
        notes.append(
            f"Places where steps have no metrics: {len(absent):,}, the first between step "
            f"{steps[absent[0]]:,.0f} and step {steps[absent[0] + 1]:,.0f}."
        )
    return notes


@dataclass(frozen=True)
class _Ends:
    """A measure at first and at last, as text; None where there is none."""

    title: str
    training: tuple[str, str] | None
    evaluation: tuple[str, str | None] | None


@dataclass(frozen=True)
class _EndsTable:
    rows: list[_Ends]
    steps_averaged: int
    evaluation_steps: tuple[str, str] | None


def _ends(measures: Measures) -> _EndsTable:
    """First versus last of what is learned, and of everything that is evaluated."""
    averaged = max(1, min(50, len(measures.training_steps) // 10))
    rows = []
    for name in measures.compared():
        known = measure_of(name)
        training = measures.training.get(name)
        evaluation = measures.evaluation.get(name)
        ends = None
        if training is not None:
            first, last = training.values[:averaged], training.values[-averaged:]
            ends = known.text(_mean(first)), known.text(_mean(last))
        evaluated: tuple[str, str | None] | None = None
        if evaluation is not None:
            values = evaluation.values
            last_text = known.text(values[-1]) if len(values) > 1 else None
            evaluated = known.text(values[0]), last_text
        rows.append(_Ends(known.title, ends, evaluated))
    steps = measures.evaluation_steps
    evaluation_steps = (f"{steps[0]:,.0f}", f"{steps[-1]:,.0f}") if len(steps) else None
    return _EndsTable(rows, averaged, evaluation_steps)


def _legend(sections: Sequence[Section], resumed: Sequence[int]) -> str:
    """How to read the charts, as far as they have what there is to say."""
    curves = [curve for section in sections for chart in section.charts for curve in chart.curves]
    said = []
    if any(curve.mean for curve in curves):
        said.append(
            "Thin lines are single steps, thick ones a running mean over a twentieth of all steps."
        )
    if any(curve.area for curve in curves if curve.kind == "line"):
        said.append(
            f"There are more than {BINS} steps: a thin line is the mean of stretches of them, the "
            "area around it their range."
        )
    said.append("The pointer on a chart shows its values.")
    if resumed:
        steps = ", ".join(f"{step:,}" for step in resumed)
        said.append(f"Dashed vertical lines: the run was resumed after step {steps}.")
    return " ".join(said)


def _mean(values: Any) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _tiles(measures: Measures) -> list[dict[str, str]]:
    """Large figures: of the evaluation where there are two, else of training."""
    titles = {row.title: row for row in _ends(measures).rows}
    tiles = []
    for name in _TILES:
        row = titles.get(measure_of(name).title)
        if row is None:
            continue
        if row.evaluation is not None and row.evaluation[1] is not None:
            first, last, of = row.evaluation[0], row.evaluation[1], "evaluation"
        elif row.training is not None:
            (first, last), of = row.training, "training"
        else:
            continue
        tiles.append({"title": row.title, "first": first, "last": last, "of": of})
    speed = measures.training.get("tokens_per_second")
    if speed is not None and np.isfinite(speed.values).any():
        median = float(np.nanmedian(speed.values))
        tiles.append({"title": "Tokens per second", "last": f"{median:,.0f}", "of": "median"})
    return tiles


def _fact_rows(measures: Measures, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run was made of, a row each."""
    rows = []
    for key, value in facts.items():
        if key in _NOT_ROWS or value is None or value == []:
            continue
        text = _fact(value)
        if key == "pairs" and facts.get("pairs_held_out"):
            text += f", and {facts['pairs_held_out']:,} held out"
        rows.append((key.replace("_", " "), text))
    total, trained = facts.get("parameters_total"), facts.get("parameters_trained")
    if total:
        share = f", {trained:,} of them trained ({100 * trained / total:.2f} %)" if trained else ""
        rows.append(("parameters", f"{total:,}{share}"))
    seconds = measures.training.get("seconds")
    if seconds is not None:
        rows.append(("time in steps", format_duration(float(np.nansum(seconds.values)))))
    memory = measures.training.get("memory_bytes")
    if memory is not None and np.isfinite(memory.values).any():
        rows.append(("largest memory", measure_of("memory_bytes").text(np.nanmax(memory.values))))
    return rows


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(one)}" for key, one in value.items())
    if isinstance(value, list):
        counted = Counter(_fact(one) for one in value)
        return ", ".join(f"{n} x {text}" if n > 1 else text for text, n in counted.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _time_of(file: Path) -> str:
    changed = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    return f"{changed:%Y-%m-%d %H:%M} UTC"
