"""What the kernels cost on cards that are not here, and what happens without a card."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

import mmrlhf_kernels
from kernels_support import bare_kernels, compile_bench
from mm_dpo_problem import call_of
from mmrlhf_kernels.backend import Block, Extras, HeadOptions, KeptBlock, LossGradient
from mmrlhf_kernels.mm_dpo_kernel import evaluate
from mmrlhf_kernels.triton_gradient import gradient_of_kept, logit_gradient
from mmrlhf_kernels.triton_settings import INTERPRETED, Loads
from mmrlhf_kernels.triton_sweep import kept_exponentials, sweep
from triton_worker import interpreted

KERNELS = Path(mmrlhf_kernels.__file__).parents[1]
BENCHES = Path(__file__).parents[2] / "benches"
FIRST_KERNEL = """
import json, kernel_compile
print(json.dumps(next(kernel_compile.rows_of('fast'))))
"""

COUNT_VARIANTS = """
import collections, itertools, json, torch, kernel_compile as bench
bench.driver.set_active(bench.NoDevice(bench.TARGETS["sm_90"]))
found = collections.defaultdict(set)
for bench.ROWS, bench.PAIRS in ((1, 1), (16, 16), (17, 15)):
    large = (bench.head_cases, bench.form_cases, bench.kept_cases)
    cases = (part("sm_90", torch.bfloat16) for part in large)
    for case in itertools.chain(*cases, bench.small_cases()):
        *_, bind = case.launch.kernel.device_caches[0]
        _, specialization, _ = bind(**case.launch.arguments)
        name = case.kernel, case.variant, repr(case.launch.arguments.get("TILE"))
        found[name].add(str(specialization))
print(json.dumps([[*name, len(keys)] for name, keys in found.items()]))
"""


def run(*command, **environment):
    """A Python process that does not interpret kernels, and may change Triton's driver."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(KERNELS), str(BENCHES)])
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": path, "TRITON_DEFAULT_FP_FUSION": "1", **environment},
    )


def compiled_rows(done):
    """The rows that were printed, each of a kernel that fits."""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [row for row in rows if row["spilled_bytes"]] == []
    assert [row for row in rows if row["shared_bytes"] > row["shared_limit"]] == []
    assert all(row["loop_multiplies"] > 0 for row in rows)
    return rows


@pytest.mark.slow
def test_no_kernel_of_the_default_settings_spills_or_outgrows_shared_memory():
    rows = compiled_rows(run(BENCHES / "kernel_compile.py", "--fast"))
    assert {(row["kernel"], row["architecture"]) for row in rows} == {
        (kernel, architecture)
        for kernel in ("sweep", "logit_gradient")
        for architecture in ("sm_80", "sm_90")
    }


def test_the_sweep_does_not_spill_or_outgrow_shared_memory(tmp_path):
    rows = compiled_rows(run("-c", FIRST_KERNEL, TRITON_CACHE_DIR=str(tmp_path)))
    assert [row["kernel"] for row in rows] == ["sweep"]


def test_another_number_of_rows_or_pairs_compiles_no_kernel_again():
    done = run("-c", COUNT_VARIANTS)
    assert done.returncode == 0, done.stderr
    variants = json.loads(done.stdout)
    assert len(variants) > 60
    assert [variant for variant in variants if variant[-1] != 1] == []


def test_interpreted_kernels_are_not_compiled():
    code, stderr = interpreted(compile_bench)
    assert code == 2
    assert "unset TRITON_INTERPRET" in stderr


@pytest.mark.skipif(INTERPRETED, reason="this process interprets kernels")
def test_without_gpu_and_interpreter_every_call_says_so_in_one_sentence():
    x, y, row = torch.zeros(4, 16), torch.zeros(4, dtype=torch.int64), torch.zeros(4)
    block, rows = Block(x, x, None, y), LossGradient(row, row)
    kept = KeptBlock(x, row, y, HeadOptions(), 0)
    for call in (
        lambda: sweep(block),
        lambda: logit_gradient(block, rows, x[:, :4]),
        lambda: kept_exponentials(block, Extras(), x[:, :4]),
        lambda: gradient_of_kept(kept, rows, x),
        lambda: evaluate(call_of(row)),
    ):
        with pytest.raises(RuntimeError, match=r"need a GPU.*TRITON_INTERPRET=1") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_bench_for_cards_says_that_there_is_none(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_kernels"])
    import gpu_kernels

    assert gpu_kernels.main() == 2
    assert capsys.readouterr().err == (
        "gpu_kernels needs a GPU and found none; nothing was measured\n"
    )


def test_every_kernel_of_the_bench_for_cards_runs():
    rows = interpreted(bare_kernels)
    names = {row["method"].removeprefix("kernel alone: ") for row in rows}
    assert len(names) == len(rows) > 15
    assert {f"logit_gradient, {loads}" for loads in get_args(Loads)} < names
    assert [row for row in rows if "failed" in row or row["largest_difference"] > 1e-5] == []


def test_the_tables_of_the_cost_model_are_those_of_its_page():
    import kernel_roofline

    page = (BENCHES.parent / "docs" / "kernel-roofline.md").read_text(encoding="utf-8")
    tables = kernel_roofline.tables()
    assert len(tables) > 1000
    assert tables.strip() in page
