"""A reward model on pairs of answers, as MM-RLHF-RewardBench counts.

ACC is the share of pairs whose chosen answer has the greater reward, ACC+ the share of queries all
of whose pairs are right (arXiv 2502.10391, section 3.2). Equal rewards are wrong. The rows of a
query share their ``id``; their category is the first of :data:`CATEGORIES` that is a folder in the
path of the picture or video, in any case. (The released script takes a part of a folder's name too,
which is the same in the published file.) A file of 170 pairs of 46 queries says little: one query
is two points of ACC+, and whoever prefers the longer answer is right in seven of ten pairs. So
every figure has an interval, by resamples of the queries, and stands beside what scorers get that
do not look.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.bootstrap import (
    Floats,
    Resampling,
    cluster_numbers,
    cluster_sums,
    difference_of_ratios,
    ratio,
)
from mmrlhf_engine.measure.chance import central_range, count_distribution
from mmrlhf_engine.measure.lines import Line, file_state, read_lines
from mmrlhf_engine.measure.section import write_section
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.stage import Stage, StageContext

__all__ = [
    "CATEGORIES",
    "STAGE",
    "RewardBenchConfig",
    "category_of",
    "read_bench",
    "read_scores",
    "scorecard",
    "write_scores",
]

CATEGORIES = ("mcq", "long", "short", "safety", "video")
"""In this order; what has none of them in its path is ``other``."""

Flags = npt.NDArray[np.bool_]


class RewardBenchConfig(Resampling):
    """Settings of ``reward_bench``."""

    file: str
    """JSON Lines with ``id``, ``chosen``, ``rejected``, ``image`` or ``video``."""
    scores: str
    """JSON Lines with ``row``, from 0, and ``rewards``: that of chosen, that of rejected."""


def read_bench(file: Path) -> list[Line]:
    """The rows of a benchmark.

    Raises:
        InputError: there is no such file, or a row lacks a field.
    """
    rows = read_lines(file)
    for row in rows:
        lacking = [name for name in ("id", "chosen", "rejected") if name not in row.fields]
        if lacking:
            found = ", ".join(sorted(row.fields)) or "no field"
            raise InputError(
                f"{row}: found {found}, expected id, image or video, prompt, chosen and rejected",
                hint="a row is one pair of answers; the pairs of a query share its id",
            )
        row.name("id")
        row.text("chosen")
        row.text("rejected")
        for name in ("image", "video"):
            if row.fields.get(name) is not None:
                row.texts(name)
    return rows


def read_scores(file: Path, count: int) -> Floats:
    """Float64 [count, 2], the rewards of chosen and rejected of each row of a benchmark.

    Args:
        file: JSON Lines in any order.
        count: Rows of the benchmark.

    Raises:
        InputError: a row is scored twice, not at all, or not there; or a reward is not finite.
    """
    rewards, seen = np.full((count, 2), np.nan), dict[int, int]()
    for line in read_lines(file):
        if "row" not in line.fields:
            raise line.lacks(["row"])
        row = line.fields["row"]
        if isinstance(row, bool) or not isinstance(row, int):
            raise line.wrong("row", "the number of a row of the benchmark, from 0")
        if not 0 <= row < count:
            raise InputError(
                f"{line}: row: found {row}, expected 0 to {count - 1}: the benchmark has "
                f"{count:,} rows",
                hint="the scores are of another file, or count rows from 1",
            )
        if row in seen:
            raise InputError(f"{line}: row {row} was scored in line {seen[row]} already")
        seen[row] = line.number
        rewards[row] = line.numbers("rewards", 2)
    missing = [row for row in range(count) if row not in seen]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{file}: {len(missing):,} of {count:,} rows have no rewards: {shown}",
            hint="rows count from 0",
        )
    return rewards


def write_scores(file: Path, rewards: npt.ArrayLike) -> None:
    """Write rewards, [rows, 2], as :func:`read_scores` reads them."""
    rows = np.asarray(rewards, np.float64).tolist()
    lines = (json.dumps({"row": row, "rewards": pair}) for row, pair in enumerate(rows))
    write_atomically(file, "".join(f"{line}\n" for line in lines))


def category_of(fields: Mapping[str, Any]) -> str:
    """The first category that is a whole part of the path of the row's picture or video."""
    given = [fields.get(name) for name in ("image", "video")]
    paths = [path for one in given if one for path in (one if isinstance(one, list) else [one])]
    parts = {part.lower() for path in paths for part in re.split(r"[/\\]", path)}
    return next((name for name in CATEGORIES if name in parts), "other")


