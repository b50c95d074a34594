"""What the kernels cost on cards that are not here, and what happens without a card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmrlhf_kernels

KERNELS = Path(mmrlhf_kernels.__file__).parents[1]
BENCHES = Path(__file__).parents[2] / "benches"


def run(*command, **environment):
    """A Python process that does not interpret kernels."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(KERNELS), str(BENCHES)])
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": path, "TRITON_DEFAULT_FP_FUSION": "1", **environment},
    )


@pytest.mark.slow
def test_no_kernel_of_the_default_settings_spills_or_outgrows_shared_memory():
    done = run(BENCHES / "kernel_compile.py", "--fast")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["kernel"], row["architecture"]) for row in rows} == {
        (kernel, architecture)
        for kernel in ("sweep", "logit_gradient")
        for architecture in ("sm_80", "sm_90")
    }, done.stderr
    assert [row for row in rows if row["spilled_bytes"]] == []
    assert [row for row in rows if row["shared_bytes"] > row["shared_limit"]] == []
    assert all(row["loop_multiplies"] > 0 for row in rows)
    assert done.returncode == 0


def test_interpreted_kernels_are_not_compiled():
    done = run(BENCHES / "kernel_compile.py", "--fast", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr


def test_without_gpu_and_interpreter_every_call_says_so_in_one_sentence():
    program = """
import torch
from mmrlhf_kernels.backend import HeadOptions
from mmrlhf_kernels.triton_backend import BACKEND
from mmrlhf_kernels.triton_pair import pair_loss
from mmrlhf_kernels.triton_segments import segment_sum
x, y, o = torch.zeros(4, 16), torch.zeros(4, dtype=torch.int64), HeadOptions()
row = torch.zeros(4)
asked = dict(first=0, entropy=False, argmax=False)
for call in (
    lambda: BACKEND.sweep(x, x, None, y, o, tile=None, **asked),
    lambda: BACKEND.logit_gradient(x, x, None, y, row, row, o, first=0, out=x[:, :4]),
    lambda: BACKEND.shifted_logits(x, x, None, y, o, out=x[:, :4], **asked),
    lambda: BACKEND.shifted_gradient(x, row, y, row, row, o, first=0, out=x),
    lambda: pair_loss(row, row, None, None, "sigmoid", 0.0),
    lambda: segment_sum(row, y),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    done = run("-W", "error", "-c", program)
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stderr
    assert all("need a GPU" in line and "TRITON_INTERPRET=1" in line for line in lines)


def test_the_bench_for_cards_says_that_there_is_none():
    done = run(BENCHES / "gpu_kernels.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr == "gpu_kernels needs a GPU and found none; nothing was measured\n"


def test_the_model_prints_the_tables_of_its_page():
    done = run(BENCHES / "kernel_roofline.py")
    page = (BENCHES.parent / "docs" / "kernel-roofline.md").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 1000
    assert done.stdout.strip() in page
