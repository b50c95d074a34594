"""Who answers a call: the default, the environment, and what is said about it."""

import logging
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from kernels_support import error, head_case
from mmrlhf_kernels import dispatch, fused_linear_logp, fused_linear_mm_dpo


class Pretended(NamedTuple):
    """As much of a tensor as the choice looks at."""

    is_cuda: bool
    dtype: torch.dtype = torch.float32
    device: str = "cuda:0"


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv("MMRLHF_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch._warn_once.cache_clear()


def test_the_cpu_is_answered_by_chunks_and_nothing_is_said(caplog):
    with caplog.at_level(logging.DEBUG, logger="mmrlhf_kernels"):
        assert dispatch.choose(torch.ones(1)) == "chunked"
    assert caplog.records == []
    assert dispatch.row_backend(torch.ones(1)).name == "chunked"


def test_a_fallback_says_why_and_says_it_once(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_import_triton", lambda module: (None, f"no {module} here"))
    for _ in range(3):
        assert dispatch.choose(Pretended(is_cuda=True)) == "chunked"
    assert [record.getMessage() for record in caplog.records] == [
        "using the chunked PyTorch implementation: no triton_sweep here"
    ]
    assert dispatch.choose(Pretended(is_cuda=True, dtype=torch.float64)) == "chunked"
    assert "no float64" in caplog.records[-1].getMessage()


def test_triton_answers_cuda_where_it_can_be_imported(monkeypatch):
    monkeypatch.setattr(dispatch, "_import_triton", lambda _: (object(), ""))
    assert dispatch.choose(Pretended(is_cuda=True)) == "triton"
    assert dispatch.choose(Pretended(is_cuda=False)) == "chunked"


def test_a_forced_implementation_raises_rather_than_falls_back(monkeypatch):
    monkeypatch.setenv("MMRLHF_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=r"MMRLHF_KERNELS=triton, but .* need CUDA tensors"):
        fused_linear_logp(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]))
    monkeypatch.setenv("MMRLHF_KERNELS", "fast")
    with pytest.raises(ValueError, match="'fast'; expected one of reference, chunked, triton"):
        dispatch.choose(torch.ones(1))


@pytest.mark.parametrize("extras", [False, True])
def test_the_reference_answers_when_it_is_forced(monkeypatch, extras):
    case = head_case(9, 6, 131, bias=True)
    case.target[4] = -100
    options = {
        "bias": case.bias,
        "softcap": 2.0,
        "lora": (torch.randn(2, 6).double(), torch.randn(131, 2).double(), 0.5),
        "return_entropy": extras,
        "return_argmax": extras,
    }
    chunked = fused_linear_logp(case.hidden, case.weight, case.target, **options)
    monkeypatch.setenv("MMRLHF_KERNELS", "reference")
    plain = fused_linear_logp(case.hidden, case.weight, case.target, **options)
    if not extras:
        assert error(chunked, plain) < 1e-12
        return
    assert error(chunked.logp, plain.logp) < 1e-12
    assert error(chunked.entropy, plain.entropy) < 1e-12
    assert torch.equal(chunked.argmax, plain.argmax)


def test_the_fused_loss_follows_the_reference_too(monkeypatch):
    case = head_case(9, 6, 131)
    zero = torch.zeros(1, dtype=torch.float64)
    losses = []
    for name in ("chunked", "reference"):
        monkeypatch.setenv("MMRLHF_KERNELS", name)
        out = fused_linear_mm_dpo(
            case.hidden, case.weight, case.target, zero, zero, 0.1,
            cu_seqlens=torch.tensor([0, 4, 9]),
        )  # fmt: skip
        losses.append(float(out.loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_importing_the_package_imports_no_triton_no_compiler_and_no_trainer():
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import mmrlhf_kernels\n"
        "h = torch.ones(2, 3, requires_grad=True)\n"
        "mmrlhf_kernels.fused_linear_logp(h, h, torch.tensor([0, 1])).sum().backward()\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = {'triton', 'sympy', 'mmrlhf_engine', 'trl', 'transformers', 'datasets', 'peft'}\n"
        "assert not heavy & new, new\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
