"""Win rates of models from a judge's verdicts on pairs of their answers.

A row names the two models, ``a`` and ``b``, and the verdict: ``a``, ``b``, ``tie``, or a label of
WildVision (``[[A>>B]]`` to ``[[B>>A]]``) or MT-bench (``[[A]]``, ``[[B]]``, ``[[C]]``, which is a
tie), whose letters are the fields ``a`` and ``b``. ``order``
says which of them the judge saw first: ``ab``, the default, or ``ba``. Rows of the same id and
models that were shown in both orders say how consistent the judge is. The rows of an id are
resampled together.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.measure.bootstrap import (
    Floats,
    Resampling,
    cluster_numbers,
    cluster_sums,
    percentile_interval,
    ratio,
    resampled_sums,
)
from mmrlhf_engine.measure.bradley_terry import INITIAL, SCALE, ratings
from mmrlhf_engine.measure.lines import Line, file_state, read_lines
from mmrlhf_engine.measure.section import write_section
from mmrlhf_engine.run.stage import Stage, StageContext

__all__ = ["STAGE", "Game", "WinRateConfig", "read_verdict", "win_rates"]

_LABELS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2, "A<B": -1, "A<<B": -2}
_LABELS_OF_ONE = {"[[A]]": 1, "[[B]]": -1, "[[C]]": 0}
_WORDS = {"a": 1, "b": -1, "tie": 0}
_NAMES = {2: "much better", 1: "better", 0: "tie", -1: "worse", -2: "much worse"}


class WinRateConfig(Resampling):
    """Settings of ``win_rate``."""

    file: str
    """JSON Lines with ``id``, ``a``, ``b``, ``verdict``, and ``order`` where it is not ``ab``."""


@dataclass(frozen=True)
class Game:
    """A verdict."""

    id: str
    first: str
    """The model that the judge saw first."""
    second: str
    verdict: int
    """Of the first one: 2, 1, 0, -1, -2."""


def read_verdict(text: str) -> int | None:
    """Of ``a``: 2 for much better, 1, 0, -1, -2; None where the text is no verdict."""
    words = text.strip()
    if words.lower() in _WORDS:
        return _WORDS[words.lower()]
    label = re.sub(r"\s+", "", words).upper()
    if label in _LABELS_OF_ONE:
        return _LABELS_OF_ONE[label]
    return _LABELS.get(label.removeprefix("[[").removesuffix("]]"))


def read_games(lines: Sequence[Line]) -> list[Game]:
    """The verdicts of a file.

    Raises:
        InputError: a row lacks a field, has another verdict, or is there twice.
    """
    games, seen = [], dict[tuple[str, str, str], int]()
    for line in lines:
        a, b = _model(line, "a"), _model(line, "b")
        if a == b:
            raise InputError(f"{line}: a and b are both {a}, expected two models")
        verdict = read_verdict(line.text("verdict"))
        if verdict is None:
            raise line.wrong(
                "verdict",
                "a, b, tie, [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]], [[A]], [[B]] or [[C]]",
            )
        order = line.fields.get("order")
        if order not in (None, "ab", "ba"):
            raise line.wrong("order", "ab or ba: which of a and b the judge saw first")
        if order == "ba":
            a, b, verdict = b, a, -verdict
        game = Game(line.name("id"), a, b, verdict)
        key = (game.id, a, b)
        if key in seen:
            raise InputError(
                f"{line}: id {game.id} of {a} (shown first) and {b} has a verdict in line "
                f"{seen[key]} already"
            )
        seen[key] = line.number
        games.append(game)
    return games


def _model(line: Line, field: str) -> str:
    """The name of a model, without white space around it."""
    name = line.text(field).strip()
    if not name:
        raise line.wrong(field, "the name of a model")
    return name


def win_rates(games: Sequence[Game], settings: Resampling | None = None) -> dict[str, Any]:
    """The section ``win_rate`` of a scorecard.

    Returns:
        ``models``: wins, ties, losses, ``win_rate`` with ties as halves, and ``elo``;
        ``pairs_of_models``: the same of each two; ``both_orders``, ``position``.
    """
    settings = settings or Resampling()
    models = sorted({name for game in games for name in (game.first, game.second)})
    elo = _elo(games, models, settings)
    return {
        "verdicts": len(games),
        "ids": len({game.id for game in games}),
        "models": {
            name: {**_record(games, name, None, settings), **elo["by_model"][name]}
            for name in models
        },
        "pairs_of_models": [
            {"model": one, "against": other, **_record(games, one, other, settings)}
            for number, one in enumerate(models)
            for other in models[number + 1 :]
            if any({game.first, game.second} == {one, other} for game in games)
        ],
        "elo": {key: value for key, value in elo.items() if key != "by_model"},
        "both_orders": _consistency(games, settings),
        "position": _position(games, settings),
        "interval": {
            "method": "percentile bootstrap over ids",
            **settings.model_dump(include={"resamples", "seed", "level"}),
        },
    }


def _record(
    games: Sequence[Game], model: str, against: str | None, settings: Resampling
) -> dict[str, Any]:
    """Results of a model, against one other or all."""
    ids, results = [], []
    for game in games:
        other = game.second if game.first == model else game.first
        if model in (game.first, game.second) and against in (None, other):
            ids.append(game.id)
            results.append(game.verdict if game.first == model else -game.verdict)
    points = [0.5 + 0.5 * float(np.sign(result)) for result in results]
    sums = cluster_sums(cluster_numbers(ids), points, np.ones(len(points)))
    counts = Counter(_NAMES[result] for result in results)
    return {
        "verdicts": len(results),
        "wins": sum(result > 0 for result in results),
        "ties": counts["tie"],
        "losses": sum(result < 0 for result in results),
        "much_better": counts["much better"],
        "much_worse": counts["much worse"],
        **ratio("win_rate", sums, settings),
    }


def _consistency(games: Sequence[Game], settings: Resampling) -> dict[str, Any]:
    """Of verdicts in both orders, how many name the same winner, or a tie, twice."""
    verdicts = {(game.id, game.first, game.second): game.verdict for game in games}
    ids, same = [], []
    for (name, first, second), verdict in verdicts.items():
        swapped = verdicts.get((name, second, first))
        if swapped is not None and first < second:
            ids.append(name)
            same.append(np.sign(verdict) == -np.sign(swapped))
    sums = cluster_sums(cluster_numbers(ids), np.array(same, float), np.ones(len(same)))
    return {
        "shown_in_both": len(same),
        "shown_in_one": len(games) - 2 * len(same),
        **ratio("consistency", sums, settings),
    }


def _position(games: Sequence[Game], settings: Resampling) -> dict[str, Any]:
    """Of verdicts that are no tie, how many name the answer that was shown first.

    A share other than one half is the judge's bias only among pairs that were shown in both orders;
    elsewhere the model that was shown first may be the better one.
    """
    shown = {(game.id, game.first, game.second) for game in games}
    both = [game for game in games if (game.id, game.second, game.first) in shown]
    figures: dict[str, Any] = {}
    for name, part in (("first_wins", games), ("first_wins_in_both_orders", both)):
        decided = [game for game in part if game.verdict]
        won = [game.verdict > 0 for game in decided]
        clusters = cluster_numbers(game.id for game in decided)
        figures |= ratio(name, cluster_sums(clusters, won, np.ones(len(won))), settings)
    return figures


def _elo(games: Sequence[Game], models: Sequence[str], settings: Resampling) -> dict[str, Any]:
    """Bradley-Terry ratings; without a value where the likelihood has no maximum."""
    count, number = len(models), {name: place for place, name in enumerate(models)}
    by_id: dict[str, Floats] = defaultdict(lambda: np.zeros((count, count)))
    for game in games:
        first, second = number[game.first], number[game.second]
        points = 0.5 + 0.5 * np.sign(game.verdict)
        by_id[game.id][first, second] += points
        by_id[game.id][second, first] += 1 - points
    sums = np.stack([wins.ravel() for wins in by_id.values()])
    found = ratings(sums.sum(axis=0).reshape(count, count))
    facts: dict[str, Any] = {"scale": SCALE, "mean": INITIAL}
    if np.isnan(found).any():
        nothing: Mapping[str, Any] = {"elo": None, "elo_interval": None}
        facts["none_because"] = (
            "no finite rating: some models have won, or lost, all of their verdicts against the "
            "others, or were never compared with them"
        )
        return {**facts, "by_model": {name: dict(nothing) for name in models}}
    drawn = ratings(resampled_sums(sums, settings).reshape(-1, count, count))
    facts["resamples_without_rating"] = int(np.isnan(drawn[:, 0]).sum())
    return {
        **facts,
        "by_model": {
            name: {
                "elo": float(found[place]),
                "elo_interval": percentile_interval(drawn[:, place], settings.level),
            }
            for name, place in number.items()
        },
    }


def run(config: WinRateConfig, context: StageContext) -> None:
    """Count the verdicts of a file."""
    games = read_games(read_lines(Path(config.file)))
    write_section(context, {"file": config.file, **win_rates(games, config)})
    context.finish(rows_in=len(games), rows_out=len(games), dropped={})


def _external(config: WinRateConfig) -> list[object]:
    # Everything that can be refused is refused here, before an earlier section is removed.
    read_games(read_lines(Path(config.file)))
    return [file_state(Path(config.file))]


STAGE = Stage(
    name="win_rate",
    config=WinRateConfig,
    run=run,
    writes=("section.json",),
    external=_external,
)
