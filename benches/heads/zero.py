"""Six steps of a sharded model under DeepSpeed: ``torchrun --nproc-per-node=2 zero.py fused 3``.

The head is read inside the model's forward and its module is never called, so ZeRO-3 has to notice
the read. ``fused`` takes the gradients in forward, ``parts`` reads the weight again in backward.
Prints the mean loss over the processes, step by step; stages 1 and 3 must print the same.
"""

import argparse
import os
import sys

# Named before the import: without a GPU DeepSpeed would look for one and warn.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from torch import Tensor, nn

from mmrlhf_kernels import (
    fused_linear_logp,
    fused_linear_mm_dpo,
    mm_dpo_loss,
    sequence_of_row,
    sequence_sums,
)

VOCABULARY, HIDDEN, ROWS, STEPS = 300, 16, 9, 6
BOUNDS = torch.tensor([0, 4, ROWS])
ZERO, BETA = torch.zeros(1), torch.tensor([0.3])


class Model(nn.Module):
    """An embedding, a layer and a head, from tokens to the loss of one pair."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.body = nn.Linear(HIDDEN, HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
        """The loss of the rows [N]."""
        hidden, weight = self.body(self.embedding(tokens)).tanh(), self.lm_head.weight
        if self.loss == "fused":
            rest = (target, ZERO, ZERO, BETA)
            return fused_linear_mm_dpo(hidden, weight, *rest, cu_seqlens=BOUNDS).loss
        logp = fused_linear_logp(hidden, weight, target)
        assert isinstance(logp, Tensor)
        sums = sequence_sums(logp, sequence_of_row(BOUNDS, ROWS), 2)
        return mm_dpo_loss(sums[:1], sums[1:], ZERO, ZERO, BETA).loss


def main() -> int:
    """Train and print."""
    parser = argparse.ArgumentParser(description="a gathered head under DeepSpeed")
    parser.add_argument("loss", choices=["fused", "parts"])
    parser.add_argument("stage", type=int, choices=[1, 3])
    arguments = parser.parse_args()
    # Plain gloo will do, and compiling DeepSpeed's own reduction takes most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = Model(arguments.loss)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": arguments.stage,
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    source = torch.Generator().manual_seed(rank)
    tokens, target = torch.randint(VOCABULARY, (2, ROWS), generator=source)
    for _ in range(STEPS):
        loss = engine(tokens, target)
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone() / world
        torch.distributed.all_reduce(mean)
        if rank == 0:
            print(f"loss {float(mean):.6f}", flush=True)
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # DeepSpeed leaves threads of C++ behind, which may abort an interpreter that ends in order.
    os._exit(code)
