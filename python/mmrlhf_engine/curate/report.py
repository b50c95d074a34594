"""What people look at: the funnel as text, and ``RUN/report.html``, one self-contained page.

The page answers, in this order: what is probably wrong (the alarms), how many went in and what
became of them, whether the choice looks like what was asked for, whether it covers the corpus,
whether the removals were right (pairs side by side, those around the thresholds first), what was
wrong with the input, and what was chosen.
Sections appear as far as the run has gone. Everything is read from the tables and reports of the
run; nothing is computed that a reader could not compute from the same files.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from mmrlhf_engine import __version__
from mmrlhf_engine.curate.alarms import Alarm, as_text, find_alarms
from mmrlhf_engine.curate.explain import measures
from mmrlhf_engine.curate.thumbnails import thumbnails
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import Run

__all__ = ["funnel", "write"]

GALLERY = 60
PAIRS = 24
REJECTED_EXAMPLES = 40
MAP_POINTS = 4_000
COLUMNS = 1_000
"""Clusters shown: more columns would be narrower than a pixel."""
_STAGES = ("ingest", "dedup", "embed", "cluster", "select")
_NAMES = {
    "exact": "exact duplicates",
    "near": "near duplicates",
    "max_per_image": "over the cap of one image",
    "contaminated": "in a benchmark",
    "not_chosen": "kept, not chosen",
}


def funnel(run: Run, alarms: list[Alarm] | None = None) -> str:
    """Rows in and out of each finished stage with what was dropped by reason, then the alarms.

    Args:
        run: The run.
        alarms: Those of the run; looked for when None.
    """
    lines = []
    for stage in _STAGES:
        report = run.report(stage)
        if report is None:
            continue
        lines.append(f"{stage:8} {report['rows_in']:>12,} in {report['rows_out']:>12,} out")
        lines += [
            f"{'':8} {count:>12,} {_NAMES.get(reason, reason.replace('_', ' '))}"
            for reason, count in report["dropped"].items()
            if count
        ]
        lines += [f"{'':8} {fact}" for fact in _not_read(report)]
    balance = _balance(run)
    select = run.report("select") or {}
    more = [*([balance] if balance else []), *select.get("shortfalls", []), *_spread(select)]
    alarmed = as_text(find_alarms(run) if alarms is None else alarms)
    parts = ["\n".join(lines), "\n".join(more), alarmed]
    return "\n\n".join(part for part in parts if part)


def _spread(select: dict[str, Any]) -> list[str]:
    """How evenly and how far apart the chosen lie, beside as many taken at random."""
    said = []
    if (coverage := select.get("coverage")) and coverage["clusters"]:
        chosen, blind = (coverage[side]["effective"] for side in ("chosen", "random"))
        said.append(
            f"spread: as over {chosen:,.1f} even clusters of {coverage['clusters']:,}, "
            f"{blind:,.1f} if chosen at random"
        )
    if (diversity := select.get("diversity")) and diversity["compared"]:
        chosen, blind = (
            diversity[side][len(diversity[side]) // 2] for side in ("chosen", "random")
        )
        said.append(
            f"distance of a picture to the nearest other, median: {chosen:.3f}, "
            f"{blind:.3f} if chosen at random"
        )
    return said


def _not_read(report: dict[str, Any]) -> list[str]:
    """What of the sources was left out: splits that were not taken, files that nothing reads."""
    said = [
        f"split {split['taken']} of {source}, not read: {', '.join(split['not_read'])}"
        for source, split in report.get("splits", {}).items()
        if split["not_read"]
    ]
    passed_over = report.get("passed_over", {})
    if passed_over:
        shown = ", ".join(f"{count:,} {suffix}" for suffix, count in passed_over.items())
        said.append(f"not read: {shown}")
    return said


def _balance(run: Run) -> str | None:
    """One line that accounts for every row that came in."""
    ingest, dedup = run.report("ingest"), run.report("dedup")
    if ingest is None or dedup is None:
        return None
    duplicates = {k: n for k, n in dedup["dropped"].items() if k in _NAMES}
    rejected = sum(ingest["dropped"].values()) + sum(dedup["dropped"].values())
    rejected -= sum(duplicates.values())
    parts = dedup["rows_out"], sum(duplicates.values()), rejected
    mark = "=" if ingest["rows_in"] == sum(parts) else "≠"
    return (
        f"{ingest['rows_in']:,} rows in {mark} {parts[0]:,} kept + {parts[1]:,} duplicates "
        f"+ {parts[2]:,} rejected"
    )


def write(run: Run, alarms: list[Alarm] | None = None) -> Path:
    """Write ``report.html`` into the run folder and return its path; ``alarms`` as above."""
    template = files("mmrlhf_engine.curate").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["code"] = _with_code
    page = environment.from_string(template).render(
        **_content(run), alarms=find_alarms(run) if alarms is None else alarms
    )
    path = run.folder / "report.html"
    write_atomically(path, page)
    return path


def _with_code(text: str) -> Markup:
    """A text whose parts between backquotes are shown as code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in parts
    )


