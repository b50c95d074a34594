"""What each process of the vocabulary-parallel test does; importable, so that it can be spawned."""

import torch
import torch.distributed as dist

from kernels_support import head_case
from mmrlhf_kernels import vocab_parallel_linear_logp

OPTIONS = {"softcap": 3.0, "logit_scale": 1.5}
SPLIT = 200  # of 521 rows: unequal shards


def shards():
    case = head_case(17, 8, 521, bias=True)
    case.target[[2, 9]] = -100
    return case


def work(rank, meeting, places):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        case = shards()
        own = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
        weight = case.weight.detach()[own].requires_grad_()
        bias = case.bias.detach()[own].requires_grad_()
        logp = vocab_parallel_linear_logp(
            case.hidden, weight, case.target, rank * SPLIT, bias=bias, workspace_bytes=1 << 12,
            **OPTIONS,
        )  # fmt: skip
        gradients = torch.autograd.grad(logp, [case.hidden, weight, bias], case.grad)
        nobody = torch.full_like(case.target, -100)
        empty = vocab_parallel_linear_logp(case.hidden, weight, nobody, rank * SPLIT, bias=bias)
        zeros = torch.autograd.grad(empty.sum(), [case.hidden, weight])
        torch.save((logp.detach(), gradients, empty.detach(), zeros), places[rank])
    finally:
        dist.destroy_process_group()
