"""The commands of the package ``measure``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import FILE_OR_FOLDER, PROGRESS, as_overrides

__all__ = ["COMMANDS"]

OUT = click.option("--out", required=True, type=FILE_OR_FOLDER, help="The run folder.")


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every evaluation with intervals."""
    for option in (
        PROGRESS,
        click.option("--seed", type=click.IntRange(min=0), help="Of the resamples."),
        click.option("--resamples", type=click.IntRange(min=1), help="Default 10,000."),
        OUT,
    ):
        command = option(command)
    return command


@click.group()
def evaluate() -> None:
    """Measure a reward model or a policy.

    Each command writes its section of OUT/scorecard.json, and the page OUT/report.html of all
    sections; a command that runs again replaces its own.
    """


@evaluate.command("reward-bench")
@click.argument("file", type=FILE_OR_FOLDER)
@click.option("--scores", required=True, type=FILE_OR_FOLDER, help="Rewards, as JSON Lines.")
@evaluation_options
def reward_bench(out: Path, progress: Any, **options: Any) -> None:
    """Accuracy of rewards on pairs of answers.

    FILE has a pair a line, as MM-RLHF-RewardBench: id, image or video, prompt, chosen, rejected.
    A line of scores is {"row": 0, "rewards": [chosen, rejected]}; rows count from 0.
    """
    from mmrlhf_engine.measure import reward_bench as command

    section = _run(command.STAGE, out, progress, options)
    for name, figures in (
        ("reward model", section["overall"]),
        ("longer answer", section["baselines"]["longer_answer"]),
    ):
        click.echo(f"{name}: ACC {_figure(figures, 'acc')}, ACC+ {_figure(figures, 'acc_plus')}")


def _run(stage: Any, out: Path, progress: Any, options: dict[str, Any]) -> dict[str, Any]:
    from mmrlhf_engine.measure.section import run_evaluation
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    named = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    config = load_config(stage.config, None, as_overrides(named))
    section = run_evaluation(stage, config, out, Progress(progress))
    click.echo(f"{out / 'scorecard.json'}: {stage.name}; the page is {out / 'report.html'}")
    return section


def _figure(figures: dict[str, Any], key: str) -> str:
    if figures[key] is None:
        return "none"
    low, high = figures[f"{key}_interval"]
    return f"{figures[key]:.3f} ({low:.3f} to {high:.3f})"


COMMANDS = (evaluate,)
