"""Inputs as people have them, and what becomes of precision under all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_support import Pairs, entropy_and_logp, error, head_case, oracle
from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo, precision, reference
from mmrlhf_kernels.plan import SCHEDULES
from triton_problem import logp_and_gradients, problem
from triton_worker import interpreted

HALVES = (torch.bfloat16, torch.float16)
PRECISIONS = {"worst": {}}
"""The largest error in units of plain PyTorch's, by dtype and schedule, over all examples."""


def distance(found, wanted):
    """Relative distance in the Euclidean norm."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def run(case, frozen, call):
    """Gradients of the leaves by a call that gives log-probabilities."""
    weight = case.weight.detach() if frozen else case.weight
    logp = call(case.hidden, weight)
    return torch.autograd.grad(logp, case.leaves(frozen=frozen), case.grad.to(logp.dtype))


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(HALVES),
    schedule=st.sampled_from(["recompute", "keep", "frozen"]),
    cap=st.sampled_from([None, 2.0, 30.0]),
    scale=st.sampled_from([0.25, 1.0, 3.0]),
    spread=st.sampled_from([1.0, 6.0, 40.0]),
    seed=st.integers(0, 1000),
)
def test_no_half_precision_call_errs_more_than_twice_as_much_as_plain(
    dtype, schedule, cap, scale, spread, seed
):
    case = head_case(96, 32, 700, dtype=dtype, spread=spread, seed=seed)
    frozen, options = schedule == "frozen", {"softcap": cap, "logit_scale": scale}
    exact = oracle(case, frozen=frozen, **options)[1]
    plain = run(
        case, frozen, lambda h, w: reference.select_logp(
            reference.logits(h, w, **{"softcap": None, "logit_scale": 1.0}).float() * scale
            if cap is None
            else cap * torch.tanh((h @ w.T).float() * scale / cap),
            case.target,
        ),
    )  # fmt: skip
    ours = run(
        case, frozen,
        lambda h, w: fused_linear_logp(h, w, case.target, schedule=schedule, **options),
    )  # fmt: skip
    for found, other, wanted in zip(ours, plain, exact, strict=True):
        unit = torch.finfo(dtype).eps
        ratio = distance(found, wanted) / max(distance(other, wanted), unit / 8)
        key = f"{dtype} {schedule}"
        PRECISIONS["worst"][key] = max(ratio, PRECISIONS["worst"].get(key, 0.0))
        assert ratio <= 2.0, PRECISIONS["worst"]


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen", "two_sums", "one_sum"])
def test_a_loss_scale_keeps_the_small_gradients_of_float16(schedule):
    """The fused loss takes its gradients before GradScaler's factor is known."""
    pairs, exact = (Pairs((40, 40), dtype=dtype) for dtype in (torch.float16, torch.float64))
    frozen = schedule == "frozen"
    for case in (pairs, exact):  # a beta that makes all gradients small
        case.beta = torch.full_like(case.beta, 1e-4)
    for name in ("hidden", "weight", "bias"):
        setattr(exact, name, getattr(pairs, name).detach().double().requires_grad_())
    zero = [torch.zeros_like(column) for column in pairs.references]
    scale = 2.0**15
    (ours, wanted) = (
        torch.autograd.grad(
            scale * fused_linear_mm_dpo(
                case.hidden, case.weight.detach() if frozen else case.weight, case.target, *zero,
                case.beta, bias=case.bias.detach() if frozen else case.bias, schedule=taken,
                cu_seqlens=case.cu_seqlens,
            ).loss,
            case.leaves(schedule),
        )
        for case, taken in ((pairs, schedule), (exact, "frozen" if frozen else "recompute"))
    )  # fmt: skip
    for found, true in zip(ours, wanted, strict=True):
        assert found.dtype == torch.float16
        assert distance(found, true) < 2**-10


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen", "two_sums", "one_sum"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_processor_without_a_half_width_unit_multiplies_in_float32(monkeypatch, dtype, schedule):
    """There, one product in half width takes 20 times as long."""
    multiplied = []
    for place, name in ((torch, "mm"), (torch.Tensor, "addmm_")):
        product = getattr(place, name)

        def recorded(*operands, product=product, **options):
            multiplied.extend(operand.dtype for operand in operands)
            return product(*operands, **options)

        monkeypatch.setattr(place, name, recorded)
    monkeypatch.setattr(precision, "has_bfloat16_unit", lambda: False)
    Pairs((5, 8), dtype=dtype).fused(schedule)
    if schedule in SCHEDULES:
        case = head_case(9, 8, 300, dtype=dtype)
        run(
            case, schedule == "frozen",
            lambda h, w: fused_linear_logp(h, w, case.target, schedule=schedule),
        )  # fmt: skip
    assert set(multiplied) == {torch.float32}


def test_float16_and_a_frozen_head_keep_the_gradients_of_confident_rows():
    case = head_case(16, 32, 300, dtype=torch.float16)
    with torch.no_grad():
        case.hidden.copy_(case.weight[case.target] * 24)
    call = lambda h, w, s: fused_linear_logp(h, w, case.target, schedule=s)  # noqa: E731
    scaled = case._replace(grad=case.grad * 2.0**12)
    ours = run(scaled, True, lambda h, w: call(h, w, "frozen"))[0]
    assert distance(ours, oracle(scaled, frozen=True)[1][0]) < 2**-9


