"""A head that is whole only while it is used, as DeepSpeed's ZeRO-3 and FSDP keep it."""

import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import mmrlhf_kernels
from kernels_support import head_case
from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo

BOUNDS = torch.tensor([0, 4, 9])
ZERO = torch.zeros(1)


class Sharded:
    """A parameter whose memory is there inside ``gathered`` alone, as ZeRO-3 does by ``.data``."""

    def __init__(self, whole, *, requires_grad=True):
        self.whole = whole.detach().clone()
        self.parameter = torch.nn.Parameter(self.whole.clone(), requires_grad=requires_grad)
        self.parameter.data = torch.empty(0)

    @contextmanager
    def gathered(self):
        self.parameter.data = self.whole.clone()
        try:
            yield self.parameter
        finally:
            self.parameter.data.fill_(torch.nan)  # a view that was kept shows itself
            self.parameter.data = torch.empty(0)


@pytest.mark.parametrize("schedule", [None, "recompute", "one_sum", "two_sums"])
def test_the_fused_loss_needs_the_weight_in_forward_alone(schedule):
    case = head_case(9, 4, 300, dtype=torch.float32)
    rest = (case.target, ZERO, ZERO, 0.1)
    head = Sharded(case.weight)
    with head.gathered() as weight:
        loss = fused_linear_mm_dpo(
            case.hidden, weight, *rest, cu_seqlens=BOUNDS, schedule=schedule
        ).loss
    found = torch.autograd.grad(loss, [case.hidden, head.parameter])
    plain = fused_linear_mm_dpo(
        case.hidden, case.weight, *rest, cu_seqlens=BOUNDS, schedule=schedule
    ).loss
    wanted = torch.autograd.grad(plain, [case.hidden, case.weight])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("schedule", ["recompute", "keep"])
def test_the_primitive_needs_it_again_in_backward(schedule):
    case = head_case(9, 4, 300, dtype=torch.float32)
    head, grad = Sharded(case.weight), case.grad.float()
    with head.gathered() as weight:
        logp = fused_linear_logp(case.hidden, weight, case.target, schedule=schedule)
    with head.gathered():
        found = torch.autograd.grad(logp, [case.hidden, head.parameter], grad)
    plain = fused_linear_logp(case.hidden, case.weight, case.target, schedule=schedule)
    wanted = torch.autograd.grad(plain, [case.hidden, case.weight], grad)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_frozen_head_is_not_needed_in_backward():
    case = head_case(9, 4, 300, dtype=torch.float32)
    head, grad = Sharded(case.weight, requires_grad=False), case.grad.float()
    with head.gathered() as weight:
        logp = fused_linear_logp(case.hidden, weight, case.target)
    (found,) = torch.autograd.grad(logp, [case.hidden], grad)
    plain = fused_linear_logp(case.hidden, case.weight.detach(), case.target)
    (wanted,) = torch.autograd.grad(plain, [case.hidden], grad)
    assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["fused", "parts"])
def test_stage_three_of_deepspeed_trains_as_stage_one(loss):
    if not importlib.util.find_spec("deepspeed"):
        pytest.skip("DeepSpeed is not among the requirements of this project")
    script = Path(__file__).parents[2] / "benches" / "heads" / "zero.py"
    package = str(Path(mmrlhf_kernels.__file__).parents[1])
    curves = []
    for stage in ("1", "3"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, "--nproc-per-node=2", str(script), loss, stage],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        curves.append([line for line in done.stdout.splitlines() if line.startswith("loss")])
    assert len(curves[0]) == 6
    assert curves[0] == curves[1]
