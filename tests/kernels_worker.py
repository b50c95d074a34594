"""What each process of the vocabulary-parallel test does."""

import itertools
import os
from unittest import mock

import torch
import torch.distributed as dist

from kernels_support import Pairs, head_case
from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo, vocab_parallel_linear_logp
from mmrlhf_kernels.rows import sequence_of_row

OPTIONS = {"softcap": 3.0, "logit_scale": 1.5}
SPLIT = 200  # of 521 rows: unequal shards


def make_case():
    case = head_case(17, 8, 521, bias=True)
    case.target[[2, 9]] = -100
    return case


def run_rank(rank, store, outputs=None):
    """What ``outputs`` gives on one of two ranks; by default of the head in shards:
    (logp, gradients, logp of ignored rows alone, its gradients).

    ``store`` is a file that does not exist yet, by which the ranks find each other.
    """
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        with mock.patch.dict(os.environ, MMRLHF_KERNELS="chunked"):
            return (outputs or _outputs)(rank)
    finally:
        dist.destroy_process_group()


def _outputs(rank):
    case = make_case()
    own = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    weight = case.weight.detach()[own].requires_grad_()
    bias = case.bias.detach()[own].requires_grad_()
    logp = vocab_parallel_linear_logp(
        case.hidden, weight, case.target, rank * SPLIT, bias=bias, workspace_bytes=1 << 12,
        **OPTIONS,
    )  # fmt: skip
    gradients = torch.autograd.grad(logp, [case.hidden, weight, bias], case.grad)
    ignored = torch.full_like(case.target, -100)
    empty = vocab_parallel_linear_logp(case.hidden, weight, ignored, rank * SPLIT, bias=bias)
    zeros = torch.autograd.grad(empty.sum(), [case.hidden, weight])
    return logp.detach(), gradients, empty.detach(), zeros


def own_rows(rank, bounds):
    """Rows of one of two ranks: the first third of each answer, or the rest."""
    rows = []
    for begin, end in itertools.pairwise(bounds):
        middle = begin + (end - begin) // 3
        rows += range(begin, middle) if rank == 0 else range(middle, end)
    return torch.tensor(rows)


def pairs_of(schedule):
    """The pairs that a schedule is tried on."""
    return Pairs(lengths=(5, 8) if schedule == "two_sums" else (3, 0, 9, 1, 4, 6))


def call_of(schedule, pairs):
    """Options of the call; "released" is the rule that is put together from its parts."""
    torch.manual_seed(0)
    if schedule == "released":
        return {"beta": 0.1, "beta_rule": "released", "sft_weight": 0.25}
    return {"beta": pairs.beta, "schedule": schedule, "sft_weight": 0.25}


def part_of_sequences(rank):
    """(losses, gradients of own hidden states and head) by schedule, rows spread over ranks."""
    found = {}
    for schedule in (None, "recompute", "two_sums", "released"):
        pairs = pairs_of(schedule)
        rows = own_rows(rank, pairs.cu_seqlens.tolist())
        hidden = pairs.hidden.detach()[rows].requires_grad_()
        out = fused_linear_mm_dpo(
            hidden, pairs.weight, pairs.target[rows], *pairs.references, bias=pairs.bias,
            sequence_of_row=sequence_of_row(pairs.cu_seqlens, len(pairs.target))[rows],
            group=dist.group.WORLD, **call_of(schedule, pairs),
        )  # fmt: skip
        leaves = [hidden, pairs.weight, pairs.bias]
        found[schedule] = (out.loss.detach(), rows, torch.autograd.grad(out.loss, leaves))
    return found


def head_as_dtensor(rank):
    """(logp, gradient of hidden, own rows of the weight's gradient) of a head in two shards."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    case = make_case()
    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(case.weight.detach(), mesh, [Shard(0)]).requires_grad_()
    logp = fused_linear_logp(case.hidden, weight, case.target)
    of_hidden, of_weight = torch.autograd.grad(logp, [case.hidden, weight], case.grad)
    return logp.detach(), of_hidden, of_weight.full_tensor()
