"""Joint dedup of 100 thousand, 1 million and (``--full``) 10 million rows from tables on disk.

    python benches/dedup_scale.py --full --memory 4G

The rows are those of ``make_corpus.py``: texts of 60 words on average, pictures as stored hashes,
and planted copies whose distances are known. Each size is one process that runs the stage alone;
its anonymous and shared memory is sampled from outside, since pages of mapped files are taken back
by the system when it needs them. Recall is that of the planted copies: found is one that is removed
in favour of the sample that its original is, or was removed in favour of. Texts are compared as
documents, by their Jaccard index, as replaced words are no duplicate of a question.

The peers get the texts alone, one process and one thread each: MinHash of datatrove (its four
steps, from JSONL to JSONL) and text-dedup, of as many rows as ``--peer-rows`` says.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import make_corpus
from mmrlhf_engine.curate.dedup import STAGE, DedupConfig
from mmrlhf_engine.curate.tables import MEDIA, SAMPLES
from mmrlhf_engine.pipeline import STAGES
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import Resources, StageContext, run_stage
from record import write_record

SIZES = (100_000, 1_000_000)
FULL = 10_000_000
BINS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.01)
HAS_STORED_HASHES = "phash" in MEDIA


def main() -> None:
    parser = argparse.ArgumentParser(description="Dedup of up to ten million rows.")
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--memory", type=int, default=4000, help="MiB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where tables are kept between runs")
    parser.add_argument("--peer-rows", type=int, default=0)
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is not None:
        run_alone(options.stage, options.memory << 20, options.threads)
        return
    sizes = options.rows or [*SIZES, *([FULL] if options.full else [])]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="dedup_scale-"))
    rows = [measure(folder, size, options.memory, options.threads) for size in sizes]
    for before, after in pairwise(rows):
        growth = math.log(after["cpu_seconds"] / before["cpu_seconds"])
        after["exponent"] = round(growth / math.log(after["rows"] / before["rows"]), 3)
    if options.peer_rows:
        rows += peers(folder, options.peer_rows)
    if options.folder is None:
        shutil.rmtree(folder)
    for row in rows:
        print(json.dumps(row))
    path = write_record(
        "dedup_scale",
        {"memory_mib": options.memory, "threads": options.threads, "text_rule": "documents",
         "pictures": "stored hashes" if HAS_STORED_HASHES else "none"},
        rows,
        ["ingest", "pictures that are decoded and compared", "peers beyond one thread"],
    )  # fmt: skip
    print(path)


def measure(folder: Path, size: int, memory: int, threads: int) -> dict[str, Any]:
    """The stage over ``size`` rows: time, memory, recall."""
    run = folder / f"run-{size}"
    if not (run / "truth.parquet").exists():
        write_tables(run, size)
    shutil.rmtree(run / "02_dedup", ignore_errors=True)
    command = [sys.executable, __file__, "--stage", str(run), "--memory", str(memory)]
    watched = watch([*command, "--threads", str(threads)])
    report = json.loads((run / "02_dedup" / "report.json").read_text())
    return {
        "who": "ours",
        "rows": size,
        "stage_seconds": report["seconds"],
        **watched,
        "rows_per_cpu_second": round(size / watched["cpu_seconds"]),
        "dropped": report["dropped"],
        "recall": recall(run),
    }


def run_alone(folder: Path, memory: int, threads: int) -> None:
    """What is measured: the stage in a process of its own."""
    settings = (
        {"unverified_images": True} if "unverified_images" in DedupConfig.model_fields else {}
    )
    config = DedupConfig(text_rule="documents", document_tokens=1, **settings)
    resources = Resources(threads=threads, memory=memory)
    run_stage(STAGE, config, folder / "02_dedup", resources, Run(folder))


def watch(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command; its time, and the peak of the anonymous and shared memory of it and its
    children."""  # noqa: D205, D209
    started = time.monotonic()
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL
    )
    peak = [0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], sum(held(child) for child in family(process.pid)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    sampler.join()
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(command)}: failed")
    return {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_anonymous_mib": peak[0] >> 20,
    }


def family(process: int) -> list[int]:
    """A process and all below it."""
    members = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        members += [one for child in children for one in family(int(child))]
    return members


def held(process: int) -> int:
    """Bytes of a process that no file backs."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = (line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return sum(int(size[1]) for size in sizes) << 10


def write_tables(folder: Path, size: int) -> None:
    """The tables that ingest makes of the corpus, and what was planted."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = StageContext(
        STAGES["ingest"], Section(), folder / "01_ingest", Run(folder), Resources()
    )
    stage.begin({})
    truth = []
    seen: set[int] = set()
    (stage.folder / "rejected").mkdir(exist_ok=True)
    with stage.table("samples", SAMPLES) as samples, stage.table("media", MEDIA) as media:
        for start, rows, kinds, planted, prompts in make_corpus.chunks(size, 0):
            lines = make_corpus.records(rows, prompts, 0, start)
            frame = pl.read_ndjson(lines).with_columns(media_hash=hashes(rows.picture))
            samples.write(with_all(SAMPLES, samples_of(frame, with_media=HAS_STORED_HASHES)))
            if HAS_STORED_HASHES:
                new = frame.filter(pl.Series(rows.picture > 0)).unique("media_hash", keep="first")
                numbers = [int(value, 16) for value in new["image"].struct.field("phash")]
                new = new.filter(pl.Series([number not in seen for number in numbers]))
                seen.update(numbers)
                media.write(with_all(MEDIA, media_of(new)))
            truth.append(planted.with_columns(kind=pl.Series(kinds)).filter(pl.col("of") >= 0))
    stage.finish(rows_in=size, rows_out=size, dropped={})
    pl.concat(truth).write_parquet(folder / "truth.parquet")


