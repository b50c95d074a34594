"""The backend's two steps on their own, as the contract states them."""

import pytest
import torch

from kernels_support import error, head_case
from mmrlhf_kernels import reference
from mmrlhf_kernels.backend import Block, Extras, HeadOptions, KeptBlock, LossGradient
from mmrlhf_kernels.chunked import BACKEND, merge_sweeps
from mmrlhf_kernels.rows import sequence_of_row, sequence_sums


def logits(case, options):
    return reference.logits(
        case.hidden, case.weight, bias=case.bias, softcap=options.softcap,
        logit_scale=options.logit_scale,
    ).detach()  # fmt: skip


@pytest.mark.parametrize("options", [HeadOptions(), HeadOptions(2.0, 1.5)])
@pytest.mark.parametrize("first", [0, 100, 5000])
def test_a_sweep_over_a_shard(options, first):
    case = head_case(13, 8, 3001, bias=True)
    target = case.target + 100  # some lie outside of the shard
    with torch.no_grad():
        block = Block(case.hidden, case.weight, case.bias, target, options, first)
        found = BACKEND.sweep(block, Extras(entropy=True, argmax=True))
    z = logits(case, options)
    exponential = torch.exp(z - z.amax(1, keepdim=True))
    assert error(found.maximum, z.amax(1)) < 1e-14
    assert error(found.sum_exp, exponential.sum(1)) < 1e-13
    assert error(found.sum_z_exp, (z * exponential).sum(1)) < 1e-11
    assert torch.equal(found.argmax, z.argmax(1) + first)
    column = target - first
    inside = (column >= 0) & (column < 3001)
    own = z.gather(1, column.clamp(0, 3000)[:, None])[:, 0].masked_fill(~inside, 0)
    assert error(found.target_logit, own) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_kept_logits_give_the_gradient_that_recomputing_gives(dtype):
    case = head_case(40, 8, 300, dtype=dtype)
    options = HeadOptions(5.0, 0.5)
    grad, first = case.grad.to(torch.float64 if dtype == torch.float64 else torch.float32), 50
    target = case.target + 20
    out, kept = (torch.empty(40, 300, dtype=dtype) for _ in range(2))
    block = Block(case.hidden, case.weight, None, target, options, first)
    with torch.no_grad():
        sweep = BACKEND.kept_exponentials(block, Extras(), kept)
        rows = LossGradient(sweep.maximum + sweep.sum_exp.log() + 0.1, grad)
        recomputed = BACKEND.logit_gradient(block, rows, out)
        before = kept.clone()
        held = KeptBlock(kept, sweep.shift, target, options, first, sweep.target_logit)
        fresh = BACKEND.gradient_of_kept(held, rows, torch.empty_like(kept))
        assert torch.equal(kept, before)
        in_place = BACKEND.gradient_of_kept(held, rows, kept)
    assert torch.equal(fresh, in_place)
    assert error(fresh, recomputed) < (1e-14 if dtype == torch.float64 else 2**-7)


def test_merging_is_the_sweep_over_both():
    case = head_case(7, 4, 900)
    block = Block(case.hidden, case.weight, None, case.target)
    with torch.no_grad():
        whole, left, right = (
            BACKEND.sweep(block.columns(*part), Extras(entropy=True, argmax=True))
            for part in ((0, 900), (0, 300), (300, 900))
        )
    for merged, wanted in zip(merge_sweeps(left, right)[:5], whole[:5], strict=True):
        assert error(merged, wanted) < 1e-13


def test_sequence_sums_are_segment_sums_with_a_gradient():
    values = torch.randn(9, dtype=torch.float64, requires_grad=True)
    sequence = torch.tensor([3, 0, 0, 3, 1, 3, 0, 1, 3])
    sums = sequence_sums(values, sequence, 5)
    wanted = torch.stack([values[sequence == s].sum() for s in range(5)])
    assert error(sums, wanted) < 1e-15
    (found,) = torch.autograd.grad(sums, [values], torch.arange(5.0).double())
    assert found.tolist() == [float(s) for s in sequence]


def test_the_sum_of_a_long_answer_is_rounded_once():
    values = -11.4 - 2 * torch.rand(4096, generator=torch.Generator().manual_seed(0))
    sums = sequence_sums(values, torch.zeros(4096, dtype=torch.int64), 1)
    assert float(sums) == float(values.double().sum().float())


def test_sequence_of_row_of_packed_answers():
    assert sequence_of_row(torch.tensor([0, 2, 2, 5]), 5).tolist() == [0, 0, 2, 2, 2]
    with pytest.raises(ValueError, match="must rise from 0 to the number of rows 4"):
        sequence_of_row(torch.tensor([0, 2, 5]), 4)