def _content(run: Run) -> dict[str, Any]:
    tables = _Tables(run)
    reports = {stage: report for stage in _STAGES if (report := run.report(stage))}
    pairs = _pairs(tables)
    gallery = _gallery(tables)
    pictures = thumbnails(
        tables.media,
        {card["picture"] for pair in pairs for card in (pair["left"], pair["right"])}
        | {card["picture"] for card in gallery},
    )
    for card in [*gallery, *(pair[side] for pair in pairs for side in ("left", "right"))]:
        card["thumbnail"] = pictures.get(card["picture"])
    return {
        "version": __version__,
        "run": run.folder.name,
        "reports": {stage: {**r, "notes": _notes(stage, r)} for stage, r in reports.items()},
        "shortfalls": reports.get("select", {}).get("shortfalls", []),
        "coverage": reports.get("select", {}).get("coverage"),
        "diversity": _curves(reports.get("select", {}).get("diversity")),
        "balance": _balance(run),
        "steps": _steps(reports),
        "mixtures": _mixtures(tables),
        "clusters": (clusters := _clusters(tables))[:: (step := -(-len(clusters) // COLUMNS) or 1)],
        "clusters_step": step,
        "map": _map(run, tables),
        "pairs": pairs,
        "rejected": _rejected(tables),
        "gallery": gallery,
    }


def _notes(stage: str, report: dict[str, Any]) -> str:
    """What the stage says of itself beyond its numbers of rows."""
    facts = {
        "ingest": ("{media:,} distinct media",),
        "dedup": ("{pictures:,} pictures hashed", "{pairs_compared:,} pairs measured"),
        "embed": ("{encoder}", "{device}", "{images_per_second} images/s"),
        "cluster": ("{clusters} clusters", "{empty_clusters} empty", "{device}"),
    }
    said = []
    for fact in facts.get(stage, ()):
        try:
            said.append(fact.format(**report))
        except KeyError:  # a stage that had nothing to do does not say how fast it was
            continue
    return ", ".join([*said, *_not_read(report)])


class _Tables:
    """The tables of a run, None where the run has not come so far.

    Those with a row for every sample are scanned: they need not fit in memory.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.samples = self._scan("samples")
        self.media = self._scan("media")
        self.clusters = self._scan("clusters")
        self.near_pairs = self._read("near_pairs")
        self.queries = self._read("queries")
        self.rejected = self._rejected()

    def _scan(self, name: str) -> pl.LazyFrame | None:
        folder = self._run.find(name)
        return pl.scan_parquet(folder / "*.parquet") if folder is not None else None

    def _read(self, name: str) -> pl.DataFrame | None:
        table = self._scan(name)
        return table.collect() if table is not None else None

    def _rejected(self) -> pl.LazyFrame | None:
        """The rejected rows of every finished stage, with the stage that rejected them."""
        parts = [
            pl.scan_parquet(folder / "rejected" / "*.parquet").with_columns(stage=pl.lit(stage))
            for stage in _STAGES
            if self._run.manifest(stage) is not None
            and (folder := self._run.stage_folder(stage)).joinpath("rejected").is_dir()
        ]
        return pl.concat(parts) if parts else None


@dataclass(frozen=True)
class _Step:
    """One bar of the funnel."""

    stage: str
    label: str
    count: int
    share: float
    kind: str
    """``left`` for what goes on, ``dropped`` for what a stage took out."""


def _steps(reports: dict[str, Any]) -> list[_Step]:
    if "ingest" not in reports:
        return []
    total = max(reports["ingest"]["rows_in"], 1)
    steps = [_Step("", "rows in", total, 1.0, "left")]
    for stage, report in reports.items():
        dropped = sorted(report["dropped"].items(), key=lambda item: -item[1])
        steps += [
            _Step(stage, _NAMES.get(r, r.replace("_", " ")), n, n / total, "dropped")
            for r, n in dropped
            if n
        ]
        if dropped:
            label = "chosen" if stage == "select" else f"after {stage}"
            steps.append(
                _Step(stage, label, report["rows_out"], report["rows_out"] / total, "left")
            )
    return steps


def _mixtures(tables: _Tables) -> list[dict[str, Any]]:
    """Per column, the share of each value before (samples) and after (queries)."""
    if tables.samples is None or tables.queries is None:
        return []
    mixtures = []
    for column, title in (
        ("question_type", "Question type"),
        ("modality", "Modality"),
        ("source", "Source"),
    ):
        counts = tables.samples.group_by(column).len().sort("len", column, descending=[True, False])
        before = dict(counts.collect(engine="streaming").iter_rows())
        total = sum(before.values())
        after = dict(tables.queries[column].value_counts().iter_rows())
        rows = [
            {
                "name": name,
                "before": count / max(total, 1),
                "after": after.get(name, 0) / max(tables.queries.height, 1),
                "count": after.get(name, 0),
            }
            for name, count in before.items()
        ]
        mixtures.append({"title": title, "rows": rows[:12]})
    return mixtures


def _clusters(tables: _Tables) -> list[dict[str, Any]]:
    """Size of each cluster, largest first, and how many were chosen from it."""
    if tables.clusters is None:
        return []
    counts = tables.clusters.group_by("cluster").agg(count=pl.len())
    sizes = counts.sort("count", "cluster", descending=[True, False]).collect(engine="streaming")
    chosen: dict[int, int] = {}
    if tables.queries is not None:
        chosen = dict(tables.queries["cluster"].value_counts().iter_rows())
    largest = max(sizes["count"].max() or 1, 1)
    return [
        {
            "cluster": cluster,
            "size": size,
            "height": size / largest,
            "chosen": chosen.get(cluster, 0),
        }
        for cluster, size in sizes.iter_rows()
    ]


def _curves(diversity: dict[str, Any] | None) -> dict[str, Any] | None:
    """The quantiles of the distance to the nearest other as SVG paths, 1000 wide, 300 high."""
    if not diversity or not diversity["compared"]:
        return None
    sides = {side: diversity[side] for side in ("chosen", "random")}
    # The one in twenty that is farthest would leave no height to the others.
    most = max(values[-2] for values in sides.values()) or 1.0
    paths = {
        side: "M"
        + "L".join(
            f"{1000 * at / (len(values) - 1):.1f} {300 - 300 * min(value / most, 1):.1f}"
            for at, value in enumerate(values)
        )
        for side, values in sides.items()
    }
    medians = {side: values[len(values) // 2] for side, values in sides.items()}
    return {"compared": diversity["compared"], "paths": paths, "medians": medians, "most": most}


def _map(run: Run, tables: _Tables) -> dict[str, Any] | None:
    """The first two principal components of the embeddings as SVG paths, 1000 wide, 600 high.

    A dot is a line of no length with round ends: one path draws thousands of them.
    """
    ids_folder = run.find("embedding_ids")
    file = run.stage_folder("embed") / "embeddings.npy"
    if ids_folder is None or not file.exists() or tables.queries is None:
        return None
    embeddings = np.load(file, mmap_mode="r")
    rows = pl.read_parquet(ids_folder / "*.parquet")
    is_chosen = pl.col("id").is_in(tables.queries["id"].implode())
    chosen = set(rows.filter(is_chosen)["row"].drop_nulls().to_list())
    step = max(1, -(-len(embeddings) // MAP_POINTS))
    shown = sorted({*range(0, len(embeddings), step), *sorted(chosen)[:MAP_POINTS]})
    if len(shown) < 3:
        return None
    points = np.asarray(embeddings[shown], dtype=np.float32)
    centred = points - points.mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T
    low, high = np.percentile(flat, 0.5, axis=0), np.percentile(flat, 99.5, axis=0)
    scaled = np.clip((flat - low) / np.maximum(high - low, 1e-9), 0, 1) * 1000
    explained = float((spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-12))
    dots = [f"M{x:.1f} {0.6 * y:.1f}h0" for x, y in scaled]
    return {
        "kept_path": "".join(dots),
        "chosen_path": "".join(dot for row, dot in zip(shown, dots, strict=True) if row in chosen),
        "explained": explained,
        "images": len(embeddings),
        "chosen": len(chosen),
    }


def _pairs(tables: _Tables) -> list[dict[str, Any]]:
    """Near-duplicate pairs with their measures, those nearest to a threshold first."""
    if tables.near_pairs is None or tables.samples is None:
        return []
    cards = _cards(tables, {*tables.near_pairs["id"], *tables.near_pairs["other_id"]})
    rows = tables.near_pairs.head(4 * PAIRS).to_dicts()
    pairs = [
        {
            **row,
            "measures": measures(row),
            "left": dict(cards[row["other_id"]]),
            "right": dict(cards[row["id"]]),
        }
        for row in rows
        if row["id"] in cards and row["other_id"] in cards
    ]
    removed = [pair for pair in pairs if pair["verdict"] == "removed"][:PAIRS]
    kept = [pair for pair in pairs if pair["verdict"] != "removed"][:PAIRS]
    return removed + kept


def _rejected(tables: _Tables) -> list[dict[str, Any]]:
    """Every reason with its count and some examples, the most frequent first."""
    if tables.rejected is None:
        return []
    rows = tables.rejected
    counts = rows.group_by("reason").len().sort("len", "reason", descending=[True, False]).collect()
    return [
        {
            "reason": reason,
            "count": count,
            "examples": rows.filter(pl.col("reason") == reason).head(4).collect().to_dicts(),
        }
        for reason, count in counts.head(REJECTED_EXAMPLES).iter_rows()
    ]


def _gallery(tables: _Tables) -> list[dict[str, Any]]:
    """Chosen queries, evenly over the table so that every cluster has its turn."""
    if tables.queries is None or tables.queries.is_empty():
        return []
    ordered = tables.queries.sort("cluster", "id")
    step = max(1, ordered.height // GALLERY)
    cards = _cards(tables, set(ordered.gather_every(step).head(GALLERY)["id"]))
    extra = tables.queries.select("id", "cluster", "why").rows_by_key("id", named=True, unique=True)
    return [{**card, **extra[identifier]} for identifier, card in cards.items()]


def _cards(tables: _Tables, ids: set[str]) -> dict[str, dict[str, Any]]:
    """What a card of the page shows of a sample, by id."""
    assert tables.samples is not None
    rows = tables.samples.filter(pl.col("id").is_in(list(ids))).sort("id")
    return {
        row["id"]: {**row, "picture": row["media"][0] if row["media"] else None}
        for row in rows.collect(engine="streaming").iter_rows(named=True)
    }