def hashes(pictures: np.ndarray) -> pl.Series:
    """Names of the contents of pictures, as ingest makes them: 32 digits."""
    mixed = pictures * np.uint64(0x9E3779B97F4A7C15)
    both = zip(mixed.tolist(), pictures.tolist(), strict=True)
    return pl.Series([f"{a:016x}{b:016x}" if b else None for a, b in both], dtype=pl.String)


def samples_of(frame: pl.DataFrame, *, with_media: bool) -> pl.DataFrame:
    known = pl.col("media_hash").is_not_null() if with_media else pl.lit(value=False)
    none = pl.lit([], pl.List(pl.String()))
    return frame.select(
        pl.format("rows:{}", "id").alias("id"),
        pl.col("id").alias("source_id"),
        "prompt",
        # Prose: other short answers are evidence that two questions differ.
        pl.format("{} is what can be seen in it", "answer").alias("answer"),
        source=pl.lit("rows"),
        modality=pl.when(known).then(pl.lit("image")).otherwise(pl.lit("text")),
        media=pl.when(known).then(pl.concat_list("media_hash")).otherwise(none),
    )


def media_of(frame: pl.DataFrame) -> pl.DataFrame:
    image = pl.col("image").struct.field
    return frame.select(
        pl.col("media_hash").alias("hash"),
        kind=pl.lit("image"),
        width=image("width"),
        height=image("height"),
        frames=1,
        phash=image("phash").str.to_integer(base=16, dtype=pl.UInt64),
    )


def with_all(schema: dict[str, Any], rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in rows.columns
    )


def recall(run: Path) -> dict[str, str]:
    """Of planted copies, the share that stands for one sample with its original."""
    removed = pl.read_parquet(run / "02_dedup/duplicates/*.parquet", columns=["id", "kept_id"])
    truth = pl.read_parquet(run / "truth.parquet")
    for column in ("row", "of"):
        names = truth.select(id=pl.format("rows:r{}", column))
        kept = names.join(removed, on="id", how="left", maintain_order="left")
        stands = kept.select(pl.coalesce("kept_id", "id")).to_series()
        truth = truth.with_columns(stands.alias(f"{column}_stands"))
    found = truth.with_columns(found=pl.col("row_stands") == pl.col("of_stands"))
    groups = {"exact": pl.col("kind") == "exact"}
    for low, high in pairwise(BINS):
        within = (pl.col("jaccard") >= low) & (pl.col("jaccard") < high)
        groups[f"text, Jaccard {low:.2f}"] = (pl.col("kind") == "text") & within
    for low, high in ((0, 0), (1, 2), (3, 4), (5, 8)):
        bits = pl.col("hamming").is_between(low, high)
        groups[f"picture, {low} to {high} bits"] = (pl.col("kind") == "picture") & bits
    groups |= {kind: pl.col("kind") == kind for kind in ("other_text", "other_picture")}
    shares = {}
    for name, condition in groups.items():
        of_group = found.filter(condition)["found"]
        if len(of_group):
            shares[name] = f"{of_group.mean():.4f} of {len(of_group)}"
    return shares


def peers(folder: Path, size: int) -> list[dict[str, Any]]:
    """Each peer that is installed, over the texts of the first rows."""
    run = folder / f"run-{size}"
    if not (run / "truth.parquet").exists():
        write_tables(run, size)
    texts = folder / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    texts.mkdir()
    table = pl.scan_parquet(run / "01_ingest/samples/*.parquet").select("id", text="prompt")
    table.sink_ndjson(texts / "texts.jsonl")
    rows = []
    for name, script in PEERS.items():
        command = [sys.executable, "-c", script, str(texts), str(folder / f"peer-{name}")]
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
            continue
        try:
            watched = watch(command, {"OMP_NUM_THREADS": "1"})
        except SystemExit as error:  # a peer that fails does not cost what was measured
            rows.append({"who": name, "rows": size, "failed": str(error)[-200:]})
            continue
        per_second = round(size / watched["cpu_seconds"])
        rows.append({"who": name, "rows": size, **watched, "rows_per_cpu_second": per_second})
    return rows


DATATROVE = """
import sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
texts, out = sys.argv[1:]
config = MinhashConfig(n_grams=3, num_buckets=16, hashes_per_bucket=4)
read = lambda: JsonlReader(texts)
steps = [
    ([read(), MinhashDedupSignature(output_folder=f"{out}/signatures", config=config)], 1),
    ([MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)], 16),
    ([MinhashDedupCluster(f"{out}/buckets", f"{out}/ids", config=config)], 1),
    ([read(), MinhashDedupFilter(f"{out}/ids"), JsonlWriter(f"{out}/kept")], 1),
]
for number, (pipeline, tasks) in enumerate(steps):
    LocalPipelineExecutor(
        pipeline, tasks=tasks, workers=1, logging_dir=f"{out}/logs-{number}").run()
"""
TEXT_DEDUP = """
import os
import sys
from datasets import load_dataset
texts, out = sys.argv[1:]
load_dataset("json", data_files=f"{texts}/texts.jsonl", split="train", cache_dir=f"{out}/cache"
             ).save_to_disk(f"{out}/texts")
options = ["--local", "--path", f"{out}/texts", "--output", f"{out}/kept",
            "--cache_dir", f"{out}/cache", "--split", "train", "--column", "text",
            "--num_proc", "1", "--ngram", "3", "--min_length", "1", "--num_perm", "64",
            "--b", "16", "--r", "4", "--hash_func", "xxh3", "--hash_bits", "32"]
os.execv(sys.executable, [sys.executable, "-m", "text_dedup.minhash", *options])
"""
PEERS = {"datatrove": DATATROVE, "text_dedup": TEXT_DEDUP}


if __name__ == "__main__":
    main()
