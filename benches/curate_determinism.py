"""One corpus curated again and again in other circumstances: the tables have to be the same bytes.

Threads, the order of sources on the command line, much memory and the least that is accepted, and
kills at random moments followed by the same command. Every run is compared with the first by the
SHA-256 of each file of its five stages.
"""

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from curate_scale import STAGES
from make_corpus import CHUNK
from record import write_record

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Curate one corpus in many circumstances.")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "determinism")
    given = parser.parse_args()
    corpus = given.folder / "corpus"
    if not (corpus / "truth.parquet").exists():
        make = [sys.executable, str(HERE / "make_corpus.py"), str(corpus), "--width", "64"]
        each = max(1, given.rows // 5 // CHUNK) * CHUNK
        subprocess.run([*make, "--rows", str(given.rows), "--rows-per-file", str(each)], check=True)
        # Every file is a source of its own here.
        ids = (f"rows-{row // each:05d}:r{row}\n" for row in range(given.rows))
        (corpus / "embeddings.ids").write_text("".join(ids))
    rows = measure(given, corpus)
    print(write_record("curate_determinism", {"rows": given.rows}, rows, NOT_MEASURED))


NOT_MEASURED = ["pictures that are decoded: tests do that on a small corpus", "other processors"]


def measure(given: argparse.Namespace, corpus: Path) -> list[dict[str, Any]]:
    """For each circumstance whether the files are those of the first run."""
    files = sorted(str(file) for file in (corpus / "rows").iterdir())
    first = curate(given.folder, corpus, files)
    floor = least_memory(given.folder, corpus, files)
    variants: dict[str, list[str]] = {
        "1 thread": ["--threads", "1"],
        "sources in another order": [],
        "memory 8G": ["--memory", "8G"],
        f"memory {floor} MiB, the floor": ["--memory", f"{floor}M"],
    }
    rows = []
    for name, options in variants.items():
        sources = files[::-1] if "order" in name else files
        rows.append(told(name, curate(given.folder, corpus, sources, *options) == first))
    started = time.monotonic()
    same, kills = killed(given, corpus, files, first)
    rows.append(told(f"{kills} kills", same, seconds=round(time.monotonic() - started)))
    return rows


def told(name: str, same: bool, **more: Any) -> dict[str, Any]:
    row = {"circumstance": name, "same_bytes": same, **more}
    print(json.dumps(row), flush=True)
    return row


def command(run: Path, corpus: Path, sources: list[str], *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mmrlhf_engine", "curate", *sources, "--out", str(run)),
        *("--encoder", f"precomputed:{corpus / 'embeddings.npy'}", "--select", "2000"),
        *("--progress", "silent", "--text-rule", "documents"),
        *("--set", "dedup.unverified_images=true", *options),
    ]


def curate(folder: Path, corpus: Path, sources: list[str], *options: str) -> dict[str, Any]:
    """The files of a fresh run, each with its hash."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run(command(run, corpus, sources, *options), check=True, stdout=subprocess.DEVNULL)
    return outputs(run)


def outputs(run: Path) -> dict[str, Any]:
    return {
        stage: json.loads((run / stage / "manifest.json").read_text())["outputs"]
        for stage in STAGES
    }


def least_memory(folder: Path, corpus: Path, sources: list[str]) -> int:
    """MiB from which no stage is refused: each refusal says what would do, to a hundred MiB."""
    floor = 100
    while True:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        done = subprocess.run(
            command(run, corpus, sources, "--memory", f"{floor}M"), capture_output=True, text=True
        )
        enough = re.search(r"hint: --memory (\d+)M", done.stderr)
        if done.returncode == 0 or enough is None:
            if done.returncode:
                raise RuntimeError(done.stderr)
            return floor
        floor = int(enough[1])


def killed(
    given: argparse.Namespace, corpus: Path, sources: list[str], first: dict[str, Any]
) -> tuple[bool, int]:
    """Kill and repeat one run until it ends, and again until there were enough kills."""
    draw, kills, same = random.Random(3), 0, True
    while kills < given.kills:
        run = given.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        finished = False
        while not finished:
            process = subprocess.Popen(
                command(run, corpus, sources), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            patience = draw.uniform(0.5, 8) if kills < given.kills else 10_000
            try:
                finished = process.wait(patience) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        same &= outputs(run) == first
    return same, kills


if __name__ == "__main__":
    main()
