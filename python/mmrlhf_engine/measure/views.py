"""Sections of a scorecard as what its page shows of them."""

from collections.abc import Callable, Mapping
from typing import Any

from mmrlhf_engine.measure.blocks import Block, Row, SectionView, Series, figure_block

__all__ = ["section_views"]

Figures = Mapping[str, Any]


def section_views(scorecard: Mapping[str, Any]) -> list[SectionView]:
    """The sections that a scorecard has, in the order of a page."""
    return [view(scorecard[key]) for key, view in _VIEWS.items() if key in scorecard]


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


def _preferences(section: Figures) -> SectionView:
    baselines = section["baselines"]
    rows = {"all": section["overall"], **section["by_source"]}
    counts = {name: f"{figures['pairs']:,}" for name, figures in rows.items()}
    accuracy = [
        Series("implicit reward", rows, "acc"),
        Series("longer answer", {"all": baselines["longer_answer"]}, "acc"),
        Series("policy alone", {"all": baselines["policy_alone"]}, "acc"),
    ]
    margin = [Series("mean margin", rows, "mean_margin")]
    part = section["held_out"]
    notes = (
        [] if part is None else [f"Held out: a share of {part['share']:g}, seed {part['seed']}."]
    )
    if section["ties"]["pairs"]:
        notes.append(f"Ties, which have no right answer: {section['ties']['pairs']:,} pairs.")
    if section["left_out"]["no_log_probability"]:
        notes.append(f"Without a value: {section['left_out']['no_log_probability']:,} pairs.")
    return SectionView(
        "Preference pairs",
        f"Implicit rewards, beta {section['beta']:g}, of {section['policy_column']} against "
        f"{section['reference_column']}. " + _interval_text(section["interval"]),
        [
            figure_block(
                "Accuracy", "chosen over rejected", accuracy, counts=counts, counted="pairs"
            ),
            figure_block("Margin", "nats", margin, counts=counts, counted="pairs", axis=None),
        ],
        notes,
    )


def _win_rate(section: Figures) -> SectionView:
    models = section["models"]
    counts = {
        name: f"{one['wins']:,} / {one['ties']:,} / {one['losses']:,}"
        for name, one in models.items()
    }
    blocks = [
        figure_block(
            "Win rate",
            "ties count half",
            [Series("win rate", models, "win_rate")],
            counts=counts,
            counted="won / tied / lost",
        )
    ]
    pairs = {f"{one['model']} against {one['against']}": one for one in section["pairs_of_models"]}
    if len(pairs) > 1:
        counts = {name: f"{one['verdicts']:,}" for name, one in pairs.items()}
        series = [Series("win rate", pairs, "win_rate")]
        blocks.append(figure_block("Two by two", "", series, counts=counts, counted="verdicts"))
    notes = []
    if any(one["elo"] is not None for one in models.values()):
        counts = {name: f"{one['verdicts']:,}" for name, one in models.items()}
        series = [Series("rating", models, "elo")]
        note = "Bradley-Terry, maximum likelihood, mean 1,000; 400 points are odds of 10"
        blocks.append(
            figure_block("Rating", note, series, counts=counts, counted="verdicts", axis=None)
        )
    else:
        notes.append(f"Ratings: {section['elo']['none_because']}.")
    blocks.append(_judge(section))
    return SectionView("Win rates", _interval_text(section["interval"]), blocks, notes)


def _judge(section: Figures) -> Block:
    position, both = section["position"], section["both_orders"]
    shown = 2 * both["shown_in_both"]
    rows = {
        "the answer shown first wins": ("first_wins", position, section["verdicts"]),
        "the same, of those shown in both orders": ("first_wins_in_both_orders", position, shown),
        "the same winner in both orders": ("consistency", both, shown),
    }
    figures = {
        name: {"share": of[key], "share_interval": of[f"{key}_interval"]}
        for name, (key, of, _) in rows.items()
    }
    counts = {name: f"{count:,}" for name, (*_, count) in rows.items()}
    series = [Series("share", figures, "share")]
    return figure_block("The judge", "", series, counts=counts, counted="verdicts")


