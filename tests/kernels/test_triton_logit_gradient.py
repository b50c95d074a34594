"""Pass 2 in Triton's interpreter against autograd of the specification."""

import pytest
import torch

from mmrlhf_kernels.backend import LossGradient
from mmrlhf_kernels.triton_settings import Settings
from triton_problem import error, hold_to_plain, nearly_equal, problem
from triton_worker import InterpretedError, interpreted

OTHER = Settings(rows=32, columns=16, inner=16, warps=1, stages=1, group=3)


def row_grad(p):
    """A gradient per row as a loss would give it: none for ignored rows."""
    grad = torch.randn(len(p.target), generator=torch.Generator().manual_seed(9))
    return grad.where(p.kept, 0.0)


def own_lse(p):
    """The normalisers of pass 1, under which the probabilities of a row sum to one."""
    found = interpreted("triton_sweep.sweep", p.block)
    return found.maximum + found.sum_exp.log()


def gradient(p, lse, grad, **launch):
    """E over the whole vocabulary by the kernel."""
    out = torch.full((len(p.target), p.weight.shape[0]), float("nan"), dtype=p.hidden.dtype)
    return interpreted(
        "triton_gradient.logit_gradient",
        p.block,
        LossGradient(lse.float(), grad),
        **{"out": out, **launch},
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1, 1), torch.float32), ((16, 32, 64), torch.bfloat16), ((19, 23, 67), torch.float16)],
    ids=str,
)
def test_gradient_is_at_most_twice_as_far_off_as_plain_pytorch(shape, dtype):
    p = problem(*shape, dtype, bias=True)
    grad, lse = row_grad(p), own_lse(p)
    truth = p.to(torch.float64).gradient(grad.double())
    hold_to_plain(gradient(p, lse, grad), p.gradient(grad), truth, lse=lse)


@pytest.mark.parametrize(("cap", "scale"), [(None, 0.25), (5.0, 2.0)])
def test_scale_and_softcap_enter_the_derivative(cap, scale):
    p = problem(9, 20, 67, torch.float32, bias=True, cap=cap, scale=scale, spread=4.0)
    grad, lse = row_grad(p), own_lse(p)
    truth = p.to(torch.float64).gradient(grad.double())
    hold_to_plain(gradient(p, lse, grad), p.gradient(grad), truth, lse=lse)


def test_chunks_side_by_side_are_the_whole_and_neighbours_stay_untouched():
    p = problem(20, 32, 99, torch.bfloat16, bias=True)
    lse, grad = p.to(torch.float64).logits().logsumexp(1), row_grad(p)
    whole = gradient(p, lse, grad)
    for begin, end in ((0, 40), (40, 41), (41, 99)):
        wide = torch.full((20, 99), 7.0, dtype=torch.bfloat16)
        part = interpreted(
            "triton_gradient.logit_gradient", p.block.columns(begin, end),
            LossGradient(lse.float(), grad), wide[:, begin:end],
        )  # fmt: skip
        nearly_equal(part, whole[:, begin:end])


def test_a_row_without_gradient_is_zero_whatever_its_normaliser():
    p = problem(6, 16, 40, torch.float32, spread=100.0)
    grad = torch.zeros(6)
    lse = torch.tensor([0.0, -1e30, float("inf"), 3.0, float("-inf"), float("nan")])
    assert (gradient(p, lse, grad) == 0).all()


@pytest.mark.parametrize("height", [60.0, 3000.0])
def test_saturated_logits_stay_finite(height):
    p = problem(6, 16, 40, torch.float32)
    p.hidden[:] = 0.0
    p.hidden[:, 0] = height
    p.weight[:, 0] = torch.linspace(-1.0, 1.0, 40)
    exact, grad = p.to(torch.float64), row_grad(p)
    found = gradient(p, exact.logits().logsumexp(1), grad)
    assert found.isfinite().all()
    assert error(found, exact.gradient(grad.double())) <= height * 4e-7


def test_no_run_changes_a_bit_and_no_launch_more_than_the_last():
    p = problem(19, 23, 67, torch.float16)
    lse, grad = p.to(torch.float64).logits().logsumexp(1), row_grad(p)
    one = gradient(p, lse, grad)
    assert torch.equal(one, gradient(p, lse, grad))
    nearly_equal(one, gradient(p, lse, grad, settings=OTHER))


def test_an_output_that_does_not_fit_is_named():
    p = problem(4, 16, 20, torch.float32)
    for out in (torch.empty(4, 19), torch.empty(4, 20).half(), torch.empty(20, 4).T):
        with pytest.raises(InterpretedError, match="adjacent entries"):
            gradient(p, torch.zeros(4), torch.zeros(4), out=out)


@pytest.mark.parametrize("loads", ["descriptors", "specialized"])
def test_how_operands_are_loaded_changes_no_bit(loads):
    p = problem(19, 24, 67, torch.bfloat16, bias=True, cap=5.0)
    lse, grad = own_lse(p), row_grad(p)
    one, other = (
        gradient(p, lse, grad, settings=OTHER._replace(loads=chosen))
        for chosen in ("pointers", loads)
    )
    assert torch.equal(one, other)
