"""The commands of the package ``measure``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import FILE_OR_FOLDER, PROGRESS, as_overrides

__all__ = ["COMMANDS"]

FILE = click.argument("file", type=FILE_OR_FOLDER)
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
@FILE
@click.option("--scores", type=FILE_OR_FOLDER, help="Rewards, as JSON Lines.")
@click.option("--reward-model", metavar="NAME|FOLDER", help="Compute them by this model.")
@click.option("--critiques", metavar="SOURCE", help="For it: auto, generate, packed or none.")
@evaluation_options
def reward_bench(
    out: Path, progress: Any, reward_model: str | None, critiques: str | None, **options: Any
) -> None:
    """Accuracy of rewards on pairs of answers.

    FILE has a pair a line, as MM-RLHF-RewardBench: id, image or video, prompt, chosen, rejected.
    A line of scores is {"row": 0, "rewards": [chosen, rejected]}; rows count from 0.
    """
    from mmrlhf_engine.measure import reward_bench as command

    if (reward_model is None) == (options["scores"] is None):
        raise click.UsageError("expected one of --scores, --reward-model")
    if reward_model is None and critiques is not None:
        raise click.UsageError("--critiques is for --reward-model")
    if reward_model is not None:
        from mmrlhf_engine.benchmark_rewards import scores_file
        from mmrlhf_engine.run.progress import Progress

        settings = {} if critiques is None else {"critiques": critiques}
        place = out / "reward_bench"
        named = Path(options["file"]), reward_model, place, settings
        options["scores"] = scores_file(*named, Progress(progress))
    section = _run(command.STAGE, out, progress, options)
    for name, figures in (
        ("reward model", section["overall"]),
        ("longer answer", section["baselines"]["longer_answer"]),
    ):
        click.echo(f"{name}: ACC {_figure(figures, 'acc')}, ACC+ {_figure(figures, 'acc_plus')}")


@evaluate.command()
@click.argument("shards", type=FILE_OR_FOLDER)
@click.option("--policy-column", metavar="SET", help="Log-probabilities of the policy.")
@click.option("--reference-column", metavar="SET", help="Those of the reference model.")
@click.option("--model", metavar="NAME|FOLDER", help="The policy: compute its column first.")
@click.option("--reference-model", metavar="NAME|FOLDER", help="The same for the reference.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="Of those models.")
@click.option("--beta", type=click.FloatRange(0, min_open=True), help="Of margins; default 0.1.")
@click.option("--held-out", type=click.FloatRange(0, 1, True, True), help="evaluation.share.")
@click.option("--held-out-seed", type=click.IntRange(min=0), help="The training's seed.")
@evaluation_options
def preferences(out: Path, progress: Any, **options: Any) -> None:
    """Accuracy of a policy's implicit reward on pairs.

    SHARDS is the dataset. The policy and the reference are column sets of it, or models whose
    columns are made first (mmrlhf-engine reference).
    """
    from mmrlhf_engine.measure import preferences as command

    precision = options.pop("precision")
    for column, model in (("policy_column", "model"), ("reference_column", "reference_model")):
        name = options.pop(model)
        if (name is None) == (options[column] is None):
            flags = f"--{column.replace('_', '-')}, --{model.replace('_', '-')}"
            raise click.UsageError(f"expected one of {flags}")
        if name is not None:
            options[column] = _column_of(options["shards"], name, precision, out, progress)
    section = _run(command.STAGE, out, progress, options)
    figures = section["overall"]
    margin = _figure(figures, "mean_margin")
    click.echo(f"{figures['pairs']:,} pairs: accuracy {_figure(figures, 'acc')}, margin {margin}")


@evaluate.command("win-rate")
@FILE
@evaluation_options
def win_rate(out: Path, progress: Any, **options: Any) -> None:
    """Win rates and ratings from a judge's verdicts.

    A line of FILE is {"id": .., "a": MODEL, "b": MODEL, "verdict": ..}: a, b, tie, or a label such
    as [[A>>B]]; "order": "ba" says that the judge saw b first.
    """
    from mmrlhf_engine.measure import win_rate as command

    section = _run(command.STAGE, out, progress, options)
    for name, figures in section["models"].items():
        rating = "" if figures["elo"] is None else f", rating {figures['elo']:,.0f}"
        click.echo(f"{name}: win rate {_figure(figures, 'win_rate')}{rating}")


@evaluate.command()
@FILE
@click.option("--refusals", type=FILE_OR_FOLDER, help="Phrases that decline, one a line.")
@evaluation_options
def safety(out: Path, progress: Any, **options: Any) -> None:
    """Attack success and refusals of given answers.

    A line of FILE is {"task": .., "id": .., "response": ..} with the verdict of a judge: "harmful"
    for jailbreaks, "verdict" for adversarial pictures and risks; NSFW tasks need none.
    """
    from mmrlhf_engine.measure import safety as command

    section = _run(command.STAGE, out, progress, options)
    for name in ("unsafety", "safety"):
        mean, lacks = section[name]["mean"], section[name]["lacks"]
        text = f"no mean, for want of {', '.join(lacks)}" if mean is None else f"{mean:.3f}"
        click.echo(f"{name}: {text}")


@evaluate.command()
@FILE
@click.option("--before", type=FILE_OR_FOLDER, help="Predictions of the model before.")
@evaluation_options
def vqa(out: Path, progress: Any, **options: Any) -> None:
    """Accuracy on questions about pictures.

    A line of FILE is {"id": .., "question": .., "answer": .., "prediction": ..}; with "blind", the
    prediction without the picture, "kind", "options" and "image" where there are any.
    """
    from mmrlhf_engine.measure import vqa as command

    section = _run(command.STAGE, out, progress, options)
    click.echo(f"all: accuracy {_figure(section['overall'], 'acc')}")
    click.echo(f"mean over kinds: accuracy {_figure(section['balanced'], 'acc')}")
    if "before" in section:
        difference = section["before"]["difference"]["overall"]
        click.echo(f"difference to before: {_figure(difference, 'acc')}")


@evaluate.command("lmms-eval")
@click.option("--model", required=True, metavar="NAME|FOLDER", help="The checkpoint.")
@click.option("--tasks", required=True, metavar="TASKS", help="Names with commas, or paper.")
@click.option("--kind", metavar="NAME", help="Model class of lmms-eval; default: by config.json.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Questions at once; default 1.")
@click.option("--limit", type=click.IntRange(min=1), help="Questions of each task.")
@click.option("--dry-run", is_flag=True, help="Print the command, and do not run it.")
@OUT
@PROGRESS
def lmms_eval(out: Path, progress: Any, dry_run: bool, **options: Any) -> None:
    """Public benchmarks by lmms-eval, if it is installed.

    The tasks of "paper" are the benchmarks of MM-RLHF.
    """
    from mmrlhf_engine.measure import lmms_eval as command
    from mmrlhf_engine.run.config import load_config

    options["tasks"] = [name.strip() for name in options["tasks"].split(",") if name.strip()]
    if dry_run:
        config = load_config(command.BenchmarksConfig, None, as_overrides(options))
        click.echo(command.command_text(config, out))
        return
    section = _run(command.STAGE, out, progress, options)
    for task, facts in section["tasks"].items():
        for metric, value in facts["metrics"].items():
            click.echo(f"{task}: {metric} {value:.4g}")


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


def _column_of(shards: Path, model: str, precision: Any, out: Path, progress: Any) -> str:
    """The column set of a model's log-probabilities, made if it is not there."""
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress
    from mmrlhf_engine.train import reference as command

    named = {"shards": str(shards), "model": model, "precision": precision}
    config = load_config(command.ReferenceConfig, None, as_overrides(named))
    return str(command.run_in(config, out, Progress(progress))["column_set"])


def _figure(figures: dict[str, Any], key: str) -> str:
    if figures[key] is None:
        return "none"
    low, high = figures[f"{key}_interval"]
    return f"{figures[key]:.3f} ({low:.3f} to {high:.3f})"


COMMANDS = (evaluate,)
