"""Killed at any moment and started again, a run ends with the same bytes."""

import os
import random
import signal
import time

import pytest

from mmrlhf_engine.pipeline import CURATE
from mmrlhf_engine.run.folder import Run
from run_pipeline import curate, start, tables


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus, tiny_encoder):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(str(folder), str(corpus), tiny_encoder)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize(
    ("kills_per_stage", "seed"),
    [(2, 0), *(pytest.param(5, seed, marks=pytest.mark.slow) for seed in range(1, 3))],
)
def test_resumes_to_the_same_bytes(
    kills_per_stage, seed, undisturbed, corpus, tiny_encoder, tmp_path
):
    """A run that is killed several times in each of its stages, and then left to finish."""
    randomness = random.Random(seed)
    folder = tmp_path / "run"
    for stage in CURATE:
        longest = Run(undisturbed).report(stage)["seconds"]
        struck = 0
        while struck < kills_per_stage:
            process = start(str(folder), str(corpus), tiny_encoder)
            wait_for(Run(folder).stage_folder(stage), process)
            time.sleep(randomness.uniform(0, longest))
            process.kill()
            process.join()
            if Run(folder).manifest(stage) is None:
                struck += 1
                continue
            # The stage was over: run it again, and strike earlier.
            longest /= 2
            (Run(folder).stage_folder(stage) / "manifest.json").unlink()
    resumed = start(str(folder), str(corpus), tiny_encoder)
    resumed.join()
    assert resumed.exitcode == 0
    assert tables(folder) == tables(undisturbed)


def wait_for(folder, process):
    """Return when the stage has started (again), or when the run is over."""
    known = started(folder)
    while process.is_alive() and started(folder) in (known, None):
        time.sleep(0.001)


def started(folder):
    try:
        return (folder / "started.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def test_an_interrupted_run_ends_and_stays_consistent(corpus, tiny_encoder, tmp_path):
    folder = tmp_path / "run"
    for stage in CURATE:
        process = start(str(folder), str(corpus), tiny_encoder)
        wait_for(Run(folder).stage_folder(stage), process)
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
        assert process.exitcode is not None
        assert not list(folder.rglob(".*.tmp*"))
        finished = [name for name in CURATE if Run(folder).manifest(name) is not None]
        assert finished == list(CURATE[: len(finished)])
    curate(folder, corpus, tiny_encoder)
    assert Run(folder).manifest("select") is not None
