"""The page of the demo: one HTML file that needs no script and no other file.

It follows the data: what became of the rows, who learned from which pictures, examples as annotator
and reward model see them, whether margins tell right from flipped pairs, and how many questions
about new pictures each model answers. Where a figure says nothing, a sentence says so.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from mmrlhf_engine import __version__
from mmrlhf_engine.demo.vqa_margins import Margins, examples, read_margins
from mmrlhf_engine.demo.vqa_pipeline import BETA, VARIANTS, Prepared, facts_of
from mmrlhf_engine.demo.vqa_questions import KINDS, Question
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import Run

__all__ = ["findings", "summary", "write"]

_EXAMPLES = 6
_NAMES = {"base": "base model", "mm_dpo": "MM-DPO", "dpo": "DPO"}
_NO_SIGNAL = 0.6
"""Below this area under the curve, margins are said to tell nothing."""
_BINS = 40
_CHARTS = (
    ("sft", "loss"),
    ("reward", "loss"),
    ("mm_dpo", "loss"),
    ("mm_dpo", "rewards/accuracies"),
)
"""Measures over steps, by stage."""

Results = Mapping[str, Mapping[str, Any]]
"""The section ``vqa`` of the scorecard of each model."""


def write(
    page: Path, curated: Run, questions: Sequence[Question], prepared: Prepared, results: Results
) -> Path:
    """Write the page; its path.

    Args:
        page: The file.
        curated: The run of ``curate``.
        questions: Those of its queries that have a known answer.
        prepared: Parts, pairs, margins and reports of stages.
        results: Of the base and of each policy.
    """
    margins = read_margins(prepared)
    template = files("mmrlhf_engine.demo").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["picture"] = _as_address
    environment.filters["percent"] = _percent
    text = environment.from_string(template).render(
        version=__version__,
        seed=prepared.place.seed,
        recipe=prepared.recipe,
        funnel=_funnel(curated, questions, prepared),
        curated=Path(curated.folder.name) / "report.html",
        parts=facts_of(prepared),
        findings=findings(margins, results),
        examples=examples(prepared, _EXAMPLES),
        margins=margins.facts(),
        histogram=_histogram(margins),
        kinds=list(KINDS),
        names=_NAMES,
        results=results,
        betas=_betas(prepared),
        curves=_curves(prepared),
        seconds={name: report.get("seconds") for name, report in prepared.reports.items()},
    )
    write_atomically(page, text)
    return page


def findings(margins: Margins, results: Results) -> list[str]:
    """What the figures say, each in a sentence."""
    said = []
    for name in VARIANTS:
        difference = results[name]["before"]["difference"]["balanced"]
        low, high = difference["acc_interval"]
        sure = "more" if low > 0 else "fewer" if high < 0 else None
        gain = (
            f"{100 * difference['acc']:+.1f} points, 95 % interval {100 * low:+.1f} to "
            f"{100 * high:+.1f}"
        )
        if sure is None:
            said.append(f"{_NAMES[name]} and the base model do not differ for certain ({gain}).")
        else:
            said.append(f"{_NAMES[name]} answers {sure} questions rightly ({gain}).")
    said.append(_beside(results))
    said.append(_without_picture(results["mm_dpo"]))
    if margins.auc < _NO_SIGNAL:
        said.append(
            "The margins do not tell flipped pairs from others (area under the curve "
            f"{margins.auc:.2f}; .5 is chance), so a beta by margin has nothing to go by here."
        )
    else:
        said.append(
            f"The reward model agrees with the truth in {_percent(margins.accuracy)} of the pairs, "
            f"and gives flipped pairs smaller margins (area under the curve {margins.auc:.2f})."
        )
    return said


def _without_picture(section: Mapping[str, Any]) -> str:
    """What MM-DPO answers on a grey picture, and the kinds of questions that need none."""
    blind = section["baselines"]["blind"]
    said = (
        "With a grey picture in place of the real one MM-DPO answers "
        f"{_percent(blind['balanced']['acc'])} rightly"
    )
    unseen = [
        kind
        for kind, own in section["by_kind"].items()
        if own["acc_interval"][0] <= blind["by_kind"][kind]["acc"]
    ]
    if not unseen:
        return f"{said}: what is above that comes from looking."
    return (
        f"{said}. On {' and '.join(unseen)} questions it is not better than that for certain: "
        "what it gained there may be their wording, not looking."
    )


def _beside(results: Results) -> str:
    """MM-DPO beside DPO, by whether their intervals hold each other's accuracy."""
    ours, plain = (results[name]["balanced"] for name in ("mm_dpo", "dpo"))
    gap = ours["acc"] - plain["acc"]
    low, high = plain["acc_interval"]
    if low <= ours["acc"] <= high:
        return (
            f"MM-DPO and plain DPO do not differ here ({100 * gap:+.1f} points, within the "
            "interval of either): beta moves between beta0 and 1.5 beta0 only."
        )
    word = "more" if gap > 0 else "fewer"
    return f"MM-DPO answers {word} questions rightly than plain DPO ({100 * gap:+.1f} points)."


