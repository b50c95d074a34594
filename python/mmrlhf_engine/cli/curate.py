"""Commands of the package ``curate``: curate, explain, disagree, contaminants, config."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmrlhf_engine.cli.options import (
    DATASET,
    EXISTING,
    FILE_OR_FOLDER,
    MEMORY,
    PROGRESS,
    SET,
    THREADS,
    Grouped,
    as_overrides,
    interruptible,
    option,
    setting,
)

__all__ = ["COMMANDS"]

_STAGES = ["ingest", "dedup", "embed", "cluster", "select"]
_COUNT = click.IntRange(min=1)
_RUN, _INPUT, _SAME, _CHOICE, _MACHINE = (
    "The run",
    "What is read",
    "What counts as a duplicate",
    "What is chosen",
    "The machine",
)


def _text(metavar: str) -> dict[str, Any]:
    return {"metavar": metavar}


def _number(kind: Any = _COUNT, metavar: str = "N") -> dict[str, Any]:
    return {"type": kind, "metavar": metavar}


def _several(metavar: str) -> dict[str, Any]:
    """An option that may be repeated; not given, it leaves what the config says."""

    def given(_context: click.Context, _option: click.Parameter, values: Any) -> list[str] | None:
        return list(values) or None

    return {"multiple": True, "metavar": metavar, "callback": given}


def _name(*names: str) -> dict[str, Any]:
    return {"type": click.Choice(names), "metavar": "NAME"}


_SHARE, _INT, _WHOLE = click.FLOAT, click.INT, click.IntRange(min=0)

# Option, setting, heading, kind, help. The default is printed here because to ask the settings for
# it takes longer than --help may; a test compares the two.
_SETTINGS: list[tuple[str, str, str, dict[str, Any], str, str]] = [
    ("--max-bad", "ingest.max_bad", _INPUT, _text("SHARE"), "Stop where more is bad: 1%.", ""),
    (
        *("--max-pixels", "ingest.max_pixels", _INPUT, _number()),
        *("Larger pictures are rejected.", "89478485"),
    ),
    (
        *("--policy", "dedup.policy", _SAME, _name("joint", "image", "text", "exact")),
        *("joint (picture and text), image, text or exact.", "joint"),
    ),
    (
        *("--judge", "dedup.judge", _SAME, {"type": click.BOOL, "metavar": "on|off"}),
        *("Compare near pictures and texts closely; off: hashes decide.", "on"),
    ),
    (
        *("--text-rule", "dedup.text_rule", _SAME, _name("prompts", "documents", "auto")),
        *("What decides about texts: prompts, documents or auto.", "prompts"),
    ),
    (
        *("--text-threshold", "dedup.text_threshold", _SAME, _number(_SHARE, "JACCARD")),
        *("Near documents have at least this, 0 to 1.", "0.8"),
    ),
    (
        *("--hash", "dedup.hash", _SAME, _name("fast", "exact")),
        *("Of pictures: fast, or exact as imagehash makes it.", "fast"),
    ),
    (
        *("--cache", "dedup.cache", _SAME, _text("FOLDER")),
        *("Keeps hashes of pictures for later runs.", ""),
    ),
    (
        *("--unverified-images", "dedup.unverified_images", _SAME),
        {"type": click.BOOL, "metavar": "on|off"},
        *("Near pictures known by a hash alone are copies.", "off"),
    ),
    (
        *("--image-radius", "dedup.image_radius", _SAME, _number(_INT, "BITS")),
        *("Hashes of near pictures differ in at most so many.", "4"),
    ),
    (
        *("--max-per-image", "dedup.max_per_image", _SAME, _number()),
        *("Samples that may stay on one picture.", "32"),
    ),
    (
        *("--against", "dedup.against", _SAME, _several("INDEX")),
        *("Remove what is in these benchmarks (contaminants build).", ""),
    ),
    (
        *("--against-by", "dedup.against_by", _SAME, _name("both", "text", "picture", "either")),
        *("What of a question has to match.", "both"),
    ),
    (
        *("--encoder", "embed.encoder", _CHOICE, _text("NAME")),
        "open_clip:MODEL/WEIGHTS, transformers:NAME, lite0 or precomputed:FILE.npy.",
        "open_clip:ViT-B-32/openai",
    ),
    ("--frames", "embed.frames", _CHOICE, _number(), "Frames of a video that count.", "1"),
    ("--clusters", "cluster.clusters", _CHOICE, _number(), "Clusters of pictures.", "100"),
    ("--select", "select.count", _CHOICE, _number(), "Queries to choose.", "30000"),
    (
        *("--order", "select.order", _CHOICE, _name("seeded", "farthest")),
        *("Within a cluster: seeded (random) or farthest first.", "seeded"),
    ),
    (
        *("--semantic-threshold", "select.semantic_threshold", _CHOICE, _number(_SHARE, "COSINE")),
        *("Pass over pictures this near to a chosen one.", ""),
    ),
    ("--seed", "seed", _CHOICE, _number(_INT), "Of everything random.", "0"),
    ("--batch", "embed.batch", _MACHINE, _number(), "Pictures the encoder takes at once.", ""),
    ("--threads", "threads", _MACHINE, _number(_WHOLE), "0 is one per core; same output.", "0"),
    ("--memory", "memory", _MACHINE, _text("SIZE"), "To stay within, for example 4G.", ""),
]


def _named_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, key, group, kind, text, default in reversed(_SETTINGS):
        shown = f"{text}  [default: {default}]" if default else text
        command = setting(name, key, group=group, help=shown, **kind)(command)
    return command


@click.command(cls=Grouped)
@click.argument("sources", nargs=-1)
@option("--out", group=_RUN, required=True, type=FILE_OR_FOLDER, help="The run folder.")
@option(
    *("--add",),
    group=_RUN,
    is_flag=True,
    help="Extend the finished run by SOURCES, with its settings but for those named.",
)
@option("--dry-run", group=_RUN, is_flag=True, help="Check, and print what would run.")
@option(
    *("--from", "first"),
    group=_RUN,
    type=click.Choice(_STAGES),
    metavar="STAGE",
    default="ingest",
    help="The first of ingest, dedup, embed, cluster, select.",
)
@option(
    *("--to", "last"),
    group=_RUN,
    type=click.Choice(_STAGES),
    metavar="STAGE",
    default="select",
    help="The last of them.",
)
@option("--config", "config_file", group=_RUN, type=EXISTING, help="Settings, as YAML.")
@option(
    *("--set", "overrides"),
    group=_RUN,
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting; `mmrlhf-engine config` prints all.",
)
@_named_settings
@option("--reweigh", group=_SAME, is_flag=True, help="Count again which words are common.")
@option("--follow-links", group=_INPUT, is_flag=True, help="Let links lead out of the sources.")
@option(
    "--progress",
    group=_MACHINE,
    type=click.Choice(["human", "jsonl", "silent"]),
    metavar="FORMAT",
    default="human",
    help="On stderr: human, jsonl or silent.",
)
@click.pass_context
def curate(context: click.Context, /, sources: tuple[str, ...], out: Path, **options: Any) -> None:
    """Choose diverse queries from raw corpora, with a report.

    SOURCES are jsonl, json, parquet, csv, tsv and tar files, folders, quoted patterns such as
    'data/*.parquet', and addresses (s3://, gs://, hf://, https://). A finished and unchanged stage
    is skipped, and an interrupted run resumes. The report is OUT/report.html.

    Everything is checked before anything in OUT is touched: sources, settings, encoder, disk.
    """
    from mmrlhf_engine import pipeline
    from mmrlhf_engine.curate import report
    from mmrlhf_engine.curate.alarms import find_alarms
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.folder import Run
    from mmrlhf_engine.run.progress import Progress

    assert isinstance(context.command, Grouped)
    named = {key: options[name] for name, key in context.command.settings.items()}
    overrides = [*options["overrides"], *as_overrides(named)]
    base = pipeline.settings_of(Run(out)) if options["add"] else None
    config = load_config(pipeline.CurateConfig, options["config_file"], overrides, base=base)
    config = pipeline.with_sources(config, sources, follow_links=options["follow_links"])
    stages = pipeline.stage_slice(options["first"], options["last"])
    flags = {"add": options["add"], "reweigh": options["reweigh"]}
    if options["dry_run"]:
        click.echo(pipeline.describe_plan(config, out, stages, **flags))
        return
    progress = Progress(options["progress"])
    slice_of = {"first": stages[0], "last": stages[-1], **flags}
    with interruptible("the same command resumes the run"):
        run = pipeline.curate(config, out, progress=progress, **slice_of)
        alarms = find_alarms(run)
        click.echo(report.funnel(run, alarms))
        page = report.write(run, alarms)
        click.echo(f"\npage: {page}")
    if alarms:
        count = "1 alarm" if len(alarms) == 1 else f"{len(alarms)} alarms"
        facts = [alarm.facts() for alarm in alarms]
        progress.warn(
            f"{count}: look at the top of {page} before the queries are used", alarms=facts
        )


@click.command()
@click.argument("run", type=DATASET)
@click.argument("sample_id", metavar="ID")
@click.argument("other_id", metavar="[OTHER_ID]", required=False)
def explain(run: Path, sample_id: str, other_id: str | None) -> None:
    """Print what became of sample ID in RUN, and why.

    With OTHER_ID: both samples, what was measured between them, and why one removed the other, or
    did not.
    """
    from mmrlhf_engine.curate.explain import explain as story
    from mmrlhf_engine.run.folder import Run

    if other_id is None:
        click.echo(story(Run(run), sample_id))
        return
    from mmrlhf_engine.curate.explain_pair import explain_pair

    click.echo(explain_pair(Run(run), sample_id, other_id))


@click.command()
@click.argument("run", type=DATASET)
@click.argument("sample_id", metavar="ID")
@click.argument("kept_id", metavar="KEPT_ID")
def disagree(run: Path, sample_id: str, kept_id: str) -> None:
    """Keep sample ID, which was removed in favour of KEPT_ID.

    The pair is written to RUN/overrides.jsonl, which dedup reads the next time curate runs: no
    sample that is added later stands for both either. A line that is removed from the file is
    forgotten.
    """
    from mmrlhf_engine.curate.disagree import disagree as record
    from mmrlhf_engine.run.folder import Run

    click.echo(record(Run(run), sample_id, kept_id))


@click.group()
def contaminants() -> None:
    """Indexes of benchmarks whose questions no sample may repeat."""


@contaminants.command()
@click.argument("index", type=FILE_OR_FOLDER)
@click.argument("benchmarks", nargs=-1, required=True)
@THREADS
@MEMORY
@PROGRESS
def build(
    index: Path, benchmarks: tuple[str, ...], progress: Any, **limits: int | str | None
) -> None:
    """Read BENCHMARKS into INDEX, a folder that `curate --against` takes.

    A benchmark is anything that curate reads as a source: parquet with images, jsonl, tsv, tar, a
    folder. Of a folder with splits the test split is read, else the one for validation.
    """
    from mmrlhf_engine.curate.contaminants import build_index
    from mmrlhf_engine.pipeline import CurateConfig, with_sources
    from mmrlhf_engine.run.config import load_config
    from mmrlhf_engine.run.progress import Progress

    config = with_sources(load_config(CurateConfig, None, as_overrides(limits)), benchmarks)
    with interruptible("the same command builds the index again"):
        resources = config.resources(Progress(progress))
        counts = build_index(index, config.ingest.sources, resources)
    for name, count in counts.items():
        click.echo(f"{name}: {count:,} questions")


@click.command()
@click.argument("file", required=False, type=EXISTING)
@click.option(
    "--of",
    "command",
    type=click.Choice(["curate", "pair", "pack", "reference", "mm-dpo", "sft", "sample"]),
    default="curate",
    show_default=True,
    help="The command whose settings are printed.",
)
@SET
def config(file: Path | None, command: str, overrides: tuple[str, ...]) -> None:
    """Print every setting of a command as YAML.

    FILE has settings that differ from the defaults.
    """
    from mmrlhf_engine.run.config import load_config, to_yaml

    click.echo(to_yaml(load_config(_settings_of(command), file, overrides)), nl=False)


def _settings_of(command: str) -> Any:
    if command == "curate":
        from mmrlhf_engine.pipeline import CurateConfig

        return CurateConfig
    package = {"pair": "collect", "pack": "pack"}.get(command, "train")
    name = command.replace("-", "_")
    module = importlib.import_module(f"mmrlhf_engine.{package}.{name}")
    return module.STAGE.config


COMMANDS = (curate, explain, disagree, contaminants, config)
