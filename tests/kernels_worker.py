"""What each process of the vocabulary-parallel test does."""

import os
from unittest import mock

import torch
import torch.distributed as dist

from kernels_support import head_case
from mmrlhf_kernels import vocab_parallel_linear_logp

OPTIONS = {"softcap": 3.0, "logit_scale": 1.5}
SPLIT = 200  # of 521 rows: unequal shards


def make_case():
    case = head_case(17, 8, 521, bias=True)
    case.target[[2, 9]] = -100
    return case


def run_rank(rank, store):
    """(logp, gradients, logp of ignored rows alone, its gradients) of one of two ranks.

    ``store`` is a file that does not exist yet, by which the ranks find each other.
    """
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        with mock.patch.dict(os.environ, MMRLHF_KERNELS="chunked"):
            return _outputs(rank)
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