def summary(prepared: Prepared, results: Results) -> str:
    """The accuracies and what they say, for the terminal."""
    lines = [f"questions about {results['base']['pictures']:,} new pictures, answered rightly"]
    lines += [f"  {'':12}{'all kinds':>12}{''.join(f'{kind:>10}' for kind in KINDS)}"]
    for name, section in results.items():
        kinds = "".join(f"{_percent(section['by_kind'][kind]['acc']):>10}" for kind in KINDS)
        lines.append(f"  {_NAMES[name]:12}{_percent(section['balanced']['acc']):>12}{kinds}")
    return "\n".join([*lines, "", *findings(read_margins(prepared), results)])


def _funnel(
    curated: Run, questions: Sequence[Question], prepared: Prepared
) -> list[tuple[str, int]]:
    """From raw rows to pairs: what is there, and how many."""
    ingest, dedup, select = (curated.report(stage) or {} for stage in ("ingest", "dedup", "select"))
    pairs = prepared.reports["pair_policy"]
    return [
        ("raw rows", ingest["rows_in"]),
        ("usable samples", ingest["rows_out"]),
        ("without duplicates", dedup["rows_out"]),
        ("selected queries", select["rows_out"]),
        ("short questions with a known answer", len(questions)),
        ("of the policy's part, as many of each kind", len(prepared.parts.policy)),
        ("preference pairs", pairs["pairs"]),
    ]


@dataclass(frozen=True)
class _Bar:
    """A bar of the histogram of margins, in per cent of the width and of the tallest bar."""

    left: float
    width: float
    kept: float
    """Of pairs that were not flipped."""
    flipped: float
    text: str


def _histogram(margins: Margins) -> dict[str, Any]:
    """Margins of flipped and other pairs, as shares of each."""
    edge = float(np.quantile(np.abs(margins.margin), 0.99)) or 1.0
    edges = np.linspace(-edge, edge, _BINS + 1)
    inside = np.clip(margins.margin, -edge, edge)
    shares = []
    for chosen in (~margins.flipped, margins.flipped):
        counts, _ = np.histogram(inside[chosen], edges)
        shares.append(counts / max(1, chosen.sum()))
    tallest = max(float(share.max()) for share in shares) or 1.0
    width = 100 / _BINS
    bars = [
        _Bar(
            number * width,
            width,
            100 * float(shares[0][number]) / tallest,
            100 * float(shares[1][number]) / tallest,
            f"margin {edges[number]:.2f} to {edges[number + 1]:.2f}: "
            f"{_percent(shares[0][number])} of the right pairs, {_percent(shares[1][number])} of "
            "the flipped ones",
        )
        for number in range(_BINS)
    ]
    return {"bars": bars, "edge": edge}


def _betas(prepared: Prepared) -> dict[str, float]:
    """Mean beta of flipped and other pairs, by the rule of MM-DPO with its default w and k."""
    from mmrlhf_engine.train.mm_dpo import STAGE

    w, k = (STAGE.config.model_fields[name].default for name in ("beta_w", "beta_k"))
    margins = read_margins(prepared)
    grown = BETA * (1 + w * (1 - np.exp(-k * margins.margin)))
    beta = np.clip(grown, BETA, (1 + w) * BETA)
    return {
        "right": float(beta[~margins.flipped].mean()),
        "flipped": float(beta[margins.flipped].mean()),
        "least": float(beta.min()),
        "greatest": float(beta.max()),
    }


def _curves(prepared: Prepared) -> dict[str, Any]:
    """Charts of the training stages, as the pages of these stages draw them."""
    from mmrlhf_engine.train.metrics import read_metrics
    from mmrlhf_engine.train.report.charts import HEIGHT, WIDTH, draw_chart
    from mmrlhf_engine.train.report.measures import Measures, measure_of

    charts = []
    for stage, name in _CHARTS:
        folder = Path(prepared.reports[stage]["folder"])
        series = Measures.of(read_metrics(folder / "metrics.jsonl")).training.get(name)
        if series is not None:
            title = f"{stage.replace('_', '-')}: {measure_of(name).title.lower()}"
            last = float(series.steps[-1])
            charts.append(draw_chart(title, "", [series], first=1, last=last))
    return {"charts": charts, "width": WIDTH, "height": HEIGHT}


def _as_address(file: Path) -> str:
    """A picture as the address of an ``img``, so that the page needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
