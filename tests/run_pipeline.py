"""Run the whole of ``curate``, in this process or in one that can be killed."""

import hashlib
import multiprocessing
import os
from pathlib import Path

from mmrlhf_engine.demo.corpus import SOURCES
from mmrlhf_engine.run.config import load_config

# One process imports the heavy packages; each run is forked from it in milliseconds. The packages
# of transformers import their modules on first use, so the modules are named: without them every
# run imports them again, which takes longer than the run.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("torch", "torchvision", "faiss", "transformers.models.clip.modeling_clip"),
        *(f"transformers.models.auto.{name}_auto" for name in ("modeling", "image_processing")),
        *(f"transformers.models.clip.image_processing_{name}clip" for name in ("", "pil_")),
        *("mmrlhf_engine.pipeline", "mmrlhf_engine.pack.pack", "run_pipeline", "pack_data"),
    ]
)


def curate(folder, corpus, encoder, *, sources=SOURCES, threads=2, last="select", count=60):
    """Run the pipeline in this process."""
    from mmrlhf_engine import pipeline

    settings = {"threads": threads, "embed.encoder": encoder, "select.count": count}
    overrides = [f"{key}={value}" for key, value in {**settings, "cluster.clusters": 12}.items()]
    config = load_config(pipeline.CurateConfig, overrides=overrides)
    config = pipeline.with_sources(config, [Path(corpus) / name for name in sources])
    return pipeline.curate(config, Path(folder), last=last)


def start(folder, corpus, encoder, **options):
    """Run it in another process; returns the process."""
    process = SERVER.Process(target=_quietly, args=(folder, corpus, encoder), kwargs=options)
    process.start()
    return process


def _quietly(*arguments, **options):
    os.environ["HF_HUB_OFFLINE"] = "1"
    curate(*arguments, **options)


def tables(folder) -> dict[str, str]:
    """SHA-256 of every table and array of a run. Reports hold times, so they are not compared."""
    made = {}
    for path in sorted(Path(folder).rglob("*")):
        spared = {"scratch", "by_source", "signatures"} & set(path.parts)
        kept = path.suffix in {".parquet", ".npy"} and not spared
        if path.is_file() and kept:
            name = path.relative_to(folder).as_posix()
            made[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made
