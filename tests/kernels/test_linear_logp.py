"""The primitive against the float64 oracle: every schedule, every gradient, every edge."""

import math

import pytest
import torch

from kernels_support import error, head_case, oracle
from mmrlhf_kernels import fused_linear_logp, reference

SCHEDULES = ["recompute", "keep", "frozen"]
# One row and one column, a prime vocabulary that is no multiple of any chunk, one past a chunk.
SHAPES = [(1, 1, 1), (7, 5, 131), (37, 16, 257), (19, 48, 1031)]


def run(case, schedule, *, workspace_bytes=1 << 12, **options):
    """(logp, gradients) of a forced schedule with chunks as narrow as they get."""
    frozen = schedule == "frozen"
    weight = case.weight.detach() if frozen else case.weight
    bias = case.bias.detach() if frozen and case.bias is not None else case.bias
    logp = fused_linear_logp(
        case.hidden,
        weight,
        case.target,
        bias=bias,
        schedule=schedule,
        workspace_bytes=workspace_bytes,
        **options,
    )
    leaves = case.leaves(frozen=frozen)
    return logp.detach(), torch.autograd.grad(logp, leaves, case.grad.to(logp.dtype))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "logit_scale": 1.5}])
def test_schedules_agree_with_the_oracle_in_float64(schedule, shape, options):
    case = head_case(*shape, bias=True)
    logp, found = run(case, schedule, **options)
    wanted_logp, wanted = oracle(case, frozen=schedule == "frozen", **options)
    assert logp.dtype == torch.float64
    assert error(logp, wanted_logp) < 1e-12
    for one, other in zip(found, wanted, strict=True):
        # At (1, 1, 1) the only token is certain and the gradient is exactly zero.
        assert float((one - other).abs().max()) < 1e-12 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_is_close_to_the_oracle(schedule):
    case = head_case(37, 64, 1031, dtype=torch.float32, bias=True, spread=4.0)
    logp, found = run(case, schedule)
    wanted_logp, wanted = oracle(case, frozen=schedule == "frozen")
    assert logp.dtype == torch.float32
    assert error(logp, wanted_logp) < 2e-6
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 3e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(schedule, dtype, spread):
    case = head_case(37, 64, 1031, dtype=dtype, spread=spread)
    frozen = schedule == "frozen"
    logp, found = run(case, schedule)
    exact_logp, exact = oracle(case, frozen=frozen)
    plain = reference.linear_logp(case.hidden, case.weight, case.target)
    theirs = torch.autograd.grad(plain, case.leaves(frozen=frozen), case.grad.to(dtype))
    assert logp.dtype == torch.float32
    assert error(logp, exact_logp) <= error(plain, exact_logp)
    for ours, other, wanted in zip(found, theirs, exact, strict=True):
        assert ours.dtype == dtype
        assert error(ours, wanted) <= 2 * error(other, wanted) + 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_confident_rows_keep_their_small_gradients_in_bfloat16(schedule):
    case = head_case(16, 32, 300, dtype=torch.bfloat16)
    with torch.no_grad():  # every target is the most probable token by far
        case.hidden.copy_(case.weight[case.target] * 16)
    logp, (of_hidden, *_) = run(case, schedule)
    exact_logp, (wanted, *_) = oracle(case, frozen=schedule == "frozen")
    assert float(exact_logp.mean()) > -0.05
    assert float((logp.double() - exact_logp).abs().max()) < 1e-5
    assert error(of_hidden, wanted) < 2e-2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ignored_rows_give_zero_and_no_gradient(schedule):
    case = head_case(23, 8, 131, bias=True)
    case.target[[0, 5, 6, 22]] = -100
    logp, found = run(case, schedule)
    wanted_logp, wanted = oracle(case, frozen=schedule == "frozen")
    ignored = case.target == -100
    assert bool((logp[ignored] == 0).all())
    assert bool((found[0][ignored] == 0).all())
    assert error(logp, wanted_logp) < 1e-12
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_but_ignored_rows(schedule, rows):
    case = head_case(rows, 4, 131, bias=True)
    case.target.fill_(-100)
    logp, found = run(case, schedule)
    assert logp.tolist() == [0.0] * rows
    assert all(bool((gradient == 0).all()) for gradient in found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_runs_are_equal_bit_by_bit(schedule):
    case = head_case(29, 16, 1031, dtype=torch.float32)
    first, second = run(case, schedule), run(case, schedule)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_chunk_width_does_not_matter(schedule):
    case = head_case(29, 16, 1031)
    narrow, wide = run(case, schedule), run(case, schedule, workspace_bytes=1 << 24)
    assert error(narrow[0], wide[0]) < 1e-13
    assert max(error(a, b) for a, b in zip(narrow[1], wide[1], strict=True)) < 1e-12


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_one_gradient_alone(wanted):
    case = head_case(11, 8, 300, bias=True)
    leaf = getattr(case, wanted)
    for tensor in case.leaves():
        tensor.requires_grad_(tensor is leaf)
    logp = fused_linear_logp(case.hidden, case.weight, case.target, bias=case.bias)
    (found,) = torch.autograd.grad(logp, [leaf], case.grad)
    _, exact = oracle(case)
    place = ["hidden", "weight", "bias"].index(wanted)
    assert error(found, exact[place]) < 1e-12


def test_a_tied_weight_gets_the_sum_of_its_gradients():
    case = head_case(9, 6, 131)
    table = case.weight
    hidden = table[:9].tanh()
    logp = fused_linear_logp(hidden, table, case.target)
    (found,) = torch.autograd.grad(logp, [table], case.grad)
    exact = case.weight.detach().clone().requires_grad_()
    plain = reference.linear_logp(exact[:9].tanh(), exact, case.target)
    (wanted,) = torch.autograd.grad(plain, [exact], case.grad)
    assert error(found, wanted) < 1e-12


@pytest.mark.parametrize("schedule", [*SCHEDULES, None])
def test_lora_is_the_head_with_its_product_added(schedule):
    case = head_case(17, 12, 521, bias=True)
    low = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    high = torch.randn(521, 3, dtype=torch.float64, requires_grad=schedule != "frozen")
    case.weight.requires_grad_(False)
    case.bias.requires_grad_(False)
    leaves = [case.hidden, low, *([high] if high.requires_grad else [])]
    found, wanted = (
        torch.autograd.grad(call(), leaves, case.grad)
        for call in (
            lambda: fused_linear_logp(
                case.hidden, case.weight, case.target, bias=case.bias, softcap=3.0,
                lora=(low, high, 0.7), schedule=schedule, workspace_bytes=1 << 12,
            ),
            lambda: reference.linear_logp(
                case.hidden, case.weight, case.target, bias=case.bias, softcap=3.0,
                lora=(low, high, 0.7),
            ),
        )
    )  # fmt: skip
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("schedule", [*SCHEDULES, None])
def test_entropy_and_argmax_come_from_the_same_pass(schedule):
    case = head_case(17, 12, 1031, spread=3.0)
    case.target[4] = -100
    weight = case.weight.detach() if schedule == "frozen" else case.weight
    result = fused_linear_logp(
        case.hidden, weight, case.target, schedule=schedule, workspace_bytes=1 << 12,
        return_entropy=True, return_argmax=True,
    )  # fmt: skip
    z = reference.logits(case.hidden.detach(), case.weight.detach())
    counted = case.target != -100
    entropy = torch.distributions.Categorical(logits=z).entropy()
    assert error(result.entropy[counted], entropy[counted]) < 1e-12
    assert torch.equal(result.argmax[counted], z.argmax(1)[counted])
    assert (float(result.entropy[4]), int(result.argmax[4])) == (0.0, -1)
    assert not result.entropy.requires_grad
    assert result.logp.requires_grad


def test_padded_vocabulary_rows_may_have_a_bias_of_minus_infinity():
    case = head_case(9, 6, 1500, bias=True)
    with torch.no_grad():
        case.bias[1000:] = -math.inf
        case.target.clamp_(max=999)
    result = fused_linear_logp(
        case.hidden, case.weight, case.target, bias=case.bias, return_entropy=True,
        schedule="recompute", workspace_bytes=1 << 12,
    )  # fmt: skip
    found = torch.autograd.grad(result.logp, case.leaves(), case.grad)
    short = case._replace(weight=case.weight[:1000], bias=case.bias[:1000])
    wanted_logp, wanted = oracle(short)
    assert error(result.logp, wanted_logp) < 1e-12
    assert bool(result.entropy.isfinite().all())
    assert error(found[0], wanted[0]) < 1e-12
    assert bool((found[1][1000:] == 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logits_of_sixty_stay_finite(schedule):
    case = head_case(8, 4, 300, dtype=torch.float32)
    with torch.no_grad():
        case.hidden.fill_(0.5)
        case.weight.fill_(-30.0)
        case.weight[:150].fill_(30.0)
    logp, found = run(case, schedule)
    # Half the tokens share the mass: -log 150, or 120 below it.
    expected = torch.where(case.target < 150, -math.log(150), -120 - math.log(150))
    assert torch.allclose(logp, expected.to(logp.dtype), atol=1e-4)
    assert all(bool(gradient.isfinite().all()) for gradient in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_a_linear_layer_does(dtype):
    case = head_case(9, 16, 300, dtype=torch.float32, bias=True)
    with torch.autocast("cpu", dtype=dtype):
        logp = fused_linear_logp(case.hidden, case.weight, case.target, bias=case.bias)
    found = torch.autograd.grad(logp, case.leaves(), case.grad.float())
    halved = [t.detach().to(dtype).requires_grad_() for t in case.leaves()]
    plain = fused_linear_logp(halved[0], halved[1], case.target, bias=halved[2])
    wanted = torch.autograd.grad(plain, halved, case.grad.float())
    assert logp.dtype == torch.float32
    assert torch.equal(logp, plain)
    for ours, other in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, other.float())


def test_autocast_leaves_the_statistics_of_float32_alone():
    case = head_case(9, 16, 300, dtype=torch.float32)
    outside, _ = run(case, "recompute")
    rounded = case._replace(
        hidden=case.hidden.detach().bfloat16(), weight=case.weight.detach().bfloat16()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fused_linear_logp(case.hidden, case.weight, case.target)
    exact, _ = oracle(rounded._replace(hidden=rounded.hidden, weight=rounded.weight))
    assert error(inside, exact) < 1e-6
    assert not torch.equal(inside, outside)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_activation_checkpointing(schedule):
    case = head_case(9, 8, 131)
    weight = case.weight.detach() if schedule == "frozen" else case.weight

    def block(states):
        return fused_linear_logp(states.tanh(), weight, case.target, schedule=schedule)

    leaves = case.leaves(frozen=schedule == "frozen")
    again = torch.utils.checkpoint.checkpoint(block, case.hidden, use_reentrant=False)
    found = torch.autograd.grad(again, leaves, case.grad)
    wanted = torch.autograd.grad(block(case.hidden), leaves, case.grad)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_retained_graph_allows_a_second_backward():
    case = head_case(9, 8, 131)
    logp = fused_linear_logp(case.hidden, case.weight, case.target, schedule="keep")
    first = torch.autograd.grad(logp, case.leaves(), case.grad, retain_graph=True)
    second = torch.autograd.grad(logp, case.leaves(), case.grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"target": torch.tensor([0, 131])}, IndexError, r"target\[1\] is 131; expected 0 <= "),
        ({"target": torch.tensor([0, -1])}, IndexError, r"target\[1\] is -1"),
        ({"target": torch.tensor([0])}, ValueError, r"target has shape \(1,\); expected \(2,\)"),
        ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target is torch.float32"),
        ({"weight": torch.zeros(131, 4)}, ValueError, r"expected \[N, H\] and \[V, H\]"),
        ({"weight": torch.zeros(131, 3).int()}, TypeError, "weight is torch.int32"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"counted_rows": 1}, ValueError, "counted_rows is 1; 2 rows are not ignored"),
        ({"weight": torch.zeros(0, 3)}, ValueError, "no vocabulary rows"),
        ({"bias": torch.zeros(130)}, ValueError, r"bias has shape \(130,\); expected \(131,\)"),
        ({"schedule": "fast"}, ValueError, "unknown schedule 'fast'; expected one of recompute"),
        ({"schedule": "frozen"}, ValueError, "needs a gradient"),
        ({"lora": (torch.zeros(2, 4), torch.zeros(131, 2), 1.0)}, ValueError, "lora A"),
        ({"lora": (torch.zeros(2, 3), torch.zeros(131, 3), 1.0)}, ValueError, "lora B"),
    ],
)
def test_what_does_not_fit_is_named(change, problem, message):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(131, 3, requires_grad=True),
        "target": torch.tensor([0, 1]),
    }
    with pytest.raises(problem, match=message):
        fused_linear_logp(**(arguments | change))
