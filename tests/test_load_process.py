"""The loader's threads end with their process: after a fork, on Ctrl-C, at exit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from load_data import PICTURES, plan, write
from mmrlhf_engine.shards.loader import PreferenceLoader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=40)


def loader(path, **options):
    return PreferenceLoader(path, plan(), pictures=PICTURES["qwen2_vl"], **options)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("taken", [0, 3])
def test_a_forked_child_goes_on_where_the_parent_was(dataset, taken):
    whole = [batch.input_ids.tobytes() for batch in loader(dataset)]
    one = loader(dataset, threads=3)
    for _ in range(taken):
        next(one)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            rest = [batch.input_ids.tobytes() for batch in one]
            os.write(writing, b"same" if rest == whole[taken:] else b"other")
        finally:
            os._exit(0)
    os.close(writing)
    rest = [batch.input_ids.tobytes() for batch in one]
    assert rest == whole[taken:]
    assert os.read(reading, 10) == b"same"
    os.waitpid(child, 0)


PROGRAM = """
import sys, time
from load_data import PICTURES, plan
from mmrlhf_engine.shards.loader import PreferenceLoader
one = PreferenceLoader(
    sys.argv[1], plan(), pictures=PICTURES["qwen2_vl"], epochs=10**9, prefetch_bytes=1
)
next(one)
print("begun", flush=True)
for batch in one:
    pass
"""


def test_ctrl_c_ends_a_run_that_would_go_on_for_ever(dataset):
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(dataset)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert running.stdout.readline() == "begun\n"
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert "KeyboardInterrupt" in errors
    assert running.returncode != 0


def test_threads_end_when_the_loader_is_closed(dataset):
    def ours():
        count = 0
        for task in Path("/proc/self/task").iterdir():
            # Threads of a pool that is no longer used may end at any time.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                count += (task / "comm").read_text().startswith("mmrlhf-load")
        return count

    one = loader(dataset, threads=3)
    assert ours() == 0  # None before the first batch.
    first = next(one)
    while ours() < 3:  # A thread sets its own name.
        time.sleep(0.001)
    assert ours() == 3
    one.close()
    assert ours() == 0
    assert not np.array_equal(next(one).input_ids, first.input_ids)
    del one
    assert ours() == 0
