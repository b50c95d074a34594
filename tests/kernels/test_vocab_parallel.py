"""A head in two shards, or answers in two parts, in two processes, against the whole in one."""

import pytest
import torch
from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

from kernels_support import error, oracle
from kernels_worker import (
    OPTIONS,
    call_of,
    head_as_dtensor,
    make_case,
    pairs_of,
    part_of_sequences,
    run_rank,
)
from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo
from triton_worker import start_interpreted


def on_two_ranks(folder, *outputs):
    """What both ranks return."""
    store = str(folder / "store")
    second = start_interpreted(run_rank, 1, store, *outputs)
    try:
        first = run_rank(0, store, *outputs)
    finally:
        parts = [second()]
    return [first, *parts]


def test_two_shards_are_the_whole(tmp_path):
    parts = on_two_ranks(tmp_path)
    wanted_logp, (of_hidden, of_weight, of_bias) = oracle(make_case(), **OPTIONS)
    for logp, gradients, empty, zeros in parts:
        assert error(logp, wanted_logp) < 1e-12
        assert error(gradients[0], of_hidden) < 1e-12
        assert bool((empty == 0).all())
        assert all(bool((zero == 0).all()) for zero in zeros)
    assert torch.equal(parts[0][0], parts[1][0])
    assert error(torch.cat([part[1][1] for part in parts]), of_weight) < 1e-12
    assert error(torch.cat([part[1][2] for part in parts]), of_bias) < 1e-12


def test_a_head_as_dtensor_is_taken_in_its_shards(tmp_path):
    parts = on_two_ranks(tmp_path, head_as_dtensor)
    wanted_logp, (of_hidden, of_weight) = oracle(make_case()._replace(bias=None))
    for logp, hidden, weight in parts:
        assert error(logp, wanted_logp) < 1e-12
        assert error(hidden, of_hidden) < 1e-12
        assert error(weight, of_weight) < 1e-12


def test_another_placement_is_refused_with_a_hint(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        case = make_case()
        mesh = init_device_mesh("cpu", (1,))
        weight = distribute_tensor(case.weight.detach(), mesh, [Replicate()])
        with pytest.raises(ValueError, match=r"expected Shard\(0\).*hint: redistribute it"):
            fused_linear_logp(case.hidden, weight, case.target)
    finally:
        torch.distributed.destroy_process_group()


def test_answers_in_two_parts_are_the_whole(tmp_path):
    parts = on_two_ranks(tmp_path, part_of_sequences)
    for schedule in parts[0]:
        pairs = pairs_of(schedule)
        out = fused_linear_mm_dpo(
            pairs.hidden, pairs.weight, pairs.target, *pairs.references, bias=pairs.bias,
            cu_seqlens=pairs.cu_seqlens, **call_of(schedule, pairs),
        )  # fmt: skip
        whole = torch.autograd.grad(out.loss, pairs.leaves())
        of_head = [0.0, 0.0]
        for part in parts:
            loss, rows, (of_hidden, *others) = part[schedule]
            assert float(loss) == pytest.approx(float(out.loss.detach()), rel=1e-12)
            assert error(of_hidden, whole[0][rows]) < 1e-10
            of_head = [total + other for total, other in zip(of_head, others, strict=True)]
        assert max(error(a, b) for a, b in zip(of_head, whole[1:], strict=True)) < 1e-11
