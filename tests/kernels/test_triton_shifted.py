"""Kept logits in Triton's interpreter, and the backend as the schedules use it."""

import pytest
import torch

from mmrlhf_kernels.backend import KeepingBackend
from mmrlhf_kernels.triton_backend import BACKEND
from triton_problem import DTYPES, error, hold_to_plain, logp_and_gradients, problem
from triton_worker import InterpretedError, interpreted


def keep(p):
    """(sweep, shifted logits) of the whole vocabulary."""
    out = torch.full((len(p.target), p.weight.shape[0]), float("nan"), dtype=p.hidden.dtype)
    return interpreted(
        "triton_backend.BACKEND.shifted_logits", *p.operands, first=0, entropy=True,
        argmax=True, out=out, returning="out",
    )  # fmt: skip


def test_the_backend_keeps_logits_and_says_so():
    assert isinstance(BACKEND, KeepingBackend)
    assert BACKEND.name == "triton"


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_logits_are_distances_from_the_largest_of_the_row(dtype, cap):
    p = problem(21, 40, 131, dtype, bias=True, cap=cap, spread=3.0)
    z = p.to(torch.float64).logits()
    sweep, shifted = keep(p)
    assert error(sweep.maximum, z.amax(1)) < 1e-5
    assert torch.equal(sweep.argmax, z.argmax(1))
    truth = z - z.amax(1, keepdim=True)
    # Two roundings to the nearest, each half a unit in the last place of the distance.
    allowed = truth.abs() * torch.finfo(dtype).eps + 1e-5
    assert ((shifted.double() - truth).abs() <= allowed).all()


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_from_kept_logits_is_that_of_the_specification(dtype, cap):
    p = problem(21, 40, 131, dtype, bias=True, cap=cap, scale=0.5)
    exact = p.to(torch.float64)
    grad = torch.randn(21, generator=torch.Generator().manual_seed(2)).where(p.kept, 0.0)
    sweep, shifted = keep(p)
    lse = sweep.maximum + sweep.sum_exp.log()
    arguments = (shifted, sweep.maximum, p.target, lse, grad, p.options)
    name = "triton_backend.BACKEND.shifted_gradient"
    apart = interpreted(name, *arguments, first=0, out=torch.empty_like(shifted))
    hold_to_plain(apart, p.gradient(grad), exact.gradient(grad.double()))
    aliased = {"first": 0, "out": shifted}
    assert torch.equal(apart, interpreted(name, *arguments, **aliased))


def test_minus_infinity_stays_minus_infinity():
    p = problem(5, 16, 70, torch.bfloat16, bias=True)
    p.bias[:40] = float("-inf")
    _, shifted = keep(p)
    assert (shifted[:, :40] == float("-inf")).all()
    assert shifted[:, 40:].isfinite().all()


def test_an_output_that_does_not_fit_is_named():
    p = problem(4, 16, 20, torch.float32)
    with pytest.raises(InterpretedError, match="adjacent entries"):
        interpreted(
            "triton_shifted.shifted_logits", *p.operands, first=0, entropy=False, argmax=False,
            out=torch.empty(4, 19),
        )  # fmt: skip


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen"])
def test_every_schedule_runs_on_the_backend(schedule):
    p = problem(23, 32, 131, torch.float32, bias=True, cap=20.0, scale=0.7)
    grad = torch.randn(23, generator=torch.Generator().manual_seed(6))
    logp, d_hidden, d_weight = interpreted(logp_and_gradients, p, grad, schedule=schedule)
    exact = p.to(torch.float64)
    e = exact.gradient(grad.double())
    assert error(logp, exact.logp(exact.logits())) < 5e-6
    assert error(d_hidden, e @ exact.weight) < 1e-5
    assert (d_weight is None) == (schedule == "frozen")
    if d_weight is not None:
        assert error(d_weight, e.T @ exact.hidden) < 1e-5
