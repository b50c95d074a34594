"""The page of a scorecard: one HTML file that needs no script and no other file."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from mmrlhf_engine import __version__
from mmrlhf_engine.measure.blocks import SectionView, Series, figure_block
from mmrlhf_engine.run.files import write_atomically

__all__ = ["write_page"]

Figures = Mapping[str, Any]


def write_page(name: str, scorecard: Mapping[str, Any], page: Path) -> None:
    """Write the page of the sections that a scorecard has.

    Args:
        name: Of the run, its title.
        scorecard: Sections by name.
        page: The file.
    """
    template = files("mmrlhf_engine.measure").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    sections = [view(scorecard[key]) for key, view in _VIEWS.items() if key in scorecard]
    text = environment.from_string(template).render(
        name=name, version=__version__, sections=sections
    )
    write_atomically(page, text)


def _reward_bench(section: Figures) -> SectionView:
    overall, baselines = section["overall"], section["baselines"]
    rows = {"all": overall, **section["by_category"]}
    beside = {
        title: {"all": baselines[key], **baselines[key]["by_category"]}
        for title, key in (("longer answer", "longer_answer"), ("random", "random"))
    }
    blocks = []
    for title, key, note, counted in (
        ("ACC", "acc", "pairs whose chosen answer has the greater reward", "pairs"),
        ("ACC+", "acc_plus", "queries all of whose pairs are right", "queries"),
    ):
        series = [
            Series("reward model", rows, key),
            *(Series(name, figures, key) for name, figures in beside.items()),
        ]
        counts = {name: f"{figures[counted]:,}" for name, figures in rows.items()}
        blocks.append(figure_block(title, note, series, counts=counts, counted=counted))
    notes = []
    if overall["equal_rewards"]:
        counted = f"{overall['equal_rewards']:,} of {overall['pairs']:,} pairs"
        notes.append(f"Equal rewards, which are wrong: {counted}.")
    if section["no_category"]:
        counted = f"{section['no_category']:,} of {overall['pairs']:,} pairs"
        notes.append(f"With no category in their path: {counted}; they are other.")
    return SectionView(
        "Reward benchmark",
        "Strictly greater rewards are right, and equal ones wrong: a constant scorer gets 0. "
        + _interval_text(section["interval"]),
        blocks,
        notes,
    )


def _interval_text(interval: Figures) -> str:
    return (
        f"Intervals of {100 * interval['level']:g} %: {interval['method']}, "
        f"{interval['resamples']:,} resamples."
    )


_VIEWS: dict[str, Callable[[Figures], SectionView]] = {"reward_bench": _reward_bench}
"""The sections in their order on the page."""
