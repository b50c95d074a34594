"""The fused loss as a module is the function with its settings."""

import doctest
import inspect

import torch

from kernels_support import Pairs
from mmrlhf_kernels import FusedLinearMMDPOLoss, dynamic_beta, fused

SETTINGS = {
    "loss_type": "bco_pair", "label_smoothing": 0.1, "sft_weight": 0.25, "sft": "sequence",
    "reward_shift": 0.3, "softcap": 9.0, "logit_scale": 0.5, "ignore_index": 3,
}  # fmt: skip


def test_every_setting_and_operand_arrives():
    pairs = Pairs()
    margin = torch.tensor([-1.0, 0.5, 4.0], dtype=torch.float64)
    pairs.beta = dynamic_beta(margin, 0.2, 0.9, 0.7)
    step = {
        "tie": torch.tensor([False, True, False]), "pair_weight": margin.abs(), "num_pairs": 5,
        "num_tokens": 31, "index": torch.tensor([[0, 3], [4, 1], [2, 5]]),
    }  # fmt: skip
    wanted, gradients = pairs.fused(**SETTINGS, **step)
    module = FusedLinearMMDPOLoss(0.2, 0.9, 0.7, **SETTINGS)
    out = module(
        pairs.hidden, pairs.weight, pairs.target, *pairs.references, margin, bias=pairs.bias,
        cu_seqlens=pairs.cu_seqlens, pair_index=step.pop("index"), **step,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))
    found = torch.autograd.grad(2 * out.loss, pairs.leaves())
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_without_margins_every_pair_has_the_same_beta():
    pairs = Pairs()
    lengths = torch.arange(6).repeat_interleave(pairs.lengths)
    out = FusedLinearMMDPOLoss(0.3)(
        pairs.hidden, pairs.weight, pairs.target, *pairs.references, sequence_of_row=lengths
    )
    assert out.beta.tolist() == [0.3] * 3


def test_it_says_its_settings_and_has_nothing_to_save():
    module = FusedLinearMMDPOLoss(**SETTINGS)
    arguments = inspect.signature(FusedLinearMMDPOLoss).parameters
    assert all(f"{name}=" in repr(module) for name in arguments)
    assert "loss_type='bco_pair'" in repr(module)
    assert (list(module.parameters()), module.state_dict()) == ([], {})


def test_the_example_runs():
    found = doctest.testmod(fused, extraglobs={"torch": torch})
    assert (found.attempted, found.failed) == (7, 0)