@pytest.mark.parametrize("target_dtype", [torch.int32, torch.int64])
def test_batches_of_sequences_keep_their_shape(target_dtype):
    case = head_case(12, 6, 131, bias=True)
    flat = fused_linear_logp(case.hidden, case.weight, case.target, bias=case.bias)
    batched = fused_linear_logp(
        case.hidden.view(3, 4, 6), case.weight, case.target.view(3, 4).to(target_dtype),
        bias=case.bias, return_entropy=True, return_argmax=True,
    )  # fmt: skip
    assert batched.logp.shape == batched.entropy.shape == batched.argmax.shape == (3, 4)
    assert torch.equal(batched.logp.flatten(), flat)
    with pytest.raises(ValueError, match=r"target has shape \(12,\); expected \(3, 4\)"):
        fused_linear_logp(case.hidden.view(3, 4, 6), case.weight, case.target)


def test_rows_of_a_batch_are_the_answers_of_the_fused_loss():
    pairs = Pairs(lengths=(4, 4, 4, 4))
    pairs.target[[0, 7]] = -100
    flat, _ = pairs.fused(sft_weight=0.1)
    batched = fused_linear_mm_dpo(
        pairs.hidden.view(4, 4, -1), pairs.weight, pairs.target.view(4, 4).int(),
        *pairs.references, pairs.beta, bias=pairs.bias, sft_weight=0.1,
    )  # fmt: skip
    assert torch.equal(batched.loss, flat.loss)
    answers = torch.arange(4, dtype=torch.int32)[:, None].expand(4, 4)
    named = fused_linear_mm_dpo(
        pairs.hidden.view(4, 4, -1), pairs.weight, pairs.target.view(4, 4), *pairs.references,
        pairs.beta, bias=pairs.bias, sft_weight=0.1, sequence_of_row=answers,
    )  # fmt: skip
    assert torch.equal(named.loss, flat.loss)


def test_hidden_states_and_head_of_different_dtypes_meet_in_the_wider_one():
    case = head_case(9, 16, 300, dtype=torch.float32)
    narrow = case.hidden.detach().bfloat16().requires_grad_()
    logp = fused_linear_logp(narrow, case.weight, case.target)
    wide = case._replace(hidden=narrow.detach().float().requires_grad_())
    assert torch.equal(logp, fused_linear_logp(wide.hidden, wide.weight, wide.target))
    found = torch.autograd.grad(logp, [narrow, case.weight], case.grad.float())
    assert [part.dtype for part in found] == [torch.bfloat16, torch.float32]
    assert error(found[1], oracle(wide)[1][1]) < 1e-5


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen"])
def test_temperature_divides_the_capped_logits(schedule, cap):
    case = head_case(13, 8, 300, spread=3.0)
    options = {"softcap": cap, "logit_scale": 1.5}
    exact = case.double()
    z = reference.logits(exact.hidden, exact.weight, **options) / 0.7
    wanted_logp = reference.select_logp(z, exact.target)
    frozen = schedule == "frozen"
    wanted = torch.autograd.grad(wanted_logp, exact.leaves(frozen=frozen), exact.grad)
    call = lambda h, w: fused_linear_logp(  # noqa: E731
        h, w, case.target, temperature=0.7, schedule=schedule, **options
    )
    assert error(call(case.hidden, case.weight.detach()), wanted_logp) < 1e-12
    found = run(case, frozen, call)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("schedule", ["recompute", "keep", None])
def test_the_entropy_carries_a_gradient_where_it_is_asked_to(schedule, cap):
    case = head_case(17, 8, 600, bias=True, spread=2.0)
    case.target[3] = -100
    exact = case.double()
    z = reference.logits(exact.hidden, exact.weight, bias=exact.bias, softcap=cap)
    entropy = reference.entropy(z).masked_fill(exact.target == -100, 0.0)
    logp = reference.select_logp(z, exact.target)
    loss = (logp * exact.grad + 0.3 * entropy * exact.grad.square()).sum()
    wanted = torch.autograd.grad(loss, exact.leaves())
    found_entropy, found = entropy_and_logp(case, schedule=schedule, softcap=cap)
    assert error(found_entropy, entropy) < 1e-12
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-11
    with pytest.raises(ValueError, match="no gradient of the entropy"):
        fused_linear_logp(
            case.hidden, case.weight.detach(), case.target, schedule="frozen",
            return_entropy=True, entropy_gradient=True,
        )  # fmt: skip


@pytest.mark.parametrize("schedule", ["recompute", "keep"])
def test_the_gradient_of_the_entropy_in_interpreted_triton(schedule):
    case = head_case(9, 16, 67, dtype=torch.float32, bias=True)
    case = case._replace(grad=case.grad.float())
    _, wanted = entropy_and_logp(case.double(), schedule="recompute")
    _, found = interpreted(entropy_and_logp, case, schedule=schedule)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-5


@pytest.mark.parametrize("dtype", HALVES)
def test_kept_exponentials_under_a_softcap_in_interpreted_triton(dtype):
    p = problem(17, 20, 67, dtype, cap=2.0, spread=5.0)
    grad = torch.randn(17, generator=torch.Generator().manual_seed(4))
    exact = p.to(torch.float64)
    e = exact.gradient(grad.double())
    _, d_hidden, d_weight = interpreted(logp_and_gradients, p, grad, schedule="keep")
    bound = 2 * torch.finfo(dtype).eps
    assert distance(d_hidden, e @ exact.weight) < bound
    assert distance(d_weight, e.T @ exact.hidden) < bound


def test_sparse_numbers_of_answers_need_no_count():
    pairs = Pairs()
    plain, wanted = pairs.fused()
    sequence = torch.repeat_interleave(torch.tensor([70, 5, 900, 2, 33, 4]), pairs.lengths)
    index = torch.tensor([[70, 2], [5, 33], [900, 4]])
    out, found = pairs.fused(index=index, cu_seqlens=None, sequence_of_row=sequence)
    assert torch.equal(out.loss, plain.loss)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with pytest.raises(IndexError, match="a row names answer -1"):
        pairs.fused(index=index, cu_seqlens=None, sequence_of_row=sequence - 3)
