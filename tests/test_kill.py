"""Killed at any moment and started again, a run ends with the same bytes."""

import os
import random
import shutil
import signal
import time

import pytest

from mmrlhf_engine.pipeline import CURATE
from mmrlhf_engine.run.folder import Run
from run_pipeline import curate, start, tables

KILLS_PER_STAGE = 10
KILLS_PER_RUN = 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus, tiny_encoder):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(str(folder), str(corpus), tiny_encoder)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", CURATE)
def test_resumes_to_the_same_bytes(stage, undisturbed, corpus, tiny_encoder, tmp_path):
    """Ten kills that struck in each of the five stages, two a run: 50 in all."""
    randomness = random.Random(stage)
    longest = Run(undisturbed).report(stage)["seconds"]
    expected = tables(undisturbed)
    folder = tmp_path / "run"
    struck = 0
    while struck < KILLS_PER_STAGE:
        shutil.rmtree(folder, ignore_errors=True)
        for _ in range(KILLS_PER_RUN):
            process = start(str(folder), str(corpus), tiny_encoder)
            wait_for(Run(folder).stage_folder(stage), process)
            time.sleep(randomness.uniform(0, longest))
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                longest /= 2  # it was over before; strike earlier
                break
            struck += 1
        resumed = start(str(folder), str(corpus), tiny_encoder)
        resumed.join()
        assert resumed.exitcode == 0
        assert tables(folder) == expected


def wait_for(folder, process):
    """Until the stage has begun (again), or the run is over."""
    known = begun(folder)
    while process.is_alive() and begun(folder) in (known, None):
        time.sleep(0.001)


def begun(folder):
    try:
        return (folder / "started.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def test_interrupt_ends_soon_and_leaves_the_run_consistent(corpus, tiny_encoder, tmp_path):
    for stage in CURATE:
        folder = tmp_path / stage
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
