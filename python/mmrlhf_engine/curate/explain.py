"""The story of one sample, and a look into any table: for the terminal.

``explain`` follows an id through the stages of a run and says what each decided, on what evidence.
It reads the same tables as everybody else, so what it says can be checked with one polars query.
"""

import difflib
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.folder import Run

__all__ = [
    "evidence",
    "explain",
    "find_sample",
    "inspect_table",
    "measures",
    "nearest_ids",
    "rows_of",
    "shorten",
    "told_before",
]

_LINE = 100


def explain(run: Run, identifier: str) -> str:
    """What became of the sample ``identifier`` (its id, or the id the user gave it).

    Raises:
        InputError: no finished stage of the run has met this id.
    """
    samples = find_sample(run, identifier)
    if not samples:
        return _explain_rejected(run, identifier)
    return "\n\n".join(_story(run, sample) for sample in samples)


def find_sample(run: Run, identifier: str) -> list[dict[str, Any]]:
    """The sample of this id; else those of this source id, of which there may be several."""
    for column in ("id", "source_id"):
        if samples := rows_of(run, "samples", pl.col(column) == identifier):
            return samples
    return []


def _story(run: Run, sample: dict[str, Any]) -> str:
    parts = [_ingest(run, sample), *_dedup(run, sample["id"])]
    if not _removed(run, sample["id"]):
        parts += [*_cluster(run, sample["id"]), *_select(run, sample["id"])]
    return "\n".join(parts)


def _ingest(run: Run, sample: dict[str, Any]) -> str:
    lines = [
        sample["id"],
        f"  ingest   source {sample['source']}, {sample['modality']}, {sample['question_type']}",
        f"           prompt: {shorten(sample['prompt'])}",
    ]
    if history := told_before(sample):
        lines.append(f"           after:  {history}")
    if sample["answer"] is not None:
        lines.append(f"           answer: {shorten(sample['answer'])}")
    for item in rows_of(run, "media", pl.col("hash").is_in(sample["media"])):
        place = item["path"] or "known by its hash alone"
        if item["column"] is not None:
            place += f", column {item['column']}, row {item['row']}"
        elif item["offset"] is not None:
            place += f", bytes {item['offset']} to {item['offset'] + item['length']}"
        size = f"{item['width']}x{item['height']}" if item["width"] else "size unknown"
        format = f"{item['format']} " if item["format"] else ""
        lines.append(f"           {item['kind']}: {format}{size}, {place}")
    return "\n".join(lines)


def _dedup(run: Run, identifier: str) -> list[str]:
    lines = []
    for row in rows_of(run, "duplicates", pl.col("id") == identifier):
        lines.append(f"  dedup    removed: {evidence(row)} {row['kept_id']}")
        stays = rows_of(run, "samples", pl.col("id") == row["kept_id"])
        lines += [f"           which asks: {shorten(kept['prompt'])}" for kept in stays]
    for row in _rejected(run, pl.col("position") == identifier):
        lines.append(f"  dedup    rejected: {row['reason']}: {row['detail']}")
    if not lines and rows_of(run, "kept", pl.col("id") == identifier):
        others = rows_of(run, "duplicates", pl.col("kept_id") == identifier)
        lines.append(f"  dedup    kept; {len(others):,} others were removed in its favour")
        lines += [f"           {row['id']}: {evidence(row)} this one" for row in others[:5]]
    return lines


def evidence(row: dict[str, Any]) -> str:
    """The measure on which a removal rests, as words that end in "of"."""
    if row["kind"] == "max_per_image":
        return "more samples on this image than max_per_image allows; the image is that of"
    measures = []
    if row["text_jaccard"] is not None:
        measures.append(f"text Jaccard {row['text_jaccard']:.3f}")
    if row["contained"] is not None:
        measures.append(f"has {row['contained']:.0%} of its runs of words")
    if row["image_hamming"] is not None:
        measures.append(f"image Hamming {row['image_hamming']} of 64 bits")
    if row["kind"] == "contaminated":
        return f"it matches ({', '.join(measures)}) a question of the benchmark {row['benchmark']}:"
    return f"{row['kind']} duplicate ({', '.join(measures) or row['policy']}) of"


