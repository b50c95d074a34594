"""One more source for a finished run: rows read and seconds, beside that source in its own run.

    python benches/curate_add.py --rows 1000000 --new 1000000 100000

Makes a corpus (make_corpus.py) whose copies lie in other sources too, curates the first sources,
and adds one more with ``--add``. The tables of ingest and dedup have to be those of a fresh run of
all sources with the same frequencies. Of each measure the median over rounds; the rounds take turns
between adding and the source alone. Seconds are those that the two stages report; processor seconds
are of the command up to dedup, start included. Embedding (given vectors), clusters and selection
run over all kept rows in either case, and are told beside.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import write_record

HERE = Path(__file__).parent
MEASURED = ("ingest", "dedup")
AFTER = ("embed", "cluster", "select")
PER_FILE = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Add a source to a finished run.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the finished run")
    parser.add_argument("--new", type=int, nargs="+", default=[1_000_000, 100_000])
    parser.add_argument("--sources", type=int, default=5, help="of the finished run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--width", type=int, default=64, help="of the given vectors")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curate_add")
    given = parser.parse_args()
    rows = [measure(given, new) for new in given.new]
    parameters = {name: value for name, value in vars(given).items() if name != "folder"}
    print(write_record("curate_add", parameters, rows, NOT_MEASURED))


NOT_MEASURED = [
    "pictures that are decoded and compared: these are stored hashes",
    "a cold page cache",
]


def measure(given: argparse.Namespace, new: int) -> dict[str, Any]:
    """Add ``new`` rows to a finished run."""
    place = given.folder / f"{given.rows}-{new}"
    old, added = corpus(place, given, new)
    vectors = f"precomputed:{place / 'corpus' / 'embeddings.npy'}"
    finished, run = place / "finished", place / "run"
    if not (finished / "05_select" / "manifest.json").exists():
        shutil.rmtree(finished, ignore_errors=True)
        curate(old, finished, vectors, given.memory)
    taken: dict[str, list[dict[str, float]]] = {"added": [], "alone": []}
    for _ in range(given.rounds):
        shutil.rmtree(run, ignore_errors=True)
        # Links: every file of a run appears by rename, and none is written twice.
        subprocess.run(["cp", "--archive", "--link", str(finished), str(run)], check=True)
        reports, used = curate([added], run, vectors, given.memory, "--add", "--to", "dedup")
        taken["added"].append(seconds(reports, MEASURED) | {"processor": used})
        shutil.rmtree(place / "alone", ignore_errors=True)
        alone, used = curate([added], place / "alone", vectors, given.memory, "--to", "dedup")
        taken["alone"].append(seconds(alone, MEASURED) | {"processor": used})
    same = outputs(run) == fresh(place, [*old, added], run, vectors, given.memory)
    medians = {
        who: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        for who, rounds in taken.items()
    }
    both = {who: sum(medians[who][stage] for stage in MEASURED) for who in medians}
    later = {
        who: seconds(curate([], folder, vectors, given.memory, "--from", "embed")[0], AFTER)
        for who, folder in (("added", run), ("alone", place / "alone"))
    }
    row = {
        "finished_rows": given.rows,
        "new_rows": new,
        "rows_read_added": reports["ingest"]["rows_read"],
        "rows_read_alone": alone["ingest"]["rows_read"],
        "texts_read_added": reports["dedup"]["texts_read"],
        "texts_read_alone": alone["dedup"]["texts_read"],
        "rows_read_ratio": round(reports["ingest"]["rows_read"] / alone["ingest"]["rows_read"], 3),
        "seconds_added": medians["added"],
        "seconds_alone": medians["alone"],
        "seconds_ratio": round(both["added"] / both["alone"], 3),
        "processor_ratio": round(medians["added"]["processor"] / medians["alone"]["processor"], 3),
        "seconds_of_later_stages": later,
        "equals_a_fresh_run": same,
        "kept_mib": {
            "signatures": round(reports["dedup"]["signatures_bytes"] / 2**20),
            "tables_of_ingest": round(size(run / "01_ingest" / "samples") / 2**20),
        },
        "rounds": taken,
    }
    print(json.dumps({name: value for name, value in row.items() if name != "rounds"}), flush=True)
    return row


def corpus(place: Path, given: argparse.Namespace, new: int) -> tuple[list[Path], Path]:
    """The sources of the finished run, and the one that is added."""
    folder, total = place / "corpus", given.rows + new
    sources = [place / f"source-{number}" for number in range(given.sources + 1)]
    if not (folder / "sources").exists():
        make = [sys.executable, str(HERE / "make_corpus.py"), str(folder), "--rows", str(total)]
        width = ["--rows-per-file", str(PER_FILE), "--width", str(given.width)]
        subprocess.run([*make, *width], check=True, stdout=subprocess.DEVNULL)
        names: list[str] = []
        for number, file in enumerate(sorted((folder / "rows").iterdir())):
            start = number * PER_FILE
            of = min(start * given.sources // given.rows, given.sources)
            sources[of].mkdir(exist_ok=True)
            (sources[of] / file.name).hardlink_to(file)
            rows = range(start, min(start + PER_FILE, total))
            names += [f"{sources[of].name}:r{row}" for row in rows]
        (folder / "embeddings.ids").write_text("\n".join(names) + "\n", encoding="utf-8")
        (folder / "sources").touch()
    return sources[:-1], sources[-1]


def curate(
    sources: list[Path], run: Path, vectors: str, memory: str, *more: str
) -> tuple[dict[str, Any], float]:
    """The reports of all stages, and the processor seconds of the command."""
    command = [
        *(sys.executable, "-m", "mmrlhf_engine", "curate", *map(str, sources), "--out", str(run)),
        *("--encoder", vectors, "--memory", memory, "--progress", "silent"),
        *("--text-rule", "documents", "--set", "dedup.unverified_images=true", *more),
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    files = sorted(run.glob("[0-9]*/report.json"))
    reports = {file.parent.name[3:]: json.loads(file.read_text()) for file in files}
    return reports, round(used, 2)


def seconds(reports: dict[str, Any], stages: tuple[str, ...]) -> dict[str, float]:
    return {stage: reports[stage]["seconds"] for stage in stages}


def outputs(run: Path) -> dict[str, Any]:
    folders = ("01_ingest", "02_dedup")
    return {
        name: json.loads((run / name / "manifest.json").read_text())["outputs"] for name in folders
    }


def fresh(place: Path, sources: list[Path], run: Path, vectors: str, memory: str) -> dict[str, Any]:
    """The tables of a run of all sources at once."""
    folder = place / "fresh"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "02_dedup").mkdir(parents=True)
    shutil.copy(run / "02_dedup" / "frequencies.parquet", folder / "02_dedup")
    curate(sources, folder, vectors, memory, "--to", "dedup")
    return outputs(folder)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