def scorecard(
    rows: Sequence[Mapping[str, Any]],
    rewards: npt.ArrayLike,
    settings: Resampling | None = None,
) -> dict[str, Any]:
    """The section ``reward_bench`` of a scorecard.

    Args:
        rows: Pairs with ``id``, ``chosen``, ``rejected``, and ``image`` or ``video``.
        rewards: [rows, 2], of chosen and of rejected.
        settings: How intervals are made.

    Returns:
        ``overall``, ``by_category`` and ``baselines``, each with ``acc`` and ``acc_plus``, their
        intervals, ``pairs`` and ``queries``; ``None`` is a figure of no pair.
    """
    settings = settings or Resampling()
    values = np.asarray(rewards, np.float64)
    lengths = np.array([[len(row["chosen"]), len(row["rejected"])] for row in rows], np.float64)
    right, longer = values[:, 0] > values[:, 1], lengths[:, 0] > lengths[:, 1]
    names = [(type(row["id"]).__name__, row["id"]) for row in rows]
    categories = np.array([category_of(row) for row in rows])
    every = np.ones(len(rows), bool)
    shown = [name for name in (*CATEGORIES, "other") if name != "other" or name in categories]
    parts = {name: categories == name for name in shown}

    def measured(outcome: Flags) -> dict[str, Any]:
        return {
            **_accuracies(outcome, names, every, settings),
            "by_category": {
                name: _accuracies(outcome, names, part, settings) for name, part in parts.items()
            },
        }

    model = measured(right)
    return {
        "overall": {
            **{key: value for key, value in model.items() if key != "by_category"},
            "equal_rewards": int((values[:, 0] == values[:, 1]).sum()),
            **_differences(right, longer, names, settings),
        },
        "by_category": model["by_category"],
        "baselines": {
            "longer_answer": {"rule": "more characters", **measured(longer)},
            "random": {
                "rule": "a coin for each pair; expected values, and the range of most coins",
                **_random(names, every, settings.level),
                "by_category": {
                    name: _random(names, part, settings.level) for name, part in parts.items()
                },
            },
            "constant": {
                "rule": "equal rewards for all answers, which are wrong",
                **measured(np.zeros(len(rows), bool)),
            },
        },
        "no_category": int((categories == "other").sum()),
        "interval": {
            "method": "percentile bootstrap over queries",
            **settings.model_dump(include={"resamples", "seed", "level"}),
        },
    }


def _accuracies(
    right: Flags, names: Sequence[Any], part: Flags, settings: Resampling
) -> dict[str, Any]:
    sums = _by_query(right, names, part)
    return {
        "pairs": int(sums[:, 1].sum()),
        "queries": len(sums),
        **ratio("acc", sums[:, :2], settings),
        **ratio("acc_plus", sums[:, 2:], settings),
    }


def _by_query(right: Flags, names: Sequence[Any], part: Flags) -> Floats:
    """Float64 [queries, 4]: pairs right, pairs, all right, 1."""
    clusters = cluster_numbers(name for name, inside in zip(names, part, strict=True) if inside)
    sums = cluster_sums(clusters, right[part], np.ones(int(part.sum())))
    every = sums[:, 0] == sums[:, 1]
    return np.column_stack([sums, every, np.ones(len(sums))])


def _differences(
    right: Flags, longer: Flags, names: Sequence[Any], settings: Resampling
) -> dict[str, Any]:
    every = np.ones(len(right), bool)
    ours, theirs = _by_query(right, names, every), _by_query(longer, names, every)
    pairs = np.column_stack([ours[:, :2], theirs[:, :2]])
    queries = np.column_stack([ours[:, 2:], theirs[:, 2:]])
    return {
        **difference_of_ratios("acc_over_longer_answer", pairs, settings),
        **difference_of_ratios("acc_plus_over_longer_answer", queries, settings),
    }


def _random(names: Sequence[Any], part: Flags, level: float) -> dict[str, Any]:
    sizes = _by_query(part, names, part)[:, 1]
    pairs, queries = int(sizes.sum()), len(sizes)
    figures: dict[str, Any] = {"pairs": pairs, "queries": queries}
    if not queries:
        nothing = dict.fromkeys(("acc", "acc_interval", "acc_plus", "acc_plus_interval"))
        return {**figures, **nothing}
    right = 0.5**sizes
    return {
        **figures,
        "acc": 0.5,
        "acc_interval": central_range(count_distribution([0.5] * pairs), level),
        "acc_plus": float(right.mean()),
        "acc_plus_interval": central_range(count_distribution(right.tolist()), level),
    }


def run(config: RewardBenchConfig, context: StageContext) -> None:
    """Compare the rewards of a file with the pairs of a benchmark."""
    rows = read_bench(Path(config.file))
    rewards = read_scores(Path(config.scores), len(rows))
    section = scorecard([row.fields for row in rows], rewards, config)
    write_section(context, {"file": config.file, "scores": config.scores, **section})
    context.finish(rows_in=len(rows), rows_out=len(rows), dropped={})


def _external(config: RewardBenchConfig) -> list[object]:
    # Everything that can be refused is refused here, before an earlier section is removed.
    read_scores(Path(config.scores), len(read_bench(Path(config.file))))
    return [file_state(Path(config.file)), file_state(Path(config.scores))]


STAGE = Stage(
    name="reward_bench",
    config=RewardBenchConfig,
    run=run,
    writes=("section.json",),
    external=_external,
)
