"""What the names of metrics mean: titles, units, and which are drawn together.

A name that is not known has a chart of its own under its name. ``X/chosen`` with ``X/rejected``
share one, and ``X/min``, ``X/mean`` and ``X/max`` are a band with a line.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from mmrlhf_engine.train.progress import is_evaluation
from mmrlhf_engine.train.report.charts import Chart, Series, draw_chart
from mmrlhf_engine.train.report.paths import Floats

__all__ = ["Measure", "Measures", "Section", "charts_of", "measure_of"]

_PREFIX = "eval_"


@dataclass(frozen=True)
class Measure:
    """How a metric is shown."""

    title: str
    section: str = "Other measures"
    unit: str = ""
    factor: float = 1.0
    """From the value in ``metrics.jsonl`` to the unit."""
    learned: bool = False
    """Whether its first and last value say what the run has learned."""

    def text(self, value: float) -> str:
        """A value with its unit."""
        if not math.isfinite(value):
            return "not finite"
        shown = value * self.factor + 0.0  # minus zero is zero
        if self.unit == "%":
            return f"{shown:.1f} %"
        return f"{shown:,.4g}" + (f" {self.unit}" if self.unit else "")


_LEARNING, _OPTIMIZER, _SPEED = "Learning", "Optimizer", "Speed and size"
_KNOWN: Mapping[str, Measure] = {
    "loss": Measure("Loss", _LEARNING, learned=True),
    "rewards/accuracies": Measure("Accuracy", _LEARNING, "%", 100, learned=True),
    "rewards/margins": Measure("Reward margin", _LEARNING, learned=True),
    "rewards/chosen": Measure("Reward, chosen", _LEARNING, learned=True),
    "rewards/rejected": Measure("Reward, rejected", _LEARNING, learned=True),
    "loss/dpo": Measure("Loss of preferences", _LEARNING, learned=True),
    "loss/sft": Measure("Loss of chosen answers", _LEARNING, learned=True),
    "loss/score": Measure("Loss of scores", _LEARNING, learned=True),
    "loss/critique": Measure("Loss of critiques", _LEARNING, learned=True),
    "loss/tie": Measure("Loss of ties", _LEARNING, learned=True),
    "loss/centring": Measure("Squared sum of both rewards", _LEARNING, learned=True),
    "rewards/tie_gaps": Measure("Reward gap of ties", _LEARNING, learned=True),
    "logps/chosen": Measure("Log-probability, chosen", _LEARNING, learned=True),
    "logps/rejected": Measure("Log-probability, rejected", _LEARNING, learned=True),
    "mean_token_accuracy": Measure("Token accuracy", _LEARNING, "%", 100, learned=True),
    "entropy": Measure("Entropy", _LEARNING, learned=True),
    "beta/mean": Measure("Beta", _OPTIMIZER),
    "beta/min": Measure("Beta, least", _OPTIMIZER),
    "beta/max": Measure("Beta, greatest", _OPTIMIZER),
    "learning_rate": Measure("Learning rate", _OPTIMIZER),
    "grad_norm": Measure("Gradient norm", _OPTIMIZER),
    "tokens_per_second": Measure("Tokens per second", _SPEED, "tokens/s"),
    "pictures_per_second": Measure("Pictures per second", _SPEED, "pictures/s"),
    "memory_bytes": Measure("Memory", _SPEED, "GiB", 2.0**-30),
    "seconds": Measure("Time of a step", _SPEED, "s"),
    "eval_seconds": Measure("Time of an evaluation", _SPEED, "s"),
    "num_pairs": Measure("Pairs of a step", _SPEED),
    "num_tokens": Measure("Answer tokens of a step", _SPEED),
}
"""In the order of the page."""
_SHARED_TITLES = {"rewards": "Rewards", "logps": "Log-probabilities of answers"}
_TOGETHER = {
    "loss/dpo": ("Parts of the loss", ("loss/dpo", "loss/sft")),
    "loss/score": ("Parts of the loss", ("loss/score", "loss/critique", "loss/tie")),
}
_NOT_DRAWN = {"epoch"}


def measure_of(name: str) -> Measure:
    """How the metric of that name is shown."""
    if name in _KNOWN:
        return _KNOWN[name]
    known = _KNOWN.get(name.removeprefix(_PREFIX))
    return replace(known, title=f"{known.title}, evaluation") if known else Measure(name)


def _compared(name: str) -> str:
    """The training metric that one of an evaluation stands beside; itself if there is none.

    How long an evaluation takes, or how much it holds, says nothing of a training step.
    """
    bare = name.removeprefix(_PREFIX)
    return name if measure_of(bare).section == _SPEED else bare


@dataclass(frozen=True)
class Measures:
    """The metrics of a run by name; those of evaluations have the name that training has."""

    training: dict[str, Series]
    evaluation: dict[str, Series]

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Self:
        """From the lines of ``metrics.jsonl``; of lines of the same step and name the last."""
        training: dict[str, dict[int, float]] = {}
        evaluation: dict[str, dict[int, float]] = {}
        for record in records:
            step = record["step"]
            for name, value in record.items():
                if name == "step" or not isinstance(value, int | float | None):
                    continue
                number = math.nan if value is None else float(value)
                if is_evaluation({name: value}):
                    evaluation.setdefault(_compared(name), {})[step] = number
                else:
                    training.setdefault(name, {})[step] = number
        return cls(_series(training), _series(evaluation))

    @property
    def training_steps(self) -> Floats:
        """Every step that was logged, rising."""
        return _all_steps(self.training)

    @property
    def evaluation_steps(self) -> Floats:
        """Every step that was evaluated, rising."""
        return _all_steps(self.evaluation)

    @property
    def last_step(self) -> int:
        """0 before the first."""
        steps = [*self.training_steps[-1:], *self.evaluation_steps[-1:]]
        return int(max(steps, default=0))

    def compared(self) -> list[str]:
        """Names of what is learned and of what is evaluated, in the order of :meth:`names`."""
        return [
            name
            for name in self.names()
            if measure_of(name).learned
            or (name in self.evaluation and measure_of(name).section != _SPEED)
        ]

    def names(self) -> list[str]:
        """Every name, known ones first in their order."""
        order = {name: place for place, name in enumerate(_KNOWN)}
        every = {**self.training, **self.evaluation}
        return sorted(every, key=lambda name: (order.get(name, len(order)), name))


def _series(values: Mapping[str, Mapping[int, float]]) -> dict[str, Series]:
    made = {}
    for name, by_step in values.items():
        steps = sorted(by_step)
        numbers = np.array([by_step[step] for step in steps], np.float64)
        made[name] = Series(name, np.array(steps, np.float64), numbers)
    return made


def _all_steps(series: Mapping[str, Series]) -> Floats:
    if not series:
        return np.empty(0)
    return np.unique(np.concatenate([one.steps for one in series.values()]))


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


@dataclass(frozen=True)
class _Group:
    """Metrics that share a chart."""

    title: str
    names: tuple[str, ...]
    band: tuple[str, str] | None = None

    def all_names(self) -> tuple[str, ...]:
        return (*self.names, *(self.band or ()))


def charts_of(measures: Measures, *, marks: Sequence[float]) -> list[Section]:
    """Every measure that has a finite value, in sections; ``marks`` are steps with a line."""
    steps = np.concatenate([measures.training_steps, measures.evaluation_steps])
    if not len(steps):
        return []
    first, last = float(steps.min()), float(steps.max())
    sections: dict[str, list[Chart]] = {}
    for group in _groups(measures.names()):
        known = measure_of(group.names[0])
        series = _lines(group, measures, known)
        band = _band(group, measures, known)
        if not any(np.isfinite(one.values).any() for one in (*series, *(band or ()))):
            continue
        inside = [step for step in marks if first <= step <= last]
        chart = draw_chart(
            group.title, known.unit, series, first=first, last=last, band=band, marks=inside
        )
        sections.setdefault(known.section, []).append(chart)
    order = (_LEARNING, _OPTIMIZER, _SPEED, "Other measures")
    return [Section(title, sections[title]) for title in order if title in sections]


def _groups(names: Sequence[str]) -> list[_Group]:
    """Each name in one group, in the order of the first of the group."""
    groups: list[_Group] = []
    taken = set(_NOT_DRAWN)
    for name in names:
        if name not in taken:
            groups.append(_group(name, set(names)))
            taken.update(groups[-1].all_names())
    return groups


def _group(name: str, names: set[str]) -> _Group:
    title, together = _TOGETHER.get(name, ("", ()))
    if together and names.issuperset(together):
        return _Group(title, together)
    stem, _, end = name.rpartition("/")
    ends = {end: f"{stem}/{end}" for end in ("chosen", "rejected", "min", "mean", "max")}
    if end in ("chosen", "rejected") and {ends["chosen"], ends["rejected"]} <= names:
        return _Group(_SHARED_TITLES.get(stem, stem), (ends["chosen"], ends["rejected"]))
    if end in ("min", "mean", "max") and {ends["min"], ends["mean"], ends["max"]} <= names:
        title = measure_of(ends["mean"]).title.removesuffix("/mean")
        return _Group(title, (ends["mean"],), (ends["min"], ends["max"]))
    return _Group(measure_of(name).title, (name,))


def _lines(group: _Group, measures: Measures, known: Measure) -> list[Series]:
    """The series of a group: training as lines, evaluations as points of the same colour."""
    drawn: list[Series] = []
    for color, name in enumerate(group.names):
        single = len(group.names) == 1 and group.band is None
        short = name.rpartition("/")[2]
        if name in measures.training:
            label = "training" if single else short
            one = _scaled(measures.training[name], known)
            drawn.append(replace(one, name=label, color=color))
        if name in measures.evaluation:
            label = "evaluation" if single else f"{short}, evaluation"
            one = _scaled(measures.evaluation[name], known)
            drawn.append(replace(one, name=label, color=color, kind="points"))
    return drawn


def _band(group: _Group, measures: Measures, known: Measure) -> tuple[Series, Series] | None:
    if group.band is None or not set(group.band) <= set(measures.training):
        return None
    least, greatest = (_scaled(measures.training[name], known) for name in group.band)
    return replace(least, name="least"), replace(greatest, name="greatest")


def _scaled(series: Series, known: Measure) -> Series:
    return replace(series, values=series.values * known.factor)