def measures(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Every measure of a row of ``duplicates`` or ``near_pairs`` that is not null, and its name."""
    return [
        (_MEASURES.get(name, name.replace("_", " ")), _as_measure(value))
        for name, value in row.items()
        if name not in _NO_MEASURES and value is not None
    ]


_NO_MEASURES = frozenset(
    {"id", "kept_id", "other_id", "kind", "policy", "verdict", "difference_box"}
)
_MEASURES = {
    "text_jaccard": "text Jaccard",
    "image_hamming": "image Hamming",
    "text_differences": "texts",
    "difference": "pictures differ in",
}


def _as_measure(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_as_measure(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _removed(run: Run, identifier: str) -> bool:
    here = pl.col("id") == identifier
    return run.find("kept") is not None and not rows_of(run, "kept", here)


def _cluster(run: Run, identifier: str) -> list[str]:
    lines = []
    for row in rows_of(run, "clusters", pl.col("id") == identifier):
        if row["cluster"] < 0:
            lines.append("  cluster  none: it has no picture to embed")
        else:
            lines.append(
                f"  cluster  {row['cluster']}, distance {row['distance']:.3f} to its centroid"
            )
    return lines


def _select(run: Run, identifier: str) -> list[str]:
    if run.find("queries") is None:
        return []
    chosen = rows_of(run, "queries", pl.col("id") == identifier)
    if chosen:
        return [f"  select   chosen: {row['why']}" for row in chosen]
    close = rows_of(run, "semantic_duplicates", pl.col("id") == identifier)
    if close:
        return [
            f"  select   not chosen: cosine {row['cosine']:.3f} to {row['kept_id']}, which stays"
            for row in close
        ]
    return ["  select   not chosen: the quotas were filled by others of its type and cluster"]


def _explain_rejected(run: Run, identifier: str) -> str:
    rows = _rejected(run, pl.col("position").str.ends_with(identifier))
    if rows:
        return "\n".join(
            f"{row['position']}\n  {row['stage']:8} rejected: {row['reason']}: {row['detail']}"
            for row in rows
        )
    raise InputError(f"{run.folder}: no sample {identifier!r}", hint=nearest_ids(run, identifier))


def nearest_ids(run: Run, identifier: str) -> str:
    """What ids of the run look like, the nearest first, for a hint."""
    folder = run.find("samples")
    if folder is None:
        return "the run has no finished ingest yet"
    ids = pl.scan_parquet(folder / "*.parquet").select("id").head(100_000).collect()["id"].to_list()
    near = difflib.get_close_matches(identifier, ids, n=3, cutoff=0.5) or ids[:3]
    return f"ids look like {', '.join(near)}"


def rows_of(run: Run, table: str, condition: pl.Expr) -> list[dict[str, Any]]:
    """The rows of a table for which the condition holds; none where there is no such table."""
    folder = run.find(table)
    if folder is None:
        return []
    return pl.scan_parquet(folder / "*.parquet").filter(condition).collect().to_dicts()


def _rejected(run: Run, condition: pl.Expr) -> list[dict[str, Any]]:
    """Rejected rows of ingest and dedup, each with the stage that rejected it."""
    rows = []
    for stage in ("ingest", "dedup"):
        folder = run.stage_folder(stage) / "rejected"
        if folder.is_dir() and run.manifest(stage) is not None:
            found = pl.scan_parquet(folder / "*.parquet").filter(condition).collect()
            rows += [{"stage": stage, **row} for row in found.to_dicts()]
    return rows


def told_before(sample: dict[str, Any]) -> str:
    """The last message before the question and how many there are; empty where there is none."""
    history = sample.get("history") or []
    if not history:
        return ""
    last, more = history[-1], len(history) - 1
    return f"{last['role']}: {shorten(last['text'])}" + (f" (and {more} before it)" if more else "")


def shorten(text: str) -> str:
    """The text in one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"


def inspect_table(table: Path, rows: int) -> str:
    """Schema, number of rows and the first ``rows`` rows of a table, as text.

    Raises:
        InputError: the path holds no Parquet or Arrow IPC file.
    """
    files = sorted(table.glob("*.parquet")) if table.is_dir() else [table]
    if not files:
        raise InputError(
            f"{table}: no Parquet part in it",
            hint="a table is a folder such as RUN/01_ingest/samples",
        )
    try:
        frame = pl.scan_parquet(files)
        schema = frame.collect_schema()
        height = frame.select(pl.len()).collect().item()
        head = frame.head(rows).collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{table}: cannot be read as Parquet: {error}") from None
    width = max(map(len, schema), default=0)
    lines = [f"{table}: {height:,} rows in {len(files)} file{'s' * (len(files) != 1)}"]
    lines += [f"  {name:{width}}  {kind}" for name, kind in schema.items()]
    with pl.Config(tbl_rows=rows, tbl_cols=-1, fmt_str_lengths=60, tbl_width_chars=140):
        lines.append(str(head))
    return "\n".join(lines)
