"""Kept exponentials in Triton's interpreter, and the backend as the schedules use it."""

import pytest
import torch

from mmrlhf_kernels import reference
from mmrlhf_kernels.backend import Extras, KeptBlock, LossGradient, lift_of
from triton_problem import error, hold_to_plain, logp_and_gradients, lora_and_widths, problem
from triton_worker import InterpretedError, interpreted

CASES = [(torch.float32, None), (torch.float16, 5.0), (torch.bfloat16, None), (torch.float16, None)]


def keep(p):
    """(sweep, kept exponentials) of the whole vocabulary."""
    out = torch.full((len(p.target), p.weight.shape[0]), float("nan"), dtype=p.hidden.dtype)
    return interpreted(
        "triton_sweep.kept_exponentials", p.block, Extras(entropy=True, argmax=True), out=out,
        returning="out",
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "cap"), CASES, ids=str)
def test_exponentials_are_against_the_largest_of_the_row(dtype, cap):
    p = problem(17, 20, 67, dtype, bias=True, cap=cap, spread=3.0)
    z = p.to(torch.float64).logits()
    sweep, kept = keep(p)
    assert error(sweep.maximum, z.amax(1)) < 1e-5
    assert error(sweep.shift, z.amax(1) - lift_of(dtype)) < 1e-5
    assert torch.equal(sweep.argmax, z.argmax(1))
    truth = torch.exp(z - sweep.shift[:, None].double())
    # Two roundings to the nearest, and below the normal numbers of float16 steps of 2^-24.
    allowed = truth * (torch.finfo(dtype).eps + 2e-5) + 2 * torch.finfo(dtype).smallest_normal
    assert ((kept.double() - truth).abs() <= allowed).all()


@pytest.mark.parametrize(("dtype", "cap"), CASES, ids=str)
def test_the_gradient_from_kept_exponentials_is_that_of_the_specification(dtype, cap):
    p = problem(17, 20, 67, dtype, bias=True, cap=cap, scale=0.5)
    exact = p.to(torch.float64)
    grad = torch.randn(17, generator=torch.Generator().manual_seed(2)).where(p.kept, 0.0)
    sweep, kept = keep(p)
    lse = sweep.maximum + sweep.sum_exp.log()
    held = KeptBlock(kept, sweep.shift, p.target, p.options, 0, sweep.target_logit)
    name, rows = "triton_gradient.gradient_of_kept", LossGradient(lse, grad)
    apart = interpreted(name, held, rows, torch.empty_like(kept))
    hold_to_plain(apart, p.gradient(grad), exact.gradient(grad.double()))
    assert torch.equal(apart, interpreted(name, held, rows, kept))


def test_minus_infinity_is_kept_as_nothing():
    p = problem(5, 16, 70, torch.bfloat16, bias=True)
    p.bias[:40] = float("-inf")
    _, kept = keep(p)
    assert (kept[:, :40] == 0).all()
    assert kept[:, 40:].isfinite().all()


def test_an_output_that_does_not_fit_is_named():
    p = problem(4, 16, 20, torch.float32)
    with pytest.raises(InterpretedError, match="adjacent entries"):
        interpreted("triton_sweep.kept_exponentials", p.block, Extras(), torch.empty(4, 19))


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen"])
def test_every_schedule_runs_on_the_backend(schedule):
    p = problem(17, 20, 67, torch.float32, bias=True, cap=20.0, scale=0.7)
    grad = torch.randn(17, generator=torch.Generator().manual_seed(6))
    logp, d_hidden, d_weight = interpreted(logp_and_gradients, p, grad, schedule=schedule)
    exact = p.to(torch.float64)
    e = exact.gradient(grad.double())
    assert error(logp, exact.logp(exact.logits())) < 5e-6
    assert error(d_hidden, e @ exact.weight) < 1e-5
    assert (d_weight is None) == (schedule == "frozen")
    if d_weight is not None:
        assert error(d_weight, e.T @ exact.hidden) < 1e-5


def test_lora_beside_the_head_is_padded_to_whole_tiles():
    p = problem(9, 40, 67, torch.float32)
    source = torch.Generator().manual_seed(4)
    lora = (torch.randn(5, 40, generator=source), torch.randn(67, 5, generator=source), 0.3)
    grad = torch.randn(9, generator=source)
    logp, gradients, widths = interpreted(lora_and_widths, p, lora, grad)
    assert widths == {64}
    exact = p.to(torch.float64)
    leaves = [t.double().requires_grad_() for t in (p.hidden, *lora[:2])]
    truth = reference.linear_logp(
        leaves[0], exact.weight, p.target, lora=(leaves[1], leaves[2], 0.3)
    )
    assert error(logp, truth) < 1e-5
    for found, other in zip(
        gradients, torch.autograd.grad(truth, leaves, grad.double()), strict=True
    ):
        assert error(found, other) < 2e-5
