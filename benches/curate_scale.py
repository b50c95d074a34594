"""Raw rows on disk to chosen queries in one command: seconds, memory and disk, by stage.

    python benches/curate_scale.py --rows 10000000 --memory 4G

Makes a corpus (make_corpus.py), or takes the one that is there, and runs ``mmrlhf-engine curate``
over it with its embeddings, under a memory limit. What was planted is looked for in the tables:
texts are compared as documents (by the Jaccard index), and hashes decide about pictures.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.run.config import parse_bytes
from record import write_record
from watched import run_watched

STAGES = ("01_ingest", "02_dedup", "03_embed", "04_cluster", "05_select")
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Curate a corpus of any size under a limit.")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--select", type=int, default=30_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curate_scale")
    parser.add_argument("--set", action="append", default=[], help="passed to curate")
    given = parser.parse_args()
    rows = [measure(count, given) for count in given.rows]
    parameters = {name: value for name, value in vars(given).items() if name != "folder"}
    print(write_record("curate_scale", parameters, rows, NOT_MEASURED))


NOT_MEASURED = [
    "decoding and encoding of pictures: these are stored hashes and given embeddings",
    "a cold page cache: the corpus was written shortly before",
]


def measure(count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Curate ``count`` rows, and say what it took."""
    corpus = given.folder / f"corpus-{count}-{given.width}"
    if not (corpus / "truth.parquet").exists():
        make = [sys.executable, str(HERE / "make_corpus.py"), str(corpus)]
        subprocess.run([*make, "--rows", str(count), "--width", str(given.width)], check=True)
    run = given.folder / f"run-{count}"
    shutil.rmtree(run, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "mmrlhf_engine", "curate", str(corpus / "rows"), "--out", str(run)),
        *("--encoder", f"precomputed:{corpus / 'embeddings.npy'}", "--memory", given.memory),
        *("--select", str(given.select), "--threads", str(given.threads)),
        *("--text-rule", "documents", "--set", "dedup.unverified_images=true"),
        *(f"--set={setting}" for setting in given.set),
    ]
    used = run_watched(command, run, parse_bytes(given.memory))
    reports = {name: json.loads((run / name / "report.json").read_text()) for name in STAGES}
    row: dict[str, Any] = {
        "rows": count,
        "seconds": round(used.seconds, 1),
        "processor_seconds": round(used.processor_seconds, 1),
        "peak_memory_gib": round(used.peak_memory / 2**30, 2),
        "limited_by": used.limited_by,
        "peak_disk_gib": round(used.peak_disk / 2**30, 2),
        "corpus_gib": round(sum(f.stat().st_size for f in (corpus / "rows").iterdir()) / 2**30, 2),
    }
    row["peak_memory_gib_by_stage"] = {
        name: round(peak / 2**30, 2) for name, peak in used.peak_by_part.items()
    }
    for name, report in reports.items():
        row[f"{name[3:]}_seconds"] = report["seconds"]
        row[f"{name[3:]}_rows_out"] = report["rows_out"]
    row["removed"] = reports["02_dedup"]["dropped"]
    row["planted_removed"] = planted(corpus, run)
    print(json.dumps(row), flush=True)
    return row


def planted(corpus: Path, run: Path) -> dict[str, float]:
    """The share of the planted pairs of each kind that have come down to one sample."""
    number = pl.col("id", "kept_id").str.extract(r":r(\d+)$").cast(pl.Int64)
    removed = pl.scan_parquet(run / "02_dedup" / "duplicates" / "*.parquet").select(number)
    tenth = (pl.col("jaccard") * 10).floor() / 10
    by_kind = {
        "picture": pl.format("picture, {} bits", "hamming"),
        "text": pl.format("text, Jaccard from {}", tenth),
    }
    kind = pl.col("kind")
    named = pl.coalesce(pl.when(kind == name).then(text) for name, text in by_kind.items())
    shares = (
        pl.scan_parquet(corpus / "truth.parquet")
        .filter((kind != "picture") | (pl.col("hamming") > 0))
        .join(removed, left_on="row", right_on="id", how="left")
        .join(removed, left_on="of", right_on="id", how="left", suffix="_of")
        .with_columns(stays=pl.coalesce("kept_id", "row"), stays_of=pl.coalesce("kept_id_of", "of"))
        .group_by(pl.coalesce(named, kind).alias("planted"))
        .agg((pl.col("stays") == pl.col("stays_of")).mean().round(4))
        .sort("planted")
        .collect(engine="streaming")
    )
    return dict(shares.iter_rows())


if __name__ == "__main__":
    main()