def _safety(section: Figures) -> SectionView:
    blocks, notes = [], []
    for title, better in (("Unsafety", "lower"), ("Safety", "higher")):
        figures = {name: one for name, one in section["figures"].items() if one["better"] == better}
        mean = section[title.lower()]
        rows = {
            f"mean of {mean['figures']}": {
                "share": mean["mean"],
                "share_interval": mean["mean_interval"],
            },
            **figures,
        }
        counts = {name: _count(one, "answers") for name, one in rows.items()}
        series = [Series("share", rows, "share")]
        note = f"{better} is better"
        blocks.append(figure_block(title, note, series, counts=counts, counted="answers"))
        if mean["lacks"]:
            notes.append(f"{title} has no mean, for want of {', '.join(mean['lacks'])}.")
    if section["empty_answers"]:
        notes.append(f"Empty answers, which decline nothing: {section['empty_answers']:,}.")
    lead = f"Answers decline by one of {section['refusal_phrases']:,} phrases. "
    return SectionView("Safety", lead + _interval_text(section["interval"]), blocks, notes)


def _vqa(section: Figures) -> SectionView:
    def rows_of(part: Figures) -> dict[str, Figures]:
        return {
            "all": part["overall"],
            "mean over kinds": part["balanced"],
            **part["by_kind"],
        }

    rows, baselines = rows_of(section), section["baselines"]
    beside = [("most frequent answer", baselines["most_frequent"])]
    if "blind" in baselines:
        beside.insert(0, ("blind", baselines["blind"]))
    if "before" in section:
        beside.insert(0, ("before", section["before"]))
    counts = {name: _count(one, "questions") for name, one in rows.items()}
    counts["all"] = f"{section['questions']:,}"
    series = [
        Series("accuracy", rows, "acc"),
        *(Series(name, rows_of(part), "acc") for name, part in beside),
    ]
    blocks = [figure_block("Accuracy", "", series, counts=counts, counted="questions")]
    differences = {
        f"{title}, {name}": part[key][name]
        for title, part, key in (
            ("after minus before", section.get("before"), "difference"),
            ("accuracy minus blind", baselines.get("blind"), "over_blind"),
        )
        if part is not None
        for name in ("overall", "balanced")
    }
    if differences:
        note = "of shares, by the same resamples of pictures for both"
        paired = [Series("difference", differences, "acc")]
        none = dict.fromkeys(differences, "")
        blocks.append(
            figure_block("Paired differences", note, paired, counts=none, counted="", axis=None)
        )
    notes = []
    if section["no_letter"]:
        notes.append(f"Answers that name no letter, which are wrong: {section['no_letter']:,}.")
    return SectionView("Visual questions", _interval_text(section["interval"]), blocks, notes)


def _benchmarks(section: Figures) -> SectionView:
    rows = [
        Row(f"{task}: {metric}", "", [], [f"{value:,.4g}"])
        for task, facts in section["tasks"].items()
        for metric, value in facts["metrics"].items()
    ]
    notes = []
    if section["not_in_lmms_eval"]:
        notes.append(f"Not in lmms-eval: {', '.join(section['not_in_lmms_eval'])}.")
    if section["limit"]:
        notes.append(f"The first {section['limit']:,} questions of each task only.")
    block = Block("Results", "", "", ["value"], rows, [])
    return SectionView("Public benchmarks", f"By lmms-eval, of {section['model']}.", [block], notes)


def _count(figures: Figures, key: str) -> str:
    return f"{figures[key]:,}" if key in figures else ""


def _interval_text(interval: Figures) -> str:
    return (
        f"Intervals of {100 * interval['level']:g}\u00a0%: {interval['method']}, "
        f"{interval['resamples']:,} resamples."
    )


_VIEWS: dict[str, Callable[[Figures], SectionView]] = {
    "reward_bench": _reward_bench,
    "preferences": _preferences,
    "win_rate": _win_rate,
    "safety": _safety,
    "vqa": _vqa,
    "benchmarks": _benchmarks,
}
"""The sections in their order on the page."""
